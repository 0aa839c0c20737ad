package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is a test host on which systemd is the first process: in namespaces of its
// own, with the /usr of this machine, and with /etc, /var, /opt and /usr/local of its
// own, which stay when it boots again; the boot ID is this machine's. What is global to this machine it cannot write.
type Machine struct {
	Name string
	// Dir holds its etc, var, opt and local.
	Dir string
	// Addr is that of its interface eth0.
	Addr netip.Prefix
	// PID is the first process as seen from here.
	PID int

	cgroup string
	ended  chan struct{}
	boots  int
}

// SystemdPath is the program that a Machine boots.
const SystemdPath = "/lib/systemd/systemd"

// bootScript makes the root of a machine and becomes systemd there, once it is told that
// the network is wired.
const bootScript = `set -e
D=$1; N=$2; R=$D/root
mount --make-rprivate /
mount -t tmpfs tmpfs $R
cd $R
mkdir usr etc var proc sys dev run tmp root opt
for l in bin sbin lib lib64; do ln -s usr/$l $l; done
mount --bind /usr usr; mount -o remount,bind,ro usr
for d in etc var opt; do mount --bind $D/$d $d; done
mount --bind $D/local usr/local
mount -t proc proc proc
mount -t sysfs sysfs sys; mount -t cgroup2 cgroup2 sys/fs/cgroup; mount -o remount,bind,ro sys
mount --bind proc/sys proc/sys; mount --bind proc/sys/net proc/sys/net; mount -o remount,bind,ro proc/sys
mount -t tmpfs -o mode=755 tmpfs dev
for n in null zero full random urandom tty; do touch dev/$n; mount --bind /dev/$n dev/$n; done
mkdir dev/shm dev/pts; mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts; ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run; mount -t tmpfs tmpfs tmp; mount -t tmpfs tmpfs root
hostname $N
ip link set lo up
mkdir run/old; pivot_root . run/old
echo ready; read wired
umount -l /run/old; mount --make-rshared /  # as systemd has it on a host: namespaces made later are seen in units
exec env -i container=netctl PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin ` + SystemdPath + ` --log-target=journal </dev/null >/dev/null 2>&1
`

// BootMachine boots a machine and waits until systemd is done with that; it ends with
// the test. peers are wired to it: without one its interface leads to itself.
func BootMachine(t TB, name string, addr netip.Prefix, peer *Machine) *Machine {
	t.Helper()
	m := &Machine{Name: name, Dir: filepath.Join(t.TempDir(), name), Addr: addr}
	for _, d := range []string{"root", "etc", "var", "opt", "local"} {
		if err := os.MkdirAll(filepath.Join(m.Dir, d), 0o755); err != nil {
			t.Fatalf("machine %s: %v", name, err)
		}
	}
	for file, text := range map[string]string{"machine-id": "", "passwd": "root:x:0:0:root:/root:/bin/sh\n", "group": "root:x:0:\n"} {
		if err := os.WriteFile(filepath.Join(m.Dir, "etc", file), []byte(text), 0o644); err != nil {
			t.Fatalf("machine %s: %v", name, err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			journal, _ := m.Run(context.Background(), "journalctl", "--no-pager", "-q", "-u", "netctl-*", "-n", "300")
			t.Logf("--- journal of %s ---\n%s", name, journal)
		}
		m.Cut(t)
	})
	m.Boot(t, peer)
	return m
}

// Boot boots a machine that is off; wired as with BootMachine.
func (m *Machine) Boot(t TB, peer *Machine) {
	t.Helper()
	if err := m.boot(t.Context(), peer); err != nil {
		t.Fatalf("machine %s: %v", m.Name, err)
	}
	Until(t, 2*time.Minute, "boot of "+m.Name, func() string {
		state, _ := m.Run(t.Context(), "systemctl", "is-system-running")
		if state = strings.TrimSpace(state); state != "running" && state != "degraded" {
			return "systemd is " + state
		}
		return ""
	})
}

