package lab

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
	"netctl/netdev/qemulab"
)

// TestVirtualMachine: a real one, in QEMU, is told its address by DHCP, reaches a container
// on another node, and is reached as the profile says and no other way.
func TestVirtualMachine(t *testing.T) {
	if os.Getenv("NETCTL_GUEST") == "" {
		t.Skip("`make test-all` has it, or set NETCTL_GUEST")
	}
	l := forTest(t, Config{Nodes: 2})
	waitHealthy(t, l)
	one, two := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, one, "netctl", "pool", "add", "10.0.0.0/16")
	m, addrs := addTap(t, one, "vm1", "--network", "web")
	netlab.Must(t, one, "netctl", "profile", "web", "rule", "add", "inbound", "allow", "tcp", "from", "tag", "db", "to", "ports", "80")
	c, c4, _ := attach(t, two, "c", "web")
	other, _, _ := attach(t, two, "other", "db")
	g := qemulab.Guest{
		Modules: []string{"virtio_pci", "virtio_net"}, TAP: m.tap, MAC: m.mac, MemoryMiB: 256, In: []string{"nsenter", "--net=" + one.NetnsPath(), "--"},
		Script: `mkdir -p /www && echo hello >/www/index.html
cat >/client <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev eth0
ip link set eth0 mtu $mtu
ip route add $router dev eth0
ip route add default via $router
hostname $hostname
END
chmod 755 /client
ip link set eth0 up
udhcpc -i eth0 -f -q -n -t 10 -T 2 -O mtu -s /client
ip addr show dev eth0
echo "hostname $(hostname)"
ping -c 3 -W 5 ` + c4.String() + `
for port in 80 81; do httpd -p $port -h /www; done
echo serving
sleep 600`,
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1<<10)
	go func() {
		defer close(said)
		readLines(reader, said)
	}()
	done := make(chan error, 1)
	go func() {
		err := g.Run(ctx, writer)
		_ = writer.Close()
		done <- err
	}()
	var all strings.Builder
	for line := range said {
		all.WriteString(line + "\n")
		if strings.HasPrefix(line, "serving") {
			break
		}
	}
	if !strings.Contains(all.String(), "serving") {
		t.Fatalf("%v\n%s", <-done, all.String())
	}
	for _, want := range []string{"inet " + addrs[0].String() + "/32", "mtu 1500", "hostname vm1", "3 packets received", "serving"} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("the machine does not say %q", want)
		}
	}
	says(t, one, "1 TAP, 1 open by a virtual machine\n")
	get := func(from netlab.Place, port string) (text string) {
		_ = from.Do(func() error {
			c, err := net.DialTimeout("tcp", addrs[0].String()+":"+port, 3*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			_, _ = c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
			answer, err := io.ReadAll(c)
			_, text, _ = strings.Cut(string(answer), "\r\n\r\n")
			return err
		})
		return strings.TrimSpace(text)
	}
	for _, w := range []struct {
		what string
		from netlab.Place
		port string
		want string
	}{{"a member", c, "81", "hello"}, {"what a rule allows", other, "80", "hello"}, {"what no rule allows", other, "81", ""}} {
		if have := get(w.from, w.port); have != w.want {
			t.Errorf("%s gets %q, not %q", w.what, have, w.want)
		}
	}
	cancel()
	for line := range said {
		all.WriteString(line + "\n")
	}
	<-done
	says(t, one, "1 TAP, 0 open by a virtual machine; not "+one.Name+"/manual/vm1/eth0\n")
	t.Log(all.String())
}

// readLines sends each line of what is read.
func readLines(r *os.File, to chan<- string) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		to <- lines.Text()
	}
}
