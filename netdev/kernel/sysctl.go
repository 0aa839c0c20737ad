package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// sysctls reads and writes /proc/sys/net of the namespace it was opened in. The
// kernel looks the namespace up when a path is walked, by the walking thread, so
// the folders below net are opened once: what is opened under them is theirs,
// whatever thread asks.
type sysctls struct {
	dirs    map[string]int // "ipv4/conf" → O_PATH descriptor
	netstat *os.File
}

// openSysctls must be called on a thread in the namespace that is meant. A
// family that the kernel lacks has no folders.
func openSysctls() (*sysctls, error) {
	s := &sysctls{dirs: map[string]int{}}
	for _, dir := range []string{"ipv4", "ipv4/conf", "ipv4/neigh", "ipv6/conf"} {
		fd, err := unix.Open("/proc/sys/net/"+dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) && dir == "ipv6/conf" {
			continue
		}
		if err != nil {
			_ = s.close()
			return nil, fmt.Errorf("open /proc/sys/net/%s: %w", dir, err)
		}
		s.dirs[dir] = fd
	}
	var err error
	if s.netstat, err = os.Open("/proc/thread-self/net/netstat"); err != nil {
		_ = s.close()
		return nil, err
	}
	return s, nil
}

func (s *sysctls) close() error {
	var errs []error
	for _, fd := range s.dirs {
		errs = append(errs, unix.Close(fd))
	}
	if s.netstat != nil {
		errs = append(errs, s.netstat.Close())
	}
	return errors.Join(errs...)
}

// open opens a setting; dir is one of the folders, name is relative to it.
func (s *sysctls) open(dir, name string, flags int) (int, error) {
	at, ok := s.dirs[dir]
	if !ok {
		return -1, os.ErrNotExist
	}
	return unix.Openat(at, name, flags|unix.O_CLOEXEC, 0)
}

func (s *sysctls) read(dir, name string) (string, error) {
	fd, err := s.open(dir, name, unix.O_RDONLY)
	if err != nil {
		return "", fmt.Errorf("read net/%s/%s: %w", dir, name, err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 64)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "", fmt.Errorf("read net/%s/%s: %w", dir, name, err)
	}
	return string(bytes.TrimSpace(buf[:n])), nil
}

func (s *sysctls) write(dir, name, value string) error {
	fd, err := s.open(dir, name, unix.O_WRONLY)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		_ = unix.Close(fd)
	}
	if errors.Is(err, unix.EROFS) {
		err = fmt.Errorf("%w: /proc/sys must be writable for netctl", err)
	}
	if err != nil {
		return fmt.Errorf("set net/%s/%s=%s: %w", dir, name, value, err)
	}
	return nil
}

type setting struct{ dir, name, value string }

// hostSettings are what the host side of a wire needs before it goes up. rp_filter
// is left alone: anti-spoofing is the packet filter's.
func hostSettings(w Wire) []setting {
	var list []setting
	if w.has(true) {
		list = append(list,
			setting{"ipv4/conf", "proxy_arp", "1"},
			setting{"ipv4/conf", "forwarding", "1"},
			setting{"ipv4/neigh", "proxy_delay", "0"})
	}
	list = append(list,
		setting{"ipv6/conf", "accept_ra", "0"},
		setting{"ipv6/conf", "accept_dad", "0"},
		setting{"ipv6/conf", "dad_transmits", "0"})
	if w.has(false) {
		list = append(list,
			// The link-local address must be the one that follows from the MAC.
			setting{"ipv6/conf", "addr_gen_mode", "0"},
			setting{"ipv6/conf", "disable_ipv6", "0"})
	}
	return list
}

// foreignNames lists the folders of dir, which are interfaces, but for "all" and
// "default" and those in ours.
func (s *sysctls) foreignNames(dir string, ours map[string]bool) ([]string, error) {
	fd, err := s.open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("list net/%s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list net/%s: %w", dir, err)
	}
	var foreign []string
	for _, n := range names {
		if n != "all" && n != "default" && n != "lo" && !ours[n] {
			foreign = append(foreign, n)
		}
	}
	return foreign, nil
}

