package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
	if a.caller != nil && file != "-" {
		return usage("over the API a backup is written to -: the answer's output")
	}
	if err := writable(file); err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSpace("backup "+file), err)
	}
	m, text, err := a.makeBackup(ctx, now)
	if err != nil {
		return err
	}
	if file == "-" {
		_, err := a.out.Write(text)
		return err
	}
	if err := datastore.WriteFile(file, text, datastore.FileOptions{}); err != nil {
		return fmt.Errorf("backup %s: not written: %w", file, err)
	}
	cluster := "of no cluster yet"
	if m.cluster != "" {
		cluster = "of cluster " + m.cluster
	}
	return a.print(fmt.Sprintf("%s: %d objects %s, revision %d.\n", file, m.objects, cluster, m.revision))
}

// madeBackup is what is said of a backup.
type madeBackup struct {
	cluster  string
	objects  int
	revision int64
}

// makeBackup reads everything, and is its text.
func (a *app) makeBackup(ctx context.Context, now time.Time) (m madeBackup, text []byte, err error) {
	c, err := a.api()
	if err != nil {
		return m, nil, err
	}
	if c != nil {
		if text, err = a.remoteBackup(ctx, c); err == nil {
			m, err = readBackup(text)
		}
		return m, text, err
	}
	store, err := a.store(ctx)
	if err != nil {
		return m, nil, err
	}
	done := a.waiting("the datastore")
	snap, err := store.List(ctx, datastore.Prefix, datastore.ReportPrefix)
	done()
	if err != nil {
		return m, nil, fmt.Errorf("backup: %w", err)
	}
	b, left := datastore.NewBackup(snap, version, now)
	for _, err := range left {
		a.warn("left out, as it cannot be read: %v", err)
	}
	if text, err = b.Encode(); err != nil {
		return m, nil, fmt.Errorf("backup: %w", err)
	}
	return madeBackup{b.Cluster.UUID, len(b.Entries), b.Revision}, text, nil
}

// readBackup reads the first and the last line of a backup, which may be for a newer netctl.
func readBackup(text []byte) (m madeBackup, err error) {
	var head struct {
		Cluster  datastore.Cluster `json:"cluster"`
		Revision int64             `json:"revision"`
	}
	var tail struct {
		Objects *int `json:"objects"`
	}
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	if err = json.Unmarshal(lines[0], &head); err == nil {
		err = json.Unmarshal(lines[len(lines)-1], &tail)
	}
	if err != nil || tail.Objects == nil {
		return m, fmt.Errorf("backup: the API's answer is none, or was cut short: %w", datastore.ErrInvalid)
	}
	return madeBackup{head.Cluster.UUID, *tail.Objects, head.Revision}, nil
}

// writable says why a file cannot be put there, before the datastore is asked.
func writable(file string) error {
	if file == "-" {
		return nil
	}
	if file == "" {
		return usage("the file has no name: give one, or - for stdout")
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
