package doctor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

// Bounds of what is read and waited for.
const (
	maxFile    = 1 << 20 // bytes
	runTime    = 10 * time.Second
	dockerTime = 3 * time.Second
	dockerSock = "/run/docker.sock"
)

// machine is the Host that this process runs on, in its network namespace.
type machine struct {
	log    *slog.Logger
	kernel *kernel.Kernel
	netns  string // as /proc/<pid>/ns/net tells it
}

// Open returns the machine that this process runs on, in the network namespace of the
// calling thread. It changes nothing. Close releases it. The error wraps os.ErrPermission
// where the privilege is missing.
func Open(log *slog.Logger) (_ Host, closer func() error, err error) {
	k, err := kernel.Open(log)
	if err != nil {
		return nil, nil, err
	}
	ns, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return nil, nil, errors.Join(err, k.Close())
	}
	return &machine{log: log, kernel: k, netns: ns}, k.Close, nil
}

func (m *machine) Read(name string) (string, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO does not hold it up
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}

func (m *machine) Names(pattern string) ([]string, error) {
	list, err := filepath.Glob(pattern)
	slices.Sort(list)
	return list, err
}

func (m *machine) Write(name, text string) error {
	if strings.HasPrefix(name, "/proc/") {
		return os.WriteFile(name, []byte(text), 0)
	}
	// Services that are not root's read these folders too.
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return datastore.WriteFile(name, []byte(text), datastore.FileOptions{Mode: 0o644})
}

func (m *machine) Writable(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func (m *machine) Processes() (list []Process, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != m.netns {
			continue // it ended, or is elsewhere
		}
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		p := Process{PID: pid}
		argv0, _, _ := strings.Cut(string(cmdline), "\x00")
		if p.Name = filepath.Base(argv0); argv0 == "" {
			comm, _ := os.ReadFile(dir + "/comm")
			p.Name = strings.TrimSpace(string(comm))
		}
		if strings.HasPrefix(p.Name, "netctl") {
			open, _ := os.ReadDir(dir + "/fd")
			p.Files = len(open)
			var limit unix.Rlimit
			if unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit) == nil {
				p.MostFiles = int(min(limit.Cur, 1<<30))
			}
		}
		list = append(list, p)
	}
	return list, nil
}

func (m *machine) Sockets() (list []Socket, err error) {
	byInode := map[string]int{}
	for _, file := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a family that the kernel lacks
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(bytes.NewReader(text))
		for lines.Scan() {
			// proc_pid_net(5): sl local_address rem_address st … inode in the tenth
			f := strings.Fields(lines.Text())
			udp := strings.HasPrefix(file, "udp")
			const listens, unconnected = "0A", "07"
			if len(f) < 10 || !udp && f[3] != listens || udp && f[3] != unconnected {
				continue
			}
			addr, err := procAddr(f[1])
			if err != nil {
				continue // the heading
			}
			if f[9] != "0" {
				byInode[f[9]] = len(list)
			}
			list = append(list, Socket{UDP: udp, Addr: addr})
		}
	}
	processes, err := m.Processes()
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		dir := fmt.Sprintf("/proc/%d/fd", p.PID)
		open, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range open {
			to, err := os.Readlink(filepath.Join(dir, e.Name()))
			inode, is := strings.CutPrefix(to, "socket:[")
			if err != nil || !is {
				continue
			}
			if i, ok := byInode[strings.TrimSuffix(inode, "]")]; ok {
				list[i].PID, list[i].Name = p.PID, p.Name
			}
		}
	}
	return list, nil
}

// procAddr reads an address as proc_pid_net(5) has it: words in the machine's order, in
// hex, and the port.
func procAddr(text string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	if err != nil || !ok || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	for i := 0; i+3 < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	addr, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

func (m *machine) Run(ctx context.Context, program string, args ...string) (string, error) {
	file, err := exec.LookPath(program)
	if err != nil {
		return "", fs.ErrNotExist
	}
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, file, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("no answer within %s", runTime)
	case errors.As(err, &exit) && len(exit.Stderr) > 0:
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

// Docker asks by its API, which every user of the socket has: no program of its is needed.
func (m *machine) Docker(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dockerTime)
	defer cancel()
	if _, err := os.Stat(dockerSock); err != nil {
		return "", fs.ErrNotExist
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", dockerSock)
	if errors.Is(err, unix.ECONNREFUSED) {
		return "", fs.ErrNotExist // it ended, and left its socket
	}
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end)
	}
	if _, err := io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var v struct{ Version string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxFile)).Decode(&v); err != nil || v.Version == "" {
		return "", fmt.Errorf("%s: HTTP status %d without a version", dockerSock, resp.StatusCode)
	}
	return v.Version, nil
}

func (m *machine) Disk(dir string) (Disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Disk{}, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	unit := uint64(st.Bsize)
	const readOnly = 1 // ST_RDONLY
	return Disk{Free: st.Bfree * unit, Size: st.Blocks * unit, FreeFiles: st.Ffree, Files: st.Files, ReadOnly: st.Flags&readOnly != 0}, nil
}

// How Sync writes: as etcd's log does, entries one behind the other, each with
// fdatasync(2), into room that is there already.
const (
	syncs     = 50
	syncBytes = 2300
	syncTime  = 10 * time.Second
)

func (m *machine) Sync(ctx context.Context, dir string) (Timing, error) {
	f, err := os.CreateTemp(dir, ".netctl-sync-*")
	if err != nil {
		return Timing{}, err
	}
	defer func() {
		_ = f.Close()
		_ = os.Remove(f.Name())
	}()
	if _, err := f.Write(make([]byte, syncs*syncBytes)); err != nil {
		return Timing{}, err
	}
	if err := f.Sync(); err != nil {
		return Timing{}, err
	}
	entry := bytes.Repeat([]byte{0x6e}, syncBytes)
	var took []time.Duration
	for began := time.Now(); len(took) < syncs && (len(took) < 3 || time.Since(began) < syncTime); {
		if ctx.Err() != nil {
			return Timing{}, ctx.Err()
		}
		start := time.Now()
		if _, err := f.WriteAt(entry, int64(len(took)*syncBytes)); err != nil {
			return Timing{}, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return Timing{}, err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return Timing{Median: took[len(took)/2], Worst: took[len(took)-1]}, nil
}

func (m *machine) Watches() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, "/", unix.IN_DELETE_SELF)
	return err
}

func (m *machine) Now() time.Time { return time.Now() }
