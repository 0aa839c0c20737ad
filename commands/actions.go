package commands

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"netctl/commands/api"
	"netctl/datastore"
)

// remote is a command that the API has as an action.
type remote struct {
	api.Rights
	files []string // flags that name files to read
	// reads says that it reads stdin without being told, or the file that its argument is.
	reads bool
	// here says that the command line does it here, with what the API gives it.
	here bool
}

// remotes are the commands of the API by their words, names left out. What is in no list
// here and in localCommands fails a test.
func remotes() map[string]remote {
	look := remote{Rights: api.Rights{Role: datastore.APIRead}}
	operate := remote{Rights: api.Rights{Role: datastore.APIOperate}}
	admin := remote{Rights: api.Rights{Role: datastore.APIAdmin}}
	// The kinds in the manifests decide: see app.may.
	manifests := remote{Rights: operate.Rights, files: []string{"filename"}}
	// Without arguments they show what holds.
	shows := remote{Rights: api.Rights{Role: datastore.APIRead, Args: datastore.APIAdmin}}
	raised := func(role datastore.APIRole, flags ...string) remote {
		r := remote{Rights: api.Rights{Role: datastore.APIRead, Flags: map[string]datastore.APIRole{}}}
		for _, f := range flags {
			r.Flags[f] = role
		}
		return r
	}
	return map[string]remote{
		"apply": manifests, "create": manifests, "replace": manifests, "delete": manifests,
		"get": look, "status": look, "history": look, "events": look, "undo": admin, "confirm": operate,
		"backup":  {Rights: look.Rights, here: true},
		"restore": {Rights: admin.Rights, reads: true},

		"node show": look, "node add": admin, "node remove": admin, "node drain": operate, "node undrain": operate, "node rotate-key": admin,
		"node set ip": admin, "node set as": admin, "node set labels": admin, "node set reflector": admin,
		"pool show": look, "pool add": admin, "pool remove": admin, "pool range add": admin,
		"network show": look, "network create": operate, "network remove": operate,
		"profile show": look, "profile add": operate, "profile remove": operate,
		"profile rate show": look, "profile rate set": operate, "profile rate remove": operate,
		"endpoint rate show": look, "endpoint rate set": operate, "endpoint rate remove": operate,
		"profile tag show": look, "profile tag add": operate, "profile tag remove": operate,
		"profile rule show": look, "profile rule json": look, "profile rule add": operate, "profile rule remove": operate,
		"profile rule update": {Rights: operate.Rights, reads: true},
		"policy show":         look, "policy create": operate, "policy remove": operate,
		"policy rule show": look, "policy rule add": operate, "policy rule remove": operate,
		"policy counters": look, "policy promote": operate, "policy stage": operate,
		"policy test": {Rights: look.Rights, here: true}, "policy suggest": {Rights: look.Rights, here: true},
		"tier show": look, "tier create": operate, "tier remove": operate,
		"tenant show": look, "tenant add": admin, "tenant remove": admin,
		"networkset show": look, "networkset create": operate, "networkset remove": operate, "networkset cidr add": operate, "networkset cidr remove": operate,
		"networkset domain add": operate, "networkset domain remove": operate,
		"hostendpoint show": look, "hostendpoint create": admin, "hostendpoint remove": admin,
		"explain": look, "trace": operate,
		"endpoint show": look, "endpoint add": operate, "endpoint remove": operate,
		"endpoint prefix show": look, "endpoint prefix add": operate, "endpoint prefix remove": operate,
		"endpoint guard show": look, "endpoint guard set": admin,
		"endpoint profile show": look, "endpoint profile append": operate, "endpoint profile remove": operate, "endpoint profile set": operate,
		"ipam show": look, "ipam info": look, "ipam release": admin, "ipam check": raised(datastore.APIOperate, "repair"),
		"route show": look, "route trace": look,

		"bgp routes": look, "bgp session": raised(datastore.APIOperate, "refresh"),
		"bgp peer show": look, "bgp peer add": admin, "bgp peer remove": admin,
		"bgp filter show": look, "bgp filter add": admin, "bgp filter remove": admin,
		"bgp filter test": {Rights: look.Rights, here: true}, // it needs nobody
		"bgp node-mesh":   shows, "bgp default-node-as": shows, "bgp topology": shows, "bgp topology show": look,

		"datastore ca show": look, "datastore ca rotate": admin,
		// The password goes to a file of who asks.
		"datastore user create": {Rights: admin.Rights, here: true}, "datastore user list": admin, "datastore user remove": admin,
		"datastore member list": look, "datastore member remove": admin, "datastore adopt": admin,
		"token create": admin, "token list": admin, "token revoke": admin,
		"api list": admin, "api revoke": admin,
	}
}

// localCommands work on the machine itself, or on what the API gives by itself, and are
// no actions. true: they take a server all the same.
func localCommands() map[string]bool {
	return map[string]bool{
		"agent": false, "api": false, "datastore": false, "docker": false, "node": false, "reflector": false, "speaker": false,
		"bench": false, "bench serve": false, "drops": false, "datastore rebuild": false, "diags": false, "hook": false, "upgrade": false,
		"cleanup": false, "doctor": false, "init": false, "install": false, "join": false, "uninstall": false,
		"lab up": false, "lab down": false, "lab exec": false, "lab status": false,
		"api grant":  false, // it needs the authority's key
		"completion": true, "config": true, "help": true, "import calico": true, "version": true, "edit": true, "ui": true,
	}
}

// commandPath is a command's words without the root and names.
func commandPath(cmd *cobra.Command) string {
	var words []string
	for c := cmd; c.HasParent(); c = c.Parent() {
		if c.Annotations[nameHolder] == "" {
			words = append(words, c.Name())
		}
	}
	slices.Reverse(words)
	return strings.Join(words, " ")
}

// actions describes the commands of the API.
func actions() []api.Action {
	root := newRootCommand(&app{})
	var list []api.Action
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if r, ok := remotes()[commandPath(c)]; ok && c.Annotations[nameHolder] == "" {
			list = append(list, actionOf(c, r))
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	slices.SortFunc(list, func(x, y api.Action) int { return strings.Compare(x.Path, y.Path) })
	return list
}

func actionOf(c *cobra.Command, r remote) api.Action {
	a := api.Action{
		Path: strings.ReplaceAll(commandPath(c), " ", "/"), Summary: c.Short, Usage: c.UseLine(), Rights: r.Rights,
		Named: nameOf(c) != "", Args: takesArguments(c),
	}
	c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		_, usage := pflag.UnquoteUsage(f)
		flag := api.Flag{Name: f.Name, Usage: usage, Type: "string", Required: f.Annotations[cobra.BashCompOneRequiredFlag] != nil}
		switch f.Value.Type() {
		case "bool":
			flag.Type = "boolean"
		case "int", "uint8", "uint16", "uint32":
			flag.Type = "integer"
		case "stringSlice", "stringArray":
			flag.Type = "array"
		}
		a.Flags = append(a.Flags, flag)
		a.Prints = a.Prints || f.Name == "output"
	})
	return a
}

// takesArguments says whether a command may have arguments.
func takesArguments(c *cobra.Command) bool {
	for n := range 4 {
		if c.Args == nil || n > 0 && c.Args(c, make([]string, n)) == nil {
			return true
		}
	}
	return false
}
