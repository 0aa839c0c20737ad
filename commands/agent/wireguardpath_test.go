package agent

import (
	"net/netip"
	"testing"
	"time"

	"netctl/netdev/kernel"
)

// TestJudgePath: a way is given up when what was sent over it is not answered in time, or
// at once when nothing leads there, if something leads to the other address.
func TestJudgePath(t *testing.T) {
	const here, there = true, true
	type look struct {
		after      time.Duration
		sent, got  uint64
		here, both bool // what leads to the address, and to the other
		moves      bool
	}
	for name, looks := range map[string][]look{
		"answered": {{0, 100, 90, here, there, false}, {time.Minute, 1000, 91, here, there, false}, {time.Minute, 2000, 92, here, there, false}},
		"silent":   {{0, 100, 90, here, there, false}, {2 * time.Second, 200, 90, here, there, false}, {11 * time.Second, 300, 90, here, there, false}, {time.Second, 300, 90, here, there, true}},
		"idle":     {{0, 100, 90, here, there, false}, {25 * time.Second, 132, 90, here, there, false}, {25 * time.Second, 164, 90, here, there, false}, {time.Hour, 164, 90, here, there, false}},
		"late":     {{0, 100, 90, here, there, false}, {2 * time.Second, 200, 90, here, there, false}, {20 * time.Second, 300, 91, here, there, false}, {time.Minute, 300, 91, here, there, false}},
		"no route": {{0, 100, 90, here, there, false}, {2 * time.Second, 100, 90, !here, there, true}},
		"alone":    {{0, 100, 90, here, !there, false}, {2 * time.Second, 200, 90, here, !there, false}, {time.Minute, 300, 90, here, !there, false}, {0, 300, 90, !here, !there, false}},
		"anew":     {{0, 1000, 90, here, there, false}, {2 * time.Second, 148, 0, here, there, false}, {2 * time.Second, 148, 0, here, there, false}},
	} {
		p, now := newPath(), time.Unix(1e9, 0)
		for i, x := range looks {
			now = now.Add(x.after)
			got := p.judge(now, kernel.WireGuardState{Sent: x.sent, Received: x.got}, func(other bool) bool {
				if other {
					return x.both
				}
				return x.here
			})
			if got != x.moves {
				t.Errorf("%s, look %d: moves %t", name, i, got)
			}
		}
	}
}

// TestPathMoves: of two ways that do not get through each is tried for twice as long as
// before; IPv4 is tried again after a rest, which doubles while it does not hold.
func TestPathMoves(t *testing.T) {
	p, now := newPath(), time.Unix(1e9, 0)
	p.asked = now
	p.move(now)
	if !p.v6 || p.wait != 2*pathWait || p.tries(now.Add(ipv4Rest-1)) || !p.tries(now.Add(ipv4Rest)) {
		t.Errorf("%+v", p)
	}
	p.move(now)
	if p.v6 || p.wait != 4*pathWait || p.tries(now.Add(time.Hour)) {
		t.Errorf("%+v", p)
	}
	for range 10 {
		p.move(now)
	}
	if p.wait != mostWait {
		t.Errorf("waits %s", p.wait)
	}
}

// TestWireGuardPaths: packets to a node with both families go by IPv4, by IPv6 while it
// does not answer there, by what it sends itself by, and by IPv4 once it answers; a restart
// changes nothing of that.
func TestWireGuardPaths(t *testing.T) {
	w := newTunnelWorld(t)
	w.cfg.pathEvery = 5 * time.Millisecond
	w.encap("10.0.0.0/16", "wireguard")
	four, six, only := netip.MustParseAddr("192.168.99.103"), netip.MustParseAddr("fd00:99::103"), netip.MustParseAddr("192.168.99.104")
	w.start()
	w.ready()
	w.ownKey(func(string) bool { return true })
	n2 := secureNode("n2", four.String()+"/24", wgKey(2))
	n2.Spec.Addresses = append(n2.Spec.Addresses, netip.PrefixFrom(six, 64))
	w.create(n2)
	w.create(secureNode("n3", only.String()+"/24", wgKey(3)))
	third := "3 192.168.99.104:51820 [192.168.99.104/32]"
	by4, by6 := "2 192.168.99.103:51820 [192.168.99.103/32 fd00:99::103/128]", "2 [fd00:99::103]:51820 [192.168.99.103/32 fd00:99::103/128]"
	w.peered(by4, third)
	w.broken.Store(&four)
	w.peered(third, by6)
	// A change of what is behind it does not move it.
	w.create(wgBlock("10.0.2.0/26", "n2", ""))
	by4, by6 = "2 192.168.99.103:51820 [10.0.2.0/26 192.168.99.103/32 fd00:99::103/128]", "2 [fd00:99::103]:51820 [10.0.2.0/26 192.168.99.103/32 fd00:99::103/128]"
	w.peered(third, by6)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.create(wgBlock("10.0.2.64/26", "n3", ""))
	third = "3 192.168.99.104:51820 [10.0.2.64/26 192.168.99.104/32]"
	w.peered(third, by6)
	w.broken.Store(nil)
	w.loopPath("n2", func(p *wgPath) { p.rest = 0 })
	w.peered(by4, third)
	// The other side moves, and the kernel follows.
	w.loopPath("n2", func(p *wgPath) { p.rest = time.Hour })
	w.links.Roam("wg.netctl", wgKey(2), netip.AddrPortFrom(six, 51820))
	w.until(func() string {
		moved := false
		w.loopPath("n2", func(p *wgPath) { moved = p.v6 })
		if !moved {
			return "the agent does not know where the kernel sends"
		}
		return ""
	})
	// What is sent is not answered.
	w.loopPath("n2", func(p *wgPath) { p.wait = 0 })
	w.links.Sent.Add(1000)
	w.peered(by4, third)
}

// loopPath looks at the way to a node, or changes it.
func (w *world) loopPath(node string, do func(p *wgPath)) {
	w.t.Helper()
	done := make(chan struct{})
	w.a.loop.post(func() {
		defer close(done)
		if p := w.a.loop.wireguard.paths[node]; p != nil {
			do(p)
		}
	})
	<-done
}
