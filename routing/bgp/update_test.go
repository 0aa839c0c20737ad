package bgp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

func testDecoder(external bool) *decoder {
	d := &decoder{
		complaints: &complaints{log: slog.New(slog.DiscardHandler)}, families: [2]bool{true, true}, as4: true,
		localAS: 64511, peerAS: 64511, routerID: addr(usID), localIP: addr(usID),
	}
	if external {
		d.peerAS = 64600
	}
	return d
}

// Parts of well-formed attributes.
var (
	okOrigin   = []byte{0x40, 1, 1, 0}
	okPath     = []byte{0x40, 2, 0}
	okExternal = []byte{0x40, 2, 6, 2, 1, 0, 0, 0xfc, 0x58}
	okNextHop  = []byte{0x40, 3, 4, 10, 9, 0, 2}
	okPref     = []byte{0x40, 5, 4, 0, 0, 0, 100}
	okReach    = append([]byte{0x80, 14, 27, 0, 2, 1, 16, 0xfd, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0}, 40, 0xfd, 0x80, 0, 1, 0)
	okNLRI     = []byte{26, 10, 1, 0, 0}
)

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// What is done about each kind of malformed UPDATE (RFC 7606; RFC 4271, section
// 6.3): "reset 3/9", "withdraw", "announce", or nothing.
func TestMalformed(t *testing.T) {
	base := join(okOrigin, okPath, okNextHop, okPref)
	with := func(parts ...[]byte) []byte {
		return updateBody(nil, join(append([][]byte{base}, parts...)...), okNLRI)
	}
	without := func(parts ...[]byte) []byte { return updateBody(nil, join(parts...), okNLRI) }
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"well-formed":              {with(), "announce 10.1.0.0/26"},
		"withdrawn exceed":         {[]byte{0, 9, 0, 0}, "reset 3/1"},
		"attributes exceed":        {[]byte{0, 0, 0, 9, 1}, "reset 3/1"},
		"bad withdrawn":            {updateBody([]byte{33, 1, 2, 3, 4, 5}, nil, nil), "reset 3/10"},
		"bad prefix":               {updateBody(nil, base, []byte{24, 10}), "reset 3/10"},
		"bits behind the prefix":   {updateBody(nil, base, []byte{25, 10, 1, 0, 0x7f}), "announce 10.1.0.0/25"},
		"origin length":            {without([]byte{0x40, 1, 2, 0, 0}, okPath, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"origin value":             {without([]byte{0x40, 1, 1, 3}, okPath, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"origin missing":           {without(okPath, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"path missing":             {without(okOrigin, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"next hop missing":         {without(okOrigin, okPath, okPref), "withdraw 10.1.0.0/26"},
		"local pref missing":       {without(okOrigin, okPath, okNextHop), "announce 10.1.0.0/26"},
		"path: kind":               {without(okOrigin, []byte{0x40, 2, 6, 5, 1, 0, 0, 0, 1}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"path: empty segment":      {without(okOrigin, []byte{0x40, 2, 2, 2, 0}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"path: overrun":            {without(okOrigin, []byte{0x40, 2, 6, 2, 2, 0, 0, 0, 1}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"path: underrun":           {without(okOrigin, []byte{0x40, 2, 1, 2}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"path: AS 0":               {without(okOrigin, []byte{0x40, 2, 10, 2, 2, 0, 0, 0, 7, 0, 0, 0, 0}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"path: AS 0 in a set":      {without(okOrigin, []byte{0x40, 2, 6, 1, 1, 0, 0, 0, 0}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"path: confederation":      {without(okOrigin, []byte{0x40, 2, 6, 3, 1, 0, 0, 0, 7}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"path: confederation set":  {without(okOrigin, []byte{0x40, 2, 12, 2, 1, 0, 0, 0, 7, 4, 1, 0, 0, 0, 7}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"aggregator of AS 0":       {with([]byte{0xc0, 7, 8, 0, 0, 0, 0, 10, 9, 0, 7}), "announce 10.1.0.0/26"},
		"own AS":                   {without(okOrigin, []byte{0x40, 2, 6, 2, 1, 0, 0, 0xfb, 0xff}, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"next hop length":          {without(okOrigin, okPath, []byte{0x40, 3, 3, 1, 2, 3}, okPref), "withdraw 10.1.0.0/26"},
		"next hop 16":              {without(okOrigin, okPath, append([]byte{0x40, 3, 16}, make([]byte, 16)...), okPref), "withdraw 10.1.0.0/26"},
		"next hop multicast":       {without(okOrigin, okPath, []byte{0x40, 3, 4, 224, 0, 0, 1}, okPref), "withdraw 10.1.0.0/26"},
		"next hop is us":           {without(okOrigin, okPath, []byte{0x40, 3, 4, 10, 9, 0, 10}, okPref), "withdraw 10.1.0.0/26"},
		"MED length":               {with([]byte{0x80, 4, 3, 0, 0, 0}), "withdraw 10.1.0.0/26"},
		"local pref length":        {without(okOrigin, okPath, okNextHop, []byte{0x40, 5, 1, 0}), "withdraw 10.1.0.0/26"},
		"atomic length":            {with([]byte{0x40, 6, 1, 0}), "announce 10.1.0.0/26"},
		"aggregator length":        {with([]byte{0xc0, 7, 3, 0, 0, 0}), "announce 10.1.0.0/26"},
		"communities length":       {with([]byte{0xc0, 8, 3, 0, 0, 0}), "withdraw 10.1.0.0/26"},
		"communities empty":        {with([]byte{0xc0, 8, 0}), "withdraw 10.1.0.0/26"},
		"originator length":        {with([]byte{0x80, 9, 3, 0, 0, 0}), "withdraw 10.1.0.0/26"},
		"originator is us":         {with([]byte{0x80, 9, 4, 10, 9, 0, 10}), "withdraw 10.1.0.0/26"},
		"clusters length":          {with([]byte{0x80, 10, 5, 0, 0, 0, 0, 0}), "withdraw 10.1.0.0/26"},
		"extended length":          {with([]byte{0xc0, 16, 7, 0, 0, 0, 0, 0, 0, 0}), "withdraw 10.1.0.0/26"},
		"large length":             {with([]byte{0xc0, 32, 4, 0, 0, 0, 0}), "withdraw 10.1.0.0/26"},
		"flags":                    {without([]byte{0xc0, 1, 1, 0}, okPath, okNextHop, okPref), "withdraw 10.1.0.0/26"},
		"cut header":               {with([]byte{0xc0, 8}), "withdraw 10.1.0.0/26"},
		"attribute exceeds":        {with([]byte{0xc0, 8, 9, 0}), "withdraw 10.1.0.0/26"},
		"twice":                    {with([]byte{0x40, 1, 1, 9}), "announce 10.1.0.0/26"},
		"unknown well-known":       {with([]byte{0x40, 99, 1, 9}), "reset 3/2"},
		"unknown transitive":       {with([]byte{0xc0, 99, 1, 9}), "announce 10.1.0.0/26"},
		"unknown non-transitive":   {with([]byte{0x80, 99, 1, 9}), "announce 10.1.0.0/26"},
		"SRv6 in PREFIX_SID":       {with([]byte{0xc0, 40, 8, 5, 0, 5, 0, 9, 0, 2, 1}), "announce 10.1.0.0/26"},
		"AS4_PATH from a new peer": {with([]byte{0xc0, 17, 1, 9}), "announce 10.1.0.0/26"},
		"reach of 3 bytes":         {updateBody(nil, join(okOrigin, []byte{0x80, 14, 3, 0, 2, 1}), nil), "reset 3/9"},
		"reach twice":              {updateBody(nil, join(okReach, okReach, okOrigin, okPath, okPref), nil), "reset 3/1"},
		"reach next hop length":    {updateBody(nil, []byte{0x80, 14, 9, 0, 2, 1, 4, 1, 2, 3, 4, 0}, nil), "reset 3/9"},
		"reach next hop exceeds":   {updateBody(nil, []byte{0x80, 14, 5, 0, 2, 1, 16, 1}, nil), "reset 3/9"},
		"reach bad prefix":         {updateBody(nil, join(reachOf(2, 129), okOrigin, okPath, okPref), nil), "reset 3/9"},
		"reach bad IPv4 prefix":    {updateBody(nil, join([]byte{0x80, 14, 14, 0, 1, 1, 4, 10, 9, 0, 2, 0, 33, 1, 2, 3, 4}, okOrigin, okPath, okPref), nil), "reset 3/9"},
		"reach prefix exceeds":     {updateBody(nil, join(reachOf(2, 128)[:24], okOrigin, okPath, okPref), nil), "reset 3/1"},
		"reach flags":              {updateBody(nil, join([]byte{0xc0}, okReach[1:], okOrigin, okPath, okPref), nil), "reset 3/4"},
		"unreach flags":            {updateBody(nil, []byte{0xc0, 15, 5, 0, 2, 1, 8, 0xfd}, nil), "reset 3/4"},
		"reach of IPv4 multicast":  {updateBody(nil, []byte{0x80, 14, 11, 0, 1, 2, 4, 10, 9, 0, 2, 0, 33, 1}, nil), ""},
		"reach":                    {updateBody(nil, join(okReach, okOrigin, okPath, okPref), nil), "announce fd80:1::/40"},
		"reach, origin missing":    {updateBody(nil, join(okReach, okPath, okPref), nil), "withdraw fd80:1::/40"},
		"reach and prefix":         {updateBody(nil, join(okReach, base), okNLRI), "announce 10.1.0.0/26, announce fd80:1::/40"},
		"reach of EVPN":            {updateBody(nil, join(okOrigin, okPath, okPref, []byte{0x80, 14, 12, 0, 25, 70, 4, 10, 0, 0, 1, 0, 2, 33, 1}), nil), ""},
		"reach of FlowSpec":        {updateBody(nil, []byte{0x80, 14, 7, 0, 1, 133, 0, 0, 9, 9}, nil), ""},
		"unreach of 2 bytes":       {updateBody(nil, []byte{0x80, 15, 2, 0, 2}, nil), "reset 3/9"},
		"unreach bad prefix":       {updateBody(nil, []byte{0x80, 15, 5, 0, 2, 1, 129, 1}, nil), "reset 3/9"},
		"unreach of VPN":           {updateBody(nil, []byte{0x80, 15, 5, 0, 1, 128, 1, 1}, nil), ""},
		"End-of-RIB":               {updateBody(nil, nil, nil), "end ipv4"},
		"End-of-RIB of IPv6":       {updateBody(nil, []byte{0x80, 15, 3, 0, 2, 1}, nil), "end ipv6"},
		// Attributes without a route: what is wrong with one may have hidden routes.
		"exceeds, no route":         {updateBody(nil, []byte{0x40, 1, 0x20, 0}, nil), "reset 3/1"},
		"origin value, no route":    {updateBody(nil, []byte{0x40, 1, 1, 3}, nil), "reset 3/1"},
		"flags, withdrawn":          {updateBody(okNLRI, []byte{0xc0, 1, 1, 0}, nil), "reset 3/1"},
		"cut behind unreach":        {updateBody(nil, []byte{0x80, 15, 5, 0, 2, 1, 8, 0xfd, 0x40}, nil), "reset 3/1"},
		"origin value, unreach":     {updateBody(nil, []byte{0x40, 1, 1, 3, 0x80, 15, 5, 0, 2, 1, 8, 0xfd}, nil), "reset 3/1"},
		"origin value, empty reach": {updateBody(nil, join(okReach[:2], []byte{21}, okReach[3:24], []byte{0x40, 1, 1, 3}), nil), "reset 3/1"},
		"origin value, EVPN":        {updateBody(nil, join([]byte{0x40, 1, 1, 3}, []byte{0x80, 14, 12, 0, 25, 70, 4, 10, 0, 0, 1, 0, 2, 33, 1}), nil), ""},
		"discarded, no route":       {updateBody(nil, []byte{0x40, 6, 1, 0}, nil), ""},
		"sound, no route":           {updateBody(nil, join(okOrigin, okPath), nil), ""},
		"withdrawal":                {updateBody(okNLRI, nil, nil), "withdraw 10.1.0.0/26"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := outcome(testDecoder(false), c.body); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// reachOf is an MP_REACH of IPv6 with one prefix of 16 bytes, whatever its length says.
func reachOf(afi, bits byte) []byte {
	b := append(slices.Clone(okReach[:24]), bits)
	b[4], b[2] = afi, 21+17
	return append(b, make([]byte, 16)...)
}

// Prefixes of a family that was not agreed are not taken, but must be well-formed (RFC
// 7606, section 5.3).
func TestFamilyNotAgreed(t *testing.T) {
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"reach":              {updateBody(nil, join(okReach, okOrigin, okPath, okPref), nil), ""},
		"reach bad prefix":   {updateBody(nil, join(reachOf(2, 129), okOrigin, okPath, okPref), nil), "reset 3/9"},
		"unreach":            {updateBody(nil, []byte{0x80, 15, 5, 0, 2, 1, 8, 0xfd}, nil), ""},
		"unreach bad prefix": {updateBody(nil, []byte{0x80, 15, 5, 0, 2, 1, 129, 1}, nil), "reset 3/9"},
		"End-of-RIB":         {updateBody(nil, []byte{0x80, 15, 3, 0, 2, 1}, nil), ""},
	} {
		d := testDecoder(false)
		d.families[IPv6] = false
		if got := outcome(d, c.body); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// outcome puts what becomes of an UPDATE into words.
func outcome(d *decoder, body []byte) string {
	changes, f := d.update(body)
	if f != nil {
		return fmt.Sprintf("reset %d/%d", f.code, f.subcode)
	}
	var words []string
	for _, c := range changes {
		switch {
		case c.endOfRIB:
			words = append(words, "end "+c.family.String())
		case c.attrs == nil:
			words = append(words, "withdraw "+strings.Trim(fmt.Sprint(c.prefixes), "[]"))
		default:
			words = append(words, "announce "+strings.Trim(fmt.Sprint(c.prefixes), "[]"))
		}
	}
	return strings.Join(words, ", ")
}

// From another AS: the first AS is the peer's, and some attributes are ignored.
func TestExternalUpdates(t *testing.T) {
	for name, c := range map[string]struct {
		list []byte
		want string
	}{
		"first AS":     {join(okOrigin, okExternal, okNextHop), "announce 10.1.0.0/26"},
		"empty path":   {join(okOrigin, okPath, okNextHop), "withdraw 10.1.0.0/26"},
		"other AS":     {join(okOrigin, []byte{0x40, 2, 6, 2, 1, 0, 0, 0, 1}, okNextHop), "withdraw 10.1.0.0/26"},
		"local pref":   {join(okOrigin, okExternal, okNextHop, []byte{0x40, 5, 1, 9}), "announce 10.1.0.0/26"},
		"originator":   {join(okOrigin, okExternal, okNextHop, []byte{0x80, 9, 1, 9}), "announce 10.1.0.0/26"},
		"cluster list": {join(okOrigin, okExternal, okNextHop, []byte{0x80, 10, 1, 9}), "announce 10.1.0.0/26"},
	} {
		if got := outcome(testDecoder(true), updateBody(nil, c.list, okNLRI)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// Attributes that are not known are passed on as bytes, with Partial if they
// are transitive; known ones unchanged.
func TestCarried(t *testing.T) {
	list := join(okOrigin, okPath, okNextHop, []byte{0x80, 4, 4, 0, 0, 0, 7}, []byte{0x40, 5, 4, 0, 0, 0, 55},
		[]byte{0x40, 6, 0}, []byte{0xc0, 8, 4, 0xfb, 0xff, 0, 1}, []byte{0xe0, 16, 8, 1, 2, 3, 4, 5, 6, 7, 8})
	last := join([]byte{0xc0, 32, 12}, bytes.Repeat([]byte{3}, 12))
	changes, f := testDecoder(false).update(updateBody(nil, join(list, []byte{0xc0, 201, 2, 1, 2}, []byte{0x80, 202, 1, 1}, last), okNLRI))
	if f != nil || len(changes) != 1 {
		t.Fatal(changes, f)
	}
	look := outlook{as4: true}
	got := look.attributes(changes[0].attrs, IPv4)
	if want := join(list, last, []byte{0xe0, 201, 2, 1, 2}); !bytes.Equal(got, want) {
		t.Errorf("passed on\n%x, want\n%x", got, want)
	}
	if a := changes[0].attrs; a.localPref != 55 || a.med != 7 || a.nextHop != addr("10.9.0.2") {
		t.Errorf("%+v", a)
	}
}

// An AGGREGATOR that is nobody is not passed on (RFC 7607).
func TestAggregatorOfNobody(t *testing.T) {
	for as, kept := range map[byte]int{0: 0, 7: 1} {
		changes, f := testDecoder(false).update(updateBody(nil, join(okOrigin, okPath, okNextHop, okPref, []byte{0xc0, 7, 8, 0, 0, 0, as, 10, 9, 0, 7}), okNLRI))
		if f != nil || len(changes[0].attrs.rest) != kept {
			t.Errorf("AS %d: %+v, %v", as, changes, f)
		}
	}
}

// GRACEFUL_SHUTDOWN takes a path out of use (RFC 8326), in whichever order attributes come.
func TestGracefulShutdown(t *testing.T) {
	community := []byte{0xc0, 8, 4, 0xff, 0xff, 0, 0}
	for _, list := range [][]byte{join(okOrigin, okPath, okNextHop, okPref, community), join(community, okPref, okNextHop, okPath, okOrigin)} {
		changes, _ := testDecoder(false).update(updateBody(nil, list, okNLRI))
		if a := changes[0].attrs; a == nil || a.localPref != 0 {
			t.Errorf("%+v", a)
		}
	}
}

// Extended communities that are not transitive stay in the AS (RFC 4360, section 6).
func TestExtendedCommunitiesStay(t *testing.T) {
	stays, goes := []byte{0x43, 1, 2, 3, 4, 5, 6, 7}, []byte{0x03, 1, 2, 3, 4, 5, 6, 8}
	attribute := func(parts ...[]byte) []byte {
		v := join(parts...)
		return appendAttr(nil, flagOptional|flagTransitive, attrExtended, v)
	}
	for _, c := range []struct{ sent, inside, outside []byte }{
		{attribute(stays, goes, stays), attribute(stays, goes, stays), attribute(goes)},
		{attribute(stays), attribute(stays), nil},
		{attribute(goes), attribute(goes), attribute(goes)},
	} {
		for _, external := range []bool{false, true} {
			path := map[bool][]byte{false: okPath, true: okExternal}[external]
			changes, f := testDecoder(external).update(updateBody(nil, join(okOrigin, path, okNextHop, c.sent), okNLRI))
			if f != nil || len(changes) != 1 {
				t.Fatal(changes, f)
			}
			if external {
				c.inside = c.outside
			}
			a := changes[0].attrs
			for _, to := range []struct {
				look outlook
				want []byte
			}{{outlook{as4: true}, c.inside}, {outlook{as4: true, external: true, localAS: 64511, nextHop: [2]netip.Addr{addr("10.9.0.2")}}, c.outside}} {
				w, f := testDecoder(false).walk(to.look.attributes(a, IPv4))
				var got []byte
				for _, one := range w.list {
					if one.kind == attrExtended {
						got = appendAttr(nil, one.flags, one.kind, one.value)
					}
				}
				if f != nil || !bytes.Equal(got, to.want) {
					t.Errorf("%x from outside %v, to outside %v: %x, want %x", c.sent, external, to.look.external, got, to.want)
				}
			}
		}
	}
}

// Each malformed UPDATE counts for the log, also one that came before.
func TestMalformedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		d := testDecoder(false)
		d.complaints.log = slog.New(slog.NewTextHandler(&text, nil))
		for range 300 {
			d.update(updateBody(nil, join([]byte{0x40, 1, 1, 3}, okPath, okNextHop, okPref), okNLRI))
		}
		time.Sleep(complaintEvery)
		synctest.Wait()
		if got := text.String(); strings.Count(got, "undefined ORIGIN 3") != complaintLines || !strings.Contains(got, "messages=295") {
			t.Errorf("logged:\n%s", got)
		}
	})
}

// Equal attributes are one pointer, so that they are packed together.
func TestInterned(t *testing.T) {
	d := testDecoder(false)
	one, _ := d.update(updateBody(nil, join(okOrigin, okPath, okNextHop, okPref), okNLRI))
	two, _ := d.update(updateBody(nil, join(okOrigin, okPath, okNextHop, okPref), []byte{8, 11}))
	other, _ := d.update(updateBody(nil, join(okOrigin, okPath, []byte{0x40, 3, 4, 10, 9, 0, 3}, okPref), okNLRI))
	if one[0].attrs != two[0].attrs || one[0].attrs == other[0].attrs {
		t.Error("not interned")
	}
	fresh, _ := testDecoder(false).update(updateBody(nil, join(okOrigin, okPath, okNextHop, okPref), okNLRI))
	if !fresh[0].attrs.same(one[0].attrs) || fresh[0].attrs.same(other[0].attrs) {
		t.Error("same")
	}
}

// Peers without four-byte AS numbers (RFC 6793).
func TestTwoByteAS(t *testing.T) {
	path := []segment{{2, []uint32{64600, 4200000001}}, {1, []uint32{4200000002, 7}}}
	narrow := outlook{external: true, localAS: 64512, nextHop: [2]netip.Addr{addr("10.9.0.2")}}
	b, ok := narrow.announce(&attrs{path: path}, bare(prefixes("10.1.0.0/26")), IPv4)
	if !ok {
		t.Fatal("not packed")
	}
	d := testDecoder(true)
	d.as4, d.peerAS = false, 64512
	changes, f := d.update(b.bytes[headerLen:])
	if f != nil || changes[0].attrs == nil {
		t.Fatal(outcome(d, b.bytes[headerLen:]), f)
	}
	if got, want := fmt.Sprint(changes[0].attrs.path), "[{2 [64512 64600 4200000001]} {1 [4200000002 7]}]"; got != want {
		t.Errorf("path %s, want %s", got, want)
	}
	for _, c := range []struct{ path, tail, want string }{
		{"[{2 [1 2 23456]}]", "[{2 [70000]}]", "[{2 [1 2 70000]}]"},
		{"[{2 [23456]}]", "[{2 [9 70000]}]", "[{2 [23456]}]"},
		{"[{2 [1 23456]} {1 [5 6]}]", "[{2 [70000]} {1 [5 6]}]", "[{2 [1 70000]} {1 [5 6]}]"},
		{"[{2 [1 23456]}]", "[{3 [9]} {2 [70000]}]", "[{2 [1 70000]}]"},
		{"[{2 [1 23456]}]", "[{2 [0]}]", "[{2 [1 23456]}]"},
	} {
		var path, tail []segment
		for i, text := range []string{c.path, c.tail} {
			list := &path
			if i == 1 {
				list = &tail
			}
			for _, part := range strings.Split(strings.Trim(text, "[]"), "} {") {
				var s segment
				kind, as, _ := strings.Cut(strings.Trim(part, "{}"), " ")
				fmt.Sscan(kind, &s.kind)
				for _, x := range strings.Fields(strings.Trim(as, "[]")) {
					var n uint32
					fmt.Sscan(x, &n)
					s.as = append(s.as, n)
				}
				*list = append(*list, s)
			}
		}
		if got := fmt.Sprint(mergePaths(path, encodePath(tail, true))); got != c.want {
			t.Errorf("%s and %s: %s, want %s", c.path, c.tail, got, c.want)
		}
	}
}

// randomPrefixes gives n different prefixes of a family.
func randomPrefixes(rnd *rand.Rand, n int, family Family) []netip.Prefix {
	seen := map[netip.Prefix]bool{}
	for len(seen) < n {
		var a [16]byte
		binary.BigEndian.PutUint64(a[:], rnd.Uint64())
		binary.BigEndian.PutUint64(a[8:], rnd.Uint64())
		p := netip.PrefixFrom(netip.AddrFrom16(a), rnd.IntN(129)).Masked()
		if family == IPv4 {
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:4])), 8+rnd.IntN(25)).Masked()
		}
		seen[p] = true
	}
	var all []netip.Prefix
	for p := range seen {
		all = append(all, p)
	}
	return all
}

// What is packed comes out again, in messages as few and as full as can be.
func TestPacking(t *testing.T) {
	for _, extended := range []bool{false, true} {
		testPacking(t, extended)
	}
}

func testPacking(t *testing.T, extended bool) {
	t.Helper()
	room := roomFor(extended)
	rnd := rand.New(rand.NewPCG(3, 4))
	hops := [2]netip.Addr{addr("10.9.0.2"), addr("fd00::2")}
	for _, family := range []Family{IPv4, IPv6} {
		for _, n := range []int{0, 1, 2, 500, room / 2} {
			for _, extra := range []int{0, 100, room - 196} {
				if extra > maxMessage && n > 500 {
					continue // hundreds of MB
				}
				list := randomPrefixes(rnd, n, family)
				a := &attrs{nextHop: hops[family], localPref: 7}
				if extra > 0 {
					a.carry(carried{0xe0, 200, make([]byte, extra)})
				}
				look := outlook{as4: true, extended: extended}
				b, ok := look.announce(a, bare(list), family)
				if !ok {
					t.Fatal("no room")
				}
				unpack(t, room, family, b, list, func(c change) bool {
					return c.attrs != nil && c.attrs.nextHop == hops[family] && c.attrs.localPref == 7
				})
				unpack(t, room, family, look.withdraw(bare(list), family), list, func(c change) bool { return c.attrs == nil })
			}
		}
	}
	a := &attrs{nextHop: hops[0]}
	a.carry(carried{0xe0, 200, make([]byte, room-56)})
	if _, ok := (&outlook{extended: extended}).announce(a, bare(prefixes("10.0.0.0/8")), IPv4); ok {
		t.Error("attributes leave no room")
	}
}

func unpack(t *testing.T, most int, family Family, b blob, want []netip.Prefix, right func(change) bool) {
	t.Helper()
	var got []netip.Prefix
	rest, count, room := b.bytes, 0, 0
	for len(rest) > 0 {
		n, kind, f := frame(rest, most)
		if f != nil || n == 0 || kind != codec.BGP_MSG_UPDATE {
			t.Fatalf("message %d, %v", kind, f)
		}
		if room > 17 {
			t.Errorf("message with %d bytes to spare before the last", room)
		}
		room = most - n
		// The codec's own reading agrees.
		if _, err := codec.ParseBGPMessage(rest[:n]); err != nil {
			t.Fatal(err)
		}
		changes, f := testDecoder(false).update(rest[headerLen:n])
		if f != nil || len(changes) != 1 || !right(changes[0]) {
			t.Fatalf("changes %v, %v", changes, f)
		}
		got = append(got, changes[0].prefixes...)
		rest = rest[n:]
		count++
	}
	if !slices.Equal(got, want) || count != b.messages {
		t.Errorf("%v: %d prefixes in %d messages, want %d in %d", family, len(got), count, len(want), b.messages)
	}
}

func TestWords(t *testing.T) {
	for want, f := range map[string]*fault{
		"peer says administrative shutdown: gone fishing":      notification(append([]byte{6, 2, 12}, "gone fishing"...)),
		"peer says administrative reset":                       notification([]byte{6, 4}),
		"peer says administrative shutdown: a?b":               notification([]byte{6, 9, 6, 2, 3, 'a', 27, 'b'}),
		"peer says hold timer expired":                         notification([]byte{4, 0}),
		"peer says error 77 (subcode 3)":                       notification([]byte{77, 3}),
		"peer says cease (subcode 99)":                         notification([]byte{6, 99}),
		"peer says bad peer AS":                                notification([]byte{2, 2}),
		"administrative shutdown: " + strings.Repeat("ä", 127): cease(ceaseShutdown, strings.Repeat("ä", 200)),
	} {
		if f.words != want {
			t.Errorf("%q, want %q", f.words, want)
		}
	}
	for code := range 10 {
		for subcode := range 14 {
			if spell(uint8(code), uint8(subcode), nil) == "" {
				t.Errorf("%d/%d has no words", code, subcode)
			}
		}
	}
}
