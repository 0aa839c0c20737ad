package docker

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

const patience = 90 * time.Second

// site is a lab of nodes with Docker and our driver on each.
type site struct {
	*testing.T
	lab     *netlab.Lab
	plugins map[*netlab.Host]*netlab.Process
	dockers map[*netlab.Host]*netlab.Process
}

func newSite(t *testing.T, cfg lab.Config) *site {
	t.Helper()
	cfg.Dir, cfg.Binary, cfg.OneProcess = filepath.Join(t.TempDir(), "lab"), netlab.Binary(t), true
	l, err := lab.Up(t.Context(), cfg, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{T: t, lab: l, plugins: map[*netlab.Host]*netlab.Process{}, dockers: map[*netlab.Host]*netlab.Process{}}
	t.Cleanup(func() {
		if t.Failed() {
			s.logs()
		}
		if err := l.Remove(); err != nil {
			t.Error(err)
		}
	})
	image := busybox(t)
	for _, h := range l.Hosts {
		netlab.Must(t, h, "sh", "-c", "mkdir -p /run/docker && mount -t tmpfs none /run/docker")
		s.startPlugin(h)
		s.startDocker(h)
		t.Cleanup(func() { s.stopDocker(h) })
		s.docker(h, "import", "-c", `CMD ["/bin/sleep","100000"]`, "-c", "ENV PATH=/bin", image, "bb:1")
	}
	return s
}

func (s *site) logs() {
	for _, h := range s.lab.Hosts {
		log, _ := os.ReadFile(h.Path("/log/netctl.log"))
		if len(log) > 6000 {
			log = log[len(log)-6000:]
		}
		s.Logf("--- plugin on %s ---\n%s\n--- roles ---\n%s", h.Name, s.plugins[h].Output(), log)
		if out := s.dockers[h].Output(); len(out) > 3000 {
			s.Logf("--- dockerd ---\n%s", out[len(out)-3000:])
		}
	}
}

// busybox is an image's file system in a tar file: busybox under the names of what tests
// run.
func busybox(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("busybox (apt-get install --no-install-recommends busybox-static): %v", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, text []byte) {
		h.Size = int64(len(text))
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = w.Write(text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "proc/", "sys/", "dev/", "tmp/", "etc/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, name := range []string{"sh", "sleep", "ping", "ip", "cat", "nc", "httpd", "printf", "true", "grep"} {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "etc/hello", Mode: 0o644}, []byte("hello\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bb.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (s *site) startPlugin(h *netlab.Host) {
	s.Helper()
	p, err := h.Start("netctl-docker", netlab.Cmd{Args: []string{"netctl", "docker", "--config", "/etc/netctl.yaml"}})
	if err != nil {
		s.Fatal(err)
	}
	s.plugins[h] = p
	netlab.Until(s, patience, "plugin on "+h.Name, func() string {
		if _, failed := netlab.Try(s, h, "test", "-S", DefaultSocket); failed != nil {
			return failed.Error()
		}
		return ""
	})
}

func (s *site) startDocker(h *netlab.Host) {
	s.Helper()
	const script = `rm -f /run/docker/pid /run/docker/run/containerd/containerd.pid; exec dockerd --data-root /run/docker/lib --exec-root /run/docker/run --pidfile /run/docker/pid -H unix:///run/docker.sock`
	p, err := h.Start("dockerd", netlab.Cmd{Args: []string{"sh", "-c", script}})
	if err != nil {
		s.Fatal(err)
	}
	s.dockers[h] = p
	netlab.Until(s, patience, "Docker on "+h.Name, func() string {
		select {
		case <-p.Done():
			s.Fatalf("dockerd (apt-get install --no-install-recommends docker.io) ended:\n%s", p.Output())
		default:
		}
		if _, failed := netlab.Try(s, h, "docker", "-H", "unix:///run/docker.sock", "version"); failed != nil {
			return failed.Error()
		}
		return ""
	})
}

// stopDocker ends the containers, too.
func (s *site) stopDocker(h *netlab.Host) {
	for _, p := range []*netlab.Process{s.dockers[h], s.plugins[h]} {
		if err := p.Stop(); err != nil {
			s.Log(err)
		}
	}
}

// kill ends a process without a word, and waits for that.
func (s *site) kill(p *netlab.Process) {
	s.Helper()
	if err := p.Signal(unix.SIGKILL); err != nil {
		s.Fatal(err)
	}
	<-p.Done()
}

func (s *site) docker(h *netlab.Host, args ...string) string {
	s.Helper()
	return strings.TrimSpace(netlab.Must(s, h, append([]string{"docker", "-H", "unix:///run/docker.sock"}, args...)...))
}

func (s *site) tryDocker(h *netlab.Host, args ...string) (string, *netlab.ExecError) {
	s.Helper()
	return netlab.Try(s, h, append([]string{"docker", "-H", "unix:///run/docker.sock"}, args...)...)
}

func (s *site) address(h *netlab.Host, container, network string) netip.Addr {
	s.Helper()
	text := s.docker(h, "inspect", "-f", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), container)
	a, err := netip.ParseAddr(text)
	if err != nil {
		s.Fatalf("%s has in %s: %v", container, network, err)
	}
	return a
}

// reaches waits until a container can ping an address, across so many routers.
func (s *site) reaches(h *netlab.Host, container string, to netip.Addr, ttl int) {
	s.Helper()
	netlab.Until(s, patience, container+" to "+to.String(), func() string {
		out, failed := s.tryDocker(h, "exec", container, "ping", "-c1", "-W1", to.String())
		if failed != nil || !strings.Contains(out, fmt.Sprintf("ttl=%d ", ttl)) {
			return fmt.Sprint(out, failed)
		}
		return ""
	})
}

// denied wants that it cannot, and that the pings are refused by the rules.
func (s *site) denied(h *netlab.Host, container string, to netip.Addr) {
	s.Helper()
	if out, failed := s.tryDocker(h, "exec", container, "ping", "-c2", "-W1", to.String()); failed == nil {
		s.Errorf("%s reaches %s:\n%s", container, to, out)
	}
}

// fetch gets a file from a web server by a port of a host.
func fetch(at netip.AddrPort) string {
	return fmt.Sprintf(`printf 'GET /hello HTTP/1.0\r\n\r\n' | nc -w 3 %s %d | grep hello`, at.Addr(), at.Port())
}

// endpoints are as the cluster has them, by the names of containers.
func (s *site) endpoints() string {
	s.Helper()
	return netlab.Must(s, s.lab.Hosts[0], "netctl", "get", "endpoints", "-o", "yaml")
}

// wantNothing waits until a host has nothing left of any endpoint.
func (s *site) wantNothing(h *netlab.Host) {
	s.Helper()
	netlab.Until(s, patience, "nothing left on "+h.Name, func() string {
		left := ""
		if eps := s.endpoints(); strings.Contains(eps, "node: "+h.Name+"\n") {
			left += eps
		}
		for line := range strings.Lines(netlab.Must(s, h, "ip", "-br", "link")) {
			if strings.HasPrefix(line, "nc") || strings.HasPrefix(line, "np") {
				left += line
			}
		}
		if rules := netlab.Must(s, h, "nft", "list", "table", "inet", "netctl"); strings.Contains(rules, "chain ports_") {
			left += rules
		}
		files, err := filepath.Glob(h.Path("/run/netctl-node/docker*/*.json"))
		if err != nil || len(files) > 0 {
			left += fmt.Sprint(files, err)
		}
		return left
	})
	if out, failed := netlab.Try(s, h, "netctl", "ipam", "check"); failed != nil {
		s.Errorf("ipam check: %s%v", out, failed)
	}
}

// TestDocuments is the documents' demo with the real Docker on two nodes, by their own
// commands: three networks, isolation, calls that a rule allows, a published port, and
// deaths of everything.
func TestDocuments(t *testing.T) {
	s := newSite(t, lab.Config{Nodes: 2})
	slave1, slave2 := s.lab.Hosts[0], s.lab.Hosts[1]
	netlab.Must(t, slave1, "netctl", "pool", "add", "10.0.0.0/26")
	netlab.Must(t, slave1, "netctl", "pool", "add", "192.168.0.0/16")
	for _, h := range s.lab.Hosts {
		for _, name := range []string{"app-A", "dataman", "app-B"} {
			s.docker(h, "network", "create", "--driver", "calico", "--ipam-driver", "calico", name)
		}
	}
	netlab.Until(t, patience, "profiles", func() string {
		out := netlab.Must(t, slave2, "netctl", "profile", "show")
		for _, name := range []string{"app-A", "dataman", "app-B"} {
			if !strings.Contains(out, name) {
				return out
			}
		}
		return ""
	})
	netlab.Must(t, slave1, "netctl", "profile", "dataman", "rule", "add", "inbound", "--at=1", "allow", "from", "tag", "app-A")
	netlab.Must(t, slave1, "netctl", "profile", "dataman", "rule", "add", "inbound", "--at=1", "allow", "from", "tag", "app-B")
	const rules = "Inbound rules:\n   1 allow from tag app-B\n   2 allow from tag app-A\n   3 allow from tag dataman\nOutbound rules:\n   1 allow\n"
	if out := netlab.Must(t, slave1, "netctl", "profile", "dataman", "rule", "show"); out != rules {
		t.Errorf("rules of dataman:\n%s", out)
	}
	s.docker(slave1, "run", "-d", "--stop-signal", "KILL", "--net", "dataman", "--name", "d1", "bb:1")
	s.docker(slave2, "run", "-d", "--stop-signal", "KILL", "--net", "dataman", "--name", "d2", "--label", "tier=data", "bb:1")
	s.docker(slave1, "run", "-d", "--stop-signal", "KILL", "--net", "app-A", "--name", "a1", "bb:1")
	s.docker(slave2, "run", "-d", "--stop-signal", "KILL", "--net", "app-B", "--name", "b2", "bb:1")
	d1, d2, b2 := s.address(slave1, "d1", "dataman"), s.address(slave2, "d2", "dataman"), s.address(slave2, "b2", "app-B")
	if small := netip.MustParsePrefix("10.0.0.0/26"); !small.Contains(d1) || small.Contains(d2) {
		t.Errorf("d1 has %s and d2 %s: the small pool is one block", d1, d2)
	}
	if out := s.docker(slave1, "exec", "d1", "ip", "route"); out != "default via 169.254.1.1 dev eth0 \n169.254.1.1 dev eth0 scope link" {
		t.Errorf("routes in a container:\n%s", out)
	}
	s.reaches(slave1, "d1", d2, 62)
	s.reaches(slave2, "d2", d1, 62)
	s.reaches(slave1, "a1", d2, 62)
	s.reaches(slave2, "b2", d1, 62)
	s.denied(slave1, "a1", b2)
	s.denied(slave1, "d1", b2)
	netlab.Until(t, patience, "labels", func() string {
		if out := s.endpoints(); !strings.Contains(out, "docker.name: d2\n") || !strings.Contains(out, "tier: data\n") {
			return out
		}
		return ""
	})
	s.published(slave1, slave2)
	s.several(slave1, slave2)
	s.deaths(slave1, d2)
	s.swarm(slave1, slave2, "192.168.0.0/16")
	for _, h := range s.lab.Hosts {
		s.docker(h, "rm", "-f", "d1", "d2", "a1", "b2", "web")
		s.docker(h, "network", "rm", "app-A", "dataman", "app-B")
		s.wantNothing(h)
	}
}

// published has a port of a node lead to a container, as far as its rules allow.
func (s *site) published(here, there *netlab.Host) {
	s.Helper()
	s.docker(here, "run", "-d", "--stop-signal", "KILL", "--net", "app-A", "--name", "web", "-p", "8080:80", "bb:1", "httpd", "-f", "-h", "/etc")
	at := netip.AddrPortFrom(here.Addr.Addr(), 8080)
	must := func(name string, h *netlab.Host, args ...string) {
		s.Helper()
		netlab.Until(s, patience, name, func() string {
			out, failed := netlab.Try(s, h, args...)
			if failed != nil {
				return out + failed.Error()
			}
			return ""
		})
	}
	in := func(container string) []string {
		return []string{"docker", "-H", "unix:///run/docker.sock", "exec", container, "sh", "-c", fetch(at)}
	}
	must("the host itself", here, "busybox", "sh", "-c", fetch(at))
	must("the container itself", here, in("web")...)
	must("a neighbour of its network", here, in("a1")...)
	if out, failed := netlab.Try(s, there, "busybox", "sh", "-c", fetch(at)); failed == nil {
		s.Errorf("the other host reaches a port that no rule allows: %s", out)
	}
	if out, failed := netlab.Try(s, there, in("b2")...); failed == nil {
		s.Errorf("another network reaches a port that no rule allows: %s", out)
	}
	netlab.Must(s, here, "netctl", "profile", "app-A", "rule", "add", "inbound", "allow", "tcp", "to", "ports", "80")
	must("the other host, allowed", there, "busybox", "sh", "-c", fetch(at))
	must("another network, allowed", there, in("b2")...)
	_, failed := s.tryDocker(here, "run", "--rm", "--net", "app-A", "-p", "8080:80", "bb:1", "true")
	if failed == nil || !strings.Contains(failed.Error(), "port 8080/tcp of this node") {
		s.Errorf("a port that is published already: %v", failed)
	}
}

// several has a container in two networks, that one of them is taken from while it runs.
func (s *site) several(here, there *netlab.Host) {
	s.Helper()
	b2 := s.address(there, "b2", "app-B")
	s.docker(here, "network", "connect", "app-B", "d1")
	s.docker(here, "network", "disconnect", "dataman", "d1")
	s.reaches(here, "d1", b2, 62)
	s.docker(here, "network", "connect", "dataman", "d1")
	out := s.docker(here, "exec", "d1", "ip", "route")
	if !strings.Contains(out, "169.254.1.1 dev ") || !strings.Contains(out, "169.254.1.2 dev ") {
		s.Errorf("routes of two networks:\n%s", out)
	}
	s.docker(here, "restart", "-t0", "d1")
	s.docker(here, "network", "disconnect", "app-B", "d1")
}

// deaths kills the plugin and Docker, and has everything go on.
func (s *site) deaths(h *netlab.Host, to netip.Addr) {
	s.Helper()
	s.kill(s.plugins[h])
	s.startPlugin(h)
	s.docker(h, "restart", "-t0", "d1")
	s.reaches(h, "d1", to, 62)
	s.kill(s.plugins[h])
	s.kill(s.dockers[h])
	s.startPlugin(h)
	s.startDocker(h)
	s.docker(h, "start", "d1")
	s.reaches(h, "d1", to, 62)
	if err := s.dockers[h].Stop(); err != nil {
		s.Error(err)
	}
	s.startDocker(h)
	s.docker(h, "start", "d1")
	s.reaches(h, "d1", to, 62)
}
