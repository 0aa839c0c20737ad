package commands

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"netctl/commands/ui"
)

// TestUICommand serves the page of an API, and refuses what cannot be in one line.
func TestUICommand(t *testing.T) {
	r := startRig(t, 0)
	newPageCluster(t, r, 3, 6)
	address, token, ok := strings.Cut(pageURL(t, r.socket), "#token=")
	if !ok {
		t.Fatal(address)
	}
	ask := func(path, token string) (int, string) {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	for path, want := range map[string]string{"": "<!doctype html>", "v1/nodes": `"revision":`, "ui/run": `"silence":1260`, "ui/matrix": `"open":"tcp 5432"`, "ui/matrix?by=network": `"network":"net"`,
		"ui/pair?from=n0/cni/w0/eth0&to=n1/cni/w0/eth0": "profile db inbound: allow tcp from tag web to ports 5432"} {
		if code, text := ask(path, token); code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if code, text := ask("v1/nodes", ui.NewToken()); code != http.StatusUnauthorized {
		t.Errorf("another token: %d %s", code, text)
	}
	if code, text := ask("ui/pair?from=x&to=n1/cni/w0/eth0", token); code != http.StatusNotFound || !strings.Contains(text, `endpoint \"x\"`) {
		t.Errorf("an endpoint that is not there: %d %s", code, text)
	}
	r.stop()
	for _, path := range []string{"v1/nodes", "ui/matrix"} {
		if code, text := ask(path, token); code != http.StatusServiceUnavailable || !strings.Contains(text, "nobody listens there") {
			t.Errorf("%s without the API: %d %s", path, code, text)
		}
	}
	socket := "unix://" + r.socket
	refuse := func(want string, exit int, args ...string) {
		t.Helper()
		a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard}
		err := a.run(t.Context(), append([]string{"ui", "--server", socket}, args...))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || a.exitCode(err) != exit {
			t.Errorf("%q: %v, exit code %d", args, err, a.exitCode(err))
		}
	}
	refuse("is `netctl api` running", exitFailed, "--listen", "127.0.0.1:0")
	refuse("use ssh -L", exitUsage, "--listen", "0.0.0.0:7444")
	refuse("want an address and a port", exitUsage, "--listen", "7444")
	refuse("unexpected argument", exitUsage, "now")
	r.start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refuse("is taken: --listen 127.0.0.1:0", exitFailed, "--listen", l.Addr().String())
}
