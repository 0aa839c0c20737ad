// Command netctl is routed container networking in one file: CNI plugin,
// per-node agent, BGP speaker, embedded datastore and admin CLI.
package main

import (
	"os"

	"netctl/commands"
)

func main() {
	os.Exit(commands.Main(os.Args, os.Stdin, os.Stdout, os.Stderr))
}
