package netavark

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
)

func (f *fake) ports(_ context.Context, r control.PortRequest) (struct{}, error) {
	f.asked["ports"] = r
	return struct{}{}, f.taken
}

// publishing is plain with ports.
func publishing(mappings string) string {
	return with(`"container_name":"web"`, `"container_name":"web","port_mappings":[`+mappings+`]`)
}

func TestPorts(t *testing.T) {
	port := func(protocol, text string) string {
		return `{"container_port":80,"host_ip":"` + text + `","host_port":8080,"protocol":"` + protocol + `","range":1}`
	}
	for mappings, want := range map[string]string{
		port("tcp", ""):               "tcp  8080 80",
		port("", "::"):                "tcp  8080 80",
		port("UDP,sctp", "192.0.2.1"): "udp 192.0.2.1 8080 80,sctp 192.0.2.1 8080 80",
		port("tcp", "0.0.0.0") + "," + port("tcp", ""):                                   "tcp  8080 80", // once for each family
		port("tcp", "192.0.2.1") + "," + port("tcp", "::ffff:192.0.2.2"):                 "tcp 192.0.2.1 8080 80,tcp 192.0.2.2 8080 80",
		`{"container_port":80,"host_ip":"","host_port":65534,"protocol":"tcp"}`:          "tcp  65534 80",
		`{"container_port":1,"host_ip":"","host_port":65534,"protocol":"tcp","range":2}`: "tcp  65534 1,tcp  65535 2",
	} {
		f := newFake(t)
		code, stdout, stderr := f.run("setup $NETNS", publishing(mappings))
		r, _ := f.asked["ports"].(control.PortRequest)
		var got []string
		for _, p := range r.Ports {
			ip := ""
			if p.HostIP.IsValid() {
				ip = p.HostIP.String()
			}
			got = append(got, fmt.Sprint(p.Protocol, " ", ip, " ", p.HostPort, " ", p.Port))
		}
		if code != 0 || strings.Join(got, ",") != want || r.Target != target("c1", "eth0") || f.asked["detach"] != nil {
			t.Errorf("%s: exit %d, %s%s: asked %+v", mappings, code, stdout, stderr, f.asked)
		}
	}
}

func TestPortsRefused(t *testing.T) {
	f := newFake(t)
	for mappings, says := range map[string]string{
		`{"container_port":80,"host_port":0,"protocol":"tcp"}`:                                                                              "setup: network net1: published port 0 to 80/tcp: the host's port must be from 1 to 65535",
		`{"container_port":0,"host_port":80,"protocol":"tcp"}`:                                                                              "the container's port must be",
		`{"container_port":80,"host_port":65535,"protocol":"tcp","range":2}`:                                                                "published port 65536 to 81/tcp: the host's port",
		`{"container_port":65535,"host_port":80,"protocol":"tcp","range":2}`:                                                                "to 65536/tcp: the container's port",
		`{"container_port":80,"host_port":70000,"protocol":"tcp"}`:                                                                          "port_mappings.host_port: is of the wrong type",
		`{"container_port":80,"host_port":80,"protocol":"icmp"}`:                                                                            `80/icmp: protocol "icmp": must be tcp, udp or sctp`,
		`{"container_port":80,"host_port":80,"protocol":"tcp,"}`:                                                                            `protocol: must be tcp, udp or sctp`,
		`{"container_port":80,"host_port":80,"protocol":"tcp","host_ip":"x"}`:                                                               `"x" is no address`,
		`{"container_port":80,"host_port":80,"protocol":"tcp","host_ip":"fe80::1%1"}`:                                                       "is no address",
		`{"container_port":80,"host_port":80,"protocol":"tcp","host_ip":"127.0.0.1"}`:                                                       "127.0.0.1 cannot lead to a container of netctl",
		`{"container_port":80,"host_port":80,"protocol":"tcp","host_ip":"::1"}`:                                                             "::1 cannot lead to a container of netctl",
		`{"container_port":80,"host_port":80,"protocol":"tcp"},{"container_port":81,"host_ip":"192.0.2.1","host_port":80,"protocol":"tcp"}`: "published port 80 to 81/tcp: the same port of the host is to lead to 80 as well",
		`{"container_port":1,"host_port":1,"protocol":"tcp","range":1025}`:                                                                  "published port 1025 to 1025/tcp: there are more than 1024",
	} {
		f.refused("setup $NETNS", publishing(mappings), says)
	}
	if len(f.asked) > 0 {
		t.Errorf("the agent was asked %v", f.asked)
	}
}

// TestNothingHalfDone: a setup that cannot publish leaves nothing attached, now or as soon
// as somebody can see to that.
func TestNothingHalfDone(t *testing.T) {
	in := publishing(`{"container_port":80,"host_ip":"","host_port":8081,"protocol":"tcp","range":1}`)
	want := control.DetachRequest{Target: target("c1", "eth0"), Network: "net1"}
	const who = "endpoint node1/podman/c1/eth0: port 8081/tcp of this node: %w: node1/podman/%s publishes it"
	for other, says := range map[string]string{"c2/eth0": "in use: node1/podman/c2/eth0 publishes it", "c1/eth1": "another network of this container: make one of them with -o publish=no"} {
		f := newFake(t)
		f.taken = fmt.Errorf(who, datastore.ErrInUse, other)
		f.refused("setup $NETNS", in, says)
		if f.asked["detach"] != want {
			t.Errorf("asked %+v", f.asked)
		}
		if _, stdout, _ := f.run("setup $NETNS", in); strings.Contains(stdout, "publish=no") != (other == "c1/eth1") || strings.Contains(stdout, "make the network again") {
			t.Error(stdout)
		}
	}
	f := newFake(t)
	f.refused("setup $NETNS", strings.Replace(in, `"host_ip":""`, `"host_ip":"2001:db8::1"`, 1), "published port [2001:db8::1]:8081 to 80/tcp: ")
	if f.asked["detach"] != want || f.asked["ports"] != nil {
		t.Errorf("asked %+v", f.asked)
	}
	// An agent that goes between the two.
	f = newFake(t)
	f.taken = fmt.Errorf("etcd is away: %w", datastore.ErrUnavailable)
	f.unable = f.taken
	f.refused("setup $NETNS", in, "etcd is away")
	kept, err := control.ReadPending(f.pending())
	if err != nil || len(kept) != 1 || kept[0].Request != want {
		t.Errorf("kept %+v, %v", kept, err)
	}
	f = newFake(t)
	f.taken, f.unable = fmt.Errorf(who, datastore.ErrInUse, "c2/eth0"), errors.New("it is so")
	f.refused("setup $NETNS", in, "c2/eth0 publishes it; it stays attached: it is so")
	if kept, err := control.ReadPending(f.pending()); len(kept) > 0 || err != nil {
		t.Errorf("kept %v, %v", kept, err)
	}
}
