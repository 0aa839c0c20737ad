package etcd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// TestReasons holds what the error says against what is wrong, and that it is
// never just a deadline.
func TestReasons(t *testing.T) {
	m := newMember(t)
	m.start(t)
	good := m.issue(t, pki.Node{Name: "client"})
	expired := m.issue(t, pki.Node{Name: "old", NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})
	stranger := newAuthority(t)
	other, err := stranger.ca.Issue(stranger.dir, pki.Node{Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	// Signed by another authority, but knows ours.
	wrongCert := etcd.Options{Endpoints: []string{m.url}, CA: good.CA, Cert: other.Cert, Key: other.Key}
	elsewhere := newMember(t)
	elsewhere.config.CA, elsewhere.ca, elsewhere.tls = m.config.CA, m.ca, m.tls
	noSAN := m.issue(t, pki.Node{Name: "nosan", Hosts: []string{"somewhere.else"}, Addresses: []netip.Addr{}})
	elsewhere.config.Cert, elsewhere.config.Key = noSAN.Cert, noSAN.Key
	elsewhere.start(t)
	expiredServer := newMember(t)
	expiredServer.config.CA, expiredServer.config.Cert, expiredServer.config.Key = expired.CA, expired.Cert, expired.Key
	expiredServer.start(t)
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	if l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale}); err != nil {
		t.Fatal(err)
	} else {
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	for _, c := range []struct {
		name string
		o    etcd.Options
		want string
	}{
		{"socket missing", etcd.Options{Endpoints: []string{"unix://" + dir + "/none.sock"}}, "socket missing"},
		{"socket stale", etcd.Options{Endpoints: []string{"unix://" + stale}}, "nobody listens"},
		{"refused", withEndpoint(m.secure(good), "https://"+netlab.FreeAddress(t)), "connection refused"},
		{"wrong ca", etcd.Options{Endpoints: []string{m.url}, CA: other.CA, Cert: good.Cert, Key: good.Key}, "not signed by our ca " + other.CA},
		{"wrong client certificate", wrongCert, "refuses our certificate " + other.Cert},
		{"expired client certificate", m.secure(expired), "our certificate " + expired.Cert + " is expired"},
		{"other address", withEndpoint(m.secure(good), elsewhere.url), "for another address"},
		{"expired server certificate", withEndpoint(m.secure(good), expiredServer.url), "its certificate is expired"},
		{"plain", withEndpoint(m.secure(good), "https://"+serve(t, func(c net.Conn) { io.WriteString(c, "220 mail\r\n") })), "does not speak TLS"},
		{"silent", withEndpoint(m.secure(good), "https://"+serve(t, func(c net.Conn) { io.Copy(io.Discard, c) })), "does not answer (overloaded, stopped,"},
		{"closes", withEndpoint(m.secure(good), "https://"+serve(t, func(net.Conn) {})), "closes the connection"},
		{"no etcd", etcd.Options{Endpoints: []string{"unix://" + serveUnix(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, 24)) // an unread preface would reset the connection
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			io.Copy(io.Discard, c)
		})}}, "is no etcd"},
		{"gone and back", etcd.Options{Endpoints: []string{"unix://" + serveUnix(t, func(c net.Conn) {
			io.ReadFull(c, make([]byte, 24))
			io.WriteString(c, "\x00\x00\x00\x04\x00\x00\x00\x00\x00") // RFC 9113, section 6.5: enough to seem well
		})}}, "broke; it answers again"},
		{"no ca", etcd.Options{Endpoints: []string{m.url}, CA: dir + "/none", Cert: good.Cert, Key: good.Key}, dir + "/none: no such file"},
		{"ca is none", etcd.Options{Endpoints: []string{m.url}, CA: good.Key, Cert: good.Cert, Key: good.Key}, "our ca " + good.Key + " holds no PEM certificate"},
		{"no certificate", etcd.Options{Endpoints: []string{m.url}, CA: good.CA, Cert: dir + "/none", Key: good.Key}, dir + "/none: no such file"},
		{"another's key", etcd.Options{Endpoints: []string{m.url}, CA: good.CA, Cert: good.Cert, Key: other.Key}, "with key " + other.Key + " cannot be used"},
		{"peer port", withEndpoint(m.secure(good), m.config.PeerURL), "no etcd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.o.DialTimeout = time.Second
			s := open(t, c.o)
			_, err := s.Get(t.Context(), datastore.Prefix+"a")
			if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.o.Endpoints[0]) {
				t.Errorf("get: %v\nwant %q and %s", err, c.want, c.o.Endpoints[0])
			}
			if raw(err) {
				t.Errorf("get: %v", err)
			}
			err = s.Watch(t.Context(), []string{datastore.Prefix}, 1, func(datastore.Batch) error { return nil })
			if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("watch: %v", err)
			}
			if raw(err) {
				t.Errorf("watch: %v", err)
			}
			// A caller in a hurry learns the reason too.
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if _, err = s.Commit(ctx, datastore.Txn{}); !errors.Is(err, datastore.ErrUnavailable) || raw(err) {
				t.Errorf("commit: %v", err)
			}
			h := s.Health(t.Context())
			for _, err := range []error{err, h[0].Err} {
				if err != nil && strings.Count(err.Error(), c.o.Endpoints[0]) != 1 {
					t.Errorf("names the endpoint more than once: %v", err)
				}
			}
			if h[0].Err == nil || !strings.Contains(h[0].Err.Error(), c.want) {
				t.Errorf("health: %v", h[0].Err)
			}
		})
	}
}

