package agent

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// nice is the priority that hurry asks for: before what people run, behind what they
// themselves prefer more (setpriority(2)).
const nice = -10

// hurry has the threads of this process, and those that they start, run before what has
// no priority: until a packet filter that is gone is back, nobody on this machine
// reaches anybody, however busy it is. It needs CAP_SYS_NICE, or the priority that is
// asked for (a unit's Nice=). Where the kernel shares processors out by sessions first
// (sched(7), autogroup), that of a process with one of its own is preferred as well.
func hurry() error {
	if leader, err := unix.Getsid(0); err == nil && leader == os.Getpid() {
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(nice)), 0)
	}
	for set := map[string]bool{}; ; {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("priority: %w", err)
		}
		before := len(set)
		for _, t := range threads {
			if set[t.Name()] {
				continue
			}
			set[t.Name()] = true
			id, _ := strconv.Atoi(t.Name())
			if err := unix.Setpriority(unix.PRIO_PROCESS, id, nice); err != nil && err != unix.ESRCH {
				return fmt.Errorf("priority %d: %w", nice, err)
			}
		}
		if len(set) == before {
			return nil // a thread that was started meanwhile has its starter's
		}
	}
}
