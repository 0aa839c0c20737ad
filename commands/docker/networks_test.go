package docker

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

// TestNetworksEverywhere: one command makes a network in Docker and as a conflist on every
// node, on one that was away when it is back; what a person made or changed stays and is
// said; removal takes away what netctl made, and is refused while it is used.
func TestNetworksEverywhere(t *testing.T) {
	s := newSite(t, lab.Config{Nodes: 2})
	one, two := s.lab.Hosts[0], s.lab.Hosts[1]
	netlab.Must(t, one, "netctl", "pool", "add", "10.65.0.0/16")
	s.docker(two, "network", "create", "hand") // by a person, and none of ours
	netlab.Must(t, one, "netctl", "network", "create", "web", "--pool", "10.65.0.0/16")
	s.atOnce("hand")
	for _, h := range s.lab.Hosts {
		s.state("web", h.Name+" docker present 0", h.Name+" cni present 0")
	}
	s.state("hand", one.Name+" docker present 0", two.Name+" docker differs 0", two.Name+" cni present 0")
	if driver := s.docker(two, "network", "inspect", "-f", "{{.Driver}}", "hand"); driver != "bridge" {
		t.Errorf("the network that was made by hand is one of %s now", driver)
	}
	s.docker(two, "network", "rm", "hand")
	s.networks(two, "hand", "web")
	s.connected(one, two)
	s.byHand(two)
	s.removed(one, two)
	s.poolGone(one)
	s.cleaned(one)
}

// cleaned takes netctl off a host: the networks that it made in Docker and for CNI go, none
// that is used, and none of a person's.
func (s *site) cleaned(h *netlab.Host) {
	s.Helper()
	s.docker(h, "network", "create", "-d", "netctl", "--ipam-driver", "netctl", "mine")
	s.docker(h, "run", "-d", "--stop-signal", "KILL", "--net", "hand", "--name", "w3", "bb:1")
	mine := filepath.Join(filepath.Dir(conflist(h, "x")), "mine.conflist")
	if err := os.WriteFile(mine, []byte(`{"cniVersion":"1.0.0","name":"mine","plugins":[{"type":"netctl"}]}`), 0o600); err != nil {
		s.Fatal(err)
	}
	wants := func(text, args string, want ...string) {
		for _, w := range want {
			if !strings.Contains(text, w) {
				s.Errorf("cleanup %s has no %q:\n%s", args, w, text)
			}
		}
		if strings.Contains(text, "mine") {
			s.Errorf("cleanup %s tells of what is a person's:\n%s", args, text)
		}
	}
	said := netlab.Must(s, h, "netctl", "cleanup", "--dry-run")
	wants(said, "--dry-run", "\nnetwork db: Docker's network db (", "\nstays: network hand: Docker's network hand (", "(in use by "+h.Name+"/docker/", "\nnetwork hand: "+"/etc/cni/net.d/netctl-hand.conflist\n")
	s.docker(h, "rm", "-f", "w3") // without a driver Docker takes a minute for that
	wants(netlab.Must(s, h, "netctl", "cleanup", "--force"), "--force", "\nnetwork db: ", "\nnetwork gone: ", "\nnetwork hand: Docker's network hand (")
	s.networks(h, "mine")
	if all := s.docker(h, "network", "ls", "--format", "{{.Name}}"); !strings.Contains(all, "bridge") {
		s.Errorf("networks of Docker's: %s", all)
	}
	s.files(h)
	if _, err := os.Stat(mine); err != nil {
		s.Error(err)
	}
	if out := netlab.Must(s, h, "netctl", "cleanup"); out != "Nothing of netctl's is on this host.\n" {
		s.Errorf("a second cleanup: %s", out)
	}
}

// atOnce has every node create one network at the same time: it is made once, and the
// others are told so.
func (s *site) atOnce(network string) {
	s.Helper()
	var all sync.WaitGroup
	said := make([]string, len(s.lab.Hosts))
	for i, h := range s.lab.Hosts {
		all.Go(func() {
			if _, failed := netlab.Try(s, h, "netctl", "network", "create", network); failed != nil {
				said[i] = failed.Error()
			}
		})
	}
	all.Wait()
	made := slices.DeleteFunc(slices.Clone(said), func(text string) bool { return text != "" })
	if len(made) != 1 || !strings.Contains(strings.Join(said, ""), "network "+network+": already exists") {
		s.Errorf("created at once: %q", said)
	}
}

