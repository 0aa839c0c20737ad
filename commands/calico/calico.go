// Package calico owns what Calico's resources mean in netctl's model: those of calicoctl v3
// (projectcalico.org/v3) and of calicoctl 1 of 2016 (v1).
//
// It is pure: documents in, objects and remarks out. Whatever of a document is not in the
// objects, or means something else there, has a remark. A rule that cannot be said in full
// becomes narrower if it allows and wider if it denies, so that nothing is open that was
// closed.
package calico

import (
	"fmt"
	"slices"
	"strings"

	"netctl/datastore"
)

// Remark is something that the objects do not say, or say otherwise.
type Remark struct {
	// Document is the place of the resource among the documents, from 0.
	Document int
	// Resource is its kind and name; Field the path in it, empty if it is about all of it.
	Resource, Field string
	Text            string
}

// String is the remark as one line.
func (r Remark) String() string {
	s := r.Resource + ": "
	if r.Resource == "" {
		s = "a resource without a kind: "
	}
	if r.Field != "" {
		s += r.Field + ": "
	}
	return s + r.Text
}

// conversion is one run of Convert.
type conversion struct {
	document int
	resource string
	v1       bool // the resource is one of 2016
	remarks  []Remark
	objects  []made
	orders   []ordered
	// advertised are communities that BGPConfigurations give prefixes, by the prefix.
	advertised []advertisement
}

// made is an object and the resource that it comes from.
type made struct {
	object   datastore.Object
	document int
	resource string
}

// Convert translates documents, each one resource as JSON decodes it with UseNumber. The
// objects are valid, and no two have one name.
func Convert(documents []any) ([]datastore.Object, []Remark) {
	c := &conversion{}
	for i, d := range documents {
		c.document, c.resource = i, fmt.Sprintf("document %d", i+1)
		m, ok := d.(map[string]any)
		if !ok {
			c.remark("", "left out: is no resource")
			continue
		}
		c.resourceOf(&fields{c: c, m: m})
	}
	c.setOrders()
	c.advertise()
	c.completeTiers()
	c.dropLosers()
	slices.SortStableFunc(c.remarks, func(x, y Remark) int { return x.Document - y.Document })
	var out []datastore.Object
	for _, m := range c.objects {
		out = append(out, m.object)
	}
	return out, c.remarks
}

func (c *conversion) remark(field, format string, args ...any) {
	c.remarks = append(c.remarks, Remark{c.document, c.resource, field, fmt.Sprintf(format, args...)})
}

// about has the next remarks be about what m comes from.
func (c *conversion) about(m made) { c.document, c.resource = m.document, m.resource }

func (c *conversion) add(o datastore.Object) {
	c.objects = append(c.objects, made{o, c.document, c.resource})
}

// resourceOf translates one resource.
func (c *conversion) resourceOf(f *fields) {
	kind, version := f.text("kind"), f.text("apiVersion")
	meta := f.sub("metadata")
	c.resource = strings.TrimSpace(kind + " " + resourceName(meta.m))
	c.v1 = version == "v1"
	if !c.v1 && version != "projectcalico.org/v3" && version != "crd.projectcalico.org/v1" {
		c.remark("apiVersion", "left out: %q is not Calico's (projectcalico.org/v3, crd.projectcalico.org/v1 or v1)", version)
		return
	}
	if why, ok := leftOut(kind); ok {
		c.remark("", "left out: %s", why)
		return
	}
	translate := map[string]func(*fields, *fields){
		"ippool": c.pool, "pool": c.pool, "bgpconfiguration": c.bgpConfig, "bgppeer": c.peer, "bgpfilter": c.filter,
		"node": c.node, "ipreservation": c.reservation,
		"globalnetworkpolicy": c.policy, "networkpolicy": c.policy, "policy": c.policy, "tier": c.tier,
		"globalnetworkset": c.networkSet, "networkset": c.networkSet, "profile": c.profile, "hostendpoint": c.hostEndpoint,
	}[strings.ToLower(kind)]
	if translate == nil {
		c.remark("kind", "left out: nothing in netctl is a %q", kind)
		return
	}
	f.bookkeeping()
	before := len(c.objects)
	translate(meta, f.sub("spec"))
	if len(c.objects) == before {
		return // and it was said why
	}
	for _, r := range f.rest() {
		c.remark(r.Field, "left out: %s", r.Text)
	}
}

