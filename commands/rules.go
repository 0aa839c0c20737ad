package commands

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// ruled is a noun whose objects have rules of two directions.
type ruled[T datastore.Object] struct {
	noun, sample string // and the name of one, for examples
	sides        [2]string
	actions      []string
	rules        func(T) [2]*[]datastore.Rule
	// added, if set, is told of a side that a rule was added to.
	added func(a *app, o T, side string)
}

// either is both sides as usage has them.
func (r ruled[T]) either() string { return "(" + r.sides[0] + "|" + r.sides[1] + ")" }

func (r ruled[T]) check(side string) error {
	if !slices.Contains(r.sides[:], side) {
		return usage("%q: must be %s or %s", side, r.sides[0], r.sides[1])
	}
	return nil
}

// of are the rules of one side.
func (r ruled[T]) of(o T, side string) *[]datastore.Rule {
	return r.rules(o)[slices.Index(r.sides[:], side)]
}

// change changes the object that the command line names.
func (r ruled[T]) change(cmd *cobra.Command, a *app, change func(T) error) error {
	var zero T
	name := nameOf(cmd)
	if err := checkNames(zero.Kind(), name); err != nil {
		return err
	}
	return modifyRules(cmd.Context(), a, name, change)
}

// modifyRules changes an object with rules, to nothing that an older netctl of a node would
// pass over.
func modifyRules[T datastore.Object](ctx context.Context, a *app, name string, change func(T) error) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	return modify(ctx, a, name, func(o T) error {
		needed := o.Meta().Needs
		if err := change(o); err != nil {
			return err
		}
		if o.SetDefaults(); o.Meta().Needs > needed {
			return a.checkPut(ctx, s, o)
		}
		return nil
	})
}

func newRuleShowCommand[T datastore.Object](a *app, r ruled[T]) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the rules of the " + r.noun + ", numbered from 1",
		Example: fmt.Sprintf("  netctl %[1]s %[2]s rule show\n  netctl %[1]s %[2]s rule show -o yaml", r.noun, r.sample),
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var zero T
		if err := checkNames(zero.Kind(), nameOf(cmd)); err != nil {
			return err
		}
		o, err := read[T](cmd.Context(), a, nameOf(cmd))
		if err != nil {
			return err
		}
		return a.show(*f, []datastore.Object{o}, func() string { return r.text(o) })
	}
	return cmd
}

// text is the rules of both sides.
func (r ruled[T]) text(o T) string {
	var b strings.Builder
	for _, side := range r.sides {
		fmt.Fprintf(&b, "%s%s rules:\n", strings.ToUpper(side[:1]), side[1:])
		for i, rule := range *r.of(o, side) {
			fmt.Fprintf(&b, "%4d %s\n", i+1, rule)
		}
	}
	return b.String()
}

func newRuleAddCommand[T datastore.Object](a *app, r ruled[T]) *cobra.Command {
	var at int
	cmd := &cobra.Command{
		Use:   "add " + r.either() + " RULE",
		Short: "Add a rule to the " + r.noun + ", at the end or at a position",
		Long: "Add a rule to the " + r.noun + ". --at is the position the new rule gets; --at=1 puts it first, without --at it is the last.\n\n" +
			ruleGrammar,
		Example: fmt.Sprintf("  netctl %[1]s %[2]s rule add %[3]s --at=1 allow from tag app-A\n"+
			"  netctl %[1]s %[2]s rule add %[3]s allow tcp from selector \"role == 'web'\" to ports 5432", r.noun, r.sample, r.sides[0]),
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeRule(r.sides, r.actions),
	}
	cmd.Flags().IntVar(&at, "at", 0, "`position` of the new rule, from 1")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := r.check(args[0]); err != nil {
			return err
		}
		rule, err := ruleArguments(args[1:])
		if err != nil {
			return err
		}
		return r.change(cmd, a, func(o T) error {
			rules := r.of(o, args[0])
			i := len(*rules)
			if cmd.Flags().Changed("at") {
				if at < 1 || at > i+1 {
					return usage("--at=%d: %s %s has %d %s rules, a new one can be at 1 to %d", at, r.noun, o.Meta().Name, i, args[0], i+1)
				}
				i = at - 1
			}
			*rules = slices.Insert(*rules, i, rule)
			if r.added != nil {
				r.added(a, o, args[0])
			}
			return argument(o.Validate())
		})
	}
	return cmd
}

