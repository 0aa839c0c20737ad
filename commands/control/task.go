package control

import (
	"context"
	"fmt"
	"os"
	"strconv"
)

// Task is one of the parts that make up a role: it runs until ctx ends. A role has
// one list of them, which is also what its tests run.
type Task struct {
	Name string
	Do   func(ctx context.Context) error
}

// String names the task.
func (t Task) String() string { return t.Name }

// Run runs the task; its error names it.
func (t Task) Run(ctx context.Context) error {
	if err := t.Do(ctx); err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	return nil
}

// SyncedVariable is the environment variable in which netctl node gives a role the
// number of the descriptor on which it says that it is in sync.
const SyncedVariable = "NETCTL_SYNCED"

// TellSynced tells netctl node, if that started this process, that the role is in
// sync: then it is started again soon when it ends. It may be told once.
func TellSynced() {
	fd, err := strconv.Atoi(os.Getenv(SyncedVariable))
	if err != nil || os.Getenv(SupervisorVariable) != strconv.Itoa(os.Getppid()) {
		return
	}
	f := os.NewFile(uintptr(fd), "supervisor")
	_, _ = f.Write([]byte{1}) // that it has ended is its affair
	_ = f.Close()
}
