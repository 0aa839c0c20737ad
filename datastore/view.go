package datastore

import (
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// View is a typed, indexed copy of what the store holds. It is not safe for
// concurrent use: one goroutine owns it. The objects it returns are shared and
// must not be changed. What it costs to apply an event does not grow with the
// number of objects.
type View struct {
	revision int64
	objects  map[Kind]map[string]held
	problems map[string]string // of values that are not used, by key
	pools    int64             // revision of PoolsKey
	decoder  decoder
	seed     maphash.Seed
	understood

	blocksByNode       index
	endpointsByNode    index
	endpointsByProfile index
	endpointsByNetwork index
}

// held is an object and a hash of the value that it was read from. The values
// themselves are not kept: of 100,000 endpoints they are some 50 MB.
type held struct {
	Object
	sum uint64
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
		objects:            map[Kind]map[string]held{},
		problems:           map[string]string{},
		decoder:            decoder{names: names{}, rules: map[string]Rule{}},
		seed:               maphash.MakeSeed(),
		understood:         understood{last: map[string]Last{}, met: map[string]bool{}},
		blocksByNode:       index{},
		endpointsByNode:    index{},
		endpointsByProfile: index{},
		endpointsByNetwork: index{},
	}
	for _, k := range Kinds() {
		v.objects[k] = map[string]held{}
	}
	endpoints := v.objects[KindEndpoint]
	v.decoder.endpoint = func(name []byte) string {
		if h, ok := endpoints[string(name)]; ok {
			return h.Meta().Name
		}
		return ""
	}
	return v
}

// Apply takes one event. If the value does not decode, the object stays as it
// was, or becomes what Recall was given for it; the error says why, and Problems and
// ProblemsOf list it until the key changes again. An endpoint that names another's link counts as
// one that does not decode: who acted on it would act on the other. ClusterKey and
// PoolsKey are no objects and change nothing, and neither do objects of kinds that only
// a newer netctl knows.
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
		v.forget(e.Key)
		if err != nil {
			return Change{}, nil
		}
		return v.put(kind, name, held{}), nil
	}
	if err != nil {
		if word := newerKind(e.Key); word != "" {
			v.meet("objects under " + Prefix + word + "/: a kind that this netctl does not know")
			return Change{}, nil
		}
		v.problems[e.Key] = err.Error() + removes(e)
		return Change{}, err
	}
	o, news, err := v.decoder.stored(e.Key, e.Value)
	if ep, ok := o.(*Endpoint); ok && checkLink(ep) != nil {
		err = fmt.Errorf("%s: %w", e.Key, checkLink(ep))
	}
	if err != nil {
		return v.fallBack(kind, name, e, err), err
	}
	for _, path := range news {
		v.meet(string(kind) + " " + path + ": a key that this netctl does not know")
	}
	delete(v.problems, e.Key)
	v.forget(e.Key)
	o.Meta().Revision = e.Revision
	return v.put(kind, name, held{o, v.sum(e.Value)}), nil
}

func (v *View) sum(value []byte) uint64 { return maphash.Bytes(v.seed, value) }

// blockPrefix is KindPrefix(KindBlock).
const blockPrefix = Prefix + "blocks/"

// Replace takes a complete listing and returns what differs from what the View
// held, deletions first, then by kind as in Kinds and in the order of the listing.
// The error joins those of the entries that do not decode.
func (v *View) Replace(s Snapshot) ([]Change, error) {
	v.pools = 0
	var bad []error
	changes := v.dropUnlisted(s)
	byKind := map[Kind][]Change{}
	// Blocks come last: they share the names of the endpoints.
	for _, blocks := range []bool{false, true} {
		for _, e := range s.Entries {
			if strings.HasPrefix(e.Key, blockPrefix) != blocks || v.holds(e) {
				continue
			}
			c, err := v.Apply(e)
			if err != nil {
				bad = append(bad, err)
			}
			if c.Kind != "" {
				byKind[c.Kind] = append(byKind[c.Kind], c)
			}
		}
	}
	for _, k := range Kinds() {
		changes = append(changes, byKind[k]...)
	}
	v.revision = s.Revision
	return changes, errors.Join(bad...)
}

// dropUnlisted forgets what is not in a complete listing.
func (v *View) dropUnlisted(s Snapshot) []Change {
	had := len(v.problems) + len(v.last)
	for _, byName := range v.objects {
		had += len(byName)
	}
	if had == 0 {
		return nil // as at the start of a role
	}
	listed := make(map[string]bool, len(s.Entries))
	for _, e := range s.Entries {
		listed[e.Key] = true
	}
	var changes []Change
	for _, k := range Kinds() {
		var gone []string
		for name := range v.objects[k] {
			if !listed[KindPrefix(k)+name] {
				gone = append(gone, name)
			}
		}
		slices.Sort(gone)
		for _, name := range gone {
			changes = append(changes, v.put(k, name, held{}))
		}
	}
	maps.DeleteFunc(v.problems, func(key, _ string) bool { return !listed[key] })
	for key := range v.last {
		if !listed[key] {
			v.forget(key)
		}
	}
	return changes
}

// holds says whether the View has exactly that revision of the entry. Two
// stores may give different values the same revision, so the value counts too.
func (v *View) holds(e Entry) bool {
	kind, name, err := ParseKey(e.Key)
	if err != nil || v.problems[e.Key] != "" {
		return false
	}
	h, ok := v.objects[kind][name]
	return ok && h.Meta().Revision == e.Revision && h.sum == v.sum(e.Value)
}

