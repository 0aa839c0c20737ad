package commands

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
)

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this binary",
		Example: "  netctl version\n  netctl version | cut -d' ' -f2",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.out, "netctl %s (%s, %s/%s)\n", strings.TrimPrefix(version, "v"), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
