package bgp

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"golang.org/x/sys/unix"
)

// The size of the fan-out that is compared.
const (
	fanRoutes  = 10000
	fanClients = 50
	fanAS      = 64511
	feederAS   = 64600
)

// fan is what goes from one peer to clients: routes with a number of
// attribute sets, packed or one prefix an UPDATE, by an eBGP peer or by a client of the
// reflector that is measured.
type fan struct {
	clients      int // 0: fanClients
	routes, sets int
	family       Family
	single       bool
	reflect      bool
	full         func() // is called once all routes are everywhere, before they go again
	// deaf: then all is done once more with one more client, which reads nothing from the
	// start, full is called again, and all is done a third time without it.
	deaf bool
}

var fanTarget = netip.MustParseAddrPort("127.0.0.1:1792")

func fanClient(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}).Next()
}

var fanFeeder = netip.MustParseAddr("127.2.0.1")

// client is a minimal BGP peer: it counts prefixes and does nothing else.
type client struct {
	net.Conn
	gained, lost chan struct{}
}

// unread fails if less than that lies in the client's socket: nothing held up who writes.
func (c *client) unread(b *testing.B, least int) {
	b.Helper()
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); e != nil || err != nil {
		b.Fatal(e, err)
	}
	if n < least {
		b.Fatalf("a client that reads nothing has %d bytes to read", n)
	}
}

// enter opens a session from an own loopback address of h. routes, if not 0, are
// the routes after which gained and lost are signalled.
func enter(b *testing.B, h *host, from netip.Addr, as uint32, routes int) *client {
	b.Helper()
	c := enterDeaf(b, h, from, as)
	go c.read(routes)
	return c
}

// enterDeaf is enter for a client that says what makes a session, and never reads.
func enterDeaf(b *testing.B, h *host, from netip.Addr, as uint32) *client {
	var c net.Conn
	var err error
	b.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		e := h.within(func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: time.Second}
			c, err = d.DialContext(context.Background(), "tcp", fanTarget.String())
		})
		if e != nil {
			b.Fatal(e)
		}
		if err == nil {
			o := &open{as: as, id: from, as4: true, families: [2]bool{true, true}}
			m, _ := o.message()
			_, _ = c.Write(m)
			_, _ = c.Write(keepalive())
			// The OPEN says that the session was wanted.
			if _, err = io.ReadFull(c, m[:1]); err == nil {
				break
			}
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.Cleanup(func() { _ = c.Close() })
	return &client{c, make(chan struct{}, 1), make(chan struct{}, 1)}
}

// read counts announced and withdrawn prefixes.
func (c *client) read(routes int) {
	buf := []byte{0xff}
	chunk := make([]byte, 256<<10)
	gained, lost := 0, 0
	skip := func(b []byte) (n int) {
		for len(b) > 0 {
			b = b[1+(int(b[0])+7)/8:]
			n++
		}
		return n
	}
	walk := func(list []byte) {
		for len(list) > 0 {
			head, n := 3, int(list[2])
			if list[0]&flagExtended != 0 {
				head, n = 4, int(binary.BigEndian.Uint16(list[2:]))
			}
			switch value := list[head : head+n]; list[1] {
			case attrReach:
				gained += skip(value[5+int(value[3]):])
			case attrUnreach:
				lost += skip(value[3:])
			}
			list = list[head+n:]
		}
	}
	for {
		n, err := c.Read(chunk)
		if err != nil {
			return
		}
		buf = append(buf, chunk[:n]...)
		rest := buf
		for len(rest) >= headerLen {
			n := int(binary.BigEndian.Uint16(rest[16:]))
			if len(rest) < n {
				break
			}
			if rest[18] == codec.BGP_MSG_UPDATE {
				body := rest[headerLen:n]
				w, body, _ := cut(body)
				list, body, _ := cut(body)
				walk(list)
				lost += skip(w)
				gained += skip(body)
			}
			rest = rest[n:]
		}
		buf = buf[:copy(buf, rest)]
		if routes > 0 && gained >= routes {
			gained = 0
			c.gained <- struct{}{}
		}
		if routes > 0 && lost >= routes {
			lost = 0
			c.lost <- struct{}{}
		}
	}
}

