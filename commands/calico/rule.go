package calico

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"netctl/datastore"
)

// namespaceLabel is the label that stands for a namespace, as in Calico itself.
const namespaceLabel = "projectcalico.org/namespace"

// ruleScope is where rules stand: the object's name with the direction, and the namespace
// whose endpoints their selectors mean, if any.
type ruleScope struct{ name, namespace string }

// actions are Calico's words of both formats.
func actions() map[string]datastore.Action {
	return map[string]datastore.Action{
		"allow": datastore.Allow, "deny": datastore.Deny, "log": datastore.Log, "pass": datastore.Pass, "next-tier": datastore.Pass,
	}
}

// rules translates a list of rules; never nil, since nil would mean netctl's default.
func (c *conversion) rules(list []*fields, scope ruleScope) []datastore.Rule {
	out := []datastore.Rule{}
	for i, f := range list {
		name := fmt.Sprintf("%s-%d", scope.name, i+1)
		if r := c.rule(f, name, scope.namespace); r != nil {
			out = append(out, *r)
		}
	}
	return out
}

// rule translates one; nil if it is left out.
func (c *conversion) rule(f *fields, name, namespace string) *datastore.Rule {
	action, known := actions()[strings.ToLower(fmt.Sprint(f.m["action"]))]
	if known {
		delete(f.m, "action")
	} else {
		action = datastore.Deny
	}
	if meta := f.sub("metadata"); !empty(meta.m["annotations"]) {
		c.remark(meta.path, "left out: rules of netctl have no annotations")
		meta.m = nil
	}
	proto := protocol(f)
	from, fromSet := side(f.sub("source"), name+"-source", namespace)
	to, toSet := side(f.sub("destination"), name+"-destination", namespace)
	from = family(f, proto, from, to)
	unsaid := f.rest()
	text := func(a datastore.Action) string {
		s := string(a) + proto
		if len(from) > 0 {
			s += " from " + strings.Join(from, " and ")
		}
		if len(to) > 0 {
			s += " to " + strings.Join(to, " and ")
		}
		return s
	}
	r, err := datastore.ParseRule(text(action))
	if err != nil {
		unsaid = append(unsaid, Remark{Field: f.path, Text: err.Error()})
	}
	if len(unsaid) > 0 {
		verdict := fmt.Sprintf("left out, the rule with it: it would %s more without", action)
		if action == datastore.Deny || action == datastore.Pass {
			if r, err = datastore.ParseRule(text(datastore.Deny)); err != nil {
				r = datastore.Rule{Action: datastore.Deny}
			}
			verdict = fmt.Sprintf("left out, and closed: the rule is %q", r.String())
		}
		for _, u := range unsaid {
			c.remark(u.Field, "%s: %s", verdict, u.Text)
		}
		if action == datastore.Allow || action == datastore.Log {
			return nil
		}
	}
	for _, set := range []*datastore.NetworkSet{fromSet, toSet} {
		if set != nil && strings.Contains(r.String(), "set "+set.Metadata.Name) {
			c.add(set)
		}
	}
	return &r
}

// protocol is that of a rule, with a blank before it. What it cannot say it leaves in f.
func protocol(f *fields) string {
	key, text := "protocol", " "
	if empty(f.m[key]) {
		if key = "notProtocol"; empty(f.m[key]) {
			return ""
		}
		text = " not "
	}
	word := strings.ToLower(f.word(key))
	if word == "udplite" {
		word = "136"
	}
	text += word
	icmp, ok := f.m["icmp"].(map[string]any)
	if !ok || key != "protocol" || word != "icmp" && word != "icmpv6" {
		return text
	}
	delete(f.m, "icmp")
	of := &fields{c: f.c, path: f.at("icmp"), m: icmp}
	f.subs = append(f.subs, of)
	if t, ok := of.number("type"); ok {
		text += fmt.Sprintf(" type %d", t)
		if code, ok := of.number("code"); ok {
			text += fmt.Sprintf(" code %d", code)
		}
	}
	return text
}

// family says ipVersion by the networks of the source, where nothing else says it yet.
func family(f *fields, proto string, from, to []string) []string {
	version := fmt.Sprint(f.m["ipVersion"])
	all, icmp := "cidr 0.0.0.0/0", " icmp"
	if version == "6" {
		all, icmp = "cidr ::/0", " icmpv6"
	}
	if version != "4" && version != "6" {
		return from
	}
	said := strings.HasPrefix(proto+" ", icmp+" ")
	for _, terms := range [][]string{from, to} {
		for i, term := range terms {
			if list, ok := strings.CutPrefix(term, "cidr "); ok {
				of := slices.DeleteFunc(strings.Split(list, ","), func(c string) bool { return strings.Contains(c, ":") != (version == "6") })
				if len(of) > 0 {
					terms[i], said = "cidr "+strings.Join(of, ","), true
				}
			}
		}
	}
	taken := slices.ContainsFunc(from, func(term string) bool { return strings.Contains(term, "cidr ") })
	if said || !taken {
		delete(f.m, "ipVersion")
	}
	if said || taken {
		return from
	}
	return append([]string{all}, from...)
}