// state waits until a network is so on the nodes: "NODE RUNTIME STATE USED".
func (s *site) state(network string, want ...string) {
	s.Helper()
	netlab.Until(s, patience, network+" "+strings.Join(want, ", "), func() string {
		out := netlab.Must(s, s.lab.Hosts[0], "netctl", "network", "show", network, "-o", "json")
		var places []struct {
			Node, Runtime, State, Reason string
			Used                         int
		}
		if err := json.Unmarshal([]byte(out), &places); err != nil {
			s.Fatal(err)
		}
		is := map[string]bool{}
		for _, p := range places {
			is[fmt.Sprintf("%s %s %s %d", p.Node, p.Runtime, p.State, p.Used)] = true
		}
		for _, w := range want {
			if !is[w] {
				return out
			}
		}
		return ""
	})
}

// conflist is where the file of a network is on a host.
func conflist(h *netlab.Host, network string) string {
	return h.Path("/etc/cni/net.d/netctl-" + network + ".conflist")
}

// pluginConfig is what a runtime makes of the first plugin of a conflist.
func (s *site) pluginConfig(h *netlab.Host, network string) string {
	s.Helper()
	text, err := os.ReadFile(conflist(h, network))
	if err != nil {
		s.Fatal(err)
	}
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal(text, &list); err != nil {
		s.Fatal(err)
	}
	conf := list.Plugins[0]
	conf["name"], conf["cniVersion"] = list.Name, list.CNIVersion
	out, err := json.Marshal(conf)
	if err != nil {
		s.Fatal(err)
	}
	return string(out)
}

// connected has containers of Docker and of CNI in the network on both nodes.
func (s *site) connected(one, two *netlab.Host) {
	s.Helper()
	s.docker(one, "run", "-d", "--stop-signal", "KILL", "--net", "web", "--ip", "10.65.7.7", "--name", "w1", "bb:1")
	s.docker(two, "run", "-d", "--stop-signal", "KILL", "--net", "web", "--name", "w2", "bb:1")
	s.reaches(two, "w2", netip.MustParseAddr("10.65.7.7"), 62)
	c, err := two.Container("c1")
	if err != nil {
		s.Fatal(err)
	}
	if out, err := c.CNI(s.Context(), "ADD", s.pluginConfig(two, "web"), ""); err != nil {
		s.Fatalf("%s: %v", out, err)
	}
	netlab.Until(s, patience, "c1 to w1", func() string {
		if out, failed := netlab.Try(s, c, "busybox", "ping", "-c1", "-W1", "10.65.7.7"); failed != nil {
			return out + failed.Error()
		}
		return ""
	})
	s.state("web", one.Name+" docker present 1", two.Name+" docker present 1", two.Name+" cni present 1")
	netlab.Until(s, patience, "names of containers", func() string {
		_, failed := netlab.Try(s, one, "netctl", "network", "remove", "web")
		if failed == nil {
			s.Fatal("a network in use is removed")
		}
		if text := failed.Error(); !strings.Contains(text, "in use by endpoint "+one.Name+"/docker/") || !strings.Contains(text, "(w1)") || !strings.Contains(text, two.Name+"/cni/c1/eth0") && !strings.Contains(text, two.Name+"/cni/"+c.ID+"/eth0") {
			return text
		}
		return ""
	})
	if out, err := c.CNI(s.Context(), "DEL", s.pluginConfig(two, "web"), ""); err != nil {
		s.Fatalf("%s: %v", out, err)
	}
	if err := c.Remove(); err != nil {
		s.Error(err)
	}
}

// byHand changes a conflist, which stays as it is and is said.
func (s *site) byHand(h *netlab.Host) {
	s.Helper()
	text, err := os.ReadFile(conflist(h, "web"))
	if err != nil {
		s.Fatal(err)
	}
	mine := strings.Replace(string(text), `"type": "netctl"`, `"type": "netctl", "mtu": 1400`, 1)
	if err := os.WriteFile(conflist(h, "web"), []byte(mine), 0o600); err != nil {
		s.Fatal(err)
	}
	netlab.Until(s, patience, "status", func() string {
		out, failed := netlab.Try(s, h, "netctl", "status")
		if failed == nil || failed.Code != 3 || !strings.Contains(out, "network web in cni: differs: /etc/cni/net.d/netctl-web.conflist was changed by hand") {
			return fmt.Sprint(out, failed)
		}
		return ""
	})
	if now, err := os.ReadFile(conflist(h, "web")); err != nil || string(now) != mine {
		s.Errorf("the changed conflist is %s now (%v)", now, err)
	}
}