// fanOut measures from the first byte of the routes of one peer until the last of the
// others has them all. The speaker under test listens at fanTarget in h.
func fanOut(b *testing.B, h *host, f fan) {
	b.Helper()
	var clients []*client
	for i := range cmp.Or(f.clients, fanClients) {
		clients = append(clients, enter(b, h, fanClient(i), fanAS, f.routes))
	}
	look := outlook{external: true, as4: true, localAS: feederAS, nextHop: [2]netip.Addr{fanFeeder, addr("fd00::200")}}
	a := attrs{}
	if f.reflect {
		look = outlook{as4: true, nextHop: look.nextHop}
	}
	feeder := enter(b, h, fanFeeder, f.feederAS(), 0)
	sets := make([][]netip.Prefix, f.sets)
	var list []netip.Prefix
	for i := range f.routes {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		if f.family == IPv6 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x80, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}), 128)
		}
		list = append(list, p)
		sets[i%f.sets] = append(sets[i%f.sets], p)
	}
	var all []byte
	for n, set := range sets {
		a := a
		a.localPref, a.rest = defaultLocalPref, []carried{{flagOptional | flagTransitive, attrCommunities, []byte{1, 2, byte(n >> 8), byte(n)}}}
		for len(set) > 0 {
			some := set
			if f.single {
				some = set[:1]
			}
			packed, _ := look.announce(&a, bare(some), f.family)
			all, set = append(all, packed.bytes...), set[len(some):]
		}
	}
	none := (&outlook{}).withdraw(bare(list), f.family)
	rounds := func(full func()) (took []time.Duration) {
		took = make([]time.Duration, b.N)
		for i := range b.N {
			began := time.Now()
			_, _ = feeder.Write(all)
			for _, c := range clients {
				await(b, c.gained)
			}
			took[i] = time.Since(began)
			b.StopTimer()
			if full != nil && i == b.N-1 {
				full()
			}
			_, _ = feeder.Write(none.bytes)
			for _, c := range clients {
				await(b, c.lost)
			}
			b.StartTimer()
		}
		return took
	}
	report := func(unit string, took []time.Duration) {
		slices.Sort(took)
		b.ReportMetric(took[(len(took)-1)/2].Seconds()*1000, "p50-"+unit)
		b.ReportMetric(took[(len(took)-1)*99/100].Seconds()*1000, "p99-"+unit)
	}
	b.ResetTimer()
	took := rounds(f.full)
	b.StopTimer()
	if f.deaf {
		deaf := enterDeaf(b, h, fanClient(len(clients)), fanAS)
		report("deaf-ms", rounds(f.full))
		deaf.unread(b, 64<<10)
		_ = deaf.Close()
		took = append(took, rounds(nil)...) // what the machine does besides meets both
	}
	report("ms", took)
}

func (f fan) feederAS() uint32 {
	if f.reflect {
		return fanAS
	}
	return feederAS
}

func await(b *testing.B, done <-chan struct{}) {
	b.Helper()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		b.Fatal("routes do not arrive")
	}
}

