package etcd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"netctl/datastore"
	"netctl/datastore/pki"
	"netctl/datastore/storetest"
	"netctl/netdev/netlab"
)

// TestExternal runs the suite on Debian's etcd, by the same settings.
func TestExternal(t *testing.T) {
	m := newMember(t)
	cmd, said := startExternal(t, m, 64<<20)
	o := m.secure(m.issue(t, pki.Node{Name: "client"}))
	s := open(t, o)
	eventually(t, func() error {
		_, err := s.ID(t.Context())
		return err
	})
	storetest.Run(t, func() datastore.Store {
		s := open(t, o)
		wipe(t, s)
		return s
	})
	if h := s.Health(t.Context()); h[0].Err != nil || !strings.HasPrefix(h[0].Version, "3.") || !h[0].Leader {
		t.Errorf("health: %+v", h[0])
	}
	watched := make(chan error, 1)
	rev := put(t, s, "a", "1")
	go func() {
		watched <- s.Watch(t.Context(), []string{datastore.Prefix}, rev-1, func(datastore.Batch) error { return nil })
	}()
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-watched; !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("watch ended with %v", err)
	}
	cmd.Wait()
	if t.Failed() {
		t.Log(said.String())
	}
}

// TestExternalFull: nobody compacts or clears alarms there; the error is clear.
func TestExternalFull(t *testing.T) {
	m := newMember(t)
	startExternal(t, m, 4<<20)
	s := open(t, m.secure(m.issue(t, pki.Node{Name: "client"})))
	eventually(t, func() error {
		_, err := s.ID(t.Context())
		return err
	})
	value := make([]byte, 256<<10)
	var err error
	for n := 0; err == nil && n < 100; n++ {
		_, err = s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: fmt.Sprintf("%sfull/%03d", datastore.Prefix, n), Value: value}}})
	}
	if !errors.Is(err, datastore.ErrFull) || !strings.Contains(err.Error(), "disarm the alarm") {
		t.Fatal(err)
	}
}

// startExternal starts Debian's etcd (package etcd-server) with m's certificates.
func startExternal(t *testing.T, m *member, quota int64, options ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	said := &bytes.Buffer{}
	cmd := exec.Command("/usr/bin/etcd", append([]string{
		"--name=external", "--data-dir=" + m.config.Dir,
		"--listen-client-urls=" + m.url, "--advertise-client-urls=" + m.url,
		"--listen-peer-urls=" + m.config.PeerURL, "--initial-advertise-peer-urls=" + m.config.PeerURL,
		"--initial-cluster=external=" + m.config.PeerURL,
		"--client-cert-auth", "--trusted-ca-file=" + m.config.CA, "--cert-file=" + m.config.Cert, "--key-file=" + m.config.Key,
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + m.config.CA, "--peer-cert-file=" + m.config.Cert, "--peer-key-file=" + m.config.Key,
		fmt.Sprintf("--quota-backend-bytes=%d", quota),
	}, options...)...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (Debian package etcd-server)", err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, said
}

// TestCloseLeavesNothing counts goroutines of grpc; the server is a process.
func TestCloseLeavesNothing(t *testing.T) {
	m := newMember(t)
	startExternal(t, m, 64<<20)
	o := m.secure(m.issue(t, pki.Node{Name: "client"}))
	o.Endpoints = append(o.Endpoints, "https://"+netlab.FreeAddress(t))
	for range 3 {
		s := open(t, o)
		eventually(t, func() error {
			_, err := s.ID(t.Context())
			return err
		})
		watched := make(chan error, 1)
		seen := make(chan struct{}, 10)
		rev := put(t, s, "a", "1")
		go func() {
			watched <- s.Watch(t.Context(), []string{datastore.Prefix}, rev-1, func(datastore.Batch) error { seen <- struct{}{}; return nil })
		}()
		<-seen
		s.Health(t.Context())
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		<-watched
	}
	eventually(t, func() error {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if n := bytes.Count(stacks, []byte("google.golang.org/grpc")); n > 0 {
			return fmt.Errorf("%d frames of grpc left:\n%s", n, stacks)
		}
		return nil
	})
}
