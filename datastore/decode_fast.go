package datastore

import (
	"net/netip"
	"strconv"
)

// fast reads into without reflection, if it is one of the structs of which a
// large cluster has many. It must agree with the struct's JSON tags: a test
// compares it with reading by reflection.
func (d *decoder) fast(into any) (done bool, err error) {
	switch o := into.(type) {
	case *Metadata:
		err = d.fields(func(key []byte) (bool, error) { return d.metadata(o, key) })
	case *Endpoint:
		err = d.fields(func(key []byte) (bool, error) { return d.outer(key, &o.Metadata, &o.Spec) })
	case *EndpointSpec:
		err = d.fields(func(key []byte) (bool, error) { return d.endpointSpec(o, key) })
	case *Block:
		err = d.fields(func(key []byte) (bool, error) { return d.outer(key, &o.Metadata, &o.Spec) })
	case *BlockSpec:
		err = d.fields(func(key []byte) (bool, error) { return d.blockSpec(o, key) })
	case *Allocation:
		err = d.fields(func(key []byte) (bool, error) { return d.allocation(o, key) })
	case *Released:
		err = d.fields(func(key []byte) (bool, error) { return d.released(o, key) })
	default:
		return false, nil
	}
	return true, err
}

// outer reads a field of an object that has no status.
func (d *decoder) outer(key []byte, m *Metadata, spec any) (bool, error) {
	switch string(key) {
	case "metadata":
		return true, d.object(m)
	case "spec":
		return true, d.object(spec)
	}
	return false, nil
}

func (d *decoder) metadata(m *Metadata, key []byte) (bool, error) {
	switch string(key) {
	case "name":
		return true, d.part(&m.Name, d.name)
	case "labels":
		return true, d.entries(&m.Labels)
	case "needs":
		return true, d.int(&m.Needs)
	case "revision":
		if d.tolerant {
			return false, nil // what is stored has none
		}
		return true, d.revision(&m.Revision)
	}
	return false, nil
}

// revision reads a revision, which is of the store and therefore at least 1.
func (d *decoder) revision(into *int64) (err error) {
	if d.null() {
		return nil
	}
	if *into, err = d.whole(64); err == nil && *into < 1 {
		err = d.wrong(strconv.FormatInt(*into, 10), "is no revision: leave it out")
	}
	return err
}

func (d *decoder) endpointSpec(s *EndpointSpec, key []byte) (bool, error) {
	switch string(key) {
	case "node":
		return true, d.part(&s.Node, d.name)
	case "orchestrator":
		return true, d.part(&s.Orchestrator, d.name)
	case "workload":
		return true, d.part(&s.Workload, d.name)
	case "interface":
		return true, d.part(&s.Interface, d.name)
	case "network":
		return true, d.shared(&s.Network)
	case "link":
		return true, d.string(&s.Link)
	case "mac":
		return true, d.string(&s.MAC)
	case "addresses":
		return true, list(d, &s.Addresses, func(a *netip.Addr) error { return d.parsed(a) })
	case "allowedPrefixes":
		return true, list(d, &s.AllowedPrefixes, func(p *netip.Prefix) error { return d.parsed(p) })
	case "profiles":
		return true, list(d, &s.Profiles, d.shared)
	case "ports":
		return true, list(d, &s.Ports, func(p *Port) error { return d.object(p) })
	case "hostPorts":
		return true, list(d, &s.HostPorts, func(p *HostPort) error { return d.object(p) })
	case "bandwidth":
		return true, d.object(&s.Bandwidth)
	case "tap":
		return true, d.object(&s.Tap)
	case "qosControls":
		return true, d.object(&s.QoSControls)
	case "allowEncapsulation":
		return true, d.bool(&s.AllowEncapsulation)
	case "guardMAC":
		return true, d.bool(&s.GuardMAC)
	}
	return false, nil
}

func (d *decoder) blockSpec(s *BlockSpec, key []byte) (bool, error) {
	switch string(key) {
	case "cidr":
		return true, d.parsed(&s.CIDR)
	case "affinity":
		return true, d.shared(&s.Affinity)
	case "wished":
		return true, d.bool(&s.Wished)
	case "next":
		return true, d.int(&s.Next)
	case "allocations":
		if d.room == nil && d.names != nil {
			d.room = make([]Allocation, 1<<maxBlockBits)
		}
		return true, listBy(d, &s.Allocations, d.room, func(a *Allocation) error { return d.object(a) })
	case "released":
		return true, list(d, &s.Released, func(r *Released) error { return d.object(r) })
	}
	return false, nil
}

func (d *decoder) allocation(a *Allocation, key []byte) (bool, error) {
	switch string(key) {
	case "ordinal":
		return true, d.int(&a.Ordinal)
	case "handle":
		return true, d.handle(&a.Handle)
	case "node":
		return true, d.shared(&a.Node)
	case "workload":
		return true, d.part(&a.Workload, a.Handle)
	case "time":
		return true, d.parsed(&a.Time)
	}
	return false, nil
}

// handle reads who holds an address: mostly an endpoint, whose name is shared.
func (d *decoder) handle(into *string) error {
	if d.null() {
		return nil
	}
	b, err := d.plain()
	*into = ""
	if d.endpoint != nil {
		*into = d.endpoint(b)
	}
	if *into == "" {
		*into = string(b)
	}
	return err
}

func (d *decoder) released(r *Released, key []byte) (bool, error) {
	switch string(key) {
	case "ordinal":
		return true, d.int(&r.Ordinal)
	case "boot":
		return true, d.shared(&r.Boot)
	case "at":
		if d.null() {
			return true, nil
		}
		at, err := d.whole(64)
		r.At = at
		return true, err
	}
	return false, nil
}

func (d *decoder) bool(into *bool) error {
	if d.null() {
		return nil
	}
	*into = d.word("true")
	if !*into && !d.word("false") {
		return d.mismatch("true or false")
	}
	return nil
}

func (d *decoder) int(into *int) error {
	if d.null() {
		return nil
	}
	i, err := d.whole(strconv.IntSize)
	*into = int(i)
	return err
}
