package calico

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netctl/datastore"
)

// poolNameLabel keeps the name that a pool has in Calico: in netctl it is its CIDR.
const poolNameLabel = "projectcalico.org/name"

func (c *conversion) pool(meta, spec *fields) {
	from := spec
	if c.v1 {
		from = meta
	}
	p := &datastore.Pool{}
	if list := from.nets("cidr"); len(list) == 1 {
		p.Spec.CIDR = list[0]
	} else {
		c.remark(from.at("cidr"), "left out, the pool with it: is no CIDR")
		return
	}
	p.Metadata.Labels = meta.labels("labels")
	if name := meta.text("name"); name != "" {
		p.Metadata.Labels[poolNameLabel] = name
	}
	p.Spec.Encap = c.encap(spec, p.Spec.CIDR)
	old, now := spec.flag("nat-outgoing"), spec.flag("natOutgoing")
	p.Spec.NATOutgoing = old || now
	p.Spec.Disabled = spec.flag("disabled")
	if raw, _ := spec.m["nodeSelector"].(string); raw != "" {
		if _, err := datastore.ParseSelector(raw); err != nil {
			c.remark("spec.nodeSelector", "left out, and closed: no node draws from the pool: %v", err)
			raw = "!all()"
		}
		delete(spec.m, "nodeSelector")
		p.Spec.NodeSelector = raw
	}
	c.blockSize(spec, p)
	uses := spec.words("allowedUses")
	if len(uses) > 0 && !slices.Contains(uses, "Workload") {
		c.remark("spec.allowedUses", "changed: the pool is disabled, since it is not for workloads")
		p.Spec.Disabled = true
	}
	switch mode := spec.text("assignmentMode"); mode {
	case "", "Automatic":
	default:
		c.remark("spec.assignmentMode", "changed: the pool is disabled, since netctl draws from every other; a Network may name its pools")
		p.Spec.Disabled = true
	}
	p.SetDefaults()
	c.add(p)
}

// encap is how Calico's two modes are called together.
func (c *conversion) encap(spec *fields, cidr netip.Prefix) datastore.Encap {
	mode := func(f *fields, key string, always, cross datastore.Encap) datastore.Encap {
		switch text := f.text(key); strings.ToLower(text) {
		case "always":
			return always
		case "crosssubnet", "cross-subnet":
			return cross
		case "", "never":
		default:
			c.remark(f.at(key), "left out: %q is none of Always, CrossSubnet and Never", text)
		}
		return datastore.EncapNone
	}
	ipip := mode(spec, "ipipMode", datastore.EncapIPIP, datastore.EncapIPIPCrossSubnet)
	vxlan := mode(spec, "vxlanMode", datastore.EncapVXLAN, datastore.EncapVXLANCrossSubnet)
	if v1 := spec.sub("ipip"); v1.flag("enabled") {
		if v1.m["mode"] == nil || v1.m["mode"] == "" {
			v1.m["mode"] = "always"
		}
		ipip = mode(v1, "mode", datastore.EncapIPIP, datastore.EncapIPIPCrossSubnet)
	} else {
		v1.text("mode")
	}
	if vxlan != datastore.EncapNone {
		if ipip != datastore.EncapNone {
			c.remark("spec.ipipMode", "left out: a pool has one encapsulation, and vxlanMode is set, too")
		}
		return vxlan
	}
	if ipip != datastore.EncapNone && cidr.Addr().Is6() {
		c.remark("spec.ipipMode", "left out: IPIP carries IPv4 only")
		return datastore.EncapNone
	}
	return ipip
}

// blockSize is the pool's, as near as netctl has it.
func (c *conversion) blockSize(spec *fields, p *datastore.Pool) {
	n, ok := spec.number("blockSize")
	if !ok {
		return
	}
	least := 22
	if p.Spec.CIDR.Addr().Is6() {
		least = 118
	}
	if p.Spec.BlockSize = max(n, least); n < least {
		c.remark("spec.blockSize", "changed: /%d is /%d: a block of netctl's has at most 1024 addresses", n, least)
	}
}

// advertisement is a prefix that is announced with communities.
type advertisement struct {
	at          made
	field       string
	cidr        netip.Prefix
	communities []string
}