func newRuleRemoveCommand[T datastore.Object](a *app, r ruled[T]) *cobra.Command {
	var at int
	cmd := &cobra.Command{
		Use:   "remove " + r.either() + " (--at=POSITION | RULE)",
		Short: "Remove a rule from the " + r.noun + ", by its position or its text",
		Example: fmt.Sprintf("  netctl %[1]s %[2]s rule remove %[3]s --at=1\n"+
			"  netctl %[1]s %[2]s rule remove %[3]s allow from tag app-A", r.noun, r.sample, r.sides[0]),
		Args:                  cobra.MinimumNArgs(1),
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     a.completeRule(r.sides, r.actions),
	}
	cmd.Flags().IntVar(&at, "at", 0, "`position` of the rule, from 1")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		byPosition := cmd.Flags().Changed("at")
		if byPosition == (len(args) > 1) {
			return usage("rule remove wants either --at=POSITION or a rule")
		}
		if err := r.check(args[0]); err != nil {
			return err
		}
		var rule datastore.Rule
		if !byPosition {
			var err error
			if rule, err = ruleArguments(args[1:]); err != nil {
				return err
			}
		}
		return r.change(cmd, a, func(o T) error {
			rules := r.of(o, args[0])
			i := at - 1
			if !byPosition {
				i = slices.IndexFunc(*rules, func(own datastore.Rule) bool { return own.String() == rule.String() })
			}
			if i < 0 || i >= len(*rules) {
				if byPosition {
					return datastore.As(datastore.ErrNotFound, "%s %s has no %s rule %d, it has %d", r.noun, o.Meta().Name, args[0], at, len(*rules))
				}
				return datastore.As(datastore.ErrNotFound, "%s %s has no %s rule %q", r.noun, o.Meta().Name, args[0], rule)
			}
			*rules = slices.Delete(*rules, i, i+1)
			return nil
		})
	}
	return cmd
}

// ruleArguments parses a rule's words. The shell took the quotes
// of a selector away: they are put back.
func ruleArguments(args []string) (datastore.Rule, error) {
	words := slices.Clone(args)
	for i := 1; i < len(words); i++ {
		if words[i-1] == "selector" && !strings.HasPrefix(words[i], `"`) {
			words[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(words[i]) + `"`
		}
	}
	rule, err := datastore.ParseRule(strings.Join(words, " "))
	return rule, argument(err)
}

// completeRule completes the words of a rule, with live tags.
func (a *app) completeRule(sides [2]string, actions []string) completer {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		return a.completeWord(cmd, sides[:], actions, args, word)
	}
}

func (a *app) completeWord(cmd *cobra.Command, sides, actions, args []string, word string) ([]string, cobra.ShellCompDirective) {
	last := ""
	if len(args) > 0 {
		last = args[len(args)-1]
	}
	words := []string{"from", "to", "and", "ports"}
	switch {
	case len(args) == 0:
		words = sides
	case len(args) == 1:
		words = actions
	case len(args) == 2:
		words = []string{"tcp", "udp", "sctp", "icmp", "icmpv6", "not", "from", "to"}
	case last == "tag":
		return a.complete(datastore.KindProfile, tagNames)(cmd, nil, word)
	case last == "from" || last == "to" || last == "and" || last == "not":
		words = []string{"tag", "cidr", "selector", "set", "ports", "not"}
	case last == "set":
		return a.complete(datastore.KindNetworkSet, networkSetNames)(cmd, nil, word)
	}
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return !strings.HasPrefix(w, word) })
	return words, cobra.ShellCompDirectiveNoFileComp
}

const ruleGrammar = `RULE  = (allow|deny|reject|log|pass) [PROTO] [from SIDE] [to SIDE]; pass in policies only
PROTO = tcp | udp | sctp | icmp [type T [code C]] | icmpv6 [type T [code C]] | NUMBER, each after an optional not; T = NUMBER | NAME
SIDE  = [not] TERM {[and] [not] TERM}, each kind of term at most once
TERM  = tag TAG | [cidr] CIDR{,CIDR} | selector "EXPR" | set NAME | ports PORT{,PORT}; PORT = N | N:M | NAME (a named port of the endpoint)`
