package commands

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"netctl/datastore"
)

// nameHolder marks the subcommand that stands for a name: the grammar has
// `profile NAME rule add`, and cobra knows only fixed words.
const nameHolder = "netctl/name"

// named makes the subcommand that stands for a name; placeholder is what help
// and documents call it.
func named(placeholder, short, example string, subs ...*cobra.Command) *cobra.Command {
	c := group(placeholder, short, example, subs...)
	c.Annotations = map[string]string{nameHolder: "true"}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Name() == "list" { // as of tokens and members
			return usage("%s: `%s show` lists them", cmd.CommandPath(), cmd.Parent().CommandPath())
		}
		return cmd.Help()
	}
	return c
}

// group is a command that only holds others and prints its help.
func group(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:     use,
		Short:   short,
		Example: example,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(subs...)
	return c
}

// nameOf is the name that the command line has in front of the verb.
func nameOf(cmd *cobra.Command) string {
	for c := cmd; c != nil; c = c.Parent() {
		if c.Annotations[nameHolder] != "" {
			return c.Name()
		}
	}
	return ""
}

// bindName gives the command that stands for a name the name that the arguments
// have in its place, before cobra looks the command up.
func bindName(root *cobra.Command, args []string) {
	completing := false
	if len(args) > 0 {
		switch args[0] {
		case cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
			completing = true
			args = args[1:max(1, len(args)-1)]
		case "help":
			args = args[1:]
		}
	}
	cmd, rest, err := root.Find(args)
	if err != nil {
		return
	}
	i := slices.IndexFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Annotations[nameHolder] != "" })
	if i < 0 {
		return
	}
	holder := cmd.Commands()[i]
	holder.Hidden = completing // the names themselves are offered
	name := firstArgument(cmd, rest)
	if name != "" && (datastore.CheckName(name) == nil || strings.Contains(name, "/")) {
		holder.Use = name
	}
}

// firstArgument skips flags and their values.
func firstArgument(cmd *cobra.Command, args []string) string {
	for i := 0; i < len(args); i++ {
		a := args[i]
		if !strings.HasPrefix(a, "-") {
			return a
		}
		flag, _, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		f := cmd.Flag(flag)
		if len(flag) == 1 {
			f = cmd.Flags().ShorthandLookup(flag)
		}
		if f != nil && f.NoOptDefVal == "" && !hasValue {
			i++
		}
	}
	return ""
}

// finish gives every command of the tree what all of them have: the exit codes
// in its help, and that a started command's errors are no longer its usage's.
func finish(a *app, c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			if done, err := a.byServer(cmd, args); done {
				return err
			}
			return run(cmd, args)
		}
	}
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return argumentError(cmd, err)
			}
			return nil
		}
	}
	codes := c.Annotations[exitCodes]
	if codes == "" {
		codes = "0 done, 1 failed, 2 usage"
	}
	if !strings.Contains(c.Long, "Exit codes:") {
		if c.Long == "" {
			c.Long = c.Short + "."
		}
		c.Long += "\n\nExit codes: " + codes + "."
	}
	for _, sub := range c.Commands() {
		finish(a, sub)
	}
}

// argumentError says what the command wants instead.
func argumentError(cmd *cobra.Command, err error) error {
	if whole := wholeError(""); errors.As(err, &whole) {
		return err
	}
	text := err.Error()
	if cmd.HasSubCommands() {
		var word string
		if _, e := fmt.Sscanf(text, "unknown command %q", &word); e == nil {
			return unknownCommand(cmd, word)
		}
		return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	}
	if word, ok := strings.CutPrefix(text, "unknown command "); ok { // what cobra calls an argument too many
		word, _, _ = strings.Cut(word, " for ")
		text = "unexpected argument " + word
	} else if strings.Contains(text, "arg(s)") {
		text = "wrong number of arguments"
	}
	return fmt.Errorf("%s; usage: %s", text, cmd.UseLine())
}

// wholeError is an argument error that says itself what the command wants instead.
type wholeError string

func (e wholeError) Error() string { return string(e) }

// requiredError says of flags that are missing what cobra says in words of its own.
func requiredError(cmd *cobra.Command, err error) error {
	const head, tail = "required flag(s) ", " not set"
	if err == nil || !strings.HasPrefix(err.Error(), head) {
		return err
	}
	flags := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(err.Error(), head), tail), `"`, "")
	verb := "is"
	if strings.Contains(flags, ", ") {
		verb = "are"
	}
	return fmt.Errorf("--%s %s missing; usage: %s", strings.ReplaceAll(flags, ", ", ", --"), verb, cmd.UseLine())
}

// unknownCommand says which commands are called nearly so.
func unknownCommand(cmd *cobra.Command, word string) error {
	cmd.SuggestionsMinimumDistance = 2 // letters
	near := slices.DeleteFunc(cmd.SuggestionsFor(word), func(s string) bool {
		return slices.ContainsFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Name() == s && c.Annotations[nameHolder] != "" })
	})
	hint := ""
	if len(near) > 0 {
		hint = " (did you mean " + strings.Join(near, " or ") + "?)"
	}
	return fmt.Errorf("unknown command %q for %q%s; see `%s --help`", word, cmd.CommandPath(), hint, cmd.CommandPath())
}

// helpFor says that the command is not there which arguments ask help for; cobra
// prints the help of the one above it.
func helpFor(root *cobra.Command, args []string) error {
	asked := len(args) > 0 && args[0] == "help"
	if asked {
		args = args[1:]
	}
	for _, a := range args {
		if a == "--" {
			break
		}
		asked = asked || a == "--help" || a == "-h"
	}
	cmd, rest, err := root.Find(args)
	if !asked || err != nil || !cmd.HasSubCommands() {
		return nil
	}
	if word := firstArgument(cmd, rest); word != "" {
		return unknownCommand(cmd, word)
	}
	return nil
}

// flagError says of a flag with a value of another kind what it takes.
func flagError(cmd *cobra.Command, err error) error {
	text, _, _ := strings.Cut(err.Error(), ": strconv.")
	if wrong := (*pflag.InvalidValueError)(nil); errors.As(err, &wrong) {
		wants := map[string]string{
			"int": "a whole number", "uint16": "a number from 0 to 65535", "uint32": "a number from 0 to 4294967295", "bool": "true or false",
			"duration": "a time such as 500ms, 30s or 5m",
		}
		kind, number := wrong.GetFlag().Value.Type(), (*strconv.NumError)(nil)
		if want := wants[kind]; want != "" && (errors.As(err, &number) || kind == "duration") { // others say it themselves
			text = fmt.Sprintf("--%s %q: want %s", wrong.GetFlag().Name, wrong.GetValue(), want)
		}
	}
	return fmt.Errorf("%s; see `%s --help`", text, cmd.CommandPath())
}

// exitCodes is the annotation of a command whose exit codes mean more than
// usual.
const exitCodes = "netctl/exit-codes"
