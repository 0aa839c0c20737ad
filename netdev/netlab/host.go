package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is one machine of a lab.
type Host struct {
	Name string `json:"name"`
	// PID is the anchor's, Began its start in clock ticks since the boot; Netns and
	// Mount are the inodes of its namespaces.
	PID   int    `json:"pid"`
	Began string `json:"began"`
	Netns uint64 `json:"netns"`
	Mount uint64 `json:"mount"`
	// Main is the address of eth0, where the default route leads; Addr and Addr6
	// are those of eth1, with their prefix lengths. Addr6 is the second one, if any: in
	// a lab of IPv6 only, Addr is an IPv6 address.
	Main  netip.Prefix `json:"main,omitzero"`
	Addr  netip.Prefix `json:"addr,omitzero"`
	Addr6 netip.Prefix `json:"addr6,omitzero"`

	lab    *Lab
	anchor *exec.Cmd
	hold   *os.File // while it is open, an anchor that does not persist lives
	work   chan func()
	gone   *sync.Once
}

// Dir is the host's folder; the private places lie in it under their own path.
func (h *Host) Dir() string { return filepath.Join(h.lab.Dir, h.Name) }

// Path is where a private place of the host is seen from outside.
func (h *Host) Path(place string) string { return filepath.Join(h.Dir(), place) }

// NetnsPath is the host's network namespace for a program that opens one.
func (h *Host) NetnsPath() string { return fmt.Sprintf("/proc/%d/ns/net", h.PID) }

// Alive reports whether the anchor is still the one that was started.
func (h *Host) Alive() bool {
	ino, err := inode(h.NetnsPath())
	return err == nil && ino == h.Netns && stat(h.PID, 19) == h.Began
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Ino, err
}

// newHost starts an anchor in namespaces of its own. One that does not persist
// reads a pipe that this process holds open, and so ends with it, however that
// happens.
func (l *Lab) newHost(name string) (*Host, error) {
	h := &Host{Name: name, lab: l}
	if err := os.MkdirAll(h.Dir(), 0o700); err != nil {
		return nil, err
	}
	cmd := exec.Command("sleep", "infinity")
	var theirs *os.File
	if !l.persist {
		var err error
		if theirs, h.hold, err = os.Pipe(); err != nil {
			return nil, err
		}
		defer theirs.Close()
		cmd = exec.Command("cat")
		cmd.Stdin = theirs
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: start in new namespaces: %w", name, err)
	}
	h.anchor, h.PID = cmd, cmd.Process.Pid
	var err error
	if h.Netns, err = inode(h.NetnsPath()); err == nil {
		h.Mount, err = inode(fmt.Sprintf("/proc/%d/ns/mnt", h.PID))
	}
	h.Began = stat(h.PID, 19)
	if err == nil {
		err = h.enter()
	}
	if err == nil {
		err = h.Do(func() error {
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
				return fmt.Errorf("mounts: %w", err)
			}
			return unix.Sethostname([]byte(name))
		})
	}
	if err != nil {
		h.leave()
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), h.end())
	}
	return h, nil
}

// enter starts the thread that lives in the host and does everything there: a
// namespace belongs to a thread.
func (h *Host) enter() error {
	h.work, h.gone = make(chan func()), &sync.Once{}
	entered := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := setns(h.PID)
		entered <- err
		if err != nil {
			return
		}
		for fn := range h.work {
			fn()
		}
	}()
	return <-entered
}

// setns takes the calling thread, which must never be used for anything else,
// into all namespaces of a process.
func setns(pid int) error {
	// A thread that shares its root and working folder cannot change mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("enter host: %w", err)
	}
	for _, ns := range []struct {
		name string
		kind int
	}{{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"mnt", unix.CLONE_NEWNS}} {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, ns.kind)
			_ = unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("enter host: %s namespace: %w", ns.name, err)
		}
	}
	return nil
}

// Do runs fn on a thread in the host's namespaces, one call at a time. fn must
// not wait for another Do of the same host.
func (h *Host) Do(fn func() error) error {
	if h.work == nil {
		return fmt.Errorf("host %s: its anchor process %d has ended", h.Name, h.PID)
	}
	done := make(chan error, 1)
	h.work <- func() { done <- fn() }
	return <-done
}

// leave ends the host's thread.
func (h *Host) leave() {
	if h.gone != nil {
		h.gone.Do(func() { close(h.work) })
		h.work = nil
	}
}

// end kills everything that runs in the host's namespaces, the anchor last.
func (h *Host) end() error {
	if h.PID == 0 {
		return nil
	}
	deadline := time.Now().Add(10 * time.Second)
	for h.Alive() {
		others, err := h.processes()
		if err != nil {
			return err
		}
		for _, pid := range others {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if len(others) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("host %s: processes %v do not end", h.Name, others)
		}
		pause(2 * time.Millisecond)
	}
	if h.hold != nil {
		_ = h.hold.Close()
	}
	if h.anchor != nil {
		_ = h.anchor.Process.Kill()
		_ = h.anchor.Wait()
	} else if h.Alive() {
		_ = unix.Kill(h.PID, unix.SIGKILL)
	}
	for h.Alive() && time.Now().Before(deadline) {
		pause(2 * time.Millisecond)
	}
	h.PID = 0
	return nil
}

// pause is how long a poll waits; it does not need a timer of the runtime.
func pause(d time.Duration) { <-time.After(d) }

// processes lists the processes, but for the anchor, in the host's network or
// mount namespace.
func (h *Host) processes() ([]int, error) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == h.PID || pid == os.Getpid() {
			continue
		}
		net, _ := inode(fmt.Sprintf("/proc/%d/ns/net", pid))
		mnt, _ := inode(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if (net == h.Netns || mnt == h.Mount) && !zombie(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Find lists the processes on the host that were started as name, as in argv[0]
// without its folder.
func (h *Host) Find(name string) ([]int, error) {
	pids, err := h.processes()
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	return slices.DeleteFunc(pids, func(pid int) bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		argv0, _, _ := strings.Cut(string(b), "\x00")
		return err != nil || filepath.Base(argv0) != name
	}), nil
}

// zombie reports whether a process has ended and at most waits for its parent.
func zombie(pid int) bool {
	state := stat(pid, 0)
	return state == "" || state == "Z"
}

// stat is a field of /proc/<pid>/stat (proc_pid_stat(5)), counted from the state;
// "" if there is no such process.
func stat(pid, field int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	text := string(b)
	fields := strings.Fields(text[strings.LastIndex(text, ")")+1:])
	if field >= len(fields) {
		return ""
	}
	return fields[field]
}