func (m *Machine) boot(ctx context.Context, peer *Machine) (err error) {
	group, err := m.newCgroup()
	if err != nil {
		return err
	}
	defer group.Close()
	cmd := exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc", "--cgroup", "sh", "-c", bootScript, "sh", m.Dir, m.Name)
	cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd()), Pdeathsig: unix.SIGKILL, Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var said strings.Builder
	cmd.Stderr = &said
	started := make(chan error)
	m.ended = make(chan struct{})
	go func() {
		runtime.LockOSThread() // PDEATHSIG is sent when the thread ends
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(m.ended)
	}()
	if err := <-started; err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
			<-m.ended
			m.PID, err = 0, errors.Join(err, removeCgroup(m.cgroup))
		}
	}()
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("not made: %w: %s", err, said.String())
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	if err == nil {
		m.PID, err = strconv.Atoi(strings.TrimSpace(string(children)))
	}
	if err != nil {
		return fmt.Errorf("first process: %w", err)
	}
	m.boots++
	if err := m.wire(ctx, peer); err != nil {
		return err
	}
	_, err = io.WriteString(in, "wired\n")
	return err
}

// wire gives the machine its interface, and the peer one whose other end that is.
func (m *Machine) wire(ctx context.Context, peer *Machine) error {
	other, at := "lan0", m
	if peer != nil {
		other, at = "eth0", peer
		if _, err := m.in(ctx, peer.PID, "-n", "ip", "link", "delete", "eth0"); err != nil {
			return err
		}
	}
	script := fmt.Sprintf("ip link add eth0 type veth peer name %s netns %d; ip address add %s dev eth0; ip link set eth0 up", other, at.PID, m.Addr)
	if _, err := m.in(ctx, m.PID, "-n", "sh", "-ec", script); err != nil {
		return err
	}
	script = "ip link set " + other + " up"
	if peer != nil {
		script += fmt.Sprintf("; ip address add %s dev eth0", peer.Addr)
	}
	_, err := m.in(ctx, at.PID, "-n", "sh", "-ec", script)
	return err
}

// in runs a command in namespaces of a process.
func (m *Machine) in(ctx context.Context, pid int, which string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(pid), which, "--"}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %s: %w: %s", m.Name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return string(out), nil
}

// Run runs a command on the machine and returns what it wrote to stdout; an error has
// what it wrote to stderr.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	return m.in(ctx, m.PID, "-a", args...)
}

// Must is Run of a command that must succeed, within two minutes.
func (m *Machine) Must(t TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := m.Run(ctx, args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// Do implements Place, with the machine's network alone.
func (m *Machine) Do(fn func() error) error { return m.DoIn("", fn) }

// DoIn runs fn on a thread in a network namespace that a file of the machine names
// ("": its own);// nothing else of the machine is the thread's.
func (m *Machine) DoIn(netns string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		at := fmt.Sprintf("/proc/%d/ns/net", m.PID)
		if netns != "" {
			at = fmt.Sprintf("/proc/%d/root%s", m.PID, netns)
		}
		fd, err := unix.Open(at, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// Exec implements Place.
func (m *Machine) Exec(ctx context.Context, c Cmd) (string, error) {
	return m.Run(ctx, append([]string{"env"}, append(c.Env, c.Args...)...)...)
}

// Ended waits until the machine is off, as after `systemctl poweroff`.
func (m *Machine) Ended(t TB) {
	t.Helper()
	select {
	case <-m.ended:
	case <-time.After(2 * time.Minute):
		t.Fatalf("machine %s does not end", m.Name)
	}
	m.PID = 0
	if err := removeCgroup(m.cgroup); err != nil {
		t.Errorf("machine %s: %v", m.Name, err)
	}
}

// Cut takes the power away.
func (m *Machine) Cut(t TB) {
	t.Helper()
	if m.PID == 0 {
		return
	}
	_ = unix.Kill(m.PID, unix.SIGKILL)
	m.Ended(t)
}

// newCgroup makes the control group of a machine, in the unified hierarchy, and opens it.
func (m *Machine) newCgroup() (*os.File, error) {
	top := ""
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			top = f[1]
			break
		}
	}
	if top == "" {
		return nil, errors.New("control groups: no unified hierarchy is mounted")
	}
	m.cgroup = filepath.Join(top, fmt.Sprintf("netctl-%s-%d-%d", m.Name, os.Getpid(), m.boots))
	if err := os.Mkdir(m.cgroup, 0o755); err != nil {
		return nil, err
	}
	return os.Open(m.cgroup)
}

// removeCgroup removes a control group with those below it.
func removeCgroup(dir string) error {
	for end := time.Now().Add(30 * time.Second); ; pause(10 * time.Millisecond) {
		var below []string
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				below = append(below, path)
			}
			return nil
		})
		for i := len(below) - 1; i >= 0; i-- {
			_ = os.Remove(below[i])
		}
		if _, err := os.Stat(dir); os.IsNotExist(err) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("control group %s stays", dir)
		}
	}
}