// put stores an object, or removes it if h holds none, and keeps the indexes.
func (v *View) put(kind Kind, name string, h held) Change {
	old := v.objects[kind][name].Object
	if old == nil && h.Object == nil {
		return Change{}
	}
	if old != nil {
		v.reindex(name, old, index.remove)
	}
	if h.Object == nil {
		delete(v.objects[kind], name)
		return Change{Kind: kind, Name: name, Old: old}
	}
	v.objects[kind][name] = h
	v.reindex(name, h.Object, index.add)
	return Change{Kind: kind, Name: name, Old: old, New: h.Object}
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

// ProblemsOf are those Problems that a node has: of what is its own, and of what all nodes
// have. Others' are of objects that belong to other nodes, or that nobody can say a node of.
func (v *View) ProblemsOf(node string) (own, others []string) {
	for _, key := range slices.Sorted(maps.Keys(v.problems)) {
		if v.concerns(key, node) {
			own = append(own, v.problems[key])
		} else {
			others = append(others, v.problems[key])
		}
	}
	return own, others
}

// concerns says whether a node is to act on what is stored under a key, by the key and
// by what was last understood of it.
func (v *View) concerns(key, node string) bool {
	kind, name := kindAndName(key)
	switch kind {
	case KindNode, KindEndpoint, KindReport:
		owner, _, _ := strings.Cut(name, "/")
		return owner == node
	case KindBlock:
		b := v.Block(name)
		return b != nil && b.Spec.Affinity == node
	case KindHostEndpoint:
		h := v.HostEndpoint(name)
		return h == nil || h.Spec.Node == node
	}
	return true
}

func one[T Object](v *View, name string) T {
	var zero T
	if o, ok := v.objects[zero.Kind()][name].Object.(T); ok {
		return o
	}
	return zero
}

func all[T Object](v *View) []T {
	var zero T
	byName := v.objects[zero.Kind()]
	out := make([]T, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[name].Object.(T))
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
func (v *View) Object(k Kind, name string) Object { return v.objects[k][name].Object }

// Each yields the objects of a kind, in no order.
func (v *View) Each(k Kind) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		for _, h := range v.objects[k] {
			if !yield(h.Object) {
				return
			}
		}
	}
}

// Count is the number of objects of a kind.
func (v *View) Count(k Kind) int { return len(v.objects[k]) }

// CountEndpointsOf is the number of endpoints of a node.
func (v *View) CountEndpointsOf(node string) int { return len(v.endpointsByNode[node]) }

// Objects returns the objects of a kind, pools and blocks by address, the others by name.
func (v *View) Objects(k Kind) []Object {
	out := make([]Object, 0, len(v.objects[k]))
	for _, name := range slices.Sorted(maps.Keys(v.objects[k])) {
		out = append(out, v.objects[k][name].Object)
	}
	slices.SortStableFunc(out, func(a, b Object) int { return ComparePrefix(cidrOf(a), cidrOf(b)) })
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

// OtherNodesOf lists the nodes that a host is registered as under other names.
func (v *View) OtherNodesOf(host, name string) []*Node {
	return slices.DeleteFunc(v.Nodes(), func(n *Node) bool {
		return n.Status.Host == "" || n.Status.Host != host || n.Metadata.Name == name
	})
}

// Nodes returns the nodes by name.
func (v *View) Nodes() []*Node { return all[*Node](v) }

// Peer returns the peer of that name or nil.
func (v *View) Peer(name string) *Peer { return one[*Peer](v, name) }

// Peers returns the peers by name.
func (v *View) Peers() []*Peer { return all[*Peer](v) }

// BGPFilter returns the filter of that name or nil.
func (v *View) BGPFilter(name string) *BGPFilter { return one[*BGPFilter](v, name) }

// BGPFilters returns the filters by name.
func (v *View) BGPFilters() []*BGPFilter { return all[*BGPFilter](v) }

// Pool returns the pool of that name (PoolName) or nil.
func (v *View) Pool(name string) *Pool { return one[*Pool](v, name) }

// Pools returns the pools by address, IPv4 first.
func (v *View) Pools() []*Pool {
	pools := all[*Pool](v)
	slices.SortFunc(pools, func(a, b *Pool) int { return ComparePrefix(a.Spec.CIDR, b.Spec.CIDR) })
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
	slices.SortFunc(blocks, func(a, b *Block) int { return ComparePrefix(a.Spec.CIDR, b.Spec.CIDR) })
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

// Tier returns the tier of that name or nil.
func (v *View) Tier(name string) *Tier { return one[*Tier](v, name) }

// Tiers returns the tiers by name.
func (v *View) Tiers() []*Tier { return all[*Tier](v) }

// Policy returns the policy of that name or nil.
func (v *View) Policy(name string) *Policy { return one[*Policy](v, name) }

// Policies returns the policies by name.
func (v *View) Policies() []*Policy { return all[*Policy](v) }

// NetworkSet returns the network set of that name or nil.
func (v *View) NetworkSet(name string) *NetworkSet { return one[*NetworkSet](v, name) }

// NetworkSets returns the network sets by name.
func (v *View) NetworkSets() []*NetworkSet { return all[*NetworkSet](v) }

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