// engine measures this engine.
func (f fan) engine(b *testing.B) {
	h := newHost(b)
	s, err := f.speaker()
	if err != nil {
		b.Fatal(err)
	}
	h.settle(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	fanOut(b, h, f)
}

// speaker is the engine that is measured.
func (f fan) speaker() (*Speaker, error) {
	s, err := New(Config{RouterID: addr("127.0.0.1"), AS: fanAS, Listen: []netip.AddrPort{fanTarget}})
	if err != nil {
		return nil, err
	}
	both := []Family{IPv4, IPv6}
	peers := []PeerConfig{{Address: fanFeeder, AS: f.feederAS(), Passive: true, Client: f.reflect, Families: both}}
	for i := range cmp.Or(f.clients, fanClients) + 1 { // the last is the deaf one
		peers = append(peers, PeerConfig{Address: fanClient(i), AS: fanAS, Passive: true, Client: f.reflect, Families: both})
	}
	return s, s.Configure(peers)
}

// bird measures BIRD in the same place.
func (f fan) bird(b *testing.B) {
	h := newHost(b)
	f.startBIRD(h)
	fanOut(b, h, f)
}

func (f fan) startBIRD(h *host) {
	h.ip("addr add fd00::1/64 dev lo")
	var conf strings.Builder
	fmt.Fprintf(&conf, "router id 127.0.0.1;\nprotocol device {}\nprotocol static { ipv4; route 127.0.0.0/8 via \"lo\"; }\nprotocol direct { ipv6; }\n")
	reflects := ""
	if f.reflect {
		reflects = "rr client;"
	}
	peer := func(i int, from netip.Addr, as uint32) {
		fmt.Fprintf(&conf, `protocol bgp p%d { local 127.0.0.1 port %d as %d; neighbor %v as %d; multihop; passive; hold time 0; %s
  ipv4 { import all; export where source = RTS_BGP; }; ipv6 { import all; export where source = RTS_BGP; }; }`+"\n",
			i, fanTarget.Port(), fanAS, from, as, reflects)
	}
	peer(0, fanFeeder, f.feederAS())
	for i := range cmp.Or(f.clients, fanClients) + 1 {
		peer(i+1, fanClient(i), fanAS)
	}
	startDaemonBIRD(h, conf.String())
}

// BenchmarkFanout is the engine: 10k routes of one peer to 50 others; BenchmarkFanoutBIRD
// is the same with BIRD in the middle.
func BenchmarkFanout(b *testing.B)     { fan{routes: fanRoutes, sets: 1}.engine(b) }
func BenchmarkFanoutBIRD(b *testing.B) { fan{routes: fanRoutes, sets: 1}.bird(b) }

// The reflector with 50 clients, and BIRD as one.
func BenchmarkReflect10k(b *testing.B)           { reflected(10_000).engine(b) }
func BenchmarkReflect10kBIRD(b *testing.B)       { reflected(10_000).bird(b) }
func BenchmarkReflect100k(b *testing.B)          { reflected(100_000).engine(b) }
func BenchmarkReflect100kBIRD(b *testing.B)      { reflected(100_000).bird(b) }
func BenchmarkReflect6x10k(b *testing.B)         { reflected(10_000).v6().engine(b) }
func BenchmarkReflect6x10kBIRD(b *testing.B)     { reflected(10_000).v6().bird(b) }
func BenchmarkReflect6x100k(b *testing.B)        { reflected(100_000).v6().engine(b) }
func BenchmarkReflect6x100kBIRD(b *testing.B)    { reflected(100_000).v6().bird(b) }
func BenchmarkReflectSets10k(b *testing.B)       { reflected(10_000).of(100).engine(b) }
func BenchmarkReflectSets10kBIRD(b *testing.B)   { reflected(10_000).of(100).bird(b) }
func BenchmarkReflectSingle10k(b *testing.B)     { reflected(10_000).one().engine(b) }
func BenchmarkReflectSingle10kBIRD(b *testing.B) { reflected(10_000).one().bird(b) }

// More sets and messages, and far more clients.
func BenchmarkReflect6Sets10k(b *testing.B)        { reflected(10_000).v6().of(100).engine(b) }
func BenchmarkReflect6Sets10kBIRD(b *testing.B)    { reflected(10_000).v6().of(100).bird(b) }
func BenchmarkReflect6Single10k(b *testing.B)      { reflected(10_000).v6().one().engine(b) }
func BenchmarkReflect6Single10kBIRD(b *testing.B)  { reflected(10_000).v6().one().bird(b) }
func BenchmarkReflectSets100k(b *testing.B)        { reflected(100_000).of(100).engine(b) }
func BenchmarkReflectSets100kBIRD(b *testing.B)    { reflected(100_000).of(100).bird(b) }
func BenchmarkReflectSingle100k(b *testing.B)      { reflected(100_000).one().engine(b) }
func BenchmarkReflectSingle100kBIRD(b *testing.B)  { reflected(100_000).one().bird(b) }
func BenchmarkReflect1000Clients(b *testing.B)     { reflected(10_000).to(1000).engine(b) }
func BenchmarkReflect1000ClientsBIRD(b *testing.B) { reflected(10_000).to(1000).bird(b) }

func reflected(routes int) fan { return fan{routes: routes, sets: 1, reflect: true} }

func (f fan) to(clients int) fan { f.clients = clients; return f }
func (f fan) v6() fan            { f.family = IPv6; return f }
func (f fan) of(sets int) fan    { f.sets = sets; return f }
func (f fan) one() fan           { f.single = true; return f }
