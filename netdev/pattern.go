package netdev

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"netctl/datastore"
)

// Adoption says which interfaces that others made are endpoints, and of which network.
type Adoption struct {
	// Pattern of names (path.Match).
	Pattern string
	Network string
}

// ParseAdoption reads an entry of the setting agent.adopt: PATTERN=NETWORK.
func ParseAdoption(s string) (a Adoption, err error) {
	pattern, network, ok := strings.Cut(s, "=")
	if !ok || pattern == "" {
		return a, fmt.Errorf("%q: %w: must be PATTERN=NETWORK, as vnet*=web", s, datastore.ErrInvalid)
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return a, fmt.Errorf("%q: %w: %s is no pattern of names: %w", s, datastore.ErrInvalid, pattern, err)
	}
	if err := datastore.CheckName(network); err != nil {
		return a, fmt.Errorf("%q: network %w", s, err)
	}
	return Adoption{pattern, network}, nil
}

// Apart reports why the pattern cannot be: it has names of netctl's own interfaces, of which
// others are given, or lo's.
func (a Adoption) Apart(linkPrefix string, others ...string) error {
	own := append([]string{"lo", linkPrefix + strings.Repeat("0", datastore.LinkDigits), linkPrefix + strings.Repeat("f", datastore.LinkDigits)}, others...)
	for _, name := range own {
		if a.Match(name) {
			return fmt.Errorf("%q: %w: it matches %s, which is not for others to make: be more exact", a.Pattern+"="+a.Network, datastore.ErrInvalid, name)
		}
	}
	return nil
}

// Match says whether an interface of that name is meant.
func (a Adoption) Match(link string) bool {
	ok, _ := path.Match(a.Pattern, link)
	return ok
}

// Adopts says whether one of the list means an interface of that name.
func Adopts(list []Adoption, link string) bool {
	return slices.ContainsFunc(list, func(a Adoption) bool { return a.Match(link) })
}
