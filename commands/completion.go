package commands

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newCompletionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script of a shell",
		Long: "Print the completion script of a shell. It completes commands and flags, and asks the datastore for the names of pools,\n" +
			"profiles, nodes, endpoints and tags. `netctl install` puts the scripts where the shells look for them.",
		Example:               "  source <(netctl completion bash)\n  netctl completion fish > ~/.config/fish/completions/netctl.fish",
		Args:                  cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs:             []string{"bash", "zsh", "fish"},
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			}
			return usageError{fmt.Errorf("completion %q: the shells are bash, zsh and fish", args[0])}
		},
	}
}
