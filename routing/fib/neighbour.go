package fib

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev"
	"netctl/routing"
)

// neighbours are the permanent entries that devices of VXLAN tunnels should have and
// nobody learns. They are written before the routes that need them.
type neighbours struct {
	links  []string // the devices whose entries these are
	wanted []routing.Neighbour
	failed map[string]retry // by device
}

// SetNeighbours makes the entries of the devices links what wanted says, and keeps
// them that as Watch keeps the routes. A device that is not there gets its entries
// when it comes up.
func (t *Table) SetNeighbours(ctx context.Context, links []string, wanted []routing.Neighbour) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.neighbours.links, t.neighbours.wanted = links, wanted
	t.neighbours.failed = map[string]retry{}
	err := t.writeNeighbours(ctx, links)
	if err != nil {
		t.kernel.interrupt() // Watch waits for their due times
	}
	return err
}

// writeNeighbours writes the entries of some of the devices. What is not there has none.
func (t *Table) writeNeighbours(ctx context.Context, links []string) error {
	var errs []error
	for _, link := range links {
		var mine []routing.Neighbour
		for _, n := range t.neighbours.wanted {
			if n.Link == link {
				mine = append(mine, n)
			}
		}
		err := t.kernel.neighbours(ctx, link, mine)
		if err == nil || errors.Is(err, unix.ENODEV) {
			delete(t.neighbours.failed, link)
			continue
		}
		t.neighbours.failed[link] = t.neighbours.failed[link].next(time.Now())
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// mendNeighbours writes anew what a burst may have cost, and what is due.
func (t *Table) mendNeighbours(ctx context.Context, h heard) {
	now := time.Now()
	var links []string
	for _, link := range t.neighbours.links {
		r, failed := t.neighbours.failed[link]
		if h.lost || slices.Contains(h.up, link) || failed && !r.due.After(now) {
			links = append(links, link)
		}
	}
	if err := t.writeNeighbours(ctx, links); err != nil {
		t.log.Warn("neighbours of a tunnel not written", "error", err)
	}
}

// neighbours implements kernel.
func (n *rtnetlink) neighbours(ctx context.Context, link string, wanted []routing.Neighbour) error {
	n.names.reset()
	index, err := n.names.index(link)
	if err != nil {
		return err
	}
	have, err := n.readNeighbours(ctx, index)
	if err != nil {
		return fmt.Errorf("read neighbours of %s: %w", link, err)
	}
	want := map[neighbour]string{}
	for _, w := range wanted {
		mac, err := net.ParseMAC(w.MAC)
		if err != nil || len(mac) != 6 {
			return fmt.Errorf("neighbour %s of %s: %q is no hardware address", w.Gateway, link, w.MAC)
		}
		want[neighbour{mac: string(mac)}] = string(w.Remote.AsSlice())
		want[neighbour{hop: w.Gateway}] = string(mac)
	}
	var errs []error
	change := func(k neighbour, kind, flags uint16, value string) {
		if err := n.requests.ask(ctx, kind, flags|unix.NLM_F_ACK, k.message(index, value), func() {}, func([]byte) {}); err != nil {
			errs = append(errs, fmt.Errorf("neighbour %s of %s: %w", k, link, err))
		}
	}
	// Where frames go comes before what needs it, and leaves after it.
	for _, k := range slices.SortedFunc(maps.Keys(want), compareNeighbours) {
		if have[k] != want[k] {
			change(k, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, want[k])
		}
	}
	gone := slices.SortedFunc(maps.Keys(have), compareNeighbours)
	slices.Reverse(gone)
	for _, k := range gone {
		if want[k] == "" {
			change(k, unix.RTM_DELNEIGH, 0, have[k])
		}
	}
	return errors.Join(errs...)
}

// neighbour is the key of an entry: of the forwarding database a hardware address,
// whose value is the remote address; of the neighbour table a gateway, whose value is
// the hardware address. Values are bytes.
type neighbour struct {
	mac string
	hop netip.Addr
}

func (k neighbour) String() string {
	if k.hop.IsValid() {
		return k.hop.String()
	}
	return net.HardwareAddr(k.mac).String()
}

// compareNeighbours orders those of the forwarding database first.
func compareNeighbours(a, b neighbour) int {
	if c := a.hop.Compare(b.hop); c != 0 {
		return c
	}
	return slices.Compare([]byte(a.mac), []byte(b.mac))
}

// The attributes of a neighbour (include/uapi/linux/neighbour.h), and what struct
// ndmsg takes.
const (
	ndaDst      = 1
	ndaLladdr   = 2
	ndaIfindex  = 8
	sizeofNdMsg = 12
)

// message is the body of a message about an entry (struct ndmsg and attributes).
func (k neighbour) message(index uint32, value string) []byte {
	b := make([]byte, sizeofNdMsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint16(b[8:], unix.NUD_PERMANENT)
	if k.hop.IsValid() {
		b[0] = family(k.hop)
		b = appendBytes(b, ndaDst, k.hop.AsSlice())
		return appendBytes(b, ndaLladdr, []byte(value))
	}
	b[0], b[10] = unix.AF_BRIDGE, unix.NTF_SELF
	b = appendBytes(b, ndaLladdr, []byte(k.mac))
	return appendBytes(b, ndaDst, []byte(value))
}

func appendBytes(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// readNeighbours reads the permanent entries of a device.
func (n *rtnetlink) readNeighbours(ctx context.Context, index uint32) (map[neighbour]string, error) {
	have := map[neighbour]string{}
	for _, f := range []uint8{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		request := make([]byte, sizeofNdMsg)
		request[0] = f
		if f == unix.AF_BRIDGE {
			binary.NativeEndian.PutUint32(request[4:], index)
		} else {
			request = appendNumber(request, ndaIfindex, index)
		}
		var found map[neighbour]string
		err := n.requests.ask(ctx, unix.RTM_GETNEIGH, unix.NLM_F_DUMP, request, func() { found = map[neighbour]string{} }, func(b []byte) {
			if k, value, ok := parseNeighbour(b, f, index); ok {
				found[k] = value
			}
		})
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, err
		}
		maps.Copy(have, found)
	}
	return have, nil
}

// parseNeighbour reads a permanent entry of a device; false: it is none.
func parseNeighbour(b []byte, fam uint8, index uint32) (k neighbour, value string, ok bool) {
	if len(b) < sizeofNdMsg || b[0] != fam || binary.NativeEndian.Uint32(b[4:]) != index || binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT == 0 {
		return k, "", false
	}
	var dst, mac []byte
	for b = b[sizeofNdMsg:]; ; {
		kind, data, rest, more := netdev.Attribute(b)
		if !more {
			break
		}
		switch kind {
		case ndaDst:
			dst = data
		case ndaLladdr:
			mac = data
		}
		b = rest
	}
	if fam == unix.AF_BRIDGE {
		return neighbour{mac: string(mac)}, string(dst), len(mac) == 6
	}
	hop, ok := netip.AddrFromSlice(dst)
	return neighbour{hop: hop}, string(mac), ok && !hop.IsMulticast()
}
