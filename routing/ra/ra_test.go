package ra

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/routing"
)

// namespace moves the thread of the test into a new network namespace with a link of two,
// va (fe80::a) and vb (fe80::b); it ends with the test.
func namespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	ip(t, "link add va type veth peer name vb")
	for _, link := range []string{"va", "vb"} {
		ip(t, "link set "+link+" addrgenmode none")
		ip(t, "addr add fe80::"+link[1:]+"/64 dev "+link+" nodad")
		ip(t, "link set "+link+" up")
	}
	// The kernel makes its own routes when it comes to them.
	for deadline := time.Now().Add(30 * time.Second); strings.Count(ip(t, "-6 route show table local"), "multicast ff00::/8") < 2; {
		if time.Now().After(deadline) {
			t.Fatal("the kernel's routes do not come: ", ip(t, "-6 route show table local"))
		}
	}
}

func ip(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
	return string(out)
}

// begin runs a Finder in the thread's namespace.
func begin(t *testing.T, recalled []routing.End, links ...string) *Finder {
	t.Helper()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	f := New(slog.New(slog.DiscardHandler))
	f.Recall(recalled)
	f.Look(func(link string) bool { return slices.Contains(links, link) })
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with it
		defer home.Close()
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f.Run(t.Context())
	}()
	t.Cleanup(func() { // behind the end of t.Context
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// until waits for ends, as text.
func until(t *testing.T, f *Finder, want ...string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		var got []string
		for _, e := range f.Ends() {
			s := fmt.Sprintf("%s %v", e.Link, e.Remote)
			if e.Why != "" {
				s = e.Link + " " + e.Why
			}
			if e.Missed {
				s += " missed"
			}
			if e.Other.IsValid() {
				s += " other " + e.Other.String()
			}
			got = append(got, s)
		}
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-f.Changed():
		case <-deadline:
			t.Fatalf("ends are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func index(t *testing.T, link string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.SplitN(ip(t, "-o link show dev "+link), ":", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestNeighboursAreFound: both ends of a link find each other, lose each other with the
// link, and find each other again; nobody becomes a default router, and accept_ra stays.
func TestNeighboursAreFound(t *testing.T) {
	namespace(t)
	for _, link := range []string{"va", "vb"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/accept_ra", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	f := begin(t, nil, "va", "vb")
	both := []string{"va fe80::b%va", "vb fe80::a%vb"}
	until(t, f, both...)
	if out := ip(t, "-6 route show default"); out != "" {
		t.Errorf("a default router: %s", out)
	}
	for _, link := range []string{"va", "vb"} {
		if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + link + "/accept_ra"); err != nil || strings.TrimSpace(string(b)) != "1" {
			t.Errorf("accept_ra of %s is %q, %v", link, b, err)
		}
	}
	ip(t, "link set vb down")
	until(t, f, "va interface va is down missed", "vb interface vb is down missed")
	ip(t, "link set vb up")
	until(t, f, "va fe80::b%va", "vb interface vb has no link-local address missed") // who was there is believed to be
	ip(t, "addr add fe80::b/64 dev vb nodad")
	until(t, f, both...)
	ip(t, "link del va")
	until(t, f)
	f.Look(nil)
}

// TestAStrangerWaits: another one that speaks on a link is said, and takes nobody's place
// but that of who has not spoken at all.
func TestAStrangerWaits(t *testing.T) {
	namespace(t)
	recalled := []routing.End{{Link: "va", Remote: netip.MustParseAddr("fe80::dead%va")}}
	f := begin(t, recalled, "va")
	until(t, f, "va fe80::dead%va")
	speak := func(from string) {
		t.Helper()
		s, err := open(index(t, "vb"), netip.MustParseAddr(from))
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if err := s.advertise(); err != nil {
			t.Fatal(err)
		}
	}
	speak("fe80::b")
	until(t, f, "va fe80::b%va")
	ip(t, "addr add fe80::bad/64 dev vb nodad")
	speak("fe80::bad")
	until(t, f, "va fe80::b%va other fe80::bad%va")
}

// TestSilentNeighbourIsReplaced: one who has been silent for long gives way to another.
func TestSilentNeighbourIsReplaced(t *testing.T) {
	now := time.Now()
	s := &socket{}
	first, second := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")
	l := &link{state: state{name: "eth1"}, socket: s, remote: first, heard: now, sent: now, due: now.Add(interval)}
	r := &run{Finder: New(slog.New(slog.DiscardHandler)), links: map[int]*link{1: l}}
	r.hear(heard{socket: s, from: second}, now.Add(silence))
	if l.remote != first || l.other != second {
		t.Errorf("%+v", l)
	}
	r.hear(heard{socket: s, from: second}, now.Add(silence+1))
	if l.remote != second || l.other.IsValid() || l.due.After(now.Add(pause)) {
		t.Errorf("%+v", l)
	}
	// Who asks is answered, a second after the last advertisement at the earliest.
	l.sent, l.due = now, now.Add(interval)
	if r.hear(heard{socket: s, from: second, asks: true}, now); l.due != now.Add(pause) {
		t.Errorf("due %v", l.due.Sub(now))
	}
	// One who speaks as ever is not.
	l.due = now.Add(interval)
	if r.hear(heard{socket: s, from: second}, now.Add(pause)); l.due != now.Add(interval) {
		t.Errorf("due %v", l.due.Sub(now))
	}
}

// TestMessages: what is heard of at all (RFC 4861, section 6.1).
func TestMessages(t *testing.T) {
	link, global := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fd00::1")
	message := func(kind byte, n int) []byte { return append([]byte{kind}, make([]byte, n-1)...) }
	for _, c := range []struct {
		b        []byte
		hops     int
		from     netip.Addr
		asks, ok bool
	}{
		{message(advertisement, 16), 255, link, false, true},
		{message(advertisement, 16), 254, link, false, false},
		{message(advertisement, 16), -1, link, false, false},
		{message(advertisement, 15), 255, link, false, false},
		{message(advertisement, 16), 255, global, false, false},
		{[]byte{advertisement, 1, 15: 0}, 255, link, false, false},
		{message(solicitation, 8), 255, link, true, true},
		{message(solicitation, 8), 255, netip.IPv6Unspecified(), true, true},
		{message(solicitation, 8), 255, global, true, false},
		{message(solicitation, 7), 255, link, false, false},
		{message(136, 24), 255, link, false, false},
		{nil, 255, link, false, false},
	} {
		if asks, ok := read(c.b, c.hops, c.from); ok != c.ok || ok && asks != c.asks {
			t.Errorf("%x with %d hops from %v: asks %v, %v", c.b, c.hops, c.from, asks, ok)
		}
	}
}

// FuzzMessages: nothing from the link or the kernel makes the reading panic.
func FuzzMessages(f *testing.F) {
	f.Add(append([]byte{advertisement}, make([]byte, 15)...))
	f.Add(append([]byte{unix.AF_INET6, 64, 0x40, 0xfd, 2, 0, 0, 0, 20, 0, unix.IFA_ADDRESS, 0, 0xfe, 0x80}, make([]byte, 14)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if asks, ok := read(b, hopLimit, netip.MustParseAddr("fe80::1")); ok && asks != (b[0] == solicitation) {
			t.Errorf("%x", b)
		}
		hops(b)
		if _, a, _, ok := parseAddress(b); ok && !a.IsValid() {
			t.Errorf("%x", b)
		}
		w := watcher{byIndex: map[int]state{}, addresses: map[int]map[netip.Addr]bool{}}
		_ = w.take(b)
		w.links()
	})
}

// TestALinkThatComesUpRests: what is up at the start is spoken on at once, a link that comes
// up later after a second; so is one that goes down and up.
func TestALinkThatComesUpRests(t *testing.T) {
	namespace(t)
	i := index(t, "va")
	there := func(up bool) map[int]state {
		return map[int]state{i: {name: "va", up: up, local: netip.MustParseAddr("fe80::a")}}
	}
	for _, begun := range []bool{false, true} {
		r := &run{Finder: New(slog.New(slog.DiscardHandler)), links: map[int]*link{}, in: make(chan heard), begun: begun}
		ctx, stop := context.WithCancel(t.Context())
		var readers sync.WaitGroup
		settle := func(up, speaks bool) {
			t.Helper()
			before := time.Now()
			r.settle(ctx, there(up), func(string) bool { return true }, &readers)
			if l := r.links[i]; (l.socket != nil) != speaks || up && !speaks && l.due.Before(before.Add(calm)) {
				t.Errorf("begun %v, up %v: speaks %v, due %v", begun, up, l.socket != nil, l.due.Sub(before))
			}
		}
		settle(true, !begun)
		settle(false, false)
		settle(true, false)
		r.links[i].due = time.Now() // the second is over
		settle(true, true)
		stop()
		r.links[i].close()
		readers.Wait()
	}
}

// TestNothingIsDue: a link that cannot be spoken on keeps nobody awake.
func TestNothingIsDue(t *testing.T) {
	now := time.Now()
	r := &run{Finder: New(slog.New(slog.DiscardHandler)), links: map[int]*link{1: {state: state{name: "up1", up: true}, due: now.Add(-time.Second)}}}
	if wait := r.next(now); wait != time.Hour {
		t.Errorf("it waits %s", wait)
	}
	r.links[1].due = now.Add(time.Second)
	if wait := r.next(now); wait != time.Second {
		t.Errorf("it waits %s for a link that rests", wait)
	}
}
