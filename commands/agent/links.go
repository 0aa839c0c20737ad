package agent

import (
	"net/netip"
	"slices"

	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// links is which links and addresses this host has, and whose they are. Its owner
// is the loop.
type links struct {
	kernel hostLinks

	present map[string]kernel.Link // those of netctl, by the name they were attached with
	wires   map[string]attached    // as the records have them, by that name
	names   map[int]string         // that name by index, which no other program changes
	hold    map[string]bool        // to be compared with what an attach makes of them
	settle  map[string]bool        // loose ones of which something is left to do at the workload's side
	mend    map[string]bool        // the same of their workload's side
	tussles map[string]*tussle
	owners  map[string]string // link to endpoint, whether or not it is present
	// leftAlone are links without an endpoint that are not removed: what is attached
	// there lives, and is not (yet) in the store.
	leftAlone map[string]bool
	// ownerless are links that may have no owner; they are looked at once.
	ownerless map[string]bool
	adopted   map[string]bool  // those of present that others made, by name: they are only looked at
	addrs     []kernel.Address // of the host

	resync, resyncHost bool // present, or addrs, is not known
	readopted          bool // what of addrs is the host's own may be something else
	gateways           bool // those of the wires may be others
	guests             bool // what virtual machines are to be told may be something else
}

// attached is a link as its record has it.
type attached struct {
	kernel.Wire
	endpoint string
	place    kernel.Place // of its workload's namespace
	fit      bool         // its MTU is what the way to the other nodes has room for
	to       []netip.Prefix
	// asked and limits are the endpoint's own bandwidth and limits, as its record has them.
	asked  datastore.Bandwidth
	limits datastore.QoSControls
}

func newLinks(k hostLinks) *links {
	return &links{
		kernel: k, present: map[string]kernel.Link{}, owners: map[string]string{}, leftAlone: map[string]bool{}, ownerless: map[string]bool{},
		wires: map[string]attached{}, names: map[int]string{}, hold: map[string]bool{}, settle: map[string]bool{}, mend: map[string]bool{},
		tussles: map[string]*tussle{}, adopted: map[string]bool{},
		resync: true, resyncHost: true,
	}
}

// read reads the links anew.
func (k *links) read() error {
	var recorded []int
	for _, w := range k.wires {
		recorded = append(recorded, w.Index)
	}
	list, err := k.kernel.Links(recorded...)
	if err != nil {
		return err
	}
	k.resync = false
	was := k.present
	k.present = make(map[string]kernel.Link, len(list))
	for link := range k.adopted {
		k.present[link] = was[link]
	}
	k.names = make(map[int]string, len(list))
	for link, w := range k.wires {
		k.names[w.Index] = link
	}
	for _, l := range list {
		k.hold[k.set(l)] = true
	}
	k.lookForOwners()
	return nil
}

// at is the name of a link by its index; "": there is none of ours.
func (k *links) at(index int) string {
	if link, ok := k.names[index]; ok {
		return link
	}
	for link := range k.adopted {
		if k.present[link].Index == index {
			return link
		}
	}
	return ""
}

// readHost reads the host's addresses anew and says whether they are others, or others its
// own.
func (k *links) readHost() (changed bool, err error) {
	list, err := k.kernel.Addresses()
	if err != nil {
		return false, err
	}
	changed = k.readopted || !slices.Equal(list, k.addrs)
	k.resyncHost, k.readopted = false, false
	k.addrs = list
	return changed, nil
}

// lookForOwners has every link without an owner looked at.
func (k *links) lookForOwners() {
	for name := range k.present {
		if k.owners[name] == "" && !k.adopted[name] {
			k.ownerless[name] = true
		}
	}
}

// disown takes a link from an endpoint, if it has it.
func (k *links) disown(link, endpoint string) {
	if k.owners[link] != endpoint {
		return
	}
	delete(k.owners, link)
	if _, ok := k.present[link]; ok && !k.adopted[link] {
		k.ownerless[link] = true
	}
}

// own are the host's addresses.
func (k *links) own() (list []netip.Addr) {
	for _, a := range k.addrs {
		list = append(list, a.Prefix.Addr())
	}
	return list
}

// subnets are those that the host is connected to.
func (k *links) subnets() (list []netip.Prefix) {
	for _, a := range k.addrs {
		if !a.Loopback && !k.adopted[a.Link] {
			list = append(list, a.Subnet)
		}
	}
	return list
}

// hostLinks are the host's own interfaces that have addresses, with these.
func (k *links) hostLinks() map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, a := range k.addrs {
		if !a.Loopback && !k.adopted[a.Link] {
			out[a.Link] = append(out[a.Link], a.Prefix.Addr())
		}
	}
	return out
}

// linkTo is the interface that leads to an address: by its subnet, or that of the node's own.
func (k *links) linkTo(ip netip.Addr, own string) string {
	for _, a := range k.addrs {
		if !a.Loopback && a.Subnet.Contains(ip) {
			return a.Link
		}
	}
	return own
}

// address is an address of the host; nil: it is on no interface.
func (k *links) address(ip netip.Addr) *kernel.Address {
	for i, a := range k.addrs {
		if a.Prefix.Addr() == ip {
			return &k.addrs[i]
		}
	}
	return nil
}

// uplink is the interface that has one of the addresses; of an address on lo the one
// with the least MTU of those that may lead to other nodes.
func (k *links) uplink(own []netip.Prefix) (u workload.Uplink) {
	for _, o := range own {
		a := k.address(o.Addr())
		switch {
		case a == nil:
			continue
		case !a.Loopback:
			return workload.Uplink{Link: a.Link, MTU: a.MTU}
		}
		for _, a := range k.addrs {
			if !a.Loopback && !netdev.LeadsAway(a.Link) && (u.MTU == 0 || a.MTU < u.MTU) {
				u = workload.Uplink{Link: a.Link, MTU: a.MTU}
			}
		}
		return u
	}
	return u
}

// overlapping is an address of the host whose subnet has addresses of a prefix; nil:
// there is none.
func (k *links) overlapping(prefix netip.Prefix) *kernel.Address {
	for i, a := range k.addrs {
		if a.Subnet.Overlaps(prefix) && !k.adopted[a.Link] {
			return &k.addrs[i]
		}
	}
	return nil
}

// surrounds tells whether a prefix lies in a subnet of the host, which goes on.
func (k *links) surrounds(prefix netip.Prefix) bool {
	return slices.ContainsFunc(k.addrs, func(a kernel.Address) bool {
		return a.Subnet.Bits() <= prefix.Bits() && a.Subnet.Contains(prefix.Addr()) && !k.adopted[a.Link]
	})
}
