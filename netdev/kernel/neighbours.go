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
	ndtaStats   = 7
)

// NeighbourTable is one of the kernel's, which all network namespaces share.
type NeighbourTable struct {
	Name    string // arp_cache, ndisc_cache
	Entries int    // of this namespace, without permanent ones, which have no bound
	Most    int    // gc_thresh3, of all namespaces together
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
		family, ok := map[string]byte{"arp_cache": unix.AF_INET, "ndisc_cache": unix.AF_INET6}[t.Name]
		if !ok || t.Most == 0 {
			continue
		}
		if t.Entries, err = k.countNeighbours(family); err != nil {
			return nil, fmt.Errorf("count neighbours: %w", err)
		}
		list = append(list, t)
	}
	return list, nil
}

// countNeighbours counts the entries of this namespace that are not permanent. The
// kernel's own number has the permanent ones in it, and those of all namespaces.
func (k *Kernel) countNeighbours(family byte) (n int, err error) {
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = family
	res, err := k.conn.dump(message(unix.RTM_GETNEIGH, 0, head, nil))
	if err != nil {
		return 0, err
	}
	const state = 8 // ndm_state, u16
	for _, m := range res {
		if len(m.Data) >= unix.SizeofNdMsg && binary.NativeEndian.Uint16(m.Data[state:])&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0 {
			n++
		}
	}
	return n, nil
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
		case ndtaStats: // struct ndt_stats: eleven u64 of which the last is ndts_table_fulls
			if len(b) >= 88 {
				t.Refused = binary.NativeEndian.Uint64(b[80:])
			}
		}
	}
	return t, ad.Err()
}
