package datastore

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
)

// View is a typed, indexed copy of what the store holds. It is not safe for
// concurrent use: one goroutine owns it. The objects it returns are shared and
// must not be changed. What it costs to apply an event does not grow with the
// number of objects.
type View struct {
	revision int64
	objects  map[Kind]map[string]Object
	problems map[string]string // by key
	pools    int64             // revision of PoolsKey

	blocksByNode       index
	endpointsByNode    index
	endpointsByProfile index
	endpointsByNetwork index
}

// Change is what one event did to an object; nil is absent. The zero Change
// changed nothing.
type Change struct {
	Kind     Kind
	Name     string
	Old, New Object
}

// index holds the names of the objects that have a property.
type index map[string]map[string]struct{}

func (x index) add(property, name string) {
	if x[property] == nil {
		x[property] = map[string]struct{}{}
	}
	x[property][name] = struct{}{}
}

func (x index) remove(property, name string) {
	delete(x[property], name)
	if len(x[property]) == 0 {
		delete(x, property)
	}
}

// NewView returns an empty View.
func NewView() *View {
	v := &View{
		objects:            map[Kind]map[string]Object{},
		problems:           map[string]string{},
		blocksByNode:       index{},
		endpointsByNode:    index{},
		endpointsByProfile: index{},
		endpointsByNetwork: index{},
	}
	for _, k := range Kinds() {
		v.objects[k] = map[string]Object{}
	}
	return v
}

// Apply takes one event. If the value does not decode, the object stays as it
// was, the error says why, and Problems lists it until the key changes again.
// ClusterKey and PoolsKey are no objects and change nothing.
func (v *View) Apply(e Entry) (Change, error) {
	v.revision = max(v.revision, e.Revision)
	switch e.Key {
	case PoolsKey:
		v.pools = e.Revision
		if e.Value == nil {
			v.pools = 0
		}
		return Change{}, nil
	case ClusterKey:
		return Change{}, nil
	}
	kind, name, err := ParseKey(e.Key)
	if e.Value == nil {
		delete(v.problems, e.Key)
		if err != nil {
			return Change{}, nil
		}
		return v.put(kind, name, nil), nil
	}
	var o Object
	if err == nil {
		o, err = Decode(e.Key, e.Value)
	}
	if err != nil {
		v.problems[e.Key] = err.Error()
		return Change{}, err
	}
	delete(v.problems, e.Key)
	o.Meta().Revision = e.Revision
	return v.put(kind, name, o), nil
}

// Replace takes a complete listing and returns what differs from what the View
// held, deletions first, then by kind as in Kinds and by name. The error joins those of the
// entries that do not decode.
func (v *View) Replace(s Snapshot) ([]Change, error) {
	v.pools = 0
	var bad []error
	listed := make(map[string]bool, len(s.Entries))
	var changes []Change
	for _, e := range s.Entries {
		listed[e.Key] = true
		if v.holds(e) {
			continue
		}
		c, err := v.Apply(e)
		if err != nil {
			bad = append(bad, err)
		}
		changes = append(changes, c)
	}
	for k, byName := range v.objects {
		for name := range byName {
			if !listed[KindPrefix(k)+name] {
				changes = append(changes, v.put(k, name, nil))
			}
		}
	}
	maps.DeleteFunc(v.problems, func(key, _ string) bool { return !listed[key] })
	changes = slices.DeleteFunc(changes, func(c Change) bool { return c.Kind == "" })
	slices.SortFunc(changes, compareChanges)
	v.revision = s.Revision
	return changes, errors.Join(bad...)
}

// holds says whether the View has exactly that revision of the entry. Two
// stores may give different values the same revision, so the value counts too.
func (v *View) holds(e Entry) bool {
	kind, name, err := ParseKey(e.Key)
	if err != nil {
		return false
	}
	o := v.objects[kind][name]
	if o == nil || o.Meta().Revision != e.Revision {
		return false
	}
	have, err := Encode(o)
	return err == nil && string(have) == string(e.Value)
}

func compareChanges(a, b Change) int {
	gone := func(c Change) int {
		if c.New == nil {
			return 0
		}
		return 1
	}
	kinds := Kinds()
	return cmp.Or(gone(a)-gone(b),
		slices.Index(kinds, a.Kind)-slices.Index(kinds, b.Kind),
		cmp.Compare(a.Name, b.Name))
}

// put stores o, or removes the object if o is nil, and keeps the indexes.
func (v *View) put(kind Kind, name string, o Object) Change {
	old := v.objects[kind][name]
	if old == nil && o == nil {
		return Change{}
	}
	if old != nil {
		v.reindex(name, old, index.remove)
	}
	if o == nil {
		delete(v.objects[kind], name)
		return Change{Kind: kind, Name: name, Old: old}
	}
	v.objects[kind][name] = o
	v.reindex(name, o, index.add)
	return Change{Kind: kind, Name: name, Old: old, New: o}
}

func (v *View) reindex(name string, o Object, change func(index, string, string)) {
	switch o := o.(type) {
	case *Block:
		change(v.blocksByNode, o.Spec.Affinity, name)
	case *Endpoint:
		change(v.endpointsByNode, o.Spec.Node, name)
		if o.Spec.Network != "" {
			change(v.endpointsByNetwork, o.Spec.Network, name)
		}
		for _, p := range o.Spec.Profiles {
			change(v.endpointsByProfile, p, name)
		}
	}
}

