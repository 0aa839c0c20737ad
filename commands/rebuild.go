package commands

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newRebuildCommand(a *app) *cobra.Command {
	o := restoreOptions{rebuilding: true}
	cmd := &cobra.Command{
		Use:   "rebuild [FILE...]",
		Short: "Write a lost datastore again from what the nodes keep of it",
		Long: "Write a datastore that was lost, and is empty now, again from the copy that every node keeps of it as it follows\n" +
			"(" + datastore.CopyFile + " in its state folder): this node's, or the newest of FILEs, which are such copies of several nodes, fetched by you.\n" +
			"A copy is all that there was at its revision. Nodes, pools, blocks, endpoints, networks, reservations, peers, filters and profiles with their rules are as before; what runs is\n" +
			"not touched, every node writes back what it runs, and until then no pool gives out an address, as with netctl restore.\n" +
			"Nodes take the datastore for theirs again by it: netctl datastore adopt is not needed. A datastore that another cluster uses, or that is\n" +
			"well, is refused. What is interrupted is finished by running it again.",
		Example: "  netctl datastore rebuild --dry-run\n  netctl datastore rebuild slave1.backup slave2.backup",
	}
	o.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, files []string) error {
		err := o.check()
		if err == nil {
			err = a.rebuild(cmd.Context(), files, o)
		}
		if err != nil {
			return fmt.Errorf("rebuild: %w", err)
		}
		return nil
	}
	return cmd
}

func (a *app) rebuild(ctx context.Context, files []string, o restoreOptions) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	own := filepath.Join(s.StateDir, datastore.CopyFile)
	b, from, err := a.newestCopy(ctx, own, files)
	if err != nil {
		return err
	}
	if err := a.lostOnly(ctx, s, b, len(files) > 0); err != nil {
		return err
	}
	r, err := a.openRestore(ctx, b, o)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	if err := a.print(fmt.Sprintf("From %s: %s, cluster %s, generation %d, revision %d, kept %s.\n",
		from, count(len(b.Entries), "object"), b.Cluster.UUID, b.Cluster.Generation, b.Revision, b.Time.Format(time.RFC3339))); err != nil {
		return err
	}
	return r.run(ctx)
}

// newestCopy is this node's copy or, if files are named, the newest of those.
func (a *app) newestCopy(ctx context.Context, own string, files []string) (newest *datastore.Backup, from string, err error) {
	if len(files) == 0 {
		files = []string{own}
	}
	for _, file := range files {
		b, err := a.readCopy(ctx, file, own)
		switch {
		case file == own && errors.Is(err, fs.ErrNotExist):
			return nil, "", fmt.Errorf("%s is not there: this node has followed no datastore: run it on a node that has, or name a copy of one's", own)
		case err != nil:
			return nil, "", fmt.Errorf("%s: %w", file, err)
		case b.Cluster.UUID == "":
			return nil, "", fmt.Errorf("%s: is of no cluster: %w", file, datastore.ErrInvalid)
		case newest != nil && b.Cluster.UUID != newest.Cluster.UUID:
			return nil, "", fmt.Errorf("%s is of cluster %s, %s of cluster %s: name copies of one cluster", file, b.Cluster.UUID, from, newest.Cluster.UUID)
		case newest == nil || b.Newer(newest):
			newest, from = b, file
		}
	}
	return newest, from, nil
}

// readCopy reads a file that the caller names, or this node's own copy with the changes
// since.
func (a *app) readCopy(ctx context.Context, file, own string) (*datastore.Backup, error) {
	if file != own {
		return a.readBackup(ctx, file)
	}
	b, _, err := datastore.ReadCopy(own)
	return b, err
}

// lostOnly refuses a datastore that is another cluster's, or that lacks nothing: unless a
// person named the copy.
func (a *app) lostOnly(ctx context.Context, s *settings, b *datastore.Backup, named bool) error {
	store, err := a.store(ctx)
	if err != nil {
		return err
	}
	snap, err := store.List(ctx, datastore.Prefix)
	if err != nil {
		return err
	}
	cluster, _, err := snap.Cluster()
	if err != nil {
		cluster = nil // unreadable: what else there is tells
	}
	kept := map[string]bool{datastore.ClusterKey: true, datastore.PoolsKey: true}
	for _, e := range b.Entries {
		kept[e.Key] = true
	}
	strange := slices.IndexFunc(snap.Entries, func(e datastore.Entry) bool { return !kept[e.Key] })
	switch {
	case cluster == nil && strange >= 0: // what a rebuild that was interrupted wrote is in the copy
		return fmt.Errorf("the datastore is not empty, and names no cluster: it holds %s, which the copy does not: `netctl restore FILE` brings a copy back beside what is there", snap.Entries[strange].Key)
	case cluster != nil && cluster.UUID != b.Cluster.UUID:
		return fmt.Errorf("the datastore holds cluster %s, and the copy is of cluster %s: have the nodes follow a datastore of their own, or if that one is of no use to anybody, `netctl datastore adopt` first", cluster.UUID, b.Cluster.UUID)
	case cluster != nil && !named && !restoring(snap.Entries) && attached(ctx, s):
		return fmt.Errorf("this node follows the datastore, so there is nothing to rebuild%s", formerCopies(filepath.Join(s.StateDir, datastore.CopyFile)))
	}
	return nil
}

// formerCopies names those that there are, for somebody who adopted an empty datastore.
func formerCopies(own string) string {
	files := datastore.FormerCopies(own)
	if len(files) == 0 {
		return ""
	}
	return "; if it was adopted when it was empty, name the copy of before: " + strings.Join(files, ", ")
}

// restoring says whether a restore or rebuild was interrupted: pools are closed by it.
func restoring(entries []datastore.Entry) bool {
	return slices.ContainsFunc(entries, func(e datastore.Entry) bool {
		o, err := datastore.Decode(e.Key, e.Value)
		return err == nil && o.Kind() == datastore.KindPool && o.Meta().Labels[datastore.LabelRestoring] != ""
	})
}
