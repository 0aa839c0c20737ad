package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/netdev/netlab"
)

// pairSite is a host on which one container may reach a server and another one may not,
// and both try to, once a millisecond.
type pairSite struct {
	*site
	server, allowed, denied *netlab.Container
	at                      [3]control.Attachment // of those, in that order
	good, bad               *netlab.Flood
	boot                    string // the boot ID's file
	boots                   int
	from                    int // denied echoes that were answered before, and are another matter
}

const opening = "insert rule inet netctl fwd_to accept"

// TestPairsOfFaults opens the packet filter, takes the agent, its datastore and the whole
// kernel state away, two of them at a time: what is denied is denied at once again, the flow
// that began is cut, and what is allowed goes on.
func TestPairsOfFaults(t *testing.T) {
	boot := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(boot, []byte("boot-0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &pairSite{boot: boot, site: newSite(t, netlab.Options{Nodes: 1}, func(c *Config) { c.BootIDFile = boot })}
	p.wait = 30 * time.Second
	p.pool("10.0.0.0/24")
	p.server, p.at[0] = p.attach("server", "dataman", nil)
	p.allowed, p.at[1] = p.attach("allowed", "dataman", nil)
	p.denied, p.at[2] = p.attach("denied", "app", nil)
	to := p.at[0].Addresses[0]
	p.bad, p.good = p.flood(p.denied), p.flood(p.allowed)
	p.passes(50)
	if p.bad.Answered() > 0 {
		t.Fatal("it is open")
	}
	for _, c := range []struct {
		what  string
		fault func()
		after func()
		most  int // denied echoes that may be answered; -1: it is open while no agent runs
	}{
		{"flushed, and edited while it comes back", func() {
			netlab.Must(t, p.node, "sh", "-c", "nft flush ruleset; until nft "+opening+" 2>/dev/null; do :; done")
		}, nil, aSecond},
		{"edited and flushed", func() { netlab.Must(t, p.node, "nft", opening+"; flush ruleset") }, nil, aSecond},
		{"edited and killed", func() { p.edit(); p.end(); p.start() }, p.synced, -1},
		{"killed and edited", func() { p.end(); p.edit(); p.leak(); p.start() }, p.synced, -1},
		{"the datastore away, edited", func() { p.away(); p.edit() }, func() { p.startStore(); p.synced() }, aSecond},
		{"detached, edited", func() { p.other(); p.edit() }, p.back, aSecond},
		{"detached, the datastore away", func() { p.other(); p.away() }, p.back, 0},
		{"the datastore away, another one back", func() { p.away(); p.other() }, p.back, 0},
		{"rebooted, with an old table edited", func() {
			p.end()
			p.edit()
			old := netlab.Must(t, p.node, "nft", "list", "ruleset")
			p.reboot(func() { p.load(old) })
			p.start()
			p.comeBack(func() {})
		}, nil, 0},
		{"rebooted and flushed", func() {
			p.reboot(func() {})
			p.start()
			p.comeBack(func() { netlab.Must(t, p.node, "nft", "flush", "ruleset") })
		}, nil, aSecond},
		{"rebooted and killed", func() {
			p.reboot(func() {})
			p.start()
			p.comeBack(func() { p.end(); p.start() })
		}, nil, 0},
		{"rebooted, detached", func() {
			p.other()
			p.reboot(func() {})
			p.start()
			p.detached()
			_, err := p.tryAttach(p.server, "dataman", nil)
			if e := control.ErrorOf(err); e == nil || e.Code != control.CodeDetached {
				t.Errorf("attach: %v", err)
			}
			p.back()
			p.comeBack(func() {})
		}, nil, 0},
	} {
		began := time.Now()
		p.from = p.bad.Answered()
		c.fault()
		p.until(c.what+": denied again", func() string {
			answered := p.bad.Answered()
			p.passes(50)
			if n := p.bad.Answered() - answered; n > 0 {
				return fmt.Sprint(n, " denied echoes answered")
			}
			return ""
		})
		// It takes a flow that both sides know to be answered.
		flow := []string{"conntrack", "-L", "-p", "icmp", "-d", to.String(), "-s"}
		if left := netlab.Must(t, p.node, append(flow, p.at[2].Addresses[0].String())...); left != "" {
			t.Errorf("%s: the denied flow lives on: %s", c.what, left)
		}
		if left := netlab.Must(t, p.node, append(flow, p.at[1].Addresses[0].String())...); left == "" {
			t.Errorf("%s: the allowed flow is not tracked any more", c.what)
		}
		answered := p.bad.Answered() - p.from
		t.Logf("%s: %d denied echoes answered; %v", c.what, answered, time.Since(began).Round(time.Millisecond))
		if c.most >= 0 && answered > c.most {
			t.Errorf("%s: %d denied echoes of one a millisecond were answered, at most %d may be", c.what, answered, c.most)
		}
		if c.after != nil {
			c.after()
		}
	}
}

// aSecond is how many denied echoes may be answered where somebody opened what an agent
// puts back, on a machine without time for it. It takes some 20.
const aSecond = 1000

func (p *pairSite) flood(from *netlab.Container) *netlab.Flood {
	p.t.Helper()
	f, err := netlab.StartFlood(from, p.at[0].Addresses[0], time.Millisecond)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Stop() })
	return f
}

