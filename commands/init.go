package commands

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	role "netctl/commands/datastore"
	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/pki"
)

// tokenLife is how long a token is good unless something else is said.
const tokenLife = 24 * time.Hour

func newInitCommand(a *app) *cobra.Command {
	var o newNodeOptions
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make this machine the first node of a new cluster",
		Long: "Make this machine the first node of a new cluster: its authority and certificates, etcd on this machine's address behind mutual\n" +
			"TLS, and the configuration file. What it prints, one line, makes another machine the second node. The authority's key stays on\n" +
			"this node, root's alone. A machine that is a node, or has somebody's configuration, is left\n" +
			"as it is. With --datastore-endpoints the cluster is in an external etcd whose authentication is on, and the user that is named must\n" +
			"have etcd's role root: this node lets others in, and each that joins gets a user of its own with the rights of a node.",
		Example: "  netctl init\n  netctl init --address 192.168.99.102 --node-name n1\n" +
			"  netctl init --datastore-endpoints https://10.0.0.5:2379 --datastore-ca ca.crt --datastore-user root --datastore-password-file root.password",
		Args: cobra.NoArgs,
	}
	o.flags(cmd)
	cmd.Flags().DurationVar(&life, "expires", tokenLife, "how `long` the token is good")
	for _, st := range settingTable() {
		if st.key == "etcd::certificateLife" {
			st.addTo(cmd.Flags())
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkTokenLife(life); err != nil {
			return err
		}
		n, err := a.prepare(cmd, "init", o, netip.Addr{}, true, "datastore", "agent", "speaker")
		if err != nil {
			return err
		}
		token, err := n.found(cmd.Context(), life)
		if err != nil {
			n.undo()
			return err
		}
		if err := n.start(cmd.Context()); err != nil {
			return err
		}
		return a.print(joinLine(token))
	}
	return cmd
}

// joinLine is what is to be run on a machine that joins.
func joinLine(t datastore.Token) string {
	if t.Member {
		return fmt.Sprintf("netctl join --datastore %s\n", t)
	}
	return fmt.Sprintf("netctl join %s\n", t)
}

func checkTokenLife(life time.Duration) error {
	if life < time.Second || life > 366*24*time.Hour {
		return usage("--expires %s: want a second to a year", life)
	}
	return nil
}

// found writes everything that the first node needs.
func (n *newNode) found(ctx context.Context, life time.Duration) (datastore.Token, error) {
	var token datastore.Token
	ca, err := pki.New("netctl")
	if err != nil {
		return token, err
	}
	if n.user != "" {
		return n.foundIn(ctx, ca, life)
	}
	if err := n.writeAuthority(n.files("ca"), ca); err != nil {
		return token, err
	}
	key, keyText, err := pki.NewKey()
	if err != nil {
		return token, err
	}
	now := time.Now()
	cert, err := ca.Sign(&key.PublicKey, pki.Node{
		Name: n.s.Node, Use: pki.UseClient, Role: datastore.RoleMember,
		NotBefore: pki.NotBeforeNow(now, n.s.Etcd.CertificateLife), NotAfter: now.Add(n.s.Etcd.CertificateLife),
	})
	if err != nil {
		return token, err
	}
	if err := n.writeNode(keyText, cert); err != nil {
		return token, err
	}
	hash, err := pki.KeyHash(&key.PublicKey)
	if err != nil {
		return token, err
	}
	token = n.token(ca, now.Add(life))
	first, err := json.Marshal(role.First{
		Node:  datastore.JoinedNode{Name: n.s.Node, Key: hash, Member: true, Since: now.UTC().Truncate(time.Second)},
		Token: token.Record(now),
	})
	if err != nil {
		return token, err
	}
	if err := n.write(filepath.Join(n.s.StateDir, role.FirstFile), first, 0o600); err != nil {
		return token, err
	}
	return token, n.configure([]string{n.url(clientPort)}, join.DefaultPort)
}

// token is one for the second node.
func (n *newNode) token(ca *pki.Authority, expires time.Time) datastore.Token {
	return datastore.NewToken(sha256.Sum256(ca.DER()), false, expires, []netip.AddrPort{netip.AddrPortFrom(n.address, join.DefaultPort)})
}

// writeAuthority writes the certificate and key of an authority.
func (n *newNode) writeAuthority(f pki.Files, ca *pki.Authority) error {
	key, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	if err := n.write(f.Key, key, 0o600); err != nil {
		return err
	}
	return n.write(f.Cert, ca.CertPEM(), 0o644)
}

// writeNode writes the node's own key and certificate.
func (n *newNode) writeNode(key, cert []byte) error {
	f := n.files("node")
	if err := n.write(f.Key, key, 0o600); err != nil {
		return err
	}
	return n.write(f.Cert, cert, 0o644)
}
