package calico

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"netctl/datastore"
)

// ordered is a place for an order: netctl's are whole numbers, Calico's need not be.
type ordered struct {
	at    made
	to    **int
	value float64
}

// order takes spec.order, to be set when all are known.
func (c *conversion) order(spec *fields, o datastore.Object, to **int) {
	n, ok := spec.m["order"].(json.Number)
	v, err := n.Float64()
	if !ok || err != nil || math.IsInf(v, 0) || math.Abs(v) > 1e9 {
		return
	}
	delete(spec.m, "order")
	c.orders = append(c.orders, ordered{made{o, c.document, c.resource}, to, v})
}

// setOrders writes the orders; if one is not whole all are multiplied, so that they keep
// their places.
func (c *conversion) setOrders() {
	factor := 1.0
	whole := func(o ordered) bool { return o.value*factor == math.Trunc(o.value*factor) }
	for factor < 1e6 && slices.ContainsFunc(c.orders, func(o ordered) bool { return !whole(o) }) {
		factor *= 10
	}
	for _, o := range c.orders {
		*o.to = new(int(math.Round(o.value * factor)))
		if factor > 1 {
			c.about(o.at)
			c.remark("spec.order", "changed: %v is %d, since netctl's orders are whole: all of these resources are multiplied by %v", o.value, **o.to, factor)
		}
	}
}

// meta is the metadata of an object; name is how netctl calls it.
func (c *conversion) meta(f *fields, name string) datastore.Metadata {
	delete(f.m, "name")
	return datastore.Metadata{Name: c.nameFor(name), Labels: f.labels("labels")}
}

// inNamespace is a name, and the namespace if the resource is in one.
func inNamespace(meta *fields) (name, namespace string) {
	name, namespace = fmt.Sprint(meta.m["name"]), meta.text("namespace")
	if namespace != "" {
		name = namespace + "." + name
	}
	return name, namespace
}

func (c *conversion) tier(meta, spec *fields) {
	t := &datastore.Tier{Metadata: c.meta(meta, fmt.Sprint(meta.m["name"]))}
	t.Spec.DefaultAction = datastore.Action(strings.ToLower(spec.text("defaultAction")))
	c.order(spec, t, &t.Spec.Order)
	t.SetDefaults()
	c.add(t)
}

func (c *conversion) networkSet(meta, spec *fields) {
	name, namespace := inNamespace(meta)
	n := &datastore.NetworkSet{Metadata: c.meta(meta, name)}
	if namespace != "" {
		n.Metadata.Labels[namespaceLabel] = namespace
	}
	n.Spec.CIDRs = spec.nets("nets")
	n.SetDefaults()
	c.add(n)
}

// hostEndpoint is one of a node; before Calico 3 its name is one of its node's alone.
func (c *conversion) hostEndpoint(meta, spec *fields) {
	name, node := fmt.Sprint(meta.m["name"]), spec.text("node")
	if c.v1 {
		node = meta.text("node")
		name = node + "." + name
	}
	h := &datastore.HostEndpoint{Metadata: c.meta(meta, name)}
	h.Spec = datastore.HostEndpointSpec{Node: node, InterfaceName: spec.text("interfaceName"), Profiles: spec.words("profiles")}
	for _, n := range spec.nets("expectedIPs") {
		h.Spec.ExpectedIPs = append(h.Spec.ExpectedIPs, n.Addr())
	}
	for _, f := range spec.items("ports") {
		port, _ := f.number("port")
		h.Spec.Ports = append(h.Spec.Ports, datastore.Port{Name: f.text("name"), Protocol: strings.ToLower(f.text("protocol")), Port: uint16(port)})
	}
	c.add(h)
}

func (c *conversion) profile(meta, spec *fields) {
	name := fmt.Sprint(meta.m["name"])
	p := &datastore.Profile{}
	p.Spec.Tags = append([]string{}, meta.words("tags")...)
	if p.Spec.Labels = spec.labels("labelsToApply"); c.v1 {
		p.Spec.Labels = meta.labels("labels")
	}
	p.Metadata = c.meta(meta, name)
	p.Spec.Inbound = c.rules(spec.items("ingress"), ruleScope{p.Metadata.Name + "-inbound", ""})
	p.Spec.Outbound = c.rules(spec.items("egress"), ruleScope{p.Metadata.Name + "-outbound", ""})
	p.SetDefaults()
	c.add(p)
}

