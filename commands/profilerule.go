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

func newProfileRuleCommand(a *app) *cobra.Command {
	return group("rule", "Show and change the rules of the profile",
		"  netctl profile web rule show\n  netctl profile web rule add inbound --at=1 allow tcp to ports 80,443",
		newRuleShowCommand(a), newRuleJSONCommand(a), newRuleUpdateCommand(a), newRuleAddCommand(a), newRuleRemoveCommand(a))
}

func newRuleShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the rules of the profile, numbered from 1",
		Example: "  netctl profile web rule show\n  netctl profile web rule show -o yaml",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		p, err := readProfile(cmd, a)
		if err != nil {
			return err
		}
		return a.show(*f, []datastore.Object{p}, func() string { return ruleText(p) })
	}
	return cmd
}

func ruleText(p *datastore.Profile) string {
	var b strings.Builder
	for _, side := range []struct {
		title string
		rules []datastore.Rule
	}{{"Inbound rules:", p.Spec.Inbound}, {"Outbound rules:", p.Spec.Outbound}} {
		fmt.Fprintln(&b, side.title)
		for i, r := range side.rules {
			fmt.Fprintf(&b, "%4d %s\n", i+1, r)
		}
	}
	return b.String()
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

func newRuleAddCommand(a *app) *cobra.Command {
	var at int
	cmd := &cobra.Command{
		Use:   "add (inbound|outbound) RULE",
		Short: "Add a rule to the profile, at the end or at a position",
		Long: "Add a rule to the profile. --at is the position the new rule gets; --at=1 puts it first, without --at it is the last.\n\n" +
			ruleGrammar,
		Example: "  netctl profile dataman rule add inbound --at=1 allow from tag app-A\n" +
			"  netctl profile db rule add inbound allow tcp from selector \"role == 'web'\" to ports 5432",
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeRule,
	}
	cmd.Flags().IntVar(&at, "at", 0, "`position` of the new rule, from 1")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		rule, err := ruleArguments(args)
		if err != nil {
			return err
		}
		return changeProfile(cmd, a, func(p *datastore.Profile) error {
			rules := rulesOf(p, args[0])
			i := len(*rules)
			if cmd.Flags().Changed("at") {
				if at < 1 || at > i+1 {
					return usage("--at=%d: profile %s has %d %s rules, a new one can be at 1 to %d", at, p.Metadata.Name, i, args[0], i+1)
				}
				i = at - 1
			}
			*rules = slices.Insert(*rules, i, rule)
			return argument(p.Validate())
		})
	}
	return cmd
}

func newRuleRemoveCommand(a *app) *cobra.Command {
	var at int
	cmd := &cobra.Command{
		Use:   "remove (inbound|outbound) (--at=POSITION | RULE)",
		Short: "Remove a rule from the profile, by its position or its text",
		Example: "  netctl profile dataman rule remove inbound --at=1\n" +
			"  netctl profile dataman rule remove inbound allow from tag app-A",
		Args:                  cobra.MinimumNArgs(1),
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     a.completeRule,
	}
	cmd.Flags().IntVar(&at, "at", 0, "`position` of the rule, from 1")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		byPosition := cmd.Flags().Changed("at")
		if byPosition == (len(args) > 1) {
			return usage("rule remove wants either --at=POSITION or a rule")
		}
		if err := checkDirection(args[0]); err != nil {
			return err
		}
		var rule datastore.Rule
		if !byPosition {
			var err error
			if rule, err = ruleArguments(args); err != nil {
				return err
			}
		}
		return changeProfile(cmd, a, func(p *datastore.Profile) error {
			rules := rulesOf(p, args[0])
			i := at - 1
			if !byPosition {
				i = slices.IndexFunc(*rules, func(r datastore.Rule) bool { return r.String() == rule.String() })
			}
			if i < 0 || i >= len(*rules) {
				if byPosition {
					return notThere("profile %s has no %s rule %d, it has %d", p.Metadata.Name, args[0], at, len(*rules))
				}
				return notThere("profile %s has no %s rule %q", p.Metadata.Name, args[0], rule)
			}
			*rules = slices.Delete(*rules, i, i+1)
			return nil
		})
	}
	return cmd
}

func rulesOf(p *datastore.Profile, direction string) *[]datastore.Rule {
	if direction == inbound {
		return &p.Spec.Inbound
	}
	return &p.Spec.Outbound
}

func checkDirection(s string) error {
	if s != inbound && s != outbound {
		return usage("%q: must be inbound or outbound", s)
	}
	return nil
}

// ruleArguments parses the rule behind the direction. The shell took the quotes
// of a selector away: they are put back.
func ruleArguments(args []string) (datastore.Rule, error) {
	if err := checkDirection(args[0]); err != nil {
		return datastore.Rule{}, err
	}
	words := slices.Clone(args[1:])
	for i := 1; i < len(words); i++ {
		if words[i-1] == "selector" && !strings.HasPrefix(words[i], `"`) {
			words[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(words[i]) + `"`
		}
	}
	rule, err := datastore.ParseRule(strings.Join(words, " "))
	return rule, argument(err)
}

// notThere is an error that wraps ErrNotFound without saying it once more.
func notThere(format string, args ...any) error {
	return missing{fmt.Sprintf(format, args...)}
}

type missing struct{ text string }

func (m missing) Error() string { return m.text }
func (missing) Unwrap() error   { return datastore.ErrNotFound }

// completeRule completes the words of a rule, with live tags.
func (a *app) completeRule(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	last := ""
	if len(args) > 0 {
		last = args[len(args)-1]
	}
	words := []string{"from", "to", "and", "ports"}
	switch {
	case len(args) == 0:
		words = []string{inbound, outbound}
	case len(args) == 1:
		words = []string{"allow", "deny", "log"}
	case len(args) == 2:
		words = []string{"tcp", "udp", "sctp", "icmp", "icmpv6", "not", "from", "to"}
	case last == "tag":
		return a.complete(datastore.KindProfile, tagNames)(cmd, nil, word)
	case last == "from" || last == "to" || last == "and" || last == "not":
		words = []string{"tag", "cidr", "selector", "ports", "not"}
	}
	words = slices.DeleteFunc(words, func(w string) bool { return !strings.HasPrefix(w, word) })
	return words, cobra.ShellCompDirectiveNoFileComp
}

const ruleGrammar = `RULE  = (allow|deny|log) [PROTO] [from SIDE] [to SIDE]
PROTO = tcp | udp | sctp | icmp [type T [code C]] | icmpv6 [type T [code C]] | NUMBER, each after an optional not
SIDE  = MATCH [PORTS] | PORTS
MATCH = [not] TERM {and [not] TERM}; TERM = tag TAG | cidr CIDR | selector "EXPR"
PORTS = [not] ports PORT{,PORT}, only with tcp, udp or sctp; PORT = N | N:M | NAME (a named port of the endpoint)`
