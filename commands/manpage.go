package commands

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manDate is on every page: that of a build would make each build another.
const manDate = "Jan 2026"

// manPages are the pages of a command and of those below it, by their names.
func manPages(cmd *cobra.Command) map[string][]byte {
	pages := map[string][]byte{}
	for _, c := range documented(cmd) {
		pages[manName(c)+".1"] = []byte(manPage(c))
	}
	return pages
}

// documented is a command and those below it, without the help on help.
func documented(cmd *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{cmd}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			list = append(list, documented(sub)...)
		}
	}
	return list
}

func manName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// manPage is a page of man(7).
func manPage(c *cobra.Command) string {
	c.InitDefaultHelpCmd()
	c.InitDefaultHelpFlag()
	var b strings.Builder
	section := func(name, text string) { fmt.Fprintf(&b, "\n.SH %s\n%s\n", name, text) }
	fmt.Fprintf(&b, ".nh\n.TH \"%s\" \"1\" \"%s\" \"netctl\" \"netctl\"\n", strings.ToUpper(manName(c)), manDate)
	section("NAME", manName(c)+" - "+roff(c.Short)+"\n")
	section("SYNOPSIS", `\fB`+roff(c.UseLine())+"\\fP\n")
	long := c.Long
	if long == "" {
		long = c.Short
	}
	section("DESCRIPTION", roff(long)+"\n")
	for _, group := range []struct {
		name  string
		flags *pflag.FlagSet
	}{{"OPTIONS", c.NonInheritedFlags()}, {"OPTIONS INHERITED FROM PARENT COMMANDS", c.InheritedFlags()}} {
		if group.flags.HasAvailableFlags() {
			section(group.name, manFlags(group.flags)+"\n")
		}
	}
	if c.Example != "" {
		section("EXAMPLE", ".EX\n"+escape(c.Example)+"\n.EE\n")
	}
	var also []string
	if c.HasParent() {
		also = append(also, manName(c.Parent()))
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			also = append(also, manName(sub))
		}
	}
	for i, name := range also {
		also[i] = `\fB` + name + `(1)\fP`
	}
	section("SEE ALSO", strings.Join(also, ", "))
	return b.String()
}

func manFlags(flags *pflag.FlagSet) string {
	var list []string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Deprecated != "" {
			return
		}
		name, value := `\fB--`+f.Name+`\fP`, f.DefValue
		if f.Shorthand != "" {
			name = `\fB-` + f.Shorthand + `\fP, ` + name
		}
		if f.Value.Type() == "string" {
			value = fmt.Sprintf("%q", value)
		}
		if value = "=" + escape(value); f.NoOptDefVal != "" {
			value = "[" + value + "]"
		}
		list = append(list, name+value+"\n\t"+roff(f.Usage))
	})
	return strings.Join(list, "\n\n.PP\n")
}

// roff is text with words in backquotes, and paragraphs.
func roff(text string) string {
	code := regexp.MustCompile("`([^`]*)`")
	paragraphs := strings.Split(escape(strings.TrimSpace(text)), "\n\n")
	return code.ReplaceAllString(strings.Join(paragraphs, "\n\n.PP\n"), `\fB$1\fR`)
}

// escape guards what roff takes for its own: backslashes, and lines that begin with a
// point or a quote.
func escape(text string) string {
	lines := strings.Split(strings.ReplaceAll(text, `\`, `\e`), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
