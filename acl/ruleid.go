package acl

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"

	"netctl/datastore"
)

// ruleIDs are the IDs of a list of rules, in their order. An ID is 12 hex digits that
// derive from what the rule is of (of a policy its tier, too), its direction and what it
// says, so that it stays the same wherever in the list the rule is; of several that say the same each has its own.
func ruleIDs(o owner, d direction, rules []datastore.Rule) []string {
	out, seen := make([]string, len(rules)), map[string]int{}
	for i, r := range rules {
		text := r.String()
		out[i] = ruleID(o, d, text, seen[text])
		seen[text]++
	}
	return out
}

func ruleID(o owner, d direction, text string, nth int) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{string(o.kind), o.tier, o.name, d.String(), text, strconv.Itoa(nth), ""}, "\x00")))
	return hex.EncodeToString(sum[:6])
}

// Places are the rules of a profile or policy in their order, inbound ones first, each
// with its ID; of other objects there are none.
func Places(object datastore.Object) (list []datastore.RulePlace) {
	o := owner{kind: object.Kind(), name: object.Meta().Name}
	for _, d := range []direction{inbound, outbound} {
		var rules []datastore.Rule
		switch object := object.(type) {
		case *datastore.Profile:
			rules = rulesOf(object, d)
		case *datastore.Policy:
			o.tier, o.staged = object.Spec.Tier, object.Spec.Staged
			rules = (&policy{Policy: object}).rules(d)
		}
		ids := ruleIDs(o, d, rules)
		for i := range rules {
			list = append(list, origin{o, i, &rules[i], ids[i]}.place(d))
		}
	}
	return list
}