// passes waits until n more allowed echoes are answered.
func (p *pairSite) passes(n int) {
	p.t.Helper()
	answered := p.good.Answered()
	p.until("allowed echoes", func() string {
		if more := p.good.Answered() - answered; more < n {
			return fmt.Sprint(more, " of ", n)
		}
		return ""
	})
}

// leak waits until the denied flow has begun.
func (p *pairSite) leak() {
	p.t.Helper()
	answered := p.bad.Answered()
	p.until("the flow begins", func() string {
		if p.bad.Answered() == answered {
			return "no answer"
		}
		return ""
	})
}

func (p *pairSite) edit() { p.t.Helper(); netlab.Must(p.t, p.node, "nft", opening) }

func (p *pairSite) start() { p.agent = p.startAgent(p.node, p.cfg) }

func (p *pairSite) end() {
	p.t.Helper()
	p.agent.Kill()
	<-p.agent.Done()
	if log := p.agent.Output(); strings.Contains(log, "still being cut") {
		p.t.Errorf("it was shut for as long as it may be:\n%s", log)
	}
}

func (p *pairSite) away() {
	p.t.Helper()
	p.stopStore()
	p.until("missed", func() string {
		if p.status().Store == "" {
			return "not missed"
		}
		return ""
	})
}

// stored is where the datastore keeps everything, and aside where that is while another
// one is there.
func (p *pairSite) stored() (path, aside string) {
	path = filepath.Join(p.node.Path("/var/lib/netctl-node"), "etcd")
	return path, path + ".aside"
}

// other puts another datastore, an empty one, in the place of the agent's.
func (p *pairSite) other() {
	p.t.Helper()
	p.etcd.Kill()
	<-p.etcd.Done()
	path, aside := p.stored()
	if err := os.Rename(path, aside); err != nil {
		p.t.Fatal(err)
	}
	p.startStore()
	p.detached()
}

func (p *pairSite) detached() {
	p.t.Helper()
	p.until("detached", func() string {
		if st := p.status(); st.PID != p.agent.PID || st.Detached == "" {
			return "not yet: " + st.Store
		}
		return ""
	})
}

// back has the agent's own datastore back after other.
func (p *pairSite) back() {
	p.t.Helper()
	p.etcd.Kill()
	<-p.etcd.Done()
	path, aside := p.stored()
	if err := errors.Join(os.RemoveAll(path), os.Rename(aside, path)); err != nil {
		p.t.Fatal(err)
	}
	p.startStore()
	p.synced()
}

// reboot ends every role and makes of the kernel what it is after a boot, with what then
// loads. The datastore is there again when it returns, the agent is not.
func (p *pairSite) reboot(then func()) {
	p.t.Helper()
	for _, role := range []*netlab.Process{p.agent, p.etcd} {
		role.Kill()
		<-role.Done()
	}
	netlab.Must(p.t, p.node, "sh", "-ec", `ip link delete group 28259
ip route flush proto 87
ip -6 route flush proto 87
nft flush ruleset
conntrack -F 2>/dev/null
echo 0 > /proc/sys/net/ipv4/ip_forward
find /run/netctl-node -mindepth 1 -delete`)
	p.boots++
	if err := os.WriteFile(p.boot, fmt.Appendf(nil, "boot-%d\n", p.boots), 0o600); err != nil {
		p.t.Fatal(err)
	}
	then()
	p.startStore()
	p.from = p.bad.Answered()
}

// load is what a host's nftables.service does with the rules that somebody saved.
func (p *pairSite) load(rules string) {
	p.t.Helper()
	if _, err := p.node.Exec(p.t.Context(), netlab.Cmd{Args: []string{"nft", "-f", "-"}, Stdin: rules}); err != nil {
		p.t.Fatal(err)
	}
}

// comeBack has the containers' runtime attach them after a boot, as they were, with
// something that happens after each.
func (p *pairSite) comeBack(meanwhile func()) {
	p.t.Helper()
	for i, c := range []*netlab.Container{p.server, p.allowed, p.denied} {
		network := map[bool]string{true: "app", false: "dataman"}[c == p.denied]
		p.until("attached", func() string {
			if _, err := p.tryAttach(c, network, wish(p.at[i].Addresses[0].String())); err != nil {
				return err.Error()
			}
			return ""
		})
		meanwhile()
	}
}
