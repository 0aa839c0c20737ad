// Package commands owns what a person or a runtime starts: the choice of the
// role by name, environment or subcommand, the configuration, the command tree,
// what is printed, and the exit codes.
//
// It holds no networking logic; a command joins the libraries and prints. Only
// this package knows cobra, viper and YAML. Errors are printed in one place,
// Main, as one line.
package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"netctl/commands/cni"
	"netctl/commands/netavark"
)

// version is set by the linker (-X netctl/commands.version=…).
var version = "0.1.0-dev"

// Main runs netctl as args[0] (and CNI_COMMAND, if there are no arguments) asks
// and returns the process's exit code: 0 done, 1 failed or could not tell,
// 2 usage, 3 the answer is no.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	name, rest := args[0], args[1:]
	switch pick, role := applet(name, rest, os.Getenv("CNI_COMMAND")); pick {
	case appletCNI:
		return cni.Run(context.Background(), version, os.Environ(), stdin, stdout, stderr)
	case appletNetavark:
		// A person at a terminal who writes `netctl create` left out what to create.
		if f, ok := stdin.(*os.File); !ok || rest[0] == "info" || !isTerminal(f) {
			return netavark.Run(context.Background(), version, rest, os.Environ(), stdin, stdout, stderr)
		}
	case appletRole:
		rest = append([]string{role}, rest...)
		if !namesConfig(rest) && os.Getenv("NETCTL_CONFIG") == "" {
			rest = append(rest, "--config", defaultConfigFile)
		}
	case appletUnknown:
		fmt.Fprintf(stderr, "netctl: no role %q: the file may be called netctl or one of %s\n", role, strings.Join(roleNames(), ", "))
		return exitUsage
	case appletNothing:
		if f, ok := stdout.(*os.File); !ok || !isTerminal(f) {
			fmt.Fprint(stdout, cni.About(version))
			return exitOK
		}
		rest = []string{"--help"}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: stdin, out: stdout, err: stderr}
	err := a.run(ctx, rest)
	if err == nil || errors.Is(err, syscall.EPIPE) {
		return exitOK
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	code := a.exitCode(err)
	if text := oneLine(err); text != "" {
		fmt.Fprintf(stderr, "netctl: %s%s\n", text, a.andDisk(err))
	}
	return code
}

// namesConfig reports whether the arguments already name a configuration file.
func namesConfig(args []string) bool {
	for _, a := range args {
		if a == "--config" || strings.HasPrefix(a, "--config=") {
			return true
		}
	}
	return false
}