func (c *conversion) bgpConfig(meta, spec *fields) {
	if name := fmt.Sprint(meta.m["name"]); name != datastore.DefaultName {
		c.remark("", "left out: netctl has one BGPConfig, %s; what is a node's own is said of the Node or in its /etc/netctl.yaml", datastore.DefaultName)
		return
	}
	b := &datastore.BGPConfig{Metadata: c.meta(meta, datastore.DefaultName)}
	// Calico's default number is not netctl's.
	if b.Spec.DefaultAS = spec.as("asNumber"); b.Spec.DefaultAS == 0 {
		b.Spec.DefaultAS = 64512
	}
	if mesh, ok := take[bool](spec, "nodeToNodeMeshEnabled"); ok {
		b.Spec.Mesh = &mesh
	}
	if b.Spec.Mesh == nil || *b.Spec.Mesh {
		b.Spec.Topology.Mode = datastore.TopologyMesh // however many nodes there are
	}
	values := map[string]string{}
	for _, f := range spec.items("communities") {
		values[fmt.Sprint(f.m["name"])] = fmt.Sprint(f.m["value"])
		f.m = nil
	}
	b.SetDefaults()
	c.add(b)
	for _, f := range spec.items("prefixAdvertisements") {
		list := f.nets("cidr")
		var communities []string
		for _, word := range f.words("communities") {
			if v, ok := values[word]; ok {
				word = v
			}
			communities = append(communities, word)
		}
		if len(list) == 1 && len(communities) > 0 {
			c.advertised = append(c.advertised, advertisement{made{b, c.document, c.resource}, f.path, list[0], communities})
		}
	}
}

// advertise gives pools the communities that their prefixes are announced with.
func (c *conversion) advertise() {
	for _, a := range c.advertised {
		i := slices.IndexFunc(c.objects, func(m made) bool {
			p, ok := m.object.(*datastore.Pool)
			return ok && p.Spec.CIDR == a.cidr
		})
		if i < 0 {
			c.about(a.at)
			c.remark(a.field, "left out: communities are a pool's, and none of these resources is a pool %s", a.cidr)
			continue
		}
		p := c.objects[i].object.(*datastore.Pool)
		p.Spec.Communities = append(p.Spec.Communities, a.communities...)
	}
}

func (c *conversion) peer(meta, spec *fields) {
	p := &datastore.Peer{}
	p.Spec.Node, p.Spec.NodeSelector = spec.text("node"), spec.text("nodeSelector")
	raw := spec.text("peerIP")
	if c.v1 {
		p.Spec.Node, raw = meta.text("node"), meta.text("peerIP")
		meta.text("scope")
		meta.m["name"] = ""
	}
	if raw == "" {
		c.remark("spec.peerSelector", "left out, the peer with it: the nodes find each other (netctl bgp node-mesh on, netctl bgp topology reflectors)")
		return
	}
	at, err := netip.ParseAddrPort(raw)
	if err == nil {
		p.Spec.Address, p.Spec.Port = at.Addr(), at.Port()
	} else if p.Spec.Address, err = netip.ParseAddr(raw); err != nil {
		c.remark("spec.peerIP", "left out, the peer with it: %q is no address", raw)
		return
	}
	if name := fmt.Sprint(meta.m["name"]); name != "" {
		p.Metadata = c.meta(meta, name)
	}
	p.Spec.AS, p.Spec.LocalAS = spec.as("asNumber"), spec.as("localASNumber")
	p.Spec.Filters = spec.words("filters")
	p.Spec.TTLSecurity, _ = spec.number("ttlSecurity")
	// Calico's BIRD believes whatever a peer tells.
	p.Spec.Accept = []string{datastore.AcceptDefault, datastore.AcceptForeign, datastore.AcceptBlocks}
	c.remark("", "changed: Calico tells a peer of another AS of all nodes' blocks, netctl of the node's own (spec.announce: all is the other way)")
	switch mode := spec.text("nextHopMode"); {
	case spec.flag("keepOriginalNextHop") || mode == "Keep":
		p.Spec.NextHop = datastore.NextHopUnchanged
	case mode == "Self":
		p.Spec.NextHop = datastore.NextHopSelf
	}
	if source, ok := spec.m["sourceAddress"].(string); ok && source == "UseNodeIP" {
		delete(spec.m, "sourceAddress")
	}
	c.password(spec, p)
	p.SetDefaults()
	c.add(p)
}

// password names the file in which the nodes look for what Calico had in a secret.
func (c *conversion) password(spec *fields, p *datastore.Peer) {
	secret := spec.sub("password").sub("secretKeyRef")
	if len(secret.m) == 0 {
		return
	}
	file := "/var/lib/netctl-node/" + datastore.ForeignName(secret.text("name")+"."+secret.text("key"))
	p.Spec.Password = &datastore.PeerPassword{File: file}
	c.remark(secret.path, "changed: the password is read from %s on each node that has the peer: put it there, one line, mode 0600", file)
}

