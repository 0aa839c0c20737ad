package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"netctl/commands/api"
	"netctl/commands/ui"
)

// defaultPage is where the page is unless it is said.
const defaultPage = "127.0.0.1:7444"

func newUICommand(a *app) *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Show the cluster in a browser: nodes, sessions, endpoints, who may talk to whom, addresses, events",
		Long: "Serve a page for a browser on this machine and print its address. The page shows the cluster as it changes: nodes and racks, BGP sessions,\n" +
			"endpoints, who may talk to whom and by which rule, pools and blocks, and events. It changes nothing. Data come from the API, of this\n" +
			"machine (its unix socket, as root) or of --server. The address has a token that is good until Ctrl-C.",
		Example: "  netctl ui\n  netctl ui --listen 127.0.0.1:0\n  netctl --server https://192.168.99.102:7443 --server-ca ca.crt --server-cert alice.crt --server-key alice.key ui",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&listen, "listen", defaultPage, "`address` and port on loopback; port 0: a free one")
	_ = cmd.RegisterFlagCompletionFunc("listen", cobra.FixedCompletions([]string{defaultPage, "127.0.0.1:0", "[::1]:7444"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := ui.CheckListen(listen); err != nil {
			return usageError{fmt.Errorf("--listen %w", err)}
		}
		return a.serveUI(cmd.Context(), listen)
	}
	return cmd
}

// serveUI serves the page until ctx ends.
func (a *app) serveUI(ctx context.Context, listen string) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	server := s.server()
	server.URL = cmp.Or(server.URL, "unix://"+filepath.Join(s.RunDir, api.SocketName))
	c, err := api.NewClient(server)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Index(ctx); err != nil { // better here than in the browser
		return fmt.Errorf("ui: %w", err)
	}
	l, err := net.Listen("tcp", listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("ui: %s is taken: --listen 127.0.0.1:0 finds a free port", listen)
	}
	if err != nil {
		return fmt.Errorf("ui: %w", err)
	}
	token := ui.NewToken()
	if err := a.print(fmt.Sprintf("http://%s/#token=%s\n", l.Addr(), token)); err != nil {
		return errors.Join(err, l.Close())
	}
	return ui.Serve(ctx, l, ui.Config{Token: token, Version: version, Server: server.URL, Get: c.Get, List: c.List})
}