// side is the terms of a source or destination, and the set that one of them names. What
// it cannot say it leaves in f: a side has one term of a kind.
func side(f *fields, name, namespace string) (terms []string, set *datastore.NetworkSet) {
	if tag := f.text("tag"); tag != "" {
		terms = append(terms, "tag "+tag)
	} else if tag := f.text("notTag"); tag != "" {
		terms = append(terms, "not tag "+tag)
	}
	terms = append(terms, selectors(f, namespace)...)
	// The first networks are a term of their own, unless they are many; others are a set.
	hasCIDR := false
	for _, not := range []string{"", "not "} {
		keys := []string{"net", "nets"}
		if not != "" {
			keys = []string{"notNet", "notNets"}
		}
		if set != nil && (hasCIDR || count(f, keys) > maxListed) {
			break
		}
		switch list := f.nets(keys...); {
		case len(list) == 0:
		case len(list) <= maxListed && !hasCIDR:
			terms, hasCIDR = append(terms, not+"cidr "+joined(list)), true
		default:
			set = newSet(name, list)
			terms = append(terms, not+"set "+set.Metadata.Name)
		}
	}
	if ports := f.words("ports"); len(ports) > 0 {
		terms = append(terms, "ports "+strings.Join(ports, ","))
	} else if ports := f.words("notPorts"); len(ports) > 0 {
		terms = append(terms, "not ports "+strings.Join(ports, ","))
	}
	return terms, set
}

// maxListed is how many networks a rule lists itself.
const maxListed = 20

func joined(nets []netip.Prefix) string {
	words := make([]string, len(nets))
	for i, n := range nets {
		words[i] = n.String()
	}
	return strings.Join(words, ",")
}

// count is how many networks the fields name.
func count(f *fields, keys []string) (n int) {
	for _, key := range keys {
		switch v := f.m[key].(type) {
		case string:
			n++
		case []any:
			n += len(v)
		}
	}
	return n
}

func newSet(name string, nets []netip.Prefix) *datastore.NetworkSet {
	if datastore.CheckName(name) != nil {
		name = datastore.ForeignName(name)
	}
	return &datastore.NetworkSet{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NetworkSetSpec{CIDRs: nets}}
}

// selectors is the term of whom a side means by labels. A selector and notSelector at once
// are two questions, about whatever objects an address belongs to, and are left in f.
func selectors(f *fields, namespace string) []string {
	positive, negative := fmt.Sprint(f.m["selector"]), fmt.Sprint(f.m["notSelector"])
	within := ""
	switch text, _ := f.m["namespaceSelector"].(string); {
	case text != "":
		if within = namespaces(text); within == "" {
			return nil
		}
		f.c.remark(f.at("namespaceSelector"), "changed: netctl has no namespaces: it means the label %s of endpoints and network sets", namespaceLabel)
		delete(f.m, "namespaceSelector")
	case namespace != "" && (!empty(f.m["selector"]) || !empty(f.m["notSelector"]) || !empty(f.m["serviceAccounts"])):
		within = fmt.Sprintf("%s == '%s'", namespaceLabel, namespace)
	}
	switch {
	case !empty(f.m["selector"]):
		if _, err := datastore.ParseSelector(positive); err != nil {
			return nil
		}
		delete(f.m, "selector")
		if within != "" {
			positive = "(" + within + ") && (" + positive + ")"
		}
		return []string{quoted("selector ", positive)}
	case within != "":
		return []string{quoted("selector ", within)}
	case !empty(f.m["notSelector"]):
		if _, err := datastore.ParseSelector(negative); err != nil {
			return nil
		}
		delete(f.m, "notSelector")
		return []string{quoted("not selector ", negative)}
	}
	return nil
}

func quoted(word, selector string) string {
	return word + `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(selector) + `"`
}

// namespaces is a namespace selector over the label of endpoints; empty if it asks for more
// than a namespace's name.
func namespaces(selector string) string {
	switch selector = strings.TrimSpace(selector); selector {
	case "all()":
		return "has(" + namespaceLabel + ")"
	case "global()":
		return "!has(" + namespaceLabel + ")"
	}
	name := regexp.MustCompile(`^(?:projectcalico\.org/name|kubernetes\.io/metadata\.name) *== *(?:'([^']*)'|"([^"]*)")$`).FindStringSubmatch(selector)
	if name == nil {
		return ""
	}
	return fmt.Sprintf("%s == '%s'", namespaceLabel, name[1]+name[2])
}