func (c *conversion) node(meta, spec *fields) {
	n := &datastore.Node{Metadata: c.meta(meta, fmt.Sprint(meta.m["name"]))}
	bgp := spec.sub("bgp")
	for _, key := range []string{"ipv4Address", "ipv6Address"} {
		// With the bits behind the length: it is the node's own address.
		if p, err := netip.ParsePrefix(fmt.Sprint(bgp.m[key])); err == nil {
			n.Spec.Addresses = append(n.Spec.Addresses, p)
			delete(bgp.m, key)
		} else if a, err := netip.ParseAddr(fmt.Sprint(bgp.m[key])); err == nil {
			n.Spec.Addresses = append(n.Spec.Addresses, netip.PrefixFrom(a, a.BitLen()))
			delete(bgp.m, key)
		}
	}
	n.Spec.AS = bgp.as("asNumber")
	if id, err := netip.ParseAddr(fmt.Sprint(bgp.m["routeReflectorClusterID"])); err == nil {
		n.Spec.Reflector = &datastore.Reflector{Mode: datastore.ReflectorAlways, ClusterID: id}
		delete(bgp.m, "routeReflectorClusterID")
	}
	n.SetDefaults()
	c.add(n)
}

func (c *conversion) reservation(meta, spec *fields) {
	r := &datastore.Reservation{Metadata: c.meta(meta, fmt.Sprint(meta.m["name"]))}
	r.Spec.CIDRs = spec.nets("reservedCIDRs")
	c.add(r)
}

// filter translates a BGPFilter; what its rules leave open is accepted, as in Calico.
func (c *conversion) filter(meta, spec *fields) {
	f := &datastore.BGPFilter{Metadata: c.meta(meta, fmt.Sprint(meta.m["name"]))}
	for _, d := range []struct {
		key, all string
		rules    *[]datastore.FilterRule
	}{
		{"importV4", "0.0.0.0/0", &f.Spec.Import}, {"importV6", "::/0", &f.Spec.Import},
		{"exportV4", "0.0.0.0/0", &f.Spec.Export}, {"exportV6", "::/0", &f.Spec.Export},
	} {
		for _, r := range spec.items(d.key) {
			if rule, ok := c.filterRule(r, netip.MustParsePrefix(d.all)); ok {
				*d.rules = append(*d.rules, rule)
			}
		}
	}
	if len(f.Spec.Import) > 0 {
		f.Spec.ImportDefault = datastore.FilterNext
	}
	if len(f.Spec.Export) > 0 {
		f.Spec.ExportDefault = datastore.FilterNext
	}
	f.SetDefaults()
	c.add(f)
}

// filterRule translates one; what cannot be said in full is left out if it accepts, and
// wider if it rejects.
func (c *conversion) filterRule(f *fields, all netip.Prefix) (datastore.FilterRule, bool) {
	action := strings.ToLower(fmt.Sprint(f.m["action"]))
	if action == "accept" || action == "reject" {
		delete(f.m, "action")
	} else {
		action = "reject"
	}
	terms := append(prefixTerms(f, all), sourceTerm(f)...)
	unsaid := f.rest()
	verdict := "left out, and wider: more is rejected"
	if action == "accept" {
		verdict = "left out, the rule with it: it would accept more without"
	}
	for _, r := range unsaid {
		c.remark(r.Field, "%s", verdict)
	}
	text := action + " " + strings.Join(terms, " and ")
	r, err := datastore.ParseFilterRule(text)
	if err != nil {
		c.remark(f.path, "left out, and closed: all is rejected: %v", err)
		r, _ = datastore.ParseFilterRule("reject prefix " + all.String() + " ge 0")
		return r, true
	}
	return r, len(unsaid) == 0 || action == "reject"
}

// sourceTerm is where a route was learnt; what it cannot say it leaves in f.
func sourceTerm(f *fields) []string {
	if source, _ := f.m["source"].(string); source != "RemotePeers" {
		return nil
	}
	delete(f.m, "source")
	return []string{"not source local"}
}

// prefixTerms are what a rule of a filter says of prefixes, always one of the family.
func prefixTerms(f *fields, all netip.Prefix) []string {
	any := "prefix " + all.String() + " ge 0"
	list := f.nets("cidr")
	if len(list) != 1 {
		return []string{any}
	}
	in := list[0].String()
	length := f.sub("prefixLength")
	inside := in
	low, hasLow := length.number("min")
	high, hasHigh := length.number("max")
	switch {
	case hasLow && hasHigh:
		inside += " ge " + strconv.Itoa(low) + " le " + strconv.Itoa(high)
	case hasHigh:
		inside += " le " + strconv.Itoa(high)
	case hasLow:
		inside += " ge " + strconv.Itoa(low)
	default:
		inside += " ge " + strconv.Itoa(list[0].Bits())
	}
	operator := f.text("matchOperator")
	switch operator {
	case "Equal", "":
		return []string{"prefix " + in}
	case "In":
		return []string{"prefix " + inside}
	case "NotEqual":
		return []string{any, "not prefix " + in}
	case "NotIn":
		return []string{any, "not prefix " + inside}
	}
	f.m["matchOperator"] = operator // left, to be told
	return []string{any}
}
