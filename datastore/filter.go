package datastore

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// BGPFilter decides which routes are taken from the peers that have it and which they are
// told, and changes them on the way. The rules of a direction are gone through in order,
// and the first that matches decides.
type BGPFilter struct {
	Metadata Metadata      `json:"metadata"`
	Spec     BGPFilterSpec `json:"spec"`
}

// BGPFilterSpec is a filter's content. A direction without rules and without a default
// says nothing: the next filter of the peer decides, and after the last one all is
// accepted.
type BGPFilterSpec struct {
	Import []FilterRule `json:"import,omitempty"`
	// ImportDefault is what becomes of a route that no rule of Import matches: FilterReject
	// (default where there are rules), FilterAccept, or FilterNext.
	ImportDefault FilterAction `json:"importDefault,omitempty"`
	Export        []FilterRule `json:"export,omitempty"`
	ExportDefault FilterAction `json:"exportDefault,omitempty"`
}

// FilterAction is what becomes of a route.
type FilterAction string

// The actions. FilterNext, of defaults only, leaves the route to the peer's next filter.
const (
	FilterAccept FilterAction = "accept"
	FilterReject FilterAction = "reject"
	FilterNext   FilterAction = "next"
)

// FilterRule is one rule of a filter. Its JSON form is its text, e.g.
// "accept prefix 10.0.0.0/8 le 24 then local-pref 200" (docs/model.md has the grammar).
type FilterRule struct {
	Action FilterAction
	// Terms must all hold; none: every route matches.
	Terms []FilterTerm
	// Set changes what is accepted.
	Set FilterSet
}

// TermKind is what a term of a filter rule looks at.
type TermKind string

// The kinds of terms, as they are written.
const (
	TermPrefix    TermKind = "prefix"
	TermPool      TermKind = "pool"
	TermCommunity TermKind = "community"
	TermASPath    TermKind = "as-path"
	TermNextHop   TermKind = "next-hop"
	TermSource    TermKind = "source"
)

// FilterTerm matches a property of a route: one of what it lists.
type FilterTerm struct {
	Not  bool
	Kind TermKind
	// Prefixes are of TermPrefix.
	Prefixes []PrefixRange
	// Nets are pools (none: any pool), or where the next hop lies.
	Nets        []netip.Prefix
	Communities []CommunityPattern
	// ASPath is a regular expression, see CompileASPath.
	ASPath  string
	Sources []FilterSource
}

// PrefixRange is Prefix and what lies in it, as far as the prefix length is from Min to
// Max.
type PrefixRange struct {
	Prefix   netip.Prefix
	Min, Max int
}

// FilterSource is where a route comes from: one of the words, or an address of a peer.
type FilterSource struct {
	Word string
	Peer netip.Addr
}

// The words for sources.
const (
	SourceLocal     = "local"     // this node's own
	SourceNode      = "node"      // learnt from a node
	SourceOutside   = "outside"   // learnt from a Peer that is no node
	SourceInternal  = "internal"  // learnt within the AS
	SourceExternal  = "external"  // learnt from another AS
	SourceReflected = "reflected" // learnt within the AS, by way of a reflector
)

// FilterSources are the words for sources.
func FilterSources() []string {
	return []string{SourceLocal, SourceNode, SourceOutside, SourceInternal, SourceExternal, SourceReflected}
}

// FilterSet is what a rule changes of a route that it accepts.
type FilterSet struct {
	LocalPref, MED       uint32
	HasLocalPref, HasMED bool
	// Replace takes away all communities; Remove those that match one of these.
	Replace bool
	Remove  []CommunityPattern
	// Add are communities that are added, after that.
	Add []Community
	// Prepend lengthens the AS path: on export by the AS number of this side, on import by
	// that of the neighbour.
	Prepend int
}

// CommunityPattern matches communities; a part that is any is not looked at.
type CommunityPattern struct {
	Community
	Any [3]bool
}

// Matches says whether c is one of those meant.
func (p CommunityPattern) Matches(c Community) bool {
	if p.Large != c.Large {
		return false
	}
	for i := range p.parts() {
		if !p.Any[i] && p.Parts[i] != c.Parts[i] {
			return false
		}
	}
	return true
}

// maxPrepend bounds how much longer a rule makes an AS path.
const maxPrepend = 16

// Kind returns KindBGPFilter.
func (*BGPFilter) Kind() Kind { return KindBGPFilter }

// Meta implements Object.
func (f *BGPFilter) Meta() *Metadata { return &f.Metadata }