// TestReasonOfEach: of several endpoints each has its own reason, where one of them takes
// calls and answers none: a member without a majority.
func TestReasonOfEach(t *testing.T) {
	m := newMember(t)
	pair, err := tls.LoadX509KeyPair(m.config.Cert, m.config.Key)
	if err != nil {
		t.Fatal(err)
	}
	silent := "https://" + serve(t, func(c net.Conn) {
		c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}})
		io.ReadFull(c, make([]byte, 24))
		io.WriteString(c, "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
		io.Copy(io.Discard, c)
	})
	gone := "https://" + netlab.FreeAddress(t)
	o := withEndpoint(m.secure(m.issue(t, pki.Node{Name: "client"})), gone)
	o.Endpoints, o.DialTimeout = append(o.Endpoints, silent), time.Second
	s := open(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = s.Get(ctx, datastore.Prefix+"a")
	if want := gone + ": connection refused: nothing listens there; " + silent + ": accepts connections, but does not answer ("; !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v\nwant %s", err, want)
	}
}

// TestOneDeadline: a call to a datastore that hangs ends when its time is over, with
// the reason, and so does one of a caller who has less time.
func TestOneDeadline(t *testing.T) {
	o := etcd.Options{Endpoints: []string{"unix://" + serveUnix(t, func(c net.Conn) { io.Copy(io.Discard, c) })}}
	const want = "accepts connections, but does not answer (overloaded, stopped, or without a majority of its members)"
	for _, limit := range []time.Duration{0, 2 * time.Second, 5 * time.Second} {
		t.Run(limit.String(), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			late := time.NewTimer(8 * time.Second) // a read has five, and the parts of it had nine together
			if limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
			}
			_, err := open(t, o).Get(ctx, datastore.Prefix+"a")
			if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), o.Endpoints[0]+": "+want) {
				t.Errorf("got %v", err)
			}
			if !late.Stop() {
				t.Error("it took longer than its time")
			}
		})
	}
}

// TestNoProxy: the variables that name a proxy for the way out of the network do not
// count on the way to the datastore. They are read once in a process, which therefore
// is one of its own.
func TestNoProxy(t *testing.T) {
	const endpoint = "https://192.0.2.1:2379" // RFC 5737: nobody has it; to loopback there is no proxy
	if os.Getenv("NETCTL_TEST_PROXY") != "" {
		m := newMember(t)
		o := withEndpoint(m.secure(m.issue(t, pki.Node{Name: "client"})), endpoint)
		o.DialTimeout = time.Second
		if _, err := open(t, o).Get(t.Context(), datastore.Prefix+"a"); !errors.Is(err, datastore.ErrUnavailable) {
			t.Error(err)
		}
		return
	}
	var asked atomic.Int64
	proxy := "http://" + serve(t, func(net.Conn) { asked.Add(1) })
	self := exec.Command(os.Args[0], "-test.run=^TestNoProxy$", "-test.v")
	self.Env = append(os.Environ(), "NETCTL_TEST_PROXY=1", "HTTPS_PROXY="+proxy, "https_proxy="+proxy, "ALL_PROXY="+proxy, "NO_PROXY=", "no_proxy=")
	if out, err := self.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestNoProxy") {
		t.Fatalf("%v\n%s", err, out)
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}

// raw says whether an error shows what grpc says.
func raw(err error) bool {
	for _, word := range []string{"rpc error", "transport", "desc =", "connection error"} {
		if strings.Contains(err.Error(), word) {
			return true
		}
	}
	return false
}

func withEndpoint(o etcd.Options, endpoint string) etcd.Options {
	o.Endpoints = []string{endpoint}
	return o
}

type authority struct {
	ca  *pki.Authority
	dir string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	return authority{ca, dir}
}

