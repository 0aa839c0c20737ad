package commands

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	role "netctl/commands/datastore"
	"netctl/datastore"
	"netctl/datastore/identity"
)

func newDatastoreCommand(a *app) *cobra.Command {
	cmd := roleCommand(a, "datastore", "Run this node's member of the embedded etcd",
		"  netctl datastore --config /etc/netctl.yaml\n  netctl datastore --etcd-quota-mib 512",
		[]string{"metrics", "etcd"},
		func(ctx context.Context, s *settings) error {
			return role.Run(ctx, s.datastoreConfig(), newLogger(a.err, "datastore", s))
		})
	cmd.AddCommand(newAdoptCommand(a), newMemberCommand(a), newCACommand(a), newUserCommand(a), newRebuildCommand(a))
	return cmd
}

func (s *settings) datastoreConfig() role.Config {
	shown := s.telemetry("datastore")
	shown.Certificates = map[string]string{"server": s.Etcd.TLS.Cert}
	c := role.Config{
		Telemetry: shown,
		Node:      s.Node, StateDir: s.StateDir, Socket: filepath.Join(s.RunDir, "etcd.sock"),
		Listen: s.Etcd.Listen, PeerURL: s.Etcd.PeerURL,
		CA: s.Etcd.TLS.CA, Cert: s.Etcd.TLS.Cert, Key: s.Etcd.TLS.Key,
		Shares:   s.onlyMember(),
		JoinPort: s.Etcd.JoinPort, CertificateLife: s.Etcd.CertificateLife, QuotaBytes: int64(s.Etcd.QuotaMiB) << 20,
	}
	if s.external() {
		c.External = s.storeOptions()
	}
	return c
}

// onlyMember says whether this machine is a member of the datastore without a role that
// shares the node's events.
func (s *settings) onlyMember() bool {
	return slices.Contains(s.Roles, "datastore") && !slices.Contains(s.Roles, "agent") && !slices.Contains(s.Roles, "reflector")
}

func newAdoptCommand(a *app) *cobra.Command {
	var join, force bool
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Say that the datastore is the right one, after it was restored or made anew",
		Long: "A node whose datastore comes back empty, restored from a backup, or as another cluster's is detached:\n" +
			"it keeps what runs as it is and writes nothing. adopt, on one node, writes this node's cluster back; every\n" +
			"other detached node of the cluster then attaches by itself. Nodes of another cluster are detached by it;\n" +
			"--join takes such a node into the cluster that the datastore holds. A datastore that is empty, of which this node has a copy, is for\n" +
			"`netctl datastore rebuild`: adopted it would have no rules.",
		Example: "  netctl datastore adopt\n  netctl datastore adopt --join",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.settings()
			if err != nil {
				return err
			}
			store, err := a.store(cmd.Context())
			if err != nil {
				return err
			}
			adopt, did := identity.Adopt, "adopted"
			if join {
				adopt, did = identity.Join, "joined"
			}
			before, err := clusterOf(cmd.Context(), store)
			if err != nil {
				return err
			}
			// Of one that holds no cluster an agent that has just started knows nothing yet.
			if before != nil && attached(cmd.Context(), s) {
				return a.print("Nothing to adopt: this node is attached to the datastore's cluster.\n")
			}
			if before == nil && !join && !force {
				if err := notLost(cmd.Context(), store, s.StateDir); err != nil {
					return err
				}
			}
			c, err := adopt(cmd.Context(), store, s.StateDir)
			if err != nil {
				return err
			}
			if before != nil && before.UUID != c.UUID {
				a.warn("the datastore held cluster %s: its nodes are detached now; run netctl datastore adopt --join on each", before.UUID)
			}
			return a.print(fmt.Sprintf("Datastore %s: cluster %s, generation %d.\n", did, c.UUID, c.Generation))
		},
	}
	cmd.Flags().BoolVar(&join, "join", false, "take this node into the datastore's cluster instead")
	cmd.Flags().BoolVar(&force, "force", false, "although it is empty, and this node has a copy of what was lost")
	return cmd
}

// notLost refuses a datastore that is empty where this node knows what it held.
func notLost(ctx context.Context, store datastore.Store, dir string) error {
	snap, err := store.List(ctx, datastore.Prefix)
	if err != nil || len(snap.Entries) > 0 {
		return err
	}
	b, _, err := datastore.ReadCopy(filepath.Join(dir, datastore.CopyFile))
	if err != nil || len(b.Entries) == 0 {
		return nil // nothing is lost by it that is known here
	}
	return fmt.Errorf("adopt: the datastore is empty, and this node has a copy of what it held, %s with every rule: `netctl datastore rebuild` writes them again; --force begins without them", count(len(b.Entries), "object"))
}

// attached reports that the agent follows the datastore, and has nothing against it.
func attached(ctx context.Context, s *settings) bool {
	st, err := control.NewAgentClient(s.Agent.Socket).Status(ctx)
	return err == nil && st.InSync && st.Detached == "" && st.Store == ""
}

// clusterOf is the cluster that the store holds; nil if none or unreadable.
func clusterOf(ctx context.Context, s datastore.Store) (*datastore.Cluster, error) {
	snap, err := s.List(ctx, datastore.ClusterKey)
	if err != nil {
		return nil, err
	}
	c, _, err := snap.Cluster()
	if err != nil {
		return nil, nil
	}
	return c, nil
}
