package datastore

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"time"
)

// Kind returns KindNode.
func (*Node) Kind() Kind { return KindNode }

// Meta implements Object.
func (n *Node) Meta() *Metadata { return &n.Metadata }

// SetDefaults implements Object: a node has none, but people read what it says of itself.
func (n *Node) SetDefaults() { lines(&n.Status.Host, &n.Status.Version) }

// Validate implements Object.
func (n *Node) Validate() error {
	var families [2]bool
	for i, p := range n.Spec.Addresses {
		field := indexed("spec.addresses", i)
		if err := checkAddr(field, p.Addr()); err != nil {
			return err
		}
		family := 0
		if p.Addr().Is6() {
			family = 1
		}
		if families[family] {
			return &FieldError{Field: field, Value: p.String(), Reason: "a node has at most one address of each family"}
		}
		families[family] = true
	}
	return firstError(checkMeta(n), checkAS("spec.as", n.Spec.AS, true), n.Spec.Reflector.validate(), n.Spec.Drain.validate(), checkKey("spec.retiredKey", n.Spec.RetiredKey))
}

// checkKey refuses what is no public key of WireGuard.
func checkKey(field, key string) error {
	if b, err := base64.StdEncoding.DecodeString(key); key != "" && (err != nil || len(b) != 32) {
		return &FieldError{Field: field, Value: key, Reason: "must be a public key of WireGuard, 32 bytes in base64"}
	}
	return nil
}

func (d *Drain) validate() error {
	if d == nil {
		return nil
	}
	return checkWords("spec.drain.reason", d.Reason)
}

func (r *Reflector) validate() error {
	if r == nil {
		return nil
	}
	switch r.Mode {
	case "", ReflectorAuto, ReflectorAlways, ReflectorNever:
	default:
		return &FieldError{Field: "spec.reflector.mode", Value: string(r.Mode), Reason: "must be auto, always or never"}
	}
	// "a 4-byte … value" (RFC 4456, section 7); 0 is what nobody has.
	if id := r.ClusterID; id.IsValid() && (!id.Is4() || id.IsUnspecified()) {
		return &FieldError{Field: "spec.reflector.clusterID", Value: id.String(), Reason: "must look like an IPv4 address, and not be 0.0.0.0"}
	}
	if r.Clients == "" {
		return nil
	}
	_, err := ParseSelector(r.Clients)
	return at("spec.reflector.clients", err)
}

// Words are what people and peers are told.
func (d *Drain) Words() string {
	if d.Reason == "" {
		return "drained"
	}
	return "drained: " + d.Reason
}

// Address returns the node's address of a family, or the zero Addr.
func (n *Node) Address(v6 bool) netip.Addr {
	for _, p := range n.Spec.Addresses {
		if p.Addr().Is6() == v6 {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// RegisteredBy says that another machine than host has the node's name, and what
// to do. seen is when that machine last reported; zero: not known. host may be
// "", which is a machine without an ID yet.
func (n *Node) RegisteredBy(host string, seen time.Time) string {
	what := "without an address"
	if len(n.Spec.Addresses) > 0 {
		what = "at " + n.Spec.Addresses[0].Addr().String()
	}
	if !seen.IsZero() {
		what += ", last seen " + seen.Format(time.RFC3339)
	}
	if host == "" {
		host = "not registered yet"
	}
	return fmt.Sprintf("registered by host %s (%s), this host is %s: set another name (node: NAME), or if that machine is gone, `netctl node remove %s`",
		n.Status.Host, what, host, n.Metadata.Name)
}

// OtherName says that host is registered as n, which is not the name it goes by
// now, and what to do.
func (n *Node) OtherName(name, file string) string {
	return fmt.Sprintf("this host is registered as node %s, not %s: set `node: %s` again, or end its workloads and run `netctl node remove %s --force`; if this machine is a copy of that one, remove %s and restart netctl",
		n.Metadata.Name, name, n.Metadata.Name, n.Metadata.Name, file)
}

// checkAS refuses what is not to be used: 0 (RFC 7607), AS_TRANS (RFC 6793) and
// the last of each range (RFC 7300).
func checkAS(field string, as uint32, zero bool) error {
	switch {
	case as == 0 && zero:
		return nil
	case as == 0, as == 23456, as == 65535, as == 4294967295:
		return &FieldError{Field: field, Value: decimal(as), Reason: "is a reserved AS number"}
	}
	return nil
}

// formerly are the paths of keys that older versions wrote into objects of a
// kind: they are read over, and gone at the next write. The agent's and the
// speaker's reports once were a part of their node.
func formerly(k Kind) []string {
	if k != KindNode {
		return nil
	}
	return []string{"status.seen", "status.started", "status.problems", "status.endpoints", "status.sessions"}
}
