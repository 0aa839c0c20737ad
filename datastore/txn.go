package datastore

import "fmt"

// Check reports whether every Store can take t: at most MaxTxnOps conditions and
// MaxTxnOps operations, no empty key, no key written twice. The error wraps
// ErrInvalid.
func (t Txn) Check() error {
	if len(t.If) > MaxTxnOps || len(t.Then) > MaxTxnOps {
		return fmt.Errorf("transaction of %d conditions and %d operations: more than %d: %w", len(t.If), len(t.Then), MaxTxnOps, ErrInvalid)
	}
	for _, c := range t.If {
		if c.Key == "" {
			return fmt.Errorf("transaction: empty key in a condition: %w", ErrInvalid)
		}
	}
	written := make(map[string]bool, len(t.Then))
	for _, op := range t.Then {
		if op.Key == "" || written[op.Key] {
			return fmt.Errorf("transaction: key %q is empty or written twice: %w", op.Key, ErrInvalid)
		}
		written[op.Key] = true
	}
	return nil
}

// Failed is the error of a Commit whose condition c did not hold because the
// key's last change is revision have (0: it does not exist).
func (c Condition) Failed(have int64) error {
	switch {
	case c.Revision == 0:
		return fmt.Errorf("write %s: %w", c.Key, ErrExists)
	case have == 0:
		return fmt.Errorf("write %s: deleted: %w", c.Key, ErrConflict)
	default:
		return fmt.Errorf("write %s: at revision %d, not %d: %w", c.Key, have, c.Revision, ErrConflict)
	}
}
