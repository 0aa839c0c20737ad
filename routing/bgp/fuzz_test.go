package bgp

import (
	"bytes"
	"net"
	"slices"
	"testing"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// seedAttributes are attribute lists of kinds that made the codec panic, and of
// each kind that is read here.
func seedAttributes() [][]byte {
	list := [][]byte{
		nil, okReach, join(okReach, okOrigin, okPath, okPref), join(okOrigin, okPath, okNextHop, okPref), {0x80, 14, 3, 0, 2, 1}, {0x80, 15, 3, 0, 2, 1}, {0x80, 15, 2, 0, 1},
		{0xc0, 40, 8, 5, 0, 5, 0, 9, 0, 2, 1}, {0xc0, 23, 4, 0, 1, 0, 0}, {0xc0, 22, 1, 0}, {0x80, 26, 3, 1, 0, 1}, {0x80, 29, 4, 4, 9, 0, 1},
		{0xc0, 7, 6, 0, 1, 1, 2, 3, 4}, {0xd0, 8, 0, 4, 0xff, 0xff, 0, 0}, {0xc0, 16, 8, 0x80, 6, 0, 0, 0, 0, 0, 0}, {0xc0, 17, 6, 2, 1, 0, 1, 0, 1}, {0xc0, 25, 20},
	}
	for _, family := range [][3]byte{{0, 25, 70}, {0, 1, 128}, {0, 2, 128}, {0, 1, 133}, {0, 2, 134}, {0, 25, 65}, {0, 1, 73}, {0x40, 4, 71}, {0, 1, 85}, {0, 1, 132}, {0, 1, 4}} {
		for _, okNLRI := range [][]byte{{}, {1}, {2, 33, 1}, {0, 1, 0}, {255, 255}} {
			list = append(list, append([]byte{0x80, 14, byte(9 + len(okNLRI)), family[0], family[1], family[2], 4, 10, 0, 0, 1, 0}, okNLRI...))
			list = append(list, append([]byte{0x80, 15, byte(3 + len(okNLRI)), family[0], family[1], family[2]}, okNLRI...))
		}
	}
	return list
}

// FuzzUpdate: no panic, and what is taken is passed on as it was understood.
func FuzzUpdate(f *testing.F) {
	for _, list := range seedAttributes() {
		f.Add(updateBody(nil, list, okNLRI))
		f.Add(updateBody(okNLRI, join(okOrigin, okExternal, okNextHop, list), okNLRI))
	}
	f.Add([]byte{0, 0, 0, 0})
	withID := append([]byte{0, 0, 0, 9}, okNLRI...)
	f.Add(updateBody(withID, join(okOrigin, okPath, okNextHop, okPref), withID))
	f.Add(updateBody(nil, join([]byte{0x80, 14, 31}, okReach[3:24], []byte{0, 0, 0, 7, 40, 0xfd, 0x80, 0, 1, 0}, okOrigin, okPath, okPref), nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) < 4 || len(body) > maxMessage-headerLen {
			return
		}
		for kind := range 8 {
			d := testDecoder(kind&1 != 0)
			d.as4, d.ids = kind&2 != 0, [2]bool{kind&4 != 0, kind&4 != 0}
			changes, flt := d.update(body)
			if flt != nil && (flt.code != codeUpdate || flt.words == "" || flt.message() == nil) {
				t.Fatalf("fault %+v", flt)
			}
			for _, c := range changes {
				again(t, c, d.as4, d.ids)
			}
		}
	})
}

// again sends a change on and reads it back.
func again(t *testing.T, c change, as4 bool, ids [2]bool) {
	for _, p := range c.prefixes {
		if !p.IsValid() || p != p.Masked() {
			t.Fatalf("prefix %v", p)
		}
	}
	if c.attrs == nil {
		return
	}
	family := FamilyOf(c.prefixes[0].Addr())
	if (c.ids != nil) != ids[family] || c.ids != nil && len(c.ids) != len(c.prefixes) {
		t.Fatalf("%d IDs of %d prefixes", len(c.ids), len(c.prefixes))
	}
	look := outlook{as4: as4, ids: ids}
	list := bare(c.prefixes)
	for i := range list {
		list[i].id = c.id(i)
	}
	b, ok := look.announce(c.attrs, list, family)
	if !ok {
		return
	}
	d := testDecoder(false)
	d.as4, d.ids = as4, ids
	var got []change
	for rest := b.bytes; len(rest) > 0; {
		n, _, flt := frame(rest, maxMessage)
		if flt != nil || n == 0 {
			t.Fatalf("our own message: %v", flt)
		}
		some, flt := d.update(rest[headerLen:n])
		if flt != nil {
			t.Fatalf("our own update: %v", flt)
		}
		got = append(got, some...)
		rest = rest[n:]
	}
	i := 0
	for _, g := range got {
		if g.attrs == nil || !bytes.Equal(look.attributes(g.attrs, family), look.attributes(c.attrs, family)) {
			t.Fatalf("attributes %+v became %+v", c.attrs, g.attrs)
		}
		if !slices.Equal(g.prefixes, c.prefixes[i:i+len(g.prefixes)]) || ids[family] && !slices.Equal(g.ids, c.ids[i:i+len(g.ids)]) {
			t.Fatal("prefixes differ")
		}
		i += len(g.prefixes)
	}
}

