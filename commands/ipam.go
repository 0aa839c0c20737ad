package commands

import (
	"github.com/spf13/cobra"
)

func newIPAMCommand(a *app) *cobra.Command {
	return group("ipam", "Show and check who holds which address", "  netctl ipam show --blocks\n  netctl ipam check")
}
