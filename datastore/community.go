package datastore

import (
	"fmt"
	"strconv"
	"strings"
)

// Community is a BGP community: a standard one (RFC 1997), of two numbers of 16 bits, or
// a large one (RFC 8092), of three of 32 bits.
type Community struct {
	Large bool
	Parts [3]uint32
}

// wellKnown are the communities that have names (RFC 1997, 7999, 8326, 9494).
func wellKnown(name string) (low uint32, ok bool) {
	switch name {
	case "graceful-shutdown":
		return 0, true
	case "llgr-stale":
		return 6, true
	case "no-llgr":
		return 7, true
	case "blackhole":
		return 666, true
	case "no-export":
		return 0xff01, true
	case "no-advertise":
		return 0xff02, true
	case "no-export-subconfed":
		return 0xff03, true
	}
	return 0, false
}

// ParseCommunity reads N:N, N:N:N or a well-known name. Errors wrap ErrInvalid.
func ParseCommunity(s string) (Community, error) {
	if low, ok := wellKnown(s); ok {
		return Community{Parts: [3]uint32{0xffff, low}}, nil
	}
	parts := strings.Split(s, ":")
	c := Community{Large: len(parts) == 3}
	bits := 16
	if c.Large {
		bits = 32
	}
	wrong := &FieldError{Value: s[:min(len(s), 48)],
		Reason: "is no community: 64512:1, the large 64512:1:2, no-export, no-advertise, no-export-subconfed, graceful-shutdown, no-llgr, llgr-stale or blackhole"}
	if len(parts) != 2 && !c.Large {
		return c, wrong
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, bits)
		if err != nil || strconv.FormatUint(n, 10) != p {
			return c, wrong
		}
		c.Parts[i] = uint32(n)
	}
	return c, nil
}

// maxCommunities bounds how many an object adds: all of them travel in every message.
const maxCommunities = 64

// checkOwn refuses what would take a pool's addresses away from every node.
func checkOwn(s string) error {
	switch c, _ := ParseCommunity(s); c {
	case Community{Parts: [3]uint32{0xffff, 666}}:
		return &FieldError{Value: s, Reason: "has the other nodes discard what goes to the pool: give it to the peers that are to"}
	case Community{Parts: [3]uint32{0xffff, 6}}:
		return &FieldError{Value: s, Reason: "is not told to most nodes: it is for those who keep what is gone"}
	}
	return nil
}

func checkCommunities(field string, list []string) error {
	if len(list) > maxCommunities {
		return &FieldError{Field: field, Reason: fmt.Sprintf("%d communities are more than %d", len(list), maxCommunities)}
	}
	return each(field, list, func(s string) error { _, err := ParseCommunity(s); return err })
}

// parts are those that count.
func (c Community) parts() []uint32 {
	if c.Large {
		return c.Parts[:]
	}
	return c.Parts[:2]
}

// String is the community as ParseCommunity reads it, by its name if it has one.
func (c Community) String() string { return CommunityPattern{Community: c}.String() }

// String is the pattern as it is written.
func (p CommunityPattern) String() string {
	if !p.Large && p.Parts[0] == 0xffff && p.Any == [3]bool{} {
		for _, name := range CommunityNames() {
			if low, _ := wellKnown(name); low == p.Parts[1] {
				return name
			}
		}
	}
	var words []string
	for i, n := range p.parts() {
		if p.Any[i] {
			words = append(words, "*")
		} else {
			words = append(words, strconv.FormatUint(uint64(n), 10))
		}
	}
	return strings.Join(words, ":")
}

// CommunityNames are the names of well-known communities.
func CommunityNames() []string {
	return []string{"no-export", "no-advertise", "no-export-subconfed", "graceful-shutdown", "blackhole"}
}
