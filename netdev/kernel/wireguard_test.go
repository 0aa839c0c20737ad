package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
)

// TestWireGuardMessages: what is written of peers is read back, a peer with many addresses
// in pieces.
func TestWireGuardMessages(t *testing.T) {
	var many []netip.Prefix
	for i := range allowedAtOnce + 3 {
		many = append(many, netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/26", i/256, i%256)))
	}
	peers := []WireGuardPeer{
		{Key: WireGuardKey{1}, Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Allowed: many, Asks: true},
		{Key: WireGuardKey{2}, Endpoint: netip.MustParseAddrPort("[2001:db8::1]:51820"), Allowed: []netip.Prefix{netip.MustParsePrefix("fd80::/122")}},
		{Key: WireGuardKey{3}},
	}
	pieces := cut(peers)
	if len(pieces) != 4 || len(pieces[0].Allowed) != allowedAtOnce || len(pieces[1].Allowed) != 3 || pieces[1].Key != peers[0].Key {
		t.Fatalf("%d pieces", len(pieces))
	}
	have := map[WireGuardKey]WireGuardState{}
	for _, p := range pieces {
		m := message(0, 0, genlHead(wgSetDevice), func(ae *netlink.AttributeEncoder) { ae.Nested(wgDevicePeers, encodePeers([]WireGuardPeer{p})) })
		if err := parsePeers(m.Data, have); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range peers {
		if is, ok := have[p.Key]; !ok || !slices.Equal(is.Allowed, p.Allowed) || !is.Answered.IsZero() || is.Endpoint != p.Endpoint {
			t.Errorf("peer %d: %+v", p.Key[0], is)
		}
	}
	answered := message(0, 0, genlHead(wgSetDevice), func(ae *netlink.AttributeEncoder) {
		ae.Nested(wgDevicePeers, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(0, func(ae *netlink.AttributeEncoder) error {
				ae.Bytes(wgPeerKey, peers[2].Key[:])
				ae.Uint64(wgPeerReceived, 8)
				ae.Uint64(wgPeerSent, 9)
				ae.Bytes(wgPeerHandshake, binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, 7), 5))
				return nil
			})
			return nil
		})
	})
	delete(have, peers[2].Key)
	err := parsePeers(answered.Data, have)
	if is := have[peers[2].Key]; err != nil || is.Answered.UnixNano() != 7e9+5 || is.Received != 8 || is.Sent != 9 {
		t.Errorf("answered: %+v, %v", is, err)
	}
	for n := range len(answered.Data) {
		_ = parsePeers(answered.Data[:n], map[WireGuardKey]WireGuardState{}) // must not panic
	}
}
