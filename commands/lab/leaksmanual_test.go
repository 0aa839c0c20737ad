package lab

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// manualChurn is somebody at the command line: `netctl endpoint add --netns` or --tap.
type manualChurn struct {
	*machine
	tap bool
}

func (c *manualChurn) tapName(s *slot) string { return fmt.Sprint("tap", s.n) }

func (c *manualChurn) workload(s *slot) string { return fmt.Sprintf("m%d-%d", s.n, s.gen) }

func (c *manualChurn) add(ctx context.Context, s *slot) error {
	s.port = 0 // it publishes none
	args := []string{"netctl", "endpoint", "add", "--network", "leaky", "--workload", c.workload(s)}
	if c.tap {
		args = append(args, "--tap", c.tapName(s))
	} else {
		args = append(args, "--netns", s.c.Path())
	}
	out, err := c.host.Exec(ctx, netlab.Cmd{Args: args})
	if err != nil {
		return err
	}
	if list := strings.Fields(out); len(list) > 1 {
		s.addr, _, _ = strings.Cut(strings.Trim(list[1], ","), "/")
	}
	return nil
}

func (c *manualChurn) del(ctx context.Context, s *slot) error {
	out, err := c.host.Exec(ctx, netlab.Cmd{Args: []string{"netctl", "endpoint", "remove", c.host.Name + "/manual/" + c.workload(s) + "/eth0"}})
	if err != nil && strings.Contains(out+err.Error(), "not found") {
		return nil
	}
	return err
}

func (c *manualChurn) forget(*slot) {}

// lasts says that what a slot has is a TAP, which only `endpoint remove` takes away.
func lasts(s *slot) bool {
	c, is := s.with.(*manualChurn)
	return is && c.tap
}

// vanish is the end of what a slot has, behind everybody's back.
func (c *churn) vanish(s *slot) error {
	if lasts(s) { // it may not be there yet, or not any more
		_, _ = c.sh("ip link delete " + s.with.(*manualChurn).tapName(s))
		return nil
	}
	return s.c.Remove()
}

// whole says what a TAP that lives lacks.
func (c *churn) whole(s *slot) string {
	name := s.with.(*manualChurn).tapName(s)
	if out, err := c.sh("ip route show " + s.addr + " | grep -F \" dev $(ip -br link show " + name + " | cut -d ' ' -f 1) \""); err != nil {
		return fmt.Sprintf("%s of %s: %s%v", name, s.addr, out, err)
	}
	return ""
}

// reboot kills everything and leaves what a boot leaves: what is in /var. No container is
// there any more; TAPs come back.
func (c *churn) reboot() {
	c.t.Helper()
	c.endFlood()
	c.docker.driver.Kill()
	for _, name := range []string{"netctl", "netctl-datastore", "netctl-agent", "netctl-speaker"} {
		list, _ := c.host.Find(name)
		for _, pid := range list {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	wantNoRoles(c.t, c.host)
	for s := range c.all() {
		if s.c == nil || lasts(s) {
			continue
		}
		_ = s.c.Remove()
		s.with.forget(s)
		s.c, s.addr = nil, ""
	}
	for _, l := range c.lives {
		_ = l.Remove()
	}
	c.boots++
	boot := c.dir + "/boot_id"
	if err := os.WriteFile(boot, fmt.Appendf(nil, "boot-%d\n", c.boots), 0o600); err != nil {
		c.t.Fatal(err)
	}
	script := `for l in $(ip -br link | grep -oE '^(nc|np)[^ @]*'); do ip link delete $l; done 2>/dev/null
for p in 87 88; do ip route flush table all proto $p; ip -6 route flush table all proto $p; done 2>/dev/null
nft flush ruleset; conntrack -F 2>/dev/null
find /run/netctl-node -mindepth 1 -delete; grep -q boot_id /proc/self/mounts || mount --bind ` + boot + ` /proc/sys/kernel/random/boot_id`
	if out, err := c.sh(script); err != nil {
		c.t.Fatal(out, err)
	}
	if _, err := StartNode(c.host); err != nil {
		c.t.Fatal(err)
	}
	netlab.Until(c.t, patience, "the node after a boot", func() string {
		ctx, cancel := context.WithTimeout(c.t.Context(), patience)
		defer cancel()
		return strings.Join(ailments(ctx, c.host, 0), "; ")
	})
	c.docker.start()
	c.startFlood()
}

func isManual(s *slot) bool {
	_, is := s.with.(*manualChurn)
	return is
}
