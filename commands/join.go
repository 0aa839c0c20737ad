package commands

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	role "netctl/commands/datastore"
	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/pki"
)

func newJoinCommand(a *app) *cobra.Command {
	var o newNodeOptions
	var member bool
	cmd := &cobra.Command{
		Use:   "join TOKEN",
		Short: "Make this machine a node of a cluster, with a token of it",
		Long: "Make this machine a node of a cluster: it makes a key, has it certified by the cluster, and writes certificates and configuration.\n" +
			"The token is what `netctl init` and `netctl token create` print. With --datastore, and a token for that, the node becomes a member of\n" +
			"the datastore too: it learns all, and then votes. A machine that is a node, or has somebody's configuration, is left as it\n" +
			"is.",
		Example:           "  netctl join nctAQBH…\n  netctl join --datastore --node-name n3 nctAQBH…",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&member, "datastore", false, "become a member of the datastore too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		text, err := pasted(args)
		if err != nil {
			return err
		}
		token, err := datastore.ParseToken(text)
		if err != nil {
			return usageError{fmt.Errorf("join: %w", err)}
		}
		if member && !token.Member {
			return usage("join: the token lets in a node, but no member of the datastore: make one there with `netctl token create --datastore`")
		}
		roles := []string{"agent", "speaker"}
		if member {
			roles = append([]string{"datastore"}, roles...)
		}
		n, err := a.prepare(cmd, "join", o, token.Endpoints[0].Addr(), member, roles...)
		if err != nil {
			return err
		}
		if err := n.enter(cmd.Context(), token); err != nil {
			n.undo()
			return err
		}
		return n.start(cmd.Context())
	}
	return cmd
}

// pasted is the token among arguments that may be the whole line that `netctl init` prints.
func pasted(args []string) (string, error) {
	words := strings.Fields(strings.Join(args, " "))
	for len(words) > 1 && slices.Contains([]string{"sudo", "netctl", "join"}, filepath.Base(words[0])) {
		words = words[1:]
	}
	if len(words) != 1 {
		return "", usage("join: want one token, and these are %d words: copy it whole, without spaces", len(words))
	}
	return words[0], nil
}

// enter has the cluster let this node in, and writes what it says. The key is on the disk
// before the token is used up.
func (n *newNode) enter(ctx context.Context, token datastore.Token) error {
	key, keyText, err := pki.NewKey()
	if err != nil {
		return err
	}
	if n.unfinished() {
		if err := os.Remove(n.files("node").Key); err != nil {
			return fmt.Errorf("join: %w", err)
		}
	}
	if err := n.write(n.files("node").Key, keyText, 0o600); err != nil {
		return err
	}
	peer := ""
	if n.member {
		peer = n.url(peerPort)
	}
	c := join.Client{Endpoints: token.Endpoints, Authorities: [][sha256.Size]byte{token.Authority}}
	done := n.a.waiting("the cluster")
	answer, err := c.Join(ctx, token, n.s.Node, key, peer)
	done()
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if err := n.settle(answer); err != nil {
		return fmt.Errorf("%w (the token is used: run `netctl node remove --force %s` in the cluster, and make another)", err, n.s.Node)
	}
	if answer.Member != nil && answer.Member.Voters%2 == 0 {
		n.a.warn("the datastore will have %d members, and an even number bears the loss of no more than one less does: add another", answer.Member.Voters)
	}
	return nil
}

// settle writes what a node was told that was let in.
func (n *newNode) settle(answer *join.Answer) error {
	f := n.files("node")
	if u := answer.User; u != nil {
		n.user = u.Name
		// etcd knows the node by its password: the key was for the question alone.
		if err := os.Remove(f.Key); err != nil {
			return fmt.Errorf("join: %w", err)
		}
		if err := n.writeUser(u.Authority, []byte(u.Password+"\n")); err != nil {
			return err
		}
		return n.configure(answer.Endpoints, answer.JoinPort)
	}
	if err := n.write(f.Cert, answer.Certificate, 0o644); err != nil {
		return err
	}
	if err := n.write(f.CA, answer.Authority, 0o644); err != nil {
		return err
	}
	if !n.member {
		return n.configure(answer.Endpoints, answer.JoinPort)
	}
	m := answer.Member
	if m == nil {
		return errors.New("join: the cluster let in a node, but no member of the datastore")
	}
	members, err := json.Marshal(m.Members)
	if err != nil {
		return err
	}
	peers := pki.In(role.PeerFolder(n.s.StateDir), "ca")
	for _, file := range []struct {
		path string
		text []byte
		mode fs.FileMode
	}{
		{n.files("ca").Key, m.AuthorityKey, 0o600},
		{peers.Key, m.PeerCAKey, 0o600},
		{peers.Cert, m.PeerCA, 0o644},
		{filepath.Join(n.s.StateDir, role.JoinsFile), members, 0o600},
	} {
		if err := n.write(file.path, file.text, file.mode); err != nil {
			return err
		}
	}
	return n.configure(answer.Endpoints, answer.JoinPort)
}