// Revision is the store's revision the View is at.
func (v *View) Revision() int64 { return v.revision }

// Problems are one line for each key whose value is not used, sorted.
func (v *View) Problems() []string { return slices.Sorted(maps.Values(v.problems)) }

func one[T Object](v *View, name string) T {
	var zero T
	if o, ok := v.objects[zero.Kind()][name].(T); ok {
		return o
	}
	return zero
}

func all[T Object](v *View) []T {
	var zero T
	byName := v.objects[zero.Kind()]
	out := make([]T, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[name].(T))
	}
	return out
}

func indexedBy[T Object](v *View, x index, property string) []T {
	out := make([]T, 0, len(x[property]))
	for _, name := range slices.Sorted(maps.Keys(x[property])) {
		out = append(out, one[T](v, name))
	}
	return out
}

// Object returns the object of that kind and name or nil.
func (v *View) Object(k Kind, name string) Object { return v.objects[k][name] }

// Objects returns the objects of a kind, pools and blocks by address, the others by name.
func (v *View) Objects(k Kind) []Object {
	out := make([]Object, 0, len(v.objects[k]))
	for _, name := range slices.Sorted(maps.Keys(v.objects[k])) {
		out = append(out, v.objects[k][name])
	}
	slices.SortStableFunc(out, func(a, b Object) int { return comparePrefix(cidrOf(a), cidrOf(b)) })
	return out
}

func cidrOf(o Object) (p netip.Prefix) {
	switch o := o.(type) {
	case *Pool:
		p = o.Spec.CIDR
	case *Block:
		p = o.Spec.CIDR
	}
	return p
}

// Node returns the node of that name or nil.
func (v *View) Node(name string) *Node { return one[*Node](v, name) }

// Nodes returns the nodes by name.
func (v *View) Nodes() []*Node { return all[*Node](v) }

// Pool returns the pool of that name (PoolName) or nil.
func (v *View) Pool(name string) *Pool { return one[*Pool](v, name) }

// Pools returns the pools by address, IPv4 first.
func (v *View) Pools() []*Pool {
	pools := all[*Pool](v)
	slices.SortFunc(pools, func(a, b *Pool) int { return comparePrefix(a.Spec.CIDR, b.Spec.CIDR) })
	return pools
}

// Block returns the block of that name (PoolName) or nil.
func (v *View) Block(name string) *Block { return one[*Block](v, name) }

// Blocks returns the blocks by address, IPv4 first.
func (v *View) Blocks() []*Block { return byAddress(all[*Block](v)) }

// BlocksOf returns the blocks that the node has affinity to, by address.
func (v *View) BlocksOf(node string) []*Block {
	return byAddress(indexedBy[*Block](v, v.blocksByNode, node))
}

func byAddress(blocks []*Block) []*Block {
	slices.SortFunc(blocks, func(a, b *Block) int { return comparePrefix(a.Spec.CIDR, b.Spec.CIDR) })
	return blocks
}

// Endpoint returns the endpoint of that name or nil.
func (v *View) Endpoint(name string) *Endpoint { return one[*Endpoint](v, name) }

// Endpoints returns the endpoints by name.
func (v *View) Endpoints() []*Endpoint { return all[*Endpoint](v) }

// EndpointsOf returns the endpoints of a node by name.
func (v *View) EndpointsOf(node string) []*Endpoint {
	return indexedBy[*Endpoint](v, v.endpointsByNode, node)
}

// EndpointsWithProfile returns the endpoints that have the profile, by name.
func (v *View) EndpointsWithProfile(profile string) []*Endpoint {
	return indexedBy[*Endpoint](v, v.endpointsByProfile, profile)
}

// EndpointsIn returns the endpoints of a network, by name.
func (v *View) EndpointsIn(network string) []*Endpoint {
	return indexedBy[*Endpoint](v, v.endpointsByNetwork, network)
}

// Profile returns the profile of that name or nil.
func (v *View) Profile(name string) *Profile { return one[*Profile](v, name) }

// Profiles returns the profiles by name.
func (v *View) Profiles() []*Profile { return all[*Profile](v) }

// Network returns the network of that name or nil.
func (v *View) Network(name string) *Network { return one[*Network](v, name) }

// Networks returns the networks by name.
func (v *View) Networks() []*Network { return all[*Network](v) }

// Report returns the report of a node's role or nil.
func (v *View) Report(node, role string) *Report { return one[*Report](v, ReportName(node, role)) }

// Reservations returns the reservations by name.
func (v *View) Reservations() []*Reservation { return all[*Reservation](v) }

// BGP returns the cluster's BGP configuration; the defaults if there is none.
func (v *View) BGP() *BGPConfig {
	c := one[*BGPConfig](v, DefaultName)
	if c == nil {
		c = &BGPConfig{}
		c.SetDefaults()
	}
	return c
}

// Config returns the cluster-wide settings; the defaults if there are none.
func (v *View) Config() *Config {
	c := one[*Config](v, DefaultName)
	if c == nil {
		c = &Config{}
		c.SetDefaults()
	}
	return c
}
