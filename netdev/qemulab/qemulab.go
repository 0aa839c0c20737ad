// Package qemulab runs a script on a Linux kernel of its own, in QEMU: what the
// kernel of the test machine lacks is tried there. Nothing but memory is the guest's.
//
// It decides nothing about networks: the script's programs make their own, with netdev/netlab.
package qemulab

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// KernelDir is where .ci/kernel puts Debian's cloud kernel: vmlinuz, and its modules.
const KernelDir = "/var/cache/netctl-test/kernel"

// Guest is a machine that runs one script and ends.
type Guest struct {
	// Kernel is the folder of its kernel; "": KernelDir.
	Kernel string
	// Modules are loaded first, with those that they need.
	Modules []string
	// Tools are programs of this machine, found in its PATH; busybox and its applets are
	// there in any case.
	Tools []string
	// Files are further ones, by their path in the guest.
	Files map[string]string
	// Script is what runs, by sh, and Env its environment beside PATH.
	Script    string
	Env       []string
	MemoryMiB int
	// TAP is one that the guest has open, as an interface with the address MAC; "": none.
	TAP, MAC string
	// In is what QEMU is started by, such as nsenter(1) with its arguments.
	In []string
}

// nic are QEMU's arguments for the interface.
func (g Guest) nic() []string {
	if g.TAP == "" {
		return []string{"-nic", "none"}
	}
	return []string{"-netdev", "tap,id=tap,script=no,downscript=no,ifname=" + g.TAP, "-device", "virtio-net-pci,netdev=tap,romfile=,mac=" + g.MAC}
}

// errNoEnd: the guest ended without a word of its script's end.
var errNoEnd = errors.New("the guest ended before its script did")

// CommandLine is what the kernel is told.
const CommandLine = "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off random.trust_cpu=on"

// Image writes the guest's first file system into a file, for who boots it by other means than
// Run, with KernelDir's vmlinuz and CommandLine.
func (g Guest) Image(path string) error {
	if err := g.writeImage(path); err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	return nil
}

// Run boots the guest, copies what its script writes to out, and returns when it is
// off. A script that fails is an error.
func (g Guest) Run(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "qemulab-")
	if err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	image := filepath.Join(dir, "initrd")
	if err := g.Image(image); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "env", slices.Concat(g.In, []string{"qemu-system-x86_64",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", fmt.Sprint(g.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", filepath.Join(g.kernel(), "vmlinuz"), "-initrd", image,
		"-append", CommandLine}, g.nic())...)
	var said strings.Builder
	cmd.Stderr = &said
	console, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("guest: %w", err)
	}
	end := copyConsole(out, console)
	if err := cmd.Wait(); err != nil {
		return errors.Join(end, fmt.Errorf("guest: %w: %s", err, said.String()))
	}
	return end
}

// begin and end are what init writes before and after the script's output; the
// script's status follows the second.
const begin, end = "qemulab: begins", "qemulab: ended with "

// copyConsole copies what the script wrote, and says how it ended.
func copyConsole(out io.Writer, console io.Reader) error {
	started, result := false, errNoEnd
	lines := bufio.NewReader(console)
	for {
		line, err := lines.ReadString('\n')
		text := strings.TrimRight(line, "\r\n")
		status, ended := strings.CutPrefix(text, end)
		switch {
		case ended && status == "0":
			result = nil
		case ended:
			result = fmt.Errorf("guest: its script ended with status %s", status)
		case strings.HasSuffix(text, begin):
			started = true
		case started && text != "":
			fmt.Fprintln(out, text)
		}
		if err != nil {
			return result
		}
	}
}

func (g Guest) kernel() string { return cmp.Or(g.Kernel, KernelDir) }

// modules are the files of a kernel's modules, each after those that it needs.
func modules(kernel string, names []string) (files []string, err error) {
	text, err := os.ReadFile(filepath.Join(kernel, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("%w: `make guest` puts a kernel there", err)
	}
	builtin, err := os.ReadFile(filepath.Join(kernel, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	needs := map[string][]string{}
	nameOf := func(file string) string {
		return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
	}
	for line := range strings.Lines(string(text)) {
		file, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		needs[nameOf(file)] = append([]string{file}, strings.Fields(rest)...)
	}
	for file := range strings.Lines(string(builtin)) {
		needs[nameOf(strings.TrimSpace(file))] = []string{}
	}
	for _, name := range names {
		list := needs[name]
		if list == nil {
			return nil, fmt.Errorf("the kernel in %s has no module %s", kernel, name)
		}
		for _, file := range slices.Backward(list) { // modules.dep names the nearest first
			if !slices.Contains(files, file) {
				files = append(files, file)
			}
		}
	}
	return files, nil
}

// init is the guest's first program. It moves to a file system of its own, which unlike
// the first one can be mounted anew.
func (g Guest) init(modules []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `#!/bin/busybox sh
export PATH=/bin
if [ ! -e /moved ]; then
  /bin/busybox mkdir -p /newroot
  /bin/busybox mount -t tmpfs none /newroot
  for d in /*; do [ $d = /newroot ] || [ $d = /proc ] || /bin/busybox cp -a $d /newroot/; done
  /newroot/bin/busybox touch /newroot/moved
  exec /newroot/bin/busybox switch_root /newroot /init
fi
/bin/busybox --install -s /bin 2>/dev/null
mkdir -p /proc /sys /dev /run /tmp /root /var/lib /etc
chmod 1777 /tmp
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/shm /dev/pts /run/netns
mount -t tmpfs none /dev/shm
mount -t devpts none /dev/pts
mount --make-rshared /
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd
hostname guest
ip link set lo up
`)
	for _, m := range modules {
		fmt.Fprintf(&b, "insmod /modules/%s\n", filepath.Base(m))
	}
	fmt.Fprintf(&b, "export %s\necho; echo '%s'\n%s\nstatus=$?\necho; echo '%s'$status\npoweroff -f\n", strings.Join(g.Env, " "), begin, g.Script, end)
	return b.String()
}
