package ui

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"netctl/datastore"
)

// Bounds of a matrix: so many groups, the largest, judged for so long.
const (
	maxGroups = 60
	judgeTime = 5 * time.Second
)

// Group is endpoints that no rule tells apart.
type Group struct {
	// Name is their profiles in order, or their network.
	Name     string   `json:"name"`
	Profiles []string `json:"profiles"`
	Network  string   `json:"network,omitempty"`
	// Traits are what rules ask for, beside profiles, and its members have: selectors, CIDRs,
	// named ports.
	Traits    []string `json:"traits,omitempty"`
	Endpoints int      `json:"endpoints"`
	// Example is the member that is judged, the first by name. Other is the second, which
	// it is judged against within the group; "": there is none.
	Example string `json:"example"`
	Other   string `json:"other,omitempty"`
}

// Cell is who of one group may begin to talk to whom of another.
type Cell struct {
	Verdict Verdict `json:"verdict"`
	// Open is what passes, in words, where Verdict is Some.
	Open string `json:"open,omitempty"`
}

// Verdict sums up what was judged between two groups.
type Verdict string

// The verdicts.
const (
	All      Verdict = "all"      // everything passes
	Some     Verdict = "some"     // some does
	None     Verdict = "none"     // nothing does
	Apart    Verdict = "apart"    // they have no address of one family
	Alone    Verdict = "alone"    // the group has one endpoint, and this is itself
	Unjudged Verdict = "unjudged" // there was no time
)

// Matrix is who may begin to talk to whom: Cells[from][to].
type Matrix struct {
	Revision int64    `json:"revision"`
	Groups   []Group  `json:"groups"`
	Left     int      `json:"left"` // groups that are not in it
	Cells    [][]Cell `json:"cells"`
}

// Pair is what may be sent from one endpoint to another, and why.
type Pair struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Verdict Verdict  `json:"verdict"`
	Judged  []Judged `json:"judged"`
}

// judge judges by the profiles and policies of the datastore, with the compiled rules that nodes have. Only
// what is stored counts: not whether each node has it in its kernel already.
type judge struct {
	list func(ctx context.Context, k datastore.Kind, query url.Values) ([]datastore.Object, int64, error)

	mu   sync.Mutex
	last map[bool]*Matrix // by network or not
}

// cluster is what decides about packets, as it is stored.
type cluster struct {
	revision  int64
	endpoints map[string]*datastore.Endpoint
	profiles  map[string]*datastore.Profile
	policies  []*datastore.Policy
	others    []datastore.Object // that decide too: policies, their tiers, network sets
}

func (j *judge) read(ctx context.Context) (*cluster, error) {
	c := &cluster{endpoints: map[string]*datastore.Endpoint{}, profiles: map[string]*datastore.Profile{}}
	for _, k := range []datastore.Kind{datastore.KindTier, datastore.KindPolicy, datastore.KindNetworkSet, datastore.KindProfile, datastore.KindEndpoint} {
		objects, revision, err := j.list(ctx, k, nil)
		if err != nil {
			return nil, err
		}
		c.revision = max(c.revision, revision)
		for _, o := range objects {
			c.take(o)
		}
	}
	return c, nil
}

// take adds an object.
func (c *cluster) take(o datastore.Object) {
	switch o := o.(type) {
	case *datastore.Endpoint:
		c.endpoints[o.Metadata.Name] = o
	case *datastore.Profile:
		c.profiles[o.Metadata.Name] = o
	case *datastore.Policy:
		c.policies, c.others = append(c.policies, o), append(c.others, o)
	case *datastore.Tier, *datastore.NetworkSet:
		c.others = append(c.others, o)
	}
}

// matrix is that of the groups by profiles, or by network.
func (j *judge) matrix(ctx context.Context, byNetwork bool) (*Matrix, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	c, err := j.read(ctx)
	if err != nil {
		return nil, err
	}
	if m := j.last[byNetwork]; m != nil && m.Revision == c.revision {
		return m, nil
	}
	m := c.matrix(ctx, byNetwork)
	if j.last == nil {
		j.last = map[bool]*Matrix{}
	}
	if ctx.Err() == nil {
		j.last[byNetwork] = m
	}
	return m, ctx.Err()
}

// pair judges two endpoints by name.
func (j *judge) pair(ctx context.Context, from, to string) (*Pair, error) {
	c, err := j.read(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{from, to} {
		if c.endpoints[name] == nil {
			return nil, fmt.Errorf("endpoint %q: %w", name, datastore.ErrNotFound)
		}
	}
	p := &Pair{From: from, To: to, Verdict: Alone}
	if from != to {
		p.Judged, p.Verdict = c.court([]string{from, to}).judge(from, to)
	}
	return p, nil
}

func (c *cluster) matrix(ctx context.Context, byNetwork bool) *Matrix {
	m := &Matrix{Revision: c.revision, Groups: c.groups(byNetwork)}
	m.Left = max(0, len(m.Groups)-maxGroups)
	m.Groups = m.Groups[:len(m.Groups)-m.Left]
	slices.SortFunc(m.Groups, func(a, b Group) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), slices.Compare(a.Profiles, b.Profiles), slices.Compare(a.Traits, b.Traits))
	})
	var names []string
	for _, g := range m.Groups {
		names = append(names, g.Example, g.Other)
	}
	court, until := c.court(names), time.Now().Add(judgeTime)
	for _, from := range m.Groups {
		row := make([]Cell, 0, len(m.Groups))
		for _, to := range m.Groups {
			other := to.Example
			if to.Example == from.Example {
				other = to.Other
			}
			switch {
			case other == "":
				row = append(row, Cell{Verdict: Alone})
			case ctx.Err() != nil || time.Now().After(until):
				row = append(row, Cell{Verdict: Unjudged})
			default:
				row = append(row, sum(court.judge(from.Example, other)))
			}
		}
		m.Cells = append(m.Cells, row)
	}
	return m
}

// groups parts the endpoints, the largest group first.
func (c *cluster) groups(byNetwork bool) []Group {
	asked := c.asked()
	found := map[string]*Group{}
	for _, name := range slices.Sorted(maps.Keys(c.endpoints)) {
		e := c.endpoints[name]
		g := Group{Name: strings.Join(e.Spec.Profiles, ", "), Profiles: e.Spec.Profiles, Traits: asked.traits(e, c.profiles), Example: name}
		if g.Name == "" {
			g.Name = "no profile"
		}
		if byNetwork {
			g.Network = e.Spec.Network
			g.Name = cmp.Or(g.Network, "no network")
		}
		key := fmt.Sprintf("%q", append(append([]string{g.Network, families(e)}, g.Traits...), append([]string{"profiles"}, g.Profiles...)...))
		have := found[key]
		switch {
		case have == nil:
			have = &g
			found[key] = have
		case have.Other == "":
			have.Other = name
		}
		have.Endpoints++
	}
	list := make([]Group, 0, len(found))
	for _, key := range slices.Sorted(maps.Keys(found)) {
		list = append(list, *found[key])
	}
	slices.SortStableFunc(list, func(a, b Group) int { return cmp.Compare(b.Endpoints, a.Endpoints) })
	return list
}
