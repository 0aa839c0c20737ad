package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
)

// debt is that flows may be alive which policy denies, since the packet filter was not
// whole. It is on disk before the filter is whole again, where nothing else tells of it,
// and until the flows are cut, by whichever agent. It is of a boot, as flows are.
type debt struct {
	path string // "": in memory alone
	log  *slog.Logger

	mu    sync.Mutex
	there bool
	owing bool // between owe and what follows it
	heir  bool // it is of an agent before, and not handed on
	// handed is the number of the last one handed to who cuts, paid of the last one cut.
	handed, paid int
}

func newDebt(path string, log *slog.Logger) *debt {
	d := &debt{path: path, log: log}
	if path != "" {
		_, err := os.Lstat(path)
		d.there = err == nil
		d.heir = d.there
	}
	return d
}

// owe notes it, until hand or free, and returns whether an agent before left one.
func (d *debt) owe() (heir bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owing = true
	if d.there || d.path == "" {
		return d.heir
	}
	d.there = true
	if err := os.WriteFile(d.path, nil, 0o600); err != nil {
		d.log.Warn("flows that policy denies may outlive this agent", "error", err)
	}
	return d.heir
}

// hand gives it to who cuts flows, under a number for settle.
func (d *debt) hand() (number int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owing, d.heir = false, false
	d.handed++
	return d.handed
}

// free says that the packet filter was whole and denies nothing anew: nothing is owed.
func (d *debt) free() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owing = false
	d.drop()
}

// settle says that the flows are cut, up to a number.
func (d *debt) settle(number int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paid = max(d.paid, number)
	d.drop()
}

// drop takes the file away if nothing is owed.
func (d *debt) drop() {
	if !d.there || d.owing || d.heir || d.paid < d.handed {
		return
	}
	d.there = false
	if err := os.Remove(d.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("flows will be judged once more", "error", err)
	}
}