// removed has a network go, and another come, while a node is away.
func (s *site) removed(one, away *netlab.Host) {
	s.Helper()
	for h, name := range map[*netlab.Host]string{one: "w1", away: "w2"} {
		s.docker(h, "rm", "-f", name)
	}
	s.stopNode(away)
	netlab.Until(s, patience, "web is used by nobody", func() string {
		if _, failed := netlab.Try(s, one, "netctl", "network", "remove", "web"); failed != nil {
			return failed.Error()
		}
		return ""
	})
	netlab.Must(s, one, "netctl", "network", "create", "db", "--runtime", "docker")
	s.networks(one, "hand", "db")
	s.networks(away, "hand", "web")
	if _, err := lab.StartNode(away); err != nil {
		s.Fatal(err)
	}
	s.networks(away, "hand", "db")
	s.state("db", away.Name+" docker present 0")
	s.files(one, "hand")
	s.files(away, "hand", "web") // which was changed by hand
	if err := os.Remove(conflist(away, "web")); err != nil {
		s.Fatal(err)
	}
	netlab.Until(s, patience, "nothing is wrong", func() string {
		out, failed := netlab.Try(s, away, "netctl", "status")
		if failed != nil {
			return out
		}
		return ""
	})
}

// networks waits until Docker has these networks of netctl's and no others.
func (s *site) networks(h *netlab.Host, want ...string) {
	s.Helper()
	slices.Sort(want)
	netlab.Until(s, patience, "networks of Docker on "+h.Name, func() string {
		have := strings.Fields(s.docker(h, "network", "ls", "-f", "driver=netctl", "--format", "{{.Name}}"))
		if slices.Sort(have); !slices.Equal(have, want) {
			return fmt.Sprint(have)
		}
		return ""
	})
}

// files waits until CNI has these of netctl's and no others.
func (s *site) files(h *netlab.Host, want ...string) {
	s.Helper()
	netlab.Until(s, patience, "conflists on "+h.Name, func() string {
		have, err := filepath.Glob(conflist(h, "*"))
		for i := range have {
			have[i] = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(have[i]), "netctl-"), ".conflist")
		}
		if !slices.Equal(have, want) {
			return fmt.Sprint(have, err)
		}
		return ""
	})
}

// poolGone has a network's pool removed: what comes into it is refused with the cause.
func (s *site) poolGone(h *netlab.Host) {
	s.Helper()
	netlab.Must(s, h, "netctl", "pool", "add", "10.66.0.0/24")
	netlab.Must(s, h, "netctl", "network", "create", "gone", "--pool", "10.66.0.0/24", "--runtime", "docker")
	s.networks(h, "hand", "db", "gone")
	netlab.Must(s, h, "netctl", "pool", "remove", "10.66.0.0/24", "--force")
	if _, failed := s.tryDocker(h, "run", "--rm", "--net", "gone", "bb:1", "true"); failed == nil || !strings.Contains(failed.Error(), "10.66.0.0/24") {
		s.Errorf("a container of a pool that is gone: %v", failed)
	}
}

// stopNode ends `netctl node` on a host, and its roles with it.
func (s *site) stopNode(h *netlab.Host) {
	s.Helper()
	running := func() (list []int) {
		all, err := h.Find("netctl")
		if err != nil {
			s.Fatal(err)
		}
		for _, pid := range all {
			if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.Contains(string(line), "\x00node\x00") {
				list = append(list, pid)
			}
		}
		return list
	}
	for _, pid := range running() {
		if err := unix.Kill(pid, unix.SIGTERM); err != nil {
			s.Fatal(err)
		}
	}
	netlab.Until(s, patience, "netctl node ends on "+h.Name, func() string {
		if left := running(); len(left) > 0 {
			return fmt.Sprint(left)
		}
		return ""
	})
}
