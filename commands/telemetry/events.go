package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"netctl/commands/control"
	"netctl/datastore"
)

// mostFile bounds what is read of a file of events, in bytes: its end.
const mostFile = 4 << 20

// readEvents reads a file of events. A line that is none is left out: a process that is
// killed leaves half of one.
func readEvents(path string) ([]datastore.Event, error) { return new(tail).read(path) }

// tail is how far a file of events was read.
type tail struct {
	file os.FileInfo
	at   int64 // after the last whole line
}

// read reads what came since: everything if the file is another one now.
func (t *tail) read(path string) (list []datastore.Event, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if t.file == nil || !os.SameFile(t.file, now) || now.Size() < t.at {
		t.at = 0
	}
	t.file, t.at = now, max(t.at, now.Size()-mostFile)
	text, err := io.ReadAll(io.NewSectionReader(f, t.at, mostFile))
	if err != nil {
		return nil, err
	}
	t.at += int64(bytes.LastIndexByte(text, '\n') + 1)
	for line := range bytes.Lines(text) {
		var e datastore.Event
		if json.Unmarshal(line, &e) == nil && e.Kind != "" {
			list = append(list, e)
		}
	}
	return list, nil
}

// Events are those that the roles of a node have kept in its state folder, the oldest
// first. That no role ever ran here is ErrNotFound.
func Events(stateDir string) ([]datastore.Event, error) {
	dir := EventsDir(stateDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("events: no role of netctl has run here with the state folder %s: %w", stateDir, datastore.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	var all []datastore.Event
	for _, e := range entries {
		if !isEvents(e.Name()) {
			continue
		}
		list, err := readEvents(filepath.Join(dir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("events: %w", err)
		}
		all = append(all, list...)
	}
	slices.SortStableFunc(all, func(a, b datastore.Event) int { return a.Time.Compare(b.Time) })
	return all, nil
}

// isEvents says whether a file is a role's.
func isEvents(file string) bool {
	return strings.HasSuffix(file, ".jsonl") && !strings.HasPrefix(file, ".")
}

// Follow calls fn with the events that Events has, and with further ones as they come,
// until ctx ends (nil) or fn fails.
func Follow(ctx context.Context, stateDir string, fn func([]datastore.Event) error) error {
	list, err := Events(stateDir)
	if err != nil {
		return err
	}
	seen := seen{}
	if err := seen.tell(list, fn); err != nil {
		return err
	}
	dir := EventsDir(stateDir)
	tails := map[string]*tail{}
	return control.WatchFolders(ctx, slog.New(slog.DiscardHandler), control.Folder{Dir: dir, Look: func(name string) error {
		names := []string{name}
		if name == "" {
			names = nil
			entries, err := os.ReadDir(dir)
			if err != nil {
				return err
			}
			for _, e := range entries {
				names = append(names, e.Name())
			}
		}
		for _, name := range names {
			if !isEvents(name) {
				continue
			}
			if tails[name] == nil {
				tails[name] = new(tail)
			}
			list, err := tails[name].read(filepath.Join(dir, name))
			if errors.Is(err, fs.ErrNotExist) {
				delete(tails, name)
				continue
			}
			if err != nil {
				return err
			}
			if err := seen.tell(list, fn); err != nil {
				return err
			}
		}
		return nil
	}})
}

// seen is the last event of each role of each node that was told of.
type seen map[[2]string]datastore.Event

// tell calls fn with those of a list that come after what was told before, if there are
// any.
func (s seen) tell(list []datastore.Event, fn func([]datastore.Event) error) error {
	var fresh []datastore.Event
	next := maps.Clone(s)
	for _, e := range list {
		role := [2]string{e.Node, e.Role}
		if old := s[role]; e.Number > old.Number || e.Time.After(old.Time) { // a file that was removed begins at 1
			fresh = append(fresh, e)
		}
		next[role] = e
	}
	maps.Copy(s, next)
	if len(fresh) == 0 {
		return nil
	}
	return fn(fresh)
}
