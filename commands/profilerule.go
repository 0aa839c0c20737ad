package commands

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

const (
	inbound  = "inbound"
	outbound = "outbound"
)

// profileRules are how the rules of profiles are shown and changed.
func profileRules() ruled[*datastore.Profile] {
	return ruled[*datastore.Profile]{
		noun: "profile", sample: "web", sides: [2]string{inbound, outbound}, actions: []string{"allow", "deny", "reject", "log"},
		rules: func(p *datastore.Profile) [2]*[]datastore.Rule {
			return [2]*[]datastore.Rule{&p.Spec.Inbound, &p.Spec.Outbound}
		},
	}
}

func newProfileRuleCommand(a *app) *cobra.Command {
	r := profileRules()
	return group("rule", "Show and change the rules of the profile",
		"  netctl profile web rule show\n  netctl profile web rule add inbound --at=1 allow tcp to ports 80,443",
		newRuleShowCommand(a, r), newRuleJSONCommand(a), newRuleUpdateCommand(a), newRuleAddCommand(a, r), newRuleRemoveCommand(a, r))
}

// ruleSet is what `rule json` prints and `rule update` reads.
type ruleSet struct {
	Metadata ruleSource       `json:"metadata,omitzero"`
	Inbound  []datastore.Rule `json:"inbound"`
	Outbound []datastore.Rule `json:"outbound"`
}

// ruleSource says which profile the rules are of, and in which revision of it they
// were read.
type ruleSource struct {
	Name     string `json:"name"`
	Revision int64  `json:"revision"`
}

func newRuleJSONCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "json",
		Short:   "Print the rules of the profile as rule update reads them",
		Example: "  netctl profile web rule json\n  netctl profile web rule json > rules.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := readProfile(cmd, a)
			if err != nil {
				return err
			}
			var b strings.Builder
			enc := json.NewEncoder(&b)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			if err := enc.Encode(ruleSet{ruleSource{p.Metadata.Name, p.Metadata.Revision}, p.Spec.Inbound, p.Spec.Outbound}); err != nil {
				return err
			}
			return a.print(b.String())
		},
	}
}

func newRuleUpdateCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "update",
		Short: "Replace all rules of the profile by JSON from stdin",
		Long: "Replace all rules of the profile by JSON from stdin, as rule json prints it. If it has metadata of the same profile,\n" +
			"nothing is written when somebody changed the profile since that revision.",
		Example: "  netctl profile web rule update < rules.json\n  netctl profile web rule json | netctl profile db rule update",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			raw, err := a.readInput(cmd.Context(), "-", datastore.MaxSize)
			if err != nil {
				return err
			}
			rules, err := parseRuleSet(raw)
			if err != nil {
				return fmt.Errorf("stdin: %w", err)
			}
			return changeProfile(cmd, a, func(p *datastore.Profile) error {
				same := func(x, y []datastore.Rule) bool {
					return slices.EqualFunc(x, y, func(r, s datastore.Rule) bool { return r.String() == s.String() })
				}
				switch {
				case same(rules.Inbound, p.Spec.Inbound) && same(rules.Outbound, p.Spec.Outbound):
				case rules.Metadata.Name == p.Metadata.Name:
					if err := stale(rules.Metadata.Revision, p); err != nil {
						return fmt.Errorf("%s: %w", label(p), err)
					}
				}
				p.Spec.Inbound, p.Spec.Outbound = rules.Inbound, rules.Outbound
				return nil
			})
		},
	}
}

// parseRuleSet reads {"metadata": …, "inbound": […], "outbound": […]} as strictly as a
// manifest; the metadata may be left out.
func parseRuleSet(raw []byte) (ruleSet, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return ruleSet{}, fmt.Errorf("not the JSON that rule json prints: %w: %w", err, datastore.ErrInvalid)
	}
	for _, side := range []string{inbound, outbound} {
		if len(keys[side]) == 0 || string(keys[side]) == "null" {
			return ruleSet{}, &datastore.FieldError{Field: side, Reason: "is missing; an empty list has no rule"}
		}
	}
	for key := range keys {
		if key != inbound && key != outbound && key != "metadata" {
			return ruleSet{}, &datastore.FieldError{Field: key, Reason: "unknown key: there are only metadata, inbound and outbound"}
		}
	}
	meta := keys["metadata"]
	if len(meta) == 0 || string(meta) == "null" {
		meta = json.RawMessage(`{"name":"x"}`) // no name of a profile needs to be known to read rules
	}
	o, err := datastore.DecodeManifest(fmt.Appendf(nil, `{"apiVersion":%q,"kind":"Profile","metadata":%s,"spec":{"inbound":%s,"outbound":%s}}`,
		datastore.APIVersion, meta, keys[inbound], keys[outbound]))
	if err != nil {
		return ruleSet{}, err
	}
	p := o.(*datastore.Profile)
	return ruleSet{ruleSource{p.Metadata.Name, p.Metadata.Revision}, p.Spec.Inbound, p.Spec.Outbound}, nil
}
