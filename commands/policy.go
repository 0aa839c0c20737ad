package commands

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newPolicyCommand(a *app) *cobra.Command {
	r := policyRules()
	cmd := group("policy", "Show and change policies: rules for the endpoints that a selector picks",
		"  netctl policy create web --selector \"role == 'web'\" --ingress 'allow tcp to ports 80,443'\n  netctl policy web rule add ingress --at=1 deny from set blocked",
		newPolicyShowCommand(a), newPolicyCreateCommand(a), newPolicyRemoveCommand(a), newPolicyTestCommand(a), newPolicyCountersCommand(a), newPolicyPromoteCommand(a), newPolicyStageCommand(a), newPolicySuggestCommand(a),
		named("NAME", "Show and change the rules of one policy",
			"  netctl policy web rule show\n  netctl policy web rule add ingress allow tcp to ports 80,443",
			group("rule", "Show and change the rules of the policy",
				"  netctl policy web rule show\n  netctl policy web rule add ingress --at=1 deny from set blocked",
				newRuleShowCommand(a, r), newRuleAddCommand(a, r), newRuleRemoveCommand(a, r))))
	cmd.ValidArgsFunction = a.completeFirst(datastore.KindPolicy, policyNames)
	return cmd
}

// policyRules are how the rules of policies are shown and changed.
func policyRules() ruled[*datastore.Policy] {
	return ruled[*datastore.Policy]{
		noun: "policy", sample: "web", sides: [2]string{string(datastore.Ingress), string(datastore.Egress)}, actions: []string{"allow", "deny", "reject", "log", "pass"},
		rules: func(p *datastore.Policy) [2]*[]datastore.Rule {
			return [2]*[]datastore.Rule{&p.Spec.Ingress, &p.Spec.Egress}
		},
		added: func(a *app, p *datastore.Policy, side string) {
			if t := datastore.PolicyType(side); !slices.Contains(p.Spec.Types, t) {
				p.Spec.Types = append(p.Spec.Types, t)
				a.warn("policy %s decides about %s from now on: what its tier does not allow there is denied", p.Metadata.Name, side)
			}
		},
	}
}

func newPolicyShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show [NAME]",
		Short:             "Show the policies in the order in which they are asked, or one with its rules",
		Example:           "  netctl policy show\n  netctl policy show web",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindPolicy, policyNames),
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return a.showKind(cmd.Context(), *f, datastore.KindPolicy, nil, policyLayout(*f), nil)
		}
		if err := checkNames(datastore.KindPolicy, args...); err != nil {
			return err
		}
		p, err := read[*datastore.Policy](cmd.Context(), a, args[0])
		if err != nil {
			return err
		}
		return a.show(*f, []datastore.Object{p}, func() string {
			head := fmt.Sprintf("Tier %s, order %s, endpoints %s, types %s%s%s\n", p.Spec.Tier, orderText(p.Spec.Order), p.Spec.Selector, typesText(p), hostsText(p), map[bool]string{true: "; staged: decides nothing"}[p.Spec.Staged])
			return head + policyRules().text(p)
		})
	}
	return cmd
}

func newPolicyCreateCommand(a *app) *cobra.Command {
	var tier, selector string
	var order orderFlag
	var types, ingress, egress []string
	var staged, forward, preDNAT, noTrack bool
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a policy for the endpoints that a selector picks",
		Long: "Create a policy. It is asked about the endpoints that its selector picks, by their labels and those of their profiles, before their profiles: policies\n" +
			"of one tier by their order, those without one last, and then by name. What no policy of the tier decides is denied, or goes on if the tier says so.\n\n" +
			ruleGrammar,
		Example: "  netctl policy create web --selector \"role == 'web'\" --ingress 'allow tcp to ports 80,443'\n" +
			"  netctl policy create blocked --tier security --order 10 --ingress 'deny from set blocked' --ingress pass",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&tier, "tier", datastore.DefaultTier, "`name` of the tier that it belongs to")
	order.add(cmd, "within the tier")
	cmd.Flags().BoolVar(&staged, "staged", false, "decide nothing until it is promoted: count and log what it would deny")
	cmd.Flags().StringVar(&selector, "selector", "all()", "`expression` over labels of endpoints")
	cmd.Flags().StringSliceVar(&types, "type", nil, "`ingress` or egress, or both: what it decides about (default: what it has rules for, or ingress)")
	cmd.Flags().StringArrayVar(&ingress, "ingress", nil, "`rule` for what the endpoints get; may be repeated")
	cmd.Flags().StringArrayVar(&egress, "egress", nil, "`rule` for what the endpoints send; may be repeated")
	cmd.Flags().BoolVar(&forward, "apply-on-forward", false, "have host endpoints asked about what their nodes forward, too")
	cmd.Flags().BoolVar(&preDNAT, "pre-dnat", false, "have host endpoints alone asked, before destinations are translated")
	cmd.Flags().BoolVar(&noTrack, "do-not-track", false, "have host endpoints alone asked, about each packet, which is not tracked then")
	_ = cmd.RegisterFlagCompletionFunc("tier", a.complete(datastore.KindTier, tierNames))
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{string(datastore.Ingress), string(datastore.Egress)}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		p := &datastore.Policy{Metadata: datastore.Metadata{Name: args[0]}, Spec: datastore.PolicySpec{Tier: tier, Order: order.value, Selector: selector, Staged: staged, ApplyOnForward: forward, PreDNAT: preDNAT, DoNotTrack: noTrack}}
		for _, t := range types {
			p.Spec.Types = append(p.Spec.Types, datastore.PolicyType(t))
		}
		if p.Spec.Ingress, err = parseRules("--ingress", ingress); err != nil {
			return err
		}
		if p.Spec.Egress, err = parseRules("--egress", egress); err != nil {
			return err
		}
		p.SetDefaults()
		if err := p.Validate(); err != nil {
			return argument(fmt.Errorf("policy %s: %w", args[0], err))
		}
		return a.create(cmd.Context(), p)
	}
	return cmd
}

func newPolicyRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "remove NAME…",
		Short:             "Remove policies",
		Example:           "  netctl policy remove web\n  netctl policy remove web blocked",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(datastore.KindPolicy, policyNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "as with other nouns; nothing uses a policy")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindPolicy, args...); err != nil {
			return err
		}
		return a.remove(cmd.Context(), datastore.KindPolicy, args, force, nil)
	}
	return cmd
}

func parseRules(flag string, texts []string) (list []datastore.Rule, err error) {
	for _, text := range texts {
		r, err := datastore.ParseRule(text)
		if err != nil {
			return nil, argument(fmt.Errorf("%s: %w", flag, err))
		}
		list = append(list, r)
	}
	return list, nil
}

// orderFlag is --order; without it there is none.
type orderFlag struct{ value *int }

func (o *orderFlag) add(cmd *cobra.Command, where string) {
	cmd.Flags().Var(o, "order", "`number` of its place "+where+", the lowest first (default: behind all that have one)")
}

func (o *orderFlag) String() string {
	if o.value == nil {
		return ""
	}
	return strconv.Itoa(*o.value)
}

func (o *orderFlag) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil {
		return fmt.Errorf("must be a whole number")
	}
	o.value = &n
	return nil
}

func (*orderFlag) Type() string { return "int" }

func orderText(order *int) string {
	if order == nil {
		return "none"
	}
	return strconv.Itoa(*order)
}

func typesText(p *datastore.Policy) string {
	var words []string
	for _, t := range p.Spec.Types {
		words = append(words, string(t))
	}
	return strings.Join(words, ",")
}

// hostsText is what the policy is to host endpoints beside what it is to others.
func hostsText(p *datastore.Policy) string {
	switch {
	case p.Spec.PreDNAT:
		return ", for host endpoints before DNAT"
	case p.Spec.DoNotTrack:
		return ", for host endpoints untracked"
	case p.Spec.ApplyOnForward:
		return ", on forward"
	}
	return ""
}

func policyNames(v *datastore.View) []string     { return objectNames(v.Policies()) }
func tierNames(v *datastore.View) []string       { return objectNames(v.Tiers()) }
func networkSetNames(v *datastore.View) []string { return objectNames(v.NetworkSets()) }

func policyColumns() []column {
	return append([]column{
		col("Name", name[*datastore.Policy]),
		col("Tier", func(p *datastore.Policy) string { return p.Spec.Tier }),
		col("Order", func(p *datastore.Policy) string { return orderText(p.Spec.Order) }),
		col("Selector", func(p *datastore.Policy) string { return p.Spec.Selector }),
		col("Types", typesText),
		col("Staged", func(p *datastore.Policy) string { return map[bool]string{true: "yes", false: "no"}[p.Spec.Staged] }),
	}, wide(
		col("Ingress rules", func(p *datastore.Policy) string { return strconv.Itoa(len(p.Spec.Ingress)) }),
		col("Egress rules", func(p *datastore.Policy) string { return strconv.Itoa(len(p.Spec.Egress)) }))...)
}

// policyLayout is the usual one, in the order in which policies are asked.
func policyLayout(f format) layout {
	l := tableLayout(policyColumns(), f)
	l.reads = append(l.reads, datastore.KindTier)
	text := l.text
	l.text = func(view *datastore.View, objects []datastore.Object) string {
		order := func(tier string) *int {
			if t := view.Tier(tier); t != nil {
				return t.Spec.Order
			}
			return nil
		}
		slices.SortStableFunc(objects, func(x, y datastore.Object) int {
			a, b := x.(*datastore.Policy), y.(*datastore.Policy)
			if a.Spec.Tier != b.Spec.Tier {
				return datastore.CompareOrder(order(a.Spec.Tier), a.Spec.Tier, order(b.Spec.Tier), b.Spec.Tier)
			}
			return datastore.CompareOrder(a.Spec.Order, a.Metadata.Name, b.Spec.Order, b.Metadata.Name)
		})
		return text(view, objects)
	}
	return l
}
