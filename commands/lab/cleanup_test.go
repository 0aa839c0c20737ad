package lab

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// TestCleanupBesideBrokenDocker: a Docker that was killed has nothing, and one that answers
// nonsense is said, and the host is cleaned all the same.
func TestCleanupBesideBrokenDocker(t *testing.T) {
	h := bareHosts(t, 1).Hosts[0]
	const socket = "/var/lib/netctl-node/docker.sock"
	if err := os.MkdirAll(filepath.Dir(h.Path(socket)), 0o700); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, h.Path("/etc/netctl.yaml"), "node: n1\ndocker: {api: "+socket+"}\n")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.Path(socket), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	docker := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"message": "out of order"}`, http.StatusInternalServerError)
	})}
	ended := make(chan error, 1)
	go func() { ended <- docker.Serve(l) }()
	cleanup := func(options string) string {
		return netlab.Must(t, h, "sh", "-c", "netctl cleanup "+options+" 2>&1")
	}
	const table, warned = "nftables table inet netctl", "warning: "
	for _, broken := range []string{"out of order", ""} {
		netlab.Must(t, h, "nft", "add table inet netctl")
		for _, options := range []string{"--dry-run", ""} {
			out := cleanup(options)
			if !strings.Contains(out, table) || strings.Contains(out, warned) != (broken != "") || !strings.Contains(out, broken) {
				t.Errorf("Docker %q, cleanup %s:\n%s", broken, options, out)
			}
		}
		if left := netlab.Must(t, h, "nft", "list", "tables"); strings.Contains(left, "netctl") {
			t.Errorf("left: %s", left)
		}
		_ = docker.Close() // as if it were killed: the socket stays
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Fatal(err)
		}
		ended <- http.ErrServerClosed
	}
	if _, err := os.Stat(h.Path(socket)); err != nil {
		t.Error(err)
	}
}
