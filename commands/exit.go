package commands

import (
	"errors"

	"netctl/datastore"
)

// The exit codes, the only table of them.
const (
	exitOK     = 0 // yes, or done
	exitFailed = 1 // failed, or could not tell
	exitUsage  = 2 // the command line is wrong
	exitNo     = 3 // the answer is no
)

// errNo is wrapped by an error that is an answer, not a failure: exit code 3.
// A bare errNo prints nothing, the command has already said it.
var errNo = errors.New("no")

// usageError is a command line that cannot be meant: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// exitCode maps an error to the process's exit code. An error from before the
// command started is one of its flags or arguments.
func (a *app) exitCode(err error) int {
	var usage usageError
	var remote remoteError
	switch {
	case errors.As(err, &remote):
		return remote.exit
	case errors.As(err, &usage), !a.started:
		return exitUsage
	case errors.Is(err, errNo):
		return exitNo
	}
	return exitFailed
}

// oneLine is the error's text as one line; joined errors are set apart by "; ".
func oneLine(err error) string {
	if err.Error() == errNo.Error() {
		return ""
	}
	return datastore.Said(err)
}