// Forwarding4 switches IPv4 forwarding of the host on and says whether it was off;
// the old and the new value are logged.
func (k *Kernel) Forwarding4() (was bool, err error) { return k.set("ipv4", "ip_forward", "1") }

// Forwarding4By has the interface of an index forward the IPv4 packets that come in by it,
// and says whether it did not; the old and the new value are logged. One that is not there
// is no error.
func (k *Kernel) Forwarding4By(index int) (was bool, err error) {
	l, err := k.link(index, "")
	if err == nil {
		was, err = k.set("ipv4/conf", l.Name+"/forwarding", "1")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return was, err
}

// Loopback sets lo up, which the gateway's route needs, and says whether it was
// down.
func (k *Kernel) Loopback() (was bool, err error) {
	const loopback = 1
	l, err := k.link(loopback, "")
	if err == nil && !l.Up {
		was, err = true, k.host.LinkSetUp(device(loopback))
	}
	if err != nil {
		return was, fmt.Errorf("set lo up: %w", cause(err))
	}
	return was, nil
}

// Forwarding6 switches IPv6 forwarding on and says whether it was off. A kernel that forwards
// takes router advertisements only where accept_ra is 2 (networking/ip-sysctl,
// accept_ra), so foreign interfaces with 1 get that first: the host keeps its own
// default route. Interfaces that appear later have 1 again: call it for them.
func (k *Kernel) Forwarding6() (was bool, err error) {
	links, err := k.links()
	if err != nil {
		return false, fmt.Errorf("ipv6 forwarding: %w", err)
	}
	ours := map[string]bool{}
	for _, l := range links {
		ours[l.Name] = l.group == netdev.Group || l.group == netdev.GroupRetired || l.group == netdev.GroupShaper
	}
	names, err := k.sys.foreignNames("ipv6/conf", ours)
	if err != nil {
		return false, fmt.Errorf("ipv6 forwarding: %w", err)
	}
	for _, n := range names {
		v, err := k.sys.read("ipv6/conf", n+"/accept_ra")
		if err == nil && v == "1" {
			_, err = k.set("ipv6/conf", n+"/accept_ra", "2")
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // else gone meanwhile
			return false, fmt.Errorf("ipv6 forwarding: %w", err)
		}
	}
	return k.set("ipv6/conf", "all/forwarding", "1")
}

// IPv6Off names the setting that keeps IPv6 addresses off an interface; "": none does.
func (k *Kernel) IPv6Off(link string) string {
	off := func(name string) bool {
		v, err := k.sys.read("ipv6/conf", name+"/disable_ipv6")
		return err == nil && v == "1"
	}
	switch {
	case link != "" && !off(link): // that of all is copied when it is written
		return ""
	case off("all"):
		link = "all"
	case link == "":
		return ""
	}
	return "net.ipv6.conf." + link + ".disable_ipv6"
}

// set writes a host-wide setting unless it has that value, and logs the change.
func (k *Kernel) set(dir, name, value string) (changed bool, err error) {
	old, err := k.sys.read(dir, name)
	if err != nil || old == value {
		return false, err
	}
	if err := k.sys.write(dir, name, value); err != nil {
		return false, err
	}
	k.log.Info("host setting changed", "setting", "net/"+dir+"/"+name, "old", old, "new", value)
	return true, nil
}

// enableIPv6 makes sure that the interface inside the namespace takes IPv6
// addresses: container runtimes switch the family off by default.
func enableIPv6(netns int, link string) error {
	return inNetns(netns, func() error {
		file := "/proc/sys/net/ipv6/conf/" + link + "/disable_ipv6"
		old, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("ipv6: the kernel has it switched off (ipv6.disable=1)")
		}
		if err != nil {
			return fmt.Errorf("ipv6: %w", err)
		}
		if strings.TrimSpace(string(old)) == "0" {
			return nil
		}
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			return fmt.Errorf("ipv6: %w", err)
		}
		return nil
	})
}
