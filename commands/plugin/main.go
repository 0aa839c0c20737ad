// Command plugin is netctl's plugins for CNI and netavark and nothing else: `netctl
// install` lays it down for the runtimes. What it does the whole program does too, by the
// same code; but that takes longer to start, for all that it holds and no call needs.
package main

import (
	"context"
	"fmt"
	"os"

	"netctl/commands/cni"
	"netctl/commands/netavark"
)

// version is set by the linker (-X main.version=…).
var version = "0.1.0-dev"

func main() {
	args, asked := os.Args[1:], os.Getenv("CNI_COMMAND") != ""
	switch {
	case netavark.Called(args):
		os.Exit(netavark.Run(context.Background(), version, args, os.Environ(), os.Stdin, os.Stdout, os.Stderr))
	case len(args) > 0:
		fmt.Fprintln(os.Stderr, "netctl: this file is the plugin for container runtimes alone: run netctl from where it was installed")
		os.Exit(2)
	case asked:
		os.Exit(cni.Run(context.Background(), version, os.Environ(), os.Stdin, os.Stdout, os.Stderr))
	}
	fmt.Print(cni.About(version))
}
