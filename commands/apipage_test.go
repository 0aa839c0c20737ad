package commands

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// TestAPIPage runs the commands of docs/api.md one after the other, against an API on
// both kinds of sockets and a real etcd.
func TestAPIPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "page") // a socket's name has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	run := filepath.Join(dir, "run")
	stop, err := startEtcd(filepath.Join(dir, "etcd"), filepath.Join(run, "etcd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	ca, err := pki.Create(filepath.Join(dir, "tls"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(filepath.Join(dir, "tls"), pki.Node{Name: "slave", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Use: pki.UseServer})
	if err != nil {
		t.Fatal(err)
	}
	url, config := "https://"+netlab.FreeAddress(t), filepath.Join(dir, "netctl.yaml")
	text := "node: slave\nstateDir: " + filepath.Join(dir, "state") + "\nrunDir: " + run +
		"\napi: {listen: ['" + url + "']}\netcd: {tls: {ca: " + files.CA + ", cert: " + files.Cert + ", key: " + files.Key + "}}\n" // as on a member
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"netctl", "netctl-api"} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "granted")
	if err := os.MkdirAll(out, 0o700); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "NETCTL_CONFIG="+config, "SOCKET="+filepath.Join(run, "api.sock"), "URL="+url, "DIR="+out)
	end, err := apiProcess(filepath.Join(bin, "netctl-api"), config, filepath.Join(run, "api.sock"), env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)

	script := []string{"set -eu; trap 'echo failed: $BASH_COMMAND >&2' ERR"}
	for line := range strings.Lines(string(page)) {
		command, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "    ")
		if !ok {
			continue
		}
		switch word, _, _ := strings.Cut(command, " "); word {
		case "curl":
			// What is refused is JSON with an error, whatever curl says.
			script = append(script, `said=$(`+command+`); case $said in *'"error"'*) echo "$said" >&2; false;; esac`)
		case "netctl", "export", "timeout":
			script = append(script, command)
		}
	}
	if len(script) < 25 {
		t.Fatalf("only %d commands found", len(script))
	}
	c := exec.CommandContext(t.Context(), "bash", "-c", strings.Join(script, "\n"))
	c.Env = env
	if said, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, said)
	}

	// A datastore that was made anew has no record of a certificate.
	store, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"unix://" + filepath.Join(run, "etcd.sock")}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	forget := datastore.Txn{Then: []datastore.Op{{Key: datastore.APIUserPrefix + "alice"}}}
	if _, err := store.Commit(t.Context(), forget); err != nil {
		t.Fatal(err)
	}
	c = exec.CommandContext(t.Context(), "bash", "-c", "curl -sS --cacert $DIR/ca.crt --cert $DIR/alice.crt --key $DIR/alice.key $URL/v1")
	c.Env = env
	if said, err := c.CombinedOutput(); err != nil || !strings.Contains(string(said), "the certificate of alice is not on record") || strings.Count(string(said), "\n") != 1 {
		t.Errorf("%v: %s", err, said)
	}
}