// resourceName is what people call a resource of any version.
func resourceName(meta map[string]any) string {
	for _, key := range []string{"name", "cidr", "peerIP", "hostname"} {
		if name := fmt.Sprint(meta[key]); meta[key] != nil {
			if ns, ok := meta["namespace"].(string); ok && ns != "" {
				return ns + "/" + name
			}
			return name
		}
	}
	return ""
}

// leftOut says why resources of a kind have no place in netctl.
func leftOut(kind string) (why string, is bool) {
	switch strings.ToLower(kind) {
	case "workloadendpoint":
		return "an endpoint comes with its container: start that in a network of netctl's, with --ip for the same address", true
	case "felixconfiguration", "config":
		return "settings of Calico's agent; those of netctl's are in /etc/netctl.yaml (netctl config)", true
	case "clusterinformation", "kubecontrollersconfiguration", "ipamconfig", "ipamconfiguration", "ipamblock", "ipamhandle", "blockaffinity",
		"caliconodestatus", "communitylist":
		return "a record of Calico's own", true
	case "stagedglobalnetworkpolicy", "stagednetworkpolicy", "stagedkubernetesnetworkpolicy":
		return "is staged, and so not in force (netctl policy test --manifest tries policies)", true
	}
	return "", false
}

// hint says why a field is left out, and where its like is.
func hint(path string) string {
	switch path[strings.LastIndexByte(path, '.')+1:] {
	case "logSeverityScreen":
		return "log: level in /etc/netctl.yaml"
	case "listenPort":
		return "speaker: port in /etc/netctl.yaml"
	case "nodeMeshPassword":
		return "sessions between nodes have no password; a Peer has one"
	case "nodeMeshMaxRestartTime", "maxRestartTime":
		return "spec.restartTime of the BGPConfig holds for all sessions"
	case "serviceClusterIPs", "serviceExternalIPs", "serviceLoadBalancerIPs":
		return "netctl has no services"
	case "disableBGPExport":
		return "a BGPFilter with 'reject pool CIDR' under export, for the peers that are not to have it"
	case "annotations":
		return "objects of netctl have labels alone"
	case "orchRefs", "ipv4IPIPTunnelAddr", "ipv4VXLANTunnelAddr", "ipv6VXLANTunnelAddr", "vxlanTunnelMACAddr", "vxlanTunnelMACAddrV6", "wireguard", "status", "addresses":
		return "the node's agent finds it out itself"
	}
	return "netctl has nothing that says this"
}

// nameFor is a name of netctl's for one of Calico's.
func (c *conversion) nameFor(name string) string {
	err := datastore.CheckName(name)
	if err == nil {
		return name
	}
	other := datastore.ForeignName(name)
	c.remark("metadata.name", "changed: it is called %s, since %v", other, err)
	return other
}

// dropLosers leaves out objects that netctl would refuse, and those of a name that was
// there before.
func (c *conversion) dropLosers() {
	type key struct {
		kind datastore.Kind
		name string
	}
	seen := map[key]bool{}
	filters := map[string]bool{}
	where := map[string]bool{}
	c.objects = slices.DeleteFunc(c.objects, func(m made) bool {
		c.about(m)
		text, err := datastore.EncodeManifest(m.object)
		if err == nil {
			_, err = datastore.DecodeManifest(text)
		}
		k := key{m.object.Kind(), m.object.Meta().Name}
		switch {
		case err != nil:
			c.remark("", "left out: %s %s would be refused: %v", k.kind, k.name, err)
			return true
		case seen[k]:
			c.remark("", "left out: there is a %s %s already", k.kind, k.name)
			return true
		}
		seen[k] = true
		filters[k.name] = filters[k.name] || k.kind == datastore.KindBGPFilter
		return false
	})
	c.objects = slices.DeleteFunc(c.objects, func(m made) bool {
		p, ok := m.object.(*datastore.Peer)
		if !ok {
			return false
		}
		c.about(m)
		for i, f := range p.Spec.Filters {
			if !filters[f] {
				c.remark(fmt.Sprintf("spec.filters[%d]", i), "left out, the peer with it: the BGPFilter %s is not among these resources", f)
				return true
			}
		}
		place := p.Spec.Address.String() + " " + p.Scope()
		if where[place] {
			c.remark("", "left out: there is a peer at %s already", place)
			return true
		}
		where[place] = true
		return false
	})
}
