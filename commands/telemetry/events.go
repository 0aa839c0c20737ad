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
func readEvents(path string) (list []datastore.Event, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > mostFile {
		if _, err := f.Seek(-mostFile, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, mostFile))
	if err != nil {
		return nil, err
	}
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
		if _, is := roleOf(e.Name()); !is {
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

func roleOf(file string) (string, bool) {
	role, is := strings.CutSuffix(file, ".jsonl")
	return role, is && !strings.HasPrefix(file, ".")
}

// Follow calls fn with the events that Events has, and with further ones as they come,
// until ctx ends (nil) or fn fails.
func Follow(ctx context.Context, stateDir string, fn func([]datastore.Event) error) error {
	list, err := Events(stateDir)
	if err != nil {
		return err
	}
	last := map[string]datastore.Event{} // by role
	for _, e := range list {
		last[e.Role] = e
	}
	if err := fn(list); err != nil {
		return err
	}
	dir := EventsDir(stateDir)
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
			role, is := roleOf(name)
			if !is {
				continue
			}
			list, err := readEvents(filepath.Join(dir, name))
			if errors.Is(err, fs.ErrNotExist) || len(list) == 0 {
				continue
			}
			if err != nil {
				return err
			}
			old, newest := last[role], list[len(list)-1]
			list = slices.DeleteFunc(list, func(e datastore.Event) bool {
				return e.Number <= old.Number && !e.Time.After(old.Time) // a file that was removed begins at 1
			})
			last[role] = newest
			if len(list) == 0 {
				continue
			}
			if err := fn(list); err != nil {
				return err
			}
		}
		return nil
	}})
}
