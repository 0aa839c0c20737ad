package speaker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"netctl/commands/control"
	"netctl/routing"
)

// lastRunFile is the name of the file in the state folder.
const lastRunFile = "speaker.json"

// lastRun is speaker.json: what the speaker last ran with.
type lastRun struct {
	// Boot is the boot ID of that run: routes of another boot are gone.
	Boot string       `json:"boot"`
	Plan routing.Plan `json:"plan"`
	// Ends are the links that a neighbour was found on.
	Ends []routing.End `json:"ends,omitempty"`
}

// recall reads the file; the zero value if there is none.
func recall(path string) (lastRun, error) {
	var m lastRun
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return lastRun{}, fmt.Errorf("read %s: %w", path, err)
	}
	return m, nil
}

// remember replaces the file (0600) as a whole, so that a reader and a crash
// find the old or the new one.
func remember(kept *control.Kept, m lastRun) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = kept.Write(lastRunFile, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", kept.Path(lastRunFile), err)
	}
	return nil
}

// readHost reads this machine's ID, which its agent made; "" if there is none yet.
func readHost(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read host ID: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
