package datastore

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
)

// become turns this process into a program, with the same arguments and environment, and
// for the same supervisor. It returns only if that fails.
func become(program string) error {
	// The signal that a supervisor set for its own end belongs to the first thread,
	// and this one takes its place.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	supervisor := os.Getenv(control.SupervisorVariable)
	if supervisor == strconv.Itoa(os.Getppid()) {
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
			return fmt.Errorf("end with the supervisor: %w", err)
		}
		if supervisor != strconv.Itoa(os.Getppid()) {
			return errors.New("the supervisor ended")
		}
		if fd, err := strconv.Atoi(os.Getenv(control.SyncedVariable)); err == nil {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
				return fmt.Errorf("the supervisor's descriptor: %w", err)
			}
		}
	}
	return unix.Exec(program, os.Args, os.Environ())
}