// FuzzOpen: no panic, and an accepted OPEN says the same when written again.
func FuzzOpen(f *testing.F) {
	f.Add(theirOpen(nil)[headerLen:])
	f.Add(theirOpen(withGR(true, true, true))[headerLen:])
	f.Add(theirOpen(func(o *open) { o.paths = [2]codec.BGPAddPathMode{1, 3}; o.extended, o.enhanced = true, true })[headerLen:])
	f.Add(theirOpen(withLong(time.Minute, MaxLongLived, true))[headerLen:])
	f.Add([]byte{4, 0, 1, 0, 9, 1, 2, 3, 4, 255, 255, 0, 4, 2, 0, 1, 0})
	f.Add([]byte{4, 0, 1, 0, 9, 1, 2, 3, 4, 4, 2, 2, 64, 0})
	f.Add([]byte{4, 0, 1, 0, 9, 1, 2, 3, 4, 5, 2, 3, 73, 1, 9})
	for code := range 80 {
		f.Add([]byte{4, 0, 1, 0, 9, 1, 2, 3, 4, 5, 2, 3, byte(code), 1, 9})
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > maxMessage-headerLen {
			return
		}
		o, flt := parseOpen(body)
		if flt != nil {
			if flt.code != codeOpen || flt.words == "" {
				t.Fatalf("fault %+v", flt)
			}
			return
		}
		mine := &open{as: 64511, id: addr(usID), families: [2]bool{true, true}}
		if o.accept(mine, o.as) != nil || o.hold%time.Second != 0 {
			return
		}
		o.as4 = true
		b, err := o.message()
		if err != nil {
			t.Fatal(err)
		}
		p, flt := parseOpen(b[headerLen:])
		if flt != nil || p.as != o.as || p.hold != o.hold || p.id != o.id || p.families != o.families || p.paths != o.paths || p.extended != o.extended || p.enhanced != o.enhanced ||
			(p.long == nil) != (o.long == nil) || o.long != nil && p.long.time != o.long.time {
			t.Fatalf("%+v became %+v, %v", o, p, flt)
		}
	})
}

// FuzzMessage feeds the reader of an established session, cut anywhere.
func FuzzMessage(f *testing.F) {
	f.Add(keepalive(), 3)
	f.Add(join(endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes, announce("10.9.0.2", "10.1.0.0/26", "fd80::/64")), 30)
	f.Add(join(message(5, 0, 1, 0, 1), keepalive(), message(9)), 1)
	f.Add(join(routeRefresh(IPv4, refreshBegin), routeRefresh(IPv6, refreshEnd), message(5, 0, 1, 1, 1, 0)), 41)
	f.Add(long(maxMessage+1, "10.1.0.0/26"), 41)
	f.Add(message(3, 6, 9, 6, 2, 1, 'x'), 20)
	f.Add(append(message(2, 0, 0, 0), 1), 5)
	f.Add(theirOpen(nil), 7)
	for _, list := range seedAttributes()[:12] {
		f.Add(message(2, updateBody(nil, list, okNLRI)...), 40)
	}
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		if len(b) > readSize/2 {
			return
		}
		at = min(max(at, 0), len(b))
		room := roomFor(at%2 == 1)
		here, _ := net.Pipe()
		c := newConn(here, false, &counters{})
		changes := 0
		c.established = &established{decoder: *testDecoder(false), room: room, enhanced: room > maxMessage, hand: func(list []change) { changes += len(list) }}
		events, stop := make(chan incoming), make(chan struct{})
		go func() {
			for {
				select {
				case in := <-events:
					if in.kind == codec.BGP_MSG_NOTIFICATION && notification(in.body).words == "" {
						panic("no words")
					}
					c.goOn()
				case <-stop:
					return
				}
			}
		}()
		defer close(stop)
		rest, err := c.messages(slices.Clone(b[:at]), events)
		if err == nil {
			rest, err = c.messages(append(slices.Clone(rest), b[at:]...), events)
		}
		if err == nil && len(rest) >= room {
			t.Fatalf("%d bytes wait for more", len(rest))
		}
	})
}
