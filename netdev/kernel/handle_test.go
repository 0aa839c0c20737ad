package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A list that changed while the library read it is read again, but not for ever.
func TestAgain(t *testing.T) {
	for _, c := range []struct{ interrupted, calls int }{{0, 1}, {2, 3}, {1000, dumpTries + 1}} {
		calls := 0
		res, err := again(func() ([]int, error) {
			calls++
			if calls <= c.interrupted {
				return []int{calls}, netlink.ErrDumpInterrupted
			}
			return []int{calls}, nil
		})
		if err != nil || calls != c.calls || len(res) != 1 || res[0] != c.calls {
			t.Errorf("interrupted %d times: %d calls, %v, %v", c.interrupted, calls, res, err)
		}
	}
	if _, err := again(func() ([]int, error) { return nil, unix.EPERM }); !errors.Is(err, unix.EPERM) {
		t.Errorf("error %v", err)
	}
}

func TestUpOfNoLink(t *testing.T) {
	h := newHost(t)
	if err := h.Up("nc0"); !errors.Is(err, os.ErrNotExist) || fmt.Sprint(err) != "set nc0 up: file does not exist" {
		t.Errorf("Up: %v", err)
	}
}

// That a link goes down when it is detached is no news: who is told would set it
// up again.
func TestDetachIsNoNews(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	if _, err := h.Create(Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	if err := h.Up("nc0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready, events, done := make(chan struct{}), []Event{}, make(chan error)
	go func() {
		done <- h.Watch(ctx, func(ev Event) {
			switch {
			case ev.Change == Resync:
				close(ready)
			case ev.Link == "end":
				cancel()
			default:
				events = append(events, ev)
			}
		})
	}()
	<-ready
	if err := h.Detach("nc0", 0); err != nil {
		t.Fatal(err)
	}
	run(t, h.ns, "ip", "link", "add", "end", "type", "bridge")
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("Watch: %v", err)
	}
	for _, ev := range events {
		if ev.Change != LinkChanged || !ev.Up {
			t.Errorf("event %+v", ev)
		}
	}
}

// What is added looks as `ip` would show it without anything derived: no
// broadcast, no label of its own, no attribute of a route but what was asked for.
func TestWireInFull(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	for i := range 2 {
		w := Wire{Netns: inside, Interface: fmt.Sprintf("eth%d", i), Link: fmt.Sprintf("nc%d", i), Addresses: addrs(fmt.Sprintf("10.0.0.%d", i), fmt.Sprintf("fd80::%d", i))}
		if _, err := h.Create(w); err != nil {
			t.Fatal(err)
		}
	}
	table := secondTable + 3 // the index of eth1
	contains(t, run(t, inside, "ip", "-o", "-4", "addr"), "eth0    inet 10.0.0.0/32 scope global eth0\\ ")
	contains(t, run(t, inside, "ip", "-o", "-6", "addr"), "inet6 fd80::/128 scope global nodad")
	contains(t, run(t, inside, "ip", "-d", "route"), "unicast default via 169.254.1.1 dev eth0 proto boot scope global",
		"unicast 169.254.1.1 dev eth0 proto boot scope link", fmt.Sprintf("unicast default via 169.254.1.1 dev eth1 proto boot scope global metric %d", table))
	contains(t, run(t, inside, "ip", "-d", "route", "show", "table", fmt.Sprint(table)), "unicast default via 169.254.1.1 dev eth1 proto boot scope global")
	contains(t, run(t, inside, "ip", "-d", "-6", "route"), "unicast default via fe80::ecee:eeff:feee:eeee dev eth0 proto boot scope global metric 1024")
	contains(t, run(t, inside, "ip", "rule"), fmt.Sprintf("32765:\tfrom 10.0.0.1 lookup %d", table))
}

func TestBootID(t *testing.T) {
	if id, err := BootID(BootIDFile); err != nil || len(id) != 36 {
		t.Errorf("BootID = %q, %v", id, err)
	}
	if _, err := BootID(os.DevNull); err == nil {
		t.Error("an empty file has a boot ID")
	}
}
