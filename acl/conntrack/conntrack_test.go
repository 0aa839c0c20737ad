package conntrack

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	addr4 = netip.MustParseAddr("10.0.0.5")
	addr6 = netip.MustParseAddr("fd00::5")
)

// fill makes entries of which some are from or to addr4 and addr6, and returns
// how many are not.
func fill(n *netns) int {
	n.t.Helper()
	insert := func(args string) {
		n.Run(append([]string{"conntrack", "-I", "-t", "600", "-p", "udp", "--sport", "1000"}, strings.Fields(args)...)...)
	}
	for i := range 5 {
		insert(fmt.Sprintf("-s 10.0.0.5 -d 192.0.2.%d --dport 5", i+1))
		insert(fmt.Sprintf("-s 192.0.2.%d -d 10.0.0.5 --dport 5", i+1))
		insert(fmt.Sprintf("-s 192.0.2.%d -d 198.51.100.1 --dst-nat 10.0.0.5 --dport 80", i+1))
		insert(fmt.Sprintf("-s 10.0.0.5 -d 192.0.2.%d --src-nat 198.51.100.1 --dport 81", i+1))
		insert(fmt.Sprintf("-s fd00::5 -d 2001:db8::%d --dport 5", i+1))
		insert(fmt.Sprintf("-s 2001:db8::%d -d fd00::5 --dport 5", i+1))
		insert(fmt.Sprintf("-s 10.0.0.6 -d 192.0.2.%d --dport 5", i+1))
		insert(fmt.Sprintf("-s 192.0.2.%d -d 198.51.100.1 --dst-nat 10.0.0.6 --dport 82", i+1))
		insert(fmt.Sprintf("-s fd00::6 -d 2001:db8::%d --dport 5", i+1))
	}
	return 15
}

// entries are the entries of both families, one line each.
func entries(n *netns) string {
	var out strings.Builder
	for _, f := range []string{"ipv4", "ipv6"} {
		for _, line := range strings.Split(n.Run("conntrack", "-L", "-f", f), "\n") {
			if strings.HasPrefix(line, "udp") {
				out.WriteString(line + "\n")
			}
		}
	}
	return out.String()
}

func check(t *testing.T, n *netns, others int) {
	t.Helper()
	left := entries(n)
	if strings.Contains(left, "10.0.0.5 ") || strings.Contains(left, "fd00::5 ") {
		t.Errorf("left:\n%s", left)
	}
	if c := strings.Count(left, "\n"); c != others {
		t.Errorf("%d entries left, want the %d others:\n%s", c, others, left)
	}
}

func TestDelete(t *testing.T) {
	n := newNetns(t)
	others := fill(n)
	knows := func(is bool) {
		t.Helper()
		n.Do(func() {
			list, err := Addresses()
			for _, a := range []netip.Addr{addr4, addr6} {
				if slices.Contains(list, a) != is {
					t.Errorf("flows of %s known: %v, want %v", a, !is, is)
				}
			}
			if !slices.Contains(list, netip.MustParseAddr("10.0.0.6")) || !slices.Contains(list, netip.MustParseAddr("fd00::6")) || err != nil {
				t.Errorf("flows are of %v: %v", list, err)
			}
		})
	}
	knows(true)
	n.Do(func() {
		if err := Delete(addr4, addr6); err != nil {
			t.Error(err)
		}
	})
	check(t, n, others)
	knows(false)
	n.Do(func() {
		if err := Delete(addr4); err != nil {
			t.Errorf("nothing left to delete: %v", err)
		}
		if err := Delete(); err != nil {
			t.Error(err)
		}
	})
}

// TestDeleteMany: for many addresses the entries are listed once.
func TestDeleteMany(t *testing.T) {
	n := newNetns(t)
	others := fill(n)
	addrs := []netip.Addr{addr6, addr4}
	for i := range fewAddresses {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}))
	}
	n.Do(func() {
		if err := Delete(addrs...); err != nil {
			t.Error(err)
		}
	})
	check(t, n, others)
}

// TestForget: those who forget at one time wait for one walk together, each for its own
// addresses.
func TestForget(t *testing.T) {
	n := newNetns(t)
	others := fill(n)
	n.Do(func() {
		var f Forgetter
		defer f.Close()
		if err := f.Forget(netip.MustParseAddr("10.9.0.1")); err != nil { // opens it here
			t.Fatal(err)
		}
		f.work.Lock() // as if one were under way
		var all sync.WaitGroup
		for _, a := range []netip.Addr{addr4, netip.MustParseAddr("10.9.0.2"), addr6} {
			all.Go(func() {
				if err := f.Forget(a); err != nil {
					t.Error(err)
				}
			})
		}
		for gathered, until := 0, time.Now().Add(10*time.Second); gathered < 3; {
			if time.Now().After(until) {
				t.Errorf("%d wait together", gathered)
				break
			}
			f.mu.Lock()
			if f.next != nil {
				gathered = len(f.next.addrs)
			}
			f.mu.Unlock()
			runtime.Gosched()
		}
		f.work.Unlock()
		all.Wait()
	})
	check(t, n, others)
}

// listed is deleteListed in the current network namespace.
func listed(family byte, filter []byte, a netip.Addr) error {
	c, err := Open()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.deleteListed(family, filter, []netip.Addr{a})
}

// TestDeleteDumped is the way of kernels that do not delete by filter, also of
// those that do not filter the list.
func TestDeleteDumped(t *testing.T) {
	for name, filtered := range map[string]bool{"filtered list": true, "whole list": false} {
		t.Run(name, func(t *testing.T) {
			n := newNetns(t)
			others := fill(n)
			n.Do(func() {
				for _, tuple := range []uint16{attrTupleOrig, attrTupleReply} {
					var body []byte
					if filtered {
						var err error
						if body, err = filter(addr4, tuple); err != nil {
							t.Error(err)
						}
					}
					if err := listed(unix.AF_INET, body, addr4); err != nil {
						t.Error(err)
					}
				}
				if err := listed(unix.AF_INET6, nil, addr6); err != nil {
					t.Error(err)
				}
			})
			check(t, n, others)
		})
	}
}

// BenchmarkDelete is what the addresses of one endpoint cost.
func BenchmarkDelete(b *testing.B) {
	n := newNetns(b)
	fill(n)
	for name, addrs := range map[string][]netip.Addr{
		"ipv4": {netip.MustParseAddr("10.0.0.99")}, "both": {netip.MustParseAddr("10.0.0.99"), netip.MustParseAddr("fd00::99")},
	} {
		b.Run(name, func(b *testing.B) {
			n.Do(func() {
				for b.Loop() {
					if err := Delete(addrs...); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 12, 0, 1, 0x80, 8, 0, 1, 0x80, 4, 0, 1, 0})
	f.Add([]byte("\x02\x00\x00\x00\x14\x00\x01\x80\x10\x00\x01\x80\x08\x00\x01\x00\x0a\x00\x00\x05\x08\x00\x0c\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := parse(b); err == nil && e.orig.src.IsValid() && e.origRaw == nil {
			t.Errorf("%x: a tuple but no key", b)
		}
	})
}