// serve answers every TCP connection with fn and closes it.
func serve(t *testing.T, fn func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accept(t, l, fn)
	return l.Addr().String()
}

func serveUnix(t *testing.T, fn func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s.sock"))
	if err != nil {
		t.Fatal(err)
	}
	accept(t, l, fn)
	return l.Addr().String()
}

func accept(t *testing.T, l net.Listener, fn func(net.Conn)) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fn(c)
			}()
		}
	}()
}

func TestPermissionDenied(t *testing.T) {
	m := newMember(t)
	m.start(t)
	// Everything above the socket's folder may be entered.
	for dir := filepath.Dir(filepath.Dir(m.config.Socket)); strings.HasPrefix(dir, filepath.Join(os.TempDir(), "Test")); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	asUser(t, 65534, func() {
		conn, err := net.Dial("unix", m.config.Socket)
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("uid 65534 at the socket: %v, %v", conn, err)
		}
		if said := etcd.DialReason(err, true); !strings.Contains(said.Error(), "permission denied") {
			t.Errorf("said as %v", said)
		}
	})
	if conn, err := net.Dial("unix", m.config.Socket); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
}

// asUser runs fn on a thread of another user's.
func asUser(t *testing.T, uid int, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			t.Error(errno)
			return
		}
		fn()
	}()
	<-done
}

// TestFilesThatComeLater: a store that was opened without its files is followed once
// they are there, without being opened again.
func TestFilesThatComeLater(t *testing.T) {
	m := newMember(t)
	m.start(t)
	put(t, open(t, m.unix()), "a", "1")
	good := m.issue(t, pki.Node{Name: "client"})
	dir := t.TempDir()
	later := pki.In(dir, "client")
	s := open(t, m.secure(later))
	unused := open(t, m.secure(later))
	f := &copier{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- datastore.Follow(ctx, s, nil, nil, f) }()
	defer func() { cancel(); <-ended }()
	lost := func(want bool) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.lost != want || (len(f.have) == 0) != want {
			return fmt.Errorf("lost is %v with %v", f.lost, f.have)
		}
		return nil
	}
	eventually(t, func() error { return lost(true) })
	for _, file := range [][2]string{{good.CA, later.CA}, {good.Cert, later.Cert}, {good.Key, later.Key}} {
		if _, err := s.Get(t.Context(), datastore.Prefix+"a"); !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), file[1]) {
			t.Errorf("without %s: %v", file[1], err)
		}
		text, err := os.ReadFile(file[0])
		if err == nil {
			err = os.WriteFile(file[1], text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() error { return lost(false) })
	for range 2 {
		if err := unused.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := unused.ID(t.Context()); !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "closed") {
		t.Errorf("closed: %v", err)
	}
}

func TestOptions(t *testing.T) {
	a := newAuthority(t)
	f, err := a.ca.Issue(a.dir, pki.Node{Name: "client"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		o    etcd.Options
		want string
	}{
		{etcd.Options{Endpoints: []string{"http://127.0.0.1:2379"}}, "plain http"},
		{etcd.Options{Endpoints: []string{"127.0.0.1:2379"}}, "127.0.0.1:2379"},
		{etcd.Options{Endpoints: []string{"unix://run/x.sock"}}, "unix://run/x.sock"},
		{etcd.Options{Endpoints: []string{"unix:///a", "https://127.0.0.1:1"}}, "one unix socket or"},
		{etcd.Options{Endpoints: []string{"https://127.0.0.1:1", "unix:///a"}}, "one unix socket or"},
		{etcd.Options{Endpoints: []string{"https://127.0.0.1"}}, "https://127.0.0.1"},
		{etcd.Options{Endpoints: []string{"https://127.0.0.1:1"}}, "needs ca, cert and key"},
		{etcd.Options{Endpoints: []string{"unix:///a"}, CA: f.CA, Cert: f.Cert, Key: f.Key}, "takes no ca"},
	} {
		if _, err := etcd.Open(t.Context(), c.o); !errors.Is(err, datastore.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

// TestUnrepeated: what a member refuses names the key once.
func TestUnrepeated(t *testing.T) {
	for _, c := range []struct{ what, said, want string }{
		{"write /netctl/v1/pools/a", "write /netctl/v1/pools/a: not allowed: node n1 has its own rights", "not allowed: node n1 has its own rights"},
		{"list /netctl/v1/", "read /netctl/v1/: not allowed", "not allowed"},
		{"write /netctl/v1/pools/a", "write /netctl/v1/pools/b: not allowed", "write /netctl/v1/pools/b: not allowed"},
		{"watch", "no certificate: not allowed", "no certificate: not allowed"},
	} {
		if got := etcd.Unrepeated(c.what, c.said); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}
