package agent

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watchPending calls fn whenever a plugin has stored a detach that the agent was
// not there for, until ctx ends (inotify(7)).
func watchPending(ctx context.Context, dir string, fn func()) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pending detaches: %w", err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO); err != nil {
		f.Close()
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer func() {
		if stop() {
			f.Close()
		}
	}()
	buf := make([]byte, 4096)
	for {
		if _, err := f.Read(buf); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		fn()
	}
}
