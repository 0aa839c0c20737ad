package commands

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"netctl/datastore/etcd"
)

// TestTwoStores: members that serve different datastores are said, wherever they are met.
func TestTwoStores(t *testing.T) {
	of := func(endpoint string, cluster uint64) etcd.EndpointHealth {
		return etcd.EndpointHealth{Endpoint: endpoint, Cluster: cluster}
	}
	for what, c := range map[string]struct {
		members []etcd.EndpointHealth
		own     uint64
		want    string // "": all is well
	}{
		"one cluster":               {[]etcd.EndpointHealth{of("a", 1), of("b", 1), of("c", 0)}, 1, ""},
		"nothing of its own":        {[]etcd.EndpointHealth{of("a", 1)}, 0, ""},
		"nobody answers":            {[]etcd.EndpointHealth{of("a", 0)}, 1, ""},
		"the majority came back":    {[]etcd.EndpointHealth{of("a", 0), of("b", 2), of("c", 1)}, 1, "b and c serve two different datastores: end the role"},
		"its own is the former one": {[]etcd.EndpointHealth{of("a", 2)}, 1, "the datastore that this node serves is another one than that of a: end the role"},
	} {
		got := apart(c.members, of("", c.own))
		if len(got) > 1 || (len(got) == 1) != (c.want != "") || c.want != "" && !strings.HasPrefix(got[0], c.want) {
			t.Errorf("%s: %q", what, got)
		}
	}
}

// TestFullDisk: a datastore whose disk is full is said by status, and by what cannot reach
// it; one with room, and a node without a datastore, say nothing of disks.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("must run as root: it mounts a disk, in a namespace of its own")
	}
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"--config", os.DevNull, "--state-dir", state, "--run-dir", filepath.Join(dir, "run")}
	run := func(command ...string) (int, string) {
		var out bytes.Buffer
		code := Main(append(append([]string{"netctl"}, command...), args...), strings.NewReader(""), &out, &out)
		return code, out.String()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends, and its namespace
		if err := syscall.Unshare(syscall.CLONE_FS | syscall.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		if err := syscall.Mount("disk", state, "tmpfs", 0, "size=8m"); err != nil {
			t.Error(err)
			return
		}
		full := "the disk of " + filepath.Join(state, "etcd") + " is full (0 MiB are free)"
		for _, x := range []struct {
			prepare func() error
			says    bool
		}{
			{func() error { return nil }, false},
			{func() error { return os.MkdirAll(filepath.Join(state, "etcd/member"), 0o700) }, false},
			{func() error { return os.WriteFile(filepath.Join(state, "x"), make([]byte, 7<<20+1<<19), 0o600) }, true},
		} {
			if err := x.prepare(); err != nil {
				t.Error(err)
				return
			}
			if code, text := run("status"); code != exitNo || strings.Contains(text, "! "+full) != x.says {
				t.Errorf("status, full %v: %d: %s", x.says, code, text)
			}
			if code, text := run("node", "show"); code != exitFailed || strings.Contains(text, "datastore role running on this node?: "+full) != x.says || strings.Count(text, "\n") != 1 {
				t.Errorf("node show, full %v: %d: %s", x.says, code, text)
			}
		}
	}()
	<-done
}
