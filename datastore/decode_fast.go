package datastore

import (
	"net/netip"
	"strconv"
	"strings"
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
		err = d.fields(func(key []byte) (bool, error) { return d.endpoint(o, key) })
	case *Block:
		err = d.fields(func(key []byte) (bool, error) { return d.outer(key, &o.Metadata, &o.Spec) })
	case *BlockSpec:
		err = d.fields(func(key []byte) (bool, error) { return d.block(o, key) })
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
		return true, d.part(&m.Name)
	case "labels":
		return true, d.entries(&m.Labels)
	case "needs":
		return true, d.int(&m.Needs)
	}
	return false, nil
}

func (d *decoder) endpoint(s *EndpointSpec, key []byte) (bool, error) {
	switch string(key) {
	case "node":
		return true, d.part(&s.Node)
	case "orchestrator":
		return true, d.part(&s.Orchestrator)
	case "workload":
		return true, d.part(&s.Workload)
	case "interface":
		return true, d.part(&s.Interface)
	case "network":
		return true, d.shared(&s.Network)
	case "link":
		return true, d.string(&s.Link)
	case "mac":
		return true, d.string(&s.MAC)
	case "addresses":
		return true, list(d, &s.Addresses, func(a *netip.Addr) error { return d.parsed(a) })
	case "profiles":
		return true, list(d, &s.Profiles, d.shared)
	case "ports":
		return true, list(d, &s.Ports, func(p *Port) error { return d.object(p) })
	}
	return false, nil
}

func (d *decoder) block(s *BlockSpec, key []byte) (bool, error) {
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
		return true, list(d, &s.Allocations, func(a *Allocation) error { return d.object(a) })
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
		return true, d.string(&a.Handle)
	case "node":
		return true, d.shared(&a.Node)
	case "workload":
		err := d.string(&a.Workload)
		if i := strings.Index(a.Handle, a.Workload); i >= 0 {
			a.Workload = a.Handle[i : i+len(a.Workload)] // the handle is the endpoint's name
		}
		return true, err
	case "time":
		return true, d.parsed(&a.Time)
	}
	return false, nil
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