// SetDefaults implements Object.
func (f *BGPFilter) SetDefaults() {
	s := &f.Spec
	if len(s.Import) > 0 && s.ImportDefault == "" {
		s.ImportDefault = FilterReject
	}
	if len(s.Export) > 0 && s.ExportDefault == "" {
		s.ExportDefault = FilterReject
	}
}

// Validate implements Object.
func (f *BGPFilter) Validate() error {
	check := func(field string, rules []FilterRule, word FilterAction) error {
		if len(rules) > MaxRules {
			return &FieldError{Field: field, Reason: fmt.Sprintf("%d rules are more than %d", len(rules), MaxRules)}
		}
		for i, r := range rules {
			if err := r.Validate(); err != nil {
				return at(indexed(field, i), err)
			}
		}
		return at(field+"Default", oneOf(string(word), "", string(FilterAccept), string(FilterReject), string(FilterNext)))
	}
	return firstError(checkMeta(f), check("spec.import", f.Spec.Import, f.Spec.ImportDefault), check("spec.export", f.Spec.Export, f.Spec.ExportDefault))
}

// Validate checks a rule by its text: what ParseFilterRule reads is valid.
func (r FilterRule) Validate() error {
	_, err := ParseFilterRule(r.String())
	return err
}

// MarshalText is String.
func (r FilterRule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParseFilterRule.
func (r *FilterRule) UnmarshalText(text []byte) (err error) {
	*r, err = ParseFilterRule(string(text))
	return err
}

// String is the canonical text of the rule, which parses back to it.
func (r FilterRule) String() string {
	text := string(r.Action)
	for i, t := range r.Terms {
		if i > 0 {
			text += " and"
		}
		text += " " + t.String()
	}
	if set := r.Set.String(); set != "" {
		text += " then " + set
	}
	return text
}

// String is the canonical text of the term.
func (t FilterTerm) String() string {
	text := string(t.Kind) + " "
	if t.Not {
		text = "not " + text
	}
	switch t.Kind {
	case TermPrefix:
		return text + listed(t.Prefixes)
	case TermCommunity:
		return text + listed(t.Communities)
	case TermASPath:
		return text + `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(t.ASPath) + `"`
	case TermSource:
		return text + listed(t.Sources)
	}
	if len(t.Nets) == 0 {
		return text + "any"
	}
	return text + listed(t.Nets)
}

func listed[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, x := range list {
		words[i] = x.String()
	}
	return strings.Join(words, ", ")
}

// String is the range as it is written: "10.0.0.0/8 ge 16 le 24".
func (p PrefixRange) String() string {
	text, bits, most := p.Prefix.String(), p.Prefix.Bits(), p.Prefix.Addr().BitLen()
	switch {
	case p.Min == bits && p.Max == bits:
	case p.Min == bits:
		text += " le " + strconv.Itoa(p.Max)
	case p.Max == most:
		text += " ge " + strconv.Itoa(p.Min)
	default:
		text += fmt.Sprintf(" ge %d le %d", p.Min, p.Max)
	}
	return text
}

// Contains says whether a prefix is one of those meant.
func (p PrefixRange) Contains(q netip.Prefix) bool {
	return q.Bits() >= p.Min && q.Bits() <= p.Max && q.Bits() >= p.Prefix.Bits() && p.Prefix.Contains(q.Addr())
}

// String is the word, or the address.
func (s FilterSource) String() string {
	if s.Peer.IsValid() {
		return s.Peer.String()
	}
	return s.Word
}

// String is what is changed, as it is written; "" for nothing.
func (s FilterSet) String() string {
	var words []string
	add := func(is bool, text string) {
		if is {
			words = append(words, text)
		}
	}
	add(s.HasLocalPref, "local-pref "+decimal(s.LocalPref))
	add(s.HasMED, "med "+decimal(s.MED))
	add(s.Replace, "community "+listed(s.Add))
	add(len(s.Remove) > 0, "remove community "+listed(s.Remove))
	add(len(s.Add) > 0 && !s.Replace, "add community "+listed(s.Add))
	add(s.Prepend > 0, "prepend "+strconv.Itoa(s.Prepend))
	return strings.Join(words, " and ")
}

// IsZero says whether nothing is changed.
func (s FilterSet) IsZero() bool {
	return !s.HasLocalPref && !s.HasMED && !s.Replace && len(s.Remove)+len(s.Add)+s.Prepend == 0
}

// Apply returns the communities of a route after the change.
func (s FilterSet) Apply(list []Community) []Community {
	var out []Community
	if !s.Replace {
		out = slices.DeleteFunc(slices.Clone(list), func(c Community) bool {
			return slices.ContainsFunc(s.Remove, func(p CommunityPattern) bool { return p.Matches(c) })
		})
	}
	for _, c := range s.Add {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}
