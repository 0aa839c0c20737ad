package embed_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/embed"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// TestRefuses tries every way in without a certificate: another user on the
// socket, and a process of the host network on both TCP ports.
func TestRefuses(t *testing.T) {
	c := config(t)
	client := netlab.FreeAddress(t)
	c.ListenTLS = []string{"https://" + client}
	run(t, c)
	peer := strings.TrimPrefix(c.PeerURL, "https://")
	if err := os.Chmod(filepath.Dir(filepath.Dir(c.Socket)), 0o755); err != nil {
		t.Fatal(err)
	}
	asUser(t, 65534, func() {
		if conn, err := net.Dial("unix", c.Socket); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("uid 65534 at the socket: %v, %v", conn, err)
		}
	})
	// The socket itself is closed too, should its folder ever be open.
	if err := os.Chmod(filepath.Dir(c.Socket), 0o755); err != nil {
		t.Fatal(err)
	}
	asUser(t, 65534, func() {
		if conn, err := net.Dial("unix", c.Socket); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("uid 65534 at the socket in an open folder: %v, %v", conn, err)
		}
	})
	for _, address := range []string{client, peer} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if err := speak(address, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}); !refused(err) {
				t.Errorf("%s without a certificate: %v", address, err)
			}
			if err := speak(address, stranger(t, version)); !refused(err) {
				t.Errorf("%s with a stranger's certificate: %v", address, err)
			}
			if err := speak(address, member(t, c, version)); err != nil {
				t.Errorf("%s with the cluster's certificate: %v", address, err)
			}
		}
		old := member(t, c, tls.VersionTLS11)
		if err := speak(address, old); err == nil {
			t.Errorf("%s speaks TLS 1.1", address)
		}
		r, err := http.Get("http://" + address + "/version")
		if err == nil && r.StatusCode == http.StatusOK {
			t.Errorf("%s answers plain HTTP", address)
		}
	}
	if abstract := listeners(t, "@"); len(abstract) > 0 {
		t.Errorf("abstract sockets: %q", abstract)
	}
}

// TestRefusesUsersOfTheAPI: a certificate for the API opens nothing here, whatever else it says.
func TestRefusesUsersOfTheAPI(t *testing.T) {
	c := config(t)
	client := netlab.FreeAddress(t)
	c.ListenTLS = []string{"https://" + client}
	run(t, c)
	ca, err := pki.Open(filepath.Dir(c.CA))
	if err != nil {
		t.Fatal(err)
	}
	for name, role := range map[string]string{"boss": datastore.APIAdmin.Organisation(), "strange": "netctl api everything"} {
		files, err := ca.Issue(filepath.Dir(c.CA), pki.Node{Name: name, Use: pki.UseClient, Role: role})
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, etcd.Options{Endpoints: c.ListenTLS, CA: files.CA, Cert: files.Cert, Key: files.Key})
		if _, err := s.List(t.Context(), datastore.Prefix); !errors.Is(err, datastore.ErrDenied) || !strings.Contains(err.Error(), "is for the API") {
			t.Errorf("%s reads: %v", name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err = s.Watch(ctx, []string{datastore.Prefix}, 1, func(datastore.Batch) error { return nil })
		cancel()
		if !errors.Is(err, datastore.ErrDenied) {
			t.Errorf("%s watches: %v", name, err)
		}
	}
}

// refused reports whether the server's alert ended the connection.
func refused(err error) bool {
	return err != nil && strings.Contains(err.Error(), "remote error: tls:")
}

// speak makes a TLS connection and waits for what the server says: with TLS 1.3
// a refusal comes after the handshake.
func speak(address string, conf *tls.Config) error {
	conf.NextProtos = []string{"h2", "http/1.1"}
	conn, err := tls.Dial("tcp", address, conf)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	} else {
		conn.Write([]byte("GET /version HTTP/1.1\r\nHost: x\r\n\r\n"))
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func stranger(t *testing.T, version uint16) *tls.Config {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(dir, pki.Node{Name: "stranger"})
	if err != nil {
		t.Fatal(err)
	}
	return with(t, files.Cert, files.Key, version)
}

func member(t *testing.T, c embed.Config, version uint16) *tls.Config {
	t.Helper()
	conf := with(t, c.Cert, c.Key, version)
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	conf.RootCAs = x509.NewCertPool()
	conf.RootCAs.AppendCertsFromPEM(pem)
	conf.InsecureSkipVerify = false
	return conf
}

func with(t *testing.T, cert, key string, version uint16) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		InsecureSkipVerify: true, MinVersion: version, MaxVersion: version,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
	}
}

// listeners are the listening unix sockets of this process with that prefix.
func listeners(t *testing.T, prefix string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]bool{}
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil {
			if inode, ok := strings.CutPrefix(to, "socket:["); ok {
				ours[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	var out []string
	for line := range bytes.Lines(text) {
		const listening = "00010000" // __SO_ACCEPTCON
		f := strings.Fields(string(line))
		if len(f) == 8 && f[3] == listening && ours[f[6]] && strings.HasPrefix(f[7], prefix) {
			out = append(out, f[7])
		}
	}
	return out
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

func TestConfig(t *testing.T) {
	good := config(t)
	for _, c := range []struct {
		change func(*embed.Config)
		want   string
	}{
		{func(c *embed.Config) { c.Name = "" }, "no name"},
		{func(c *embed.Config) { c.Dir = "etcd" }, "absolute"},
		{func(c *embed.Config) { c.ListenTLS = []string{"http://127.0.0.1:2379"} }, "http://127.0.0.1:2379"},
		{func(c *embed.Config) { c.PeerURL = "unix:///run/peer.sock" }, "unix:///run/peer.sock"},
		{func(c *embed.Config) { c.PeerURL = "http://127.0.0.1:2380" }, "http://127.0.0.1:2380"},
		{func(c *embed.Config) { c.QuotaBytes = 1 << 20 }, "quota of 1048576"},
		{func(c *embed.Config) { c.Key = "/none" }, "/none"},
		{func(c *embed.Config) { c.Socket = filepath.Join(os.TempDir(), "etcd.sock") }, "open to others"},
		{func(c *embed.Config) { c.Members = []string{"a=https://127.0.0.1:1", "b=https://127.0.0.1:2"} }, "token"},
	} {
		bad := good
		c.change(&bad)
		if err := embed.Run(t.Context(), bad, nil); !errors.Is(err, datastore.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	if err := os.MkdirAll(filepath.Dir(good.Socket), 0o700); err != nil {
		t.Fatal(err)
	}
	file := good
	file.Socket += ".file"
	if err := os.WriteFile(file.Socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := embed.Run(t.Context(), file, nil); !errors.Is(err, datastore.ErrExists) {
		t.Errorf("a file where the socket should be: %v", err)
	}
	taken := good
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken.PeerURL = "https://" + l.Addr().String()
	if err := embed.Run(t.Context(), taken, nil); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("port taken: %v", err)
	}
}