func (c *conversion) policy(meta, spec *fields) {
	name, namespace := inNamespace(meta)
	selector, ok := c.policySelector(spec, namespace)
	if !ok {
		return
	}
	p := &datastore.Policy{Metadata: c.meta(meta, name)}
	p.Spec = datastore.PolicySpec{Tier: spec.text("tier"), Selector: selector, Types: []datastore.PolicyType{},
		ApplyOnForward: spec.flag("applyOnForward"), PreDNAT: spec.flag("preDNAT"), DoNotTrack: spec.flag("doNotTrack")}
	c.order(spec, p, &p.Spec.Order)
	in, out := spec.items("ingress"), spec.items("egress")
	for _, t := range spec.words("types") {
		p.Spec.Types = append(p.Spec.Types, datastore.PolicyType(strings.ToLower(t)))
	}
	if len(p.Spec.Types) == 0 {
		p.Spec.Types = defaultTypes(len(in), len(out))
	}
	for _, d := range []struct {
		is    datastore.PolicyType
		list  []*fields
		rules *[]datastore.Rule
	}{{datastore.Ingress, in, &p.Spec.Ingress}, {datastore.Egress, out, &p.Spec.Egress}} {
		if slices.Contains(p.Spec.Types, d.is) {
			*d.rules = c.rules(d.list, ruleScope{p.Metadata.Name + "-" + string(d.is), namespace})
			continue
		}
		for _, f := range d.list {
			f.m = nil
		}
		if len(d.list) > 0 {
			c.remark("spec."+string(d.is), "left out: without the type %s these rules are not in force in Calico either", d.is)
		}
	}
	p.SetDefaults()
	c.add(p)
}

// defaultTypes are those of a policy that says none.
func defaultTypes(in, out int) (types []datastore.PolicyType) {
	if in > 0 || out == 0 {
		types = append(types, datastore.Ingress)
	}
	if out > 0 {
		types = append(types, datastore.Egress)
	}
	return types
}

// policySelector is whom a policy picks; not ok if that cannot be said, and was.
func (c *conversion) policySelector(spec *fields, namespace string) (selector string, ok bool) {
	if !empty(spec.m["serviceAccountSelector"]) {
		c.remark("spec.serviceAccountSelector", "left out, the policy with it: netctl has no service accounts, and without it the policy would be about more endpoints; mind what it denied")
		return "", false
	}
	var parts []string
	if text := spec.text("namespaceSelector"); text != "" {
		within := namespaces(text)
		if within == "" {
			c.remark("spec.namespaceSelector", "left out, the policy with it: netctl has no labels of namespaces, and without it the policy would be about more endpoints; mind what it denied")
			return "", false
		}
		c.remark("spec.namespaceSelector", "changed: netctl has no namespaces: it means the label %s of endpoints", namespaceLabel)
		parts = append(parts, within)
	}
	if namespace != "" {
		c.remark("metadata.namespace", "changed: netctl has no namespaces: it is about endpoints with the label %s=%s, which they must be given", namespaceLabel, namespace)
		parts = append(parts, fmt.Sprintf("%s == '%s'", namespaceLabel, namespace))
	}
	raw, isText := spec.m["selector"].(string)
	if _, err := datastore.ParseSelector(raw); err != nil || !isText && spec.m["selector"] != nil {
		c.remark("spec.selector", "left out, the policy with it; mind what it denied: %v", cause(err))
		return "", false
	}
	delete(spec.m, "selector")
	if raw != "" {
		parts = append(parts, raw)
	}
	for i := range parts {
		if len(parts) > 1 {
			parts[i] = "(" + parts[i] + ")"
		}
	}
	return strings.Join(parts, " && "), true
}

func cause(err error) any {
	if err == nil {
		return "is no text"
	}
	return err
}

// completeTiers adds tiers that policies name and that are not among the resources.
func (c *conversion) completeTiers() {
	have, missing := map[string]bool{datastore.DefaultTier: true}, map[string]made{}
	for _, m := range c.objects {
		if t, ok := m.object.(*datastore.Tier); ok {
			have[t.Metadata.Name] = true
		}
	}
	for _, m := range c.objects {
		if p, ok := m.object.(*datastore.Policy); ok && !have[p.Spec.Tier] {
			missing[p.Spec.Tier] = m
			have[p.Spec.Tier] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		c.about(missing[name])
		c.remark("spec.tier", "changed: the Tier %s is not among these resources, and is made without an order, behind all others", name)
		t := &datastore.Tier{Metadata: datastore.Metadata{Name: name}}
		t.SetDefaults()
		c.add(t)
	}
}
