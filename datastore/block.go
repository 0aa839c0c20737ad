package datastore

import (
	"fmt"
	"slices"
	"strings"
)

// maxBlockBits is the base-2 logarithm of the largest block.
const maxBlockBits = 10

// Kind returns KindBlock.
func (*Block) Kind() Kind { return KindBlock }

// Meta implements Object.
func (b *Block) Meta() *Metadata { return &b.Metadata }

// SetDefaults implements Object.
func (b *Block) SetDefaults() {
	if b.Metadata.Name == "" && b.Spec.CIDR.IsValid() {
		b.Metadata.Name = PoolName(b.Spec.CIDR)
	}
}

// Size is the number of addresses of the block.
func (b *Block) Size() int {
	return 1 << (b.Spec.CIDR.Addr().BitLen() - b.Spec.CIDR.Bits())
}

// tunnelHandle begins the handles of nodes' own addresses in tunnels.
const tunnelHandle = "tunnel/"

// TunnelHandle is who holds the addresses of a node's own in tunnels.
func TunnelHandle(node string) string { return tunnelHandle + node }

// InUse says whether anybody but tunnels, which come and go by themselves, holds an
// address of the block.
func (b *Block) InUse() bool {
	return slices.ContainsFunc(b.Spec.Allocations, func(a Allocation) bool { return !strings.HasPrefix(a.Handle, tunnelHandle) })
}

// Validate implements Object.
func (b *Block) Validate() error {
	s := b.Spec
	if err := checkRoutable("spec.cidr", s.CIDR); err != nil {
		return err
	}
	if err := checkMeta(b); err != nil {
		return err
	}
	if want := PoolName(s.CIDR); b.Metadata.Name != want {
		return &FieldError{Field: "metadata.name", Value: b.Metadata.Name, Reason: "must be " + want}
	}
	if s.CIDR.Addr().BitLen()-s.CIDR.Bits() > maxBlockBits {
		return &FieldError{Field: "spec.cidr", Value: s.CIDR.String(), Reason: fmt.Sprintf("is more than %d addresses", 1<<maxBlockBits)}
	}
	if s.Affinity != "" {
		if err := CheckName(s.Affinity); err != nil {
			return at("spec.affinity", err)
		}
	}
	if s.Next < 0 || s.Next >= b.Size() {
		return ordinalError("spec.next", s.Next, b.Size())
	}
	return firstError(checkAllocations(s, b.Size()), checkReleased(s, b.Size()))
}

func checkAllocations(s BlockSpec, size int) error {
	last := -1
	for i, a := range s.Allocations {
		err := CheckName(a.Node)
		switch {
		case a.Ordinal <= last || a.Ordinal >= size:
			err = ordinalError(".ordinal", a.Ordinal, size)
		case a.Handle == "" || len(a.Handle) > 1024:
			err = &FieldError{Field: ".handle", Reason: "must have 1 to 1024 bytes"}
		case err != nil:
			err = at(".node", err)
		}
		if err != nil {
			return at(indexed("spec.allocations", i), err)
		}
		last = a.Ordinal
	}
	return nil
}

func checkReleased(s BlockSpec, size int) error {
	last := -1
	for i, r := range s.Released {
		if r.Ordinal <= last || r.Ordinal >= size {
			return ordinalError(indexed("spec.released", i)+".ordinal", r.Ordinal, size)
		}
		last = r.Ordinal
	}
	return nil
}

func ordinalError(field string, n, size int) error {
	return &FieldError{Field: field, Value: decimal(n),
		Reason: fmt.Sprintf("must be from 0 to %d, and ordinals must ascend", size-1)}
}
