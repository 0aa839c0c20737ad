package control

import (
	"context"
	"fmt"
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
