package control

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"netctl/datastore"
)

// Pending is a detach that the agent was not there for, and its file.
type Pending struct {
	Path    string
	Request DetachRequest
	file    fs.FileInfo // as it was read
}

// Stored is when p was stored, by this machine's clock.
func (p Pending) Stored() time.Time { return p.file.ModTime() }

// Since says whether p was stored after t. The file's time lags behind the clock by a tick
// at most; one to come is of a clock that was set back, and tells nothing.
func (p Pending) Since(t time.Time) bool {
	stored := p.Stored()
	return !t.IsZero() && stored.After(t) && !stored.After(time.Now())
}

// Same says whether p is still stored, rather than worked off, or stored anew since.
func (p Pending) Same() bool {
	now, err := os.Lstat(p.Path)
	return err == nil && os.SameFile(now, p.file) && now.ModTime().Equal(p.file.ModTime())
}

// KeepDetach takes what came of a detach: where the agent cannot do it now and will be able to
// later, the request is kept in dir, and later says why.
func KeepDetach(dir string, r DetachRequest, detached error) (later, err error) {
	var e *Error
	if !errors.As(detached, &e) || e.Code != CodeUnavailable && e.Code != CodeDetached {
		return nil, detached
	}
	if err := StorePending(dir, r); err != nil {
		return nil, fmt.Errorf("%w; %w", detached, err)
	}
	return detached, nil
}

// NotRunning says that nobody listens on a role's socket.
func NotRunning(err error) bool {
	var a *absence
	return errors.As(err, &a) && (errors.Is(a.cause, fs.ErrNotExist) || errors.Is(a.cause, syscall.ECONNREFUSED))
}

// StorePending keeps r in dir until the agent works it off: one file, complete
// or not there at all, 0600. There is one for each target, whoever asks.
func StorePending(dir string, r DetachRequest) error {
	target, err := json.Marshal(r.Target)
	if err != nil {
		return fmt.Errorf("pending detach: %w", err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("pending detach: %w", err)
	}
	sum := sha256.Sum256(target)
	path := filepath.Join(dir, hex.EncodeToString(sum[:10])+".json")
	if err := datastore.WriteFile(path, append(text, '\n'), datastore.FileOptions{}); err != nil {
		return fmt.Errorf("pending detach: %w", err)
	}
	return nil
}

// ReadPending returns the stored detaches. A file that cannot be read or parsed
// is reported beside the good ones and left where it is.
func ReadPending(dir string) ([]Pending, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pending detaches: %w", err)
	}
	var (
		all  []Pending
		errs []error
	)
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		p := Pending{Path: filepath.Join(dir, e.Name())}
		if p.Request, p.file, err = readPending(p.Path); err != nil {
			errs = append(errs, fmt.Errorf("pending detach %s: %w", p.Path, err))
			continue
		}
		all = append(all, p)
	}
	return all, errors.Join(errs...)
}

func readPending(path string) (r DetachRequest, file fs.FileInfo, err error) {
	f, err := os.Open(path)
	if err != nil {
		return r, nil, err
	}
	defer f.Close()
	if file, err = f.Stat(); err != nil {
		return r, nil, err
	}
	if err := Decode(io.LimitReader(f, MaxBody), &r); err != nil {
		return r, nil, err
	}
	if r.Orchestrator == "" || r.Workload == "" {
		return r, nil, fmt.Errorf("%w: orchestrator and workload must be set", datastore.ErrInvalid)
	}
	return r, file, nil
}
