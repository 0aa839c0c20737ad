package fib

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"netctl/routing"
)

// TestGather has the routes go from table to table: they are there, and led to, before
// they go where they were, and what leads elsewhere is taken away. Watch keeps the rules.
func TestGather(t *testing.T) {
	namespace(t)
	want := append(every(), through(200, "va 10.9.0.2", "vc 10.8.0.2")...)
	reader, _ := counted(t, Config{Protocol: 88, Anywhere: true})
	gone := make(chan Change, 4096)
	ctx, end := context.WithCancel(t.Context())
	heard, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- reader.Watch(ctx, Ignore{Foreign: true}, func(e Event) {
			for _, c := range e.Changes {
				if c.Gone {
					gone <- c
				}
			}
			select {
			case heard <- struct{}{}:
			default:
			}
		})
	}()
	<-heard
	first, _ := counted(t, Config{Protocol: 88, Groups: true})
	if err := first.Apply(ctx, routing.Changes{Put: want}); err != nil {
		t.Fatal(err)
	}
	ip(t, "route add 10.200.0.0/24 via 10.9.0.9 proto static")
	ip(t, "rule add priority 77 from all lookup 78 protocol static")
	for _, number := range []int{1000, 200, 0} {
		saw := monitored(t)
		table, messages := counted(t, Config{Protocol: 88, Number: number, Groups: true, Defaults: true})
		if err := table.Gather(ctx); err != nil {
			t.Fatal(err)
		}
		have, err := table.Routes(ctx)
		if err != nil || !routing.Diff(want, have).Empty() {
			t.Fatalf("in table %d: %d routes, %v", number, len(have), err)
		}
		if all, err := reader.Routes(ctx); err != nil || !routing.Diff(want, all).Empty() || len(all) != len(want) {
			t.Errorf("in all tables: %d routes, not %d, %v", len(all), len(want), err)
		}
		rules := fmt.Sprintf("8800: from all lookup %d suppress_prefixlength 0", number)
		last := fmt.Sprintf("32856: from all lookup %d", number)
		for _, family := range []string{"-4", "-6"} {
			got := strings.Join(strings.Fields(strings.ReplaceAll(ip(t, family+" rule"), "proto netctl-bgp", "proto 88")), " ")
			if number != 0 && (!strings.Contains(got, rules+" proto 88") || !strings.Contains(got, last+" proto 88")) || strings.Count(got, "proto 88") != 2*min(number, 1) {
				t.Errorf("with table %d the rules %s are\n%s", number, family, got)
			}
		}
		if number != 0 {
			if got := ip(t, "route get 10.1.0.5"); !strings.Contains(got, "via 10.9.0.2") {
				t.Errorf("in table %d: %s", number, got)
			}
			table.Adopt(have)
			messages.count = 0
			stop := watchedUntil(t, table)
			for _, family := range []string{"-4", "-6"} {
				ip(t, family+" rule del priority 8800")
				eventually(t, "the rule is back", func() bool { return strings.Contains(ip(t, family+" rule"), "8800:") })
			}
			for _, r := range []string{"10.1.0.0/26", "20.0.0.7", "blackhole 10.1.3.0/26"} {
				ip(t, fmt.Sprintf("route del %s table %d", r, number))
			}
			ip(t, fmt.Sprintf("-6 route del fd11::c0/122 table %d", number))
			eventually(t, "the routes are back", func() bool { return follows(t, table, want) })
			stop()
		}
		checkOrder(t, number, saw())
	}
	if got := ip(t, "route show proto static") + ip(t, "rule"); !strings.Contains(got, "10.200.0.0/24") || !strings.Contains(got, "lookup 78") {
		t.Errorf("of others there is\n%s", got)
	}
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for range len(gone) {
		c := <-gone
		t.Errorf("heard that %s went", c.Route)
	}
}

// monitored records the changes of routes from now on, and returns them in the end.
func monitored(t *testing.T) (saw func() string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "monitor")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	monitor := exec.Command("ip", "monitor", "route")
	monitor.Stdout = out
	if err := errors.Join(monitor.Start(), out.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = monitor.Process.Kill() })
	mark := func(prefix string) (text string) {
		eventually(t, "the monitor shows "+prefix, func() bool {
			ip(t, "route add "+prefix+" via 10.9.0.9 proto static")
			ip(t, "route del "+prefix)
			b, err := os.ReadFile(file)
			text = string(b)
			return err == nil && strings.Contains(text, prefix)
		})
		return text
	}
	mark("10.201.0.0/24")
	return func() string {
		text := mark("10.202.0.0/24")
		if err := monitor.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = monitor.Wait()
		return text
	}
}

// checkOrder looks at what a monitor saw: nothing was deleted from where it was before
// it was where it goes.
func checkOrder(t *testing.T, number int, saw string) {
	t.Helper()
	to := fmt.Sprintf(" table %d ", number)
	added, last, deleted := map[string]bool{}, 128, false
	for _, line := range strings.Split(saw, "\n") {
		line = strings.Replace(line, "proto netctl-bgp", "proto 88", 1)
		if !strings.Contains(line, "proto 88") || strings.Contains(line, "lookup") {
			continue
		}
		here := strings.Contains(line+" ", to) || number == 0 && !strings.Contains(line, " table ")
		f := strings.Fields(strings.TrimPrefix(strings.TrimPrefix(line, "Deleted "), "blackhole "))
		gone := strings.HasPrefix(line, "Deleted ")
		// What is more specific is there before what it is a part of: all is written by length.
		if deleted = deleted || gone; !deleted && here {
			bits := 32
			if p, err := netip.ParsePrefix(f[0]); err == nil {
				bits = p.Bits()
			} else if strings.Contains(f[0], ":") {
				bits = 128
			}
			if bits > last {
				t.Errorf("to table %d: %q came after a /%d", number, line, last)
			}
			last = bits
		}
		switch {
		case here && !gone:
			added[f[0]] = true
		case !here && gone && !added[f[0]]:
			t.Errorf("to table %d: %q came too early", number, line)
		}
	}
}

// TestTableDefault: a default route in a table of our own is used only where the main
// one has none.
func TestTableDefault(t *testing.T) {
	namespace(t)
	table, _ := counted(t, Config{Protocol: 88, Number: 1000, Defaults: true})
	if err := table.Gather(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{route("0.0.0.0/0", "vc 10.8.0.2")}}); err != nil {
		t.Fatal(err)
	}
	if got := ip(t, "route get 8.8.8.8"); !strings.Contains(got, "via 10.8.0.2") {
		t.Errorf("alone: %s", got)
	}
	ip(t, "route add default via 10.9.0.9")
	if got := ip(t, "route get 8.8.8.8"); !strings.Contains(got, "via 10.9.0.9") {
		t.Errorf("beside the host's: %s", got)
	}
}
