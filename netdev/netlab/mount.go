package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const netnsFolder = "/run/netns"

// places are the files and folders that every host has for itself; a name that
// ends in a slash is a folder.
func places() []string {
	return []string{
		"/etc/netctl.yaml", "/etc/cni/net.d/", "/etc/iproute2/rt_protos.d/",
		"/var/lib/netctl-node/", "/var/lib/cni/", "/opt/cni/bin/",
	}
}

const routeProtocols = "87\tnetctl\n88\tnetctl-bgp\n"

// toolFolder is where netctl is found in a host, first in its PATH.
const toolFolder = "/run/netctl-lab"

// furnish gives the host its own places, its own /run (but for /run/netns) and a
// /sys that shows its own interfaces.
func (h *Host) furnish(binary string) error {
	for _, p := range places() {
		if err := makePlace(h.Path(p), p); err != nil {
			return err
		}
	}
	for _, d := range []string{"run/netns", "run/lock", "run/netctl-node", toolFolder, "sys"} {
		if err := os.MkdirAll(h.Path(d), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(h.Path("/etc/iproute2/rt_protos.d/netctl.conf"), []byte(routeProtocols), 0o644); err != nil {
		return err
	}
	if binary != "" {
		for _, link := range []string{"/opt/cni/bin/netctl", toolFolder + "/netctl"} {
			if err := os.Symlink(binary, h.Path(link)); err != nil {
				return err
			}
		}
	}
	return h.Do(h.mountAll)
}

// mountAll runs in the host. It names the host's folder by a descriptor, since an
// overlay may cover the path.
func (h *Host) mountAll() error {
	dir, err := os.Open(h.Dir())
	if err != nil {
		return err
	}
	defer dir.Close()
	own := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	for _, p := range places() {
		if err := target(own, p); err != nil {
			return err
		}
	}
	for _, p := range places() {
		if err := bind(own+p, p); err != nil {
			return err
		}
	}
	return errors.Join(mountSys(own+"/sys"), mountRun(own+"/run"))
}

// makePlace makes the file or folder with the given path; like says which.
func makePlace(path, like string) error {
	if strings.HasSuffix(like, "/") {
		return os.MkdirAll(path, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", from, to, err)
	}
	return nil
}

// target makes sure that there is something to mount on. What the machine lacks is
// made in an overlay over the nearest folder that it has, which only the host sees.
func target(own, place string) error {
	if _, err := os.Stat(place); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lower := filepath.Dir(strings.TrimSuffix(place, "/"))
	for {
		if _, err := os.Stat(lower); err == nil {
			break
		}
		lower = filepath.Dir(lower)
	}
	if lower == "/" {
		return fmt.Errorf("%s: the machine has no folder of it", place)
	}
	layer := own + "/.overlay" + strings.ReplaceAll(lower, "/", "-")
	err := overlay(lower, layer)
	if errors.Is(err, unix.EINVAL) { // the machine is a container: its root is an overlay, which can be no upper layer
		if err = unix.Mount("tmpfs", layer, "tmpfs", 0, "mode=755"); err == nil {
			err = overlay(lower, layer)
		}
	}
	if err != nil {
		return fmt.Errorf("overlay on %s, since the machine has no %s: %w", lower, place, err)
	}
	return makePlace(place, place)
}

// overlay puts a folder's changes from now on into layer.
func overlay(lower, layer string) error {
	upper, work := layer+"/upper", layer+"/work"
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("overlay", lower, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
}

// mountSys mounts a sysfs of the host's network namespace that keeps the machine's
// control groups and BPF objects.
func mountSys(sys string) error {
	if err := unix.Mount("sysfs", sys, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount sysfs: %w", err)
	}
	for _, p := range []string{"/fs/cgroup", "/fs/bpf"} {
		if _, err := os.Stat(sys + p); err != nil {
			continue
		}
		if err := bind("/sys"+p, sys+p); err != nil {
			return err
		}
	}
	return bind(sys, "/sys")
}

// mountRun puts the host's own folder in the place of /run; /run/netns in it
// follows the machine's.
func mountRun(run string) error {
	if err := bind(netnsFolder, run+"/netns"); err != nil {
		return err
	}
	return bind(run, "/run")
}

// shareNetnsFolder makes /run/netns a shared mount of its own, as ip-netns(8)
// does, so that namespaces named later are seen in the hosts.
func shareNetnsFolder() error {
	if err := os.MkdirAll(netnsFolder, 0o755); err != nil {
		return err
	}
	err := unix.Mount("", netnsFolder, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount yet
		if err = bind(netnsFolder, netnsFolder); err == nil {
			err = unix.Mount("", netnsFolder, "", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", netnsFolder, err)
	}
	return nil
}

// removeNetns takes a name out of /run/netns.
func removeNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
