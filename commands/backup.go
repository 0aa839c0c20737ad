package commands

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newBackupCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "backup [FILE]",
		Short: "Write everything that the datastore holds into one file",
		Long: "Write everything that the datastore holds, as of one revision, into one file (0600), - for stdout; the default is\n" +
			"netctl-TIME.backup in this folder. It is written whole or not at all, over a file of that name. It holds lines of JSON: the cluster's\n" +
			"identity, each object as it is stored, and a checksum. Passwords and keys that objects only name are not in it.\n" +
			"What cannot be read is warned of and left out. `netctl restore` brings it back.",
		Example: "  netctl backup /var/backups/netctl.backup\n  netctl backup - | gzip > netctl.backup.gz",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			now := time.Now()
			file := now.UTC().Format("netctl-20060102T150405Z.backup")
			if len(args) > 0 {
				file = args[0]
			}
			return a.backup(cmd.Context(), file, now)
		},
	}
}

func (a *app) backup(ctx context.Context, file string, now time.Time) error {
	if err := writable(file); err != nil {
		return fmt.Errorf("backup %s: %w", file, err)
	}
	store, err := a.store(ctx)
	if err != nil {
		return err
	}
	done := a.waiting("the datastore")
	snap, err := store.List(ctx, datastore.Prefix, datastore.ReportPrefix)
	done()
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	b, left := datastore.NewBackup(snap, version, now)
	for _, err := range left {
		a.warn("left out, as it cannot be read: %v", err)
	}
	text, err := b.Encode()
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if file == "-" {
		_, err := a.out.Write(text)
		return err
	}
	if err := datastore.WriteFile(file, text, datastore.FileOptions{}); err != nil {
		return fmt.Errorf("backup %s: not written: %w", file, err)
	}
	cluster := "of no cluster yet"
	if b.Cluster.UUID != "" {
		cluster = "of cluster " + b.Cluster.UUID
	}
	return a.print(fmt.Sprintf("%s: %d objects %s, revision %d.\n", file, len(b.Entries), cluster, b.Revision))
}

// writable says why a file cannot be put there, before the datastore is asked.
func writable(file string) error {
	if file == "-" {
		return nil
	}
	if file == "" {
		return usage("name a file, or - for stdout")
	}
	if st, err := os.Stat(file); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("is no regular file: name a file, or - for stdout")
	}
	dir := filepath.Dir(file)
	switch st, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no folder %s: make it first", dir)
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s is no folder", dir)
	}
	return nil
}
