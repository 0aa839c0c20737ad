package kernel

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes of RTM_GETNEIGHTBL (linux/neighbour.h).
const (
	ndtaName    = 1
	ndtaThresh3 = 4
	ndtaConfig  = 5
	ndtaStats   = 7
)

// NeighbourTable is one of the kernel's, which all network namespaces share.
type NeighbourTable struct {
	Name    string // arp_cache, ndisc_cache
	Entries int    // permanent ones included
	Most    int    // gc_thresh3, for those that are not permanent
	Refused uint64 // how often there was no room, since the boot
}

// Neighbours tells how full the tables of IPv4 and IPv6 are (RTM_GETNEIGHTBL,
// rtnetlink(7)).
func (k *Kernel) Neighbours() ([]NeighbourTable, error) {
	res, err := k.conn.dump(message(unix.RTM_GETNEIGHTBL, 0, make([]byte, unix.SizeofRtGenmsg+3), nil))
	if err != nil {
		return nil, fmt.Errorf("read neighbour tables: %w", err)
	}
	var list []NeighbourTable
	for _, m := range res {
		t, err := parseNeighbourTable(m)
		if err != nil {
			return nil, fmt.Errorf("read neighbour tables: %w", err)
		}
		// Each interface has a message of its own, without the table's numbers.
		if (t.Name == "arp_cache" || t.Name == "ndisc_cache") && t.Most > 0 {
			list = append(list, t)
		}
	}
	return list, nil
}

// parseNeighbourTable reads one message, after the netlink header; the structures are
// in linux/neighbour.h.
func parseNeighbourTable(m netlink.Message) (t NeighbourTable, err error) {
	if len(m.Data) < 4 {
		return t, fmt.Errorf("message of %d bytes", len(m.Data))
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return t, err
	}
	for ad.Next() {
		switch b := ad.Bytes(); ad.Type() {
		case ndtaName:
			t.Name = ad.String()
		case ndtaThresh3:
			t.Most = int(ad.Uint32())
		case ndtaConfig: // struct ndt_config: u16 key_len, entry_size; u32 entries, …
			if len(b) >= 8 {
				t.Entries = int(binary.NativeEndian.Uint32(b[4:]))
			}
		case ndtaStats: // struct ndt_stats: eleven u64 of which the last is ndts_table_fulls
			if len(b) >= 88 {
				t.Refused = binary.NativeEndian.Uint64(b[80:])
			}
		}
	}
	return t, ad.Err()
}
