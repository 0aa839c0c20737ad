package kernel

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestDropRules: a second interface that goes leaves nothing in a namespace that lives
// on, and rules of others stay.
func TestDropRules(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	path := fmt.Sprintf("/proc/self/fd/%d", inside)
	ns, err := openNetns(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	create := func(i int) []string {
		t.Helper()
		list := []string{fmt.Sprintf("10.0.0.%d", i), fmt.Sprintf("fd80::%d", i)}
		w := Wire{Netns: inside, Interface: fmt.Sprintf("eth%d", i), Link: fmt.Sprintf("nc%d", i), Addresses: addrs(list...)}
		if _, err := h.Create(w); err != nil {
			t.Fatal(err)
		}
		return list
	}
	rules := func() string { return run(t, inside, "ip", "rule") + run(t, inside, "ip", "-6", "rule") }
	create(1)
	run(t, inside, "ip", "rule", "add", "from", "10.0.0.2", "lookup", "7", "pref", "99")
	before := rules()
	second := create(2)
	contains(t, rules(), "from 10.0.0.2 lookup 10", "from fd80::2 lookup 10")
	if err := h.Detach("nc2", 0); err != nil {
		t.Fatal(err)
	}
	if err := h.retire.flush(); err != nil {
		t.Fatal(err)
	}
	for _, other := range []struct {
		path     string
		dev, ino uint64
	}{{"", ns.Dev, ns.Ino}, {path, ns.Dev, ns.Ino + 1}, {"/proc/self/fd/99999", ns.Dev, ns.Ino}} {
		if err := h.DropRules(other.path, other.dev, other.ino, addrs(second...), nil); err != nil || rules() == before {
			t.Errorf("%+v: %v, rules:\n%s", other, err, rules())
		}
	}
	if err := h.DropRules("/dev/null", ns.Dev, ns.Ino, addrs(second...), nil); err == nil || !strings.Contains(err.Error(), "not a namespace") {
		t.Errorf("of a device: %v", err)
	}
	for range 2 {
		if err := h.DropRules(path, ns.Dev, ns.Ino, addrs(second...), nil); err != nil {
			t.Fatal(err)
		}
		if now := rules(); now != before {
			t.Errorf("rules:\n%s\nbefore:\n%s", now, before)
		}
	}
	// An attach that fails leaves none either: its own table has a default route already.
	for table := secondTable + 1; table < secondTable+9; table++ {
		run(t, inside, "ip", "route", "add", "default", "dev", "eth1", "table", fmt.Sprint(table))
	}
	if _, err := h.Create(Wire{Netns: inside, Interface: "eth3", Link: "nc3", Addresses: addrs("10.0.0.3")}); err == nil {
		t.Error("a table that is in use")
	}
	if now := rules(); now != before {
		t.Errorf("after a failure:\n%s\nbefore:\n%s", now, before)
	}
}

// TestDropRulesOfOne: two interfaces of one workload may lead to the same destinations;
// those of the one that goes are its own.
func TestDropRulesOfOne(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	path := fmt.Sprintf("/proc/self/fd/%d", inside)
	to := []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("fd07::/64")}
	rules := func() string { return run(t, inside, "ip", "rule") + run(t, inside, "ip", "-6", "rule") }
	add := func(table string, from ...string) {
		for i, f := range []string{"-4", "-6"} {
			run(t, inside, "ip", f, "rule", "add", "from", from[i], "lookup", table, "pref", "30000")
			run(t, inside, "ip", f, "rule", "add", "to", to[i].String(), "lookup", table, "pref", "30017")
		}
	}
	add("1027", "10.0.0.3", "fd80::3")
	before := rules()
	add("1026", "10.0.0.2", "fd80::2")
	if err := h.DropRules(path, 0, 0, addrs("10.0.0.2", "fd80::2"), to); err != nil {
		t.Fatal(err)
	}
	if now := rules(); now != before {
		t.Errorf("rules:\n%s\nbefore:\n%s", now, before)
	}
}
