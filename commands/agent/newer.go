package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"netctl/datastore"
)

// A newer netctl may write objects that this one must not act on. What was last
// understood of them stays in force, also when the agent starts again: it is kept
// in a file of the state folder, which exists only as long as there are such
// objects.

// understoodFile is its name in the state folder.
const understoodFile = "understood.json"

// recallUnderstood reads the file into the view, before the store is listed.
func (l *loop) recallUnderstood() {
	text, err := l.state.Read(understoodFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var last []datastore.Last
	if err == nil {
		err = json.Unmarshal(text, &last)
	}
	if err != nil {
		l.log.Warn("what was understood of newer objects not read", "file", l.state.Path(understoodFile), "error", err)
		return
	}
	l.view.Recall(last)
}

// noteNewer tells what the view met that only a newer netctl knows, and brings
// the file up to date.
func (l *loop) noteNewer() {
	for _, what := range l.view.Unfamiliar() {
		l.log.Warn("left as it is in the datastore", "what", what)
	}
	last, changed := l.view.Understood()
	if !changed {
		return
	}
	if err := l.writeUnderstood(last); err != nil {
		l.log.Warn("what was understood of newer objects not written", "error", err)
	}
}

func (l *loop) writeUnderstood(last []datastore.Last) error {
	if len(last) == 0 {
		return l.state.Remove(understoodFile)
	}
	text, err := json.MarshalIndent(last, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", understoodFile, err)
	}
	return l.state.Write(understoodFile, append(text, '\n'))
}
