package netlab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Container is a network namespace on a host, named in /run/netns, that a runtime
// would put a workload into.
type Container struct {
	Name string
	// ID is the container ID for CNI; it is also the name in /run/netns.
	ID   string
	Host *Host
}

// Path is the namespace's file, the same in every host.
func (c *Container) Path() string { return filepath.Join(netnsFolder, c.ID) }

// Container makes a container that is not yet attached to anything.
func (h *Host) Container(name string) (*Container, error) {
	c := &Container{Name: name, ID: fmt.Sprintf("%s-%s-%s", h.lab.ID, h.Name, name), Host: h}
	if err := nameNetns(c.Path()); err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	return c, nil
}

// nameNetns makes a network namespace and names it.
func nameNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = bind("/proc/thread-self/ns/net", path)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		_ = os.Remove(path)
		return err
	}
	return nil
}

// Do implements Place: the host's files and name, the container's network.
func (c *Container) Do(fn func() error) error {
	return c.Host.Do(func() error {
		inside, err := os.Open(c.Path())
		if err != nil {
			return err
		}
		defer inside.Close()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer own.Close()
		if err := unix.Setns(int(inside.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("container %s: enter: %w", c.Name, err)
		}
		defer func() {
			if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
				panic(fmt.Sprintf("container %s: leave: %v", c.Name, err)) // the host's thread would be lost in it
			}
		}()
		return fn()
	})
}

// Exec implements Place.
func (c *Container) Exec(ctx context.Context, cmd Cmd) (string, error) { return execIn(ctx, c, cmd) }

// CNI executes the plugin on the host as a runtime would, with conf as network
// configuration and args as CNI_ARGS, for interface eth0; verb is ADD, DEL or
// CHECK. It returns the plugin's answer; an error answer is in the *ExecError's
// Stdout.
func (c *Container) CNI(ctx context.Context, verb, conf, args string) (string, error) {
	return c.Host.Exec(ctx, Cmd{
		Args:  []string{"/opt/cni/bin/netctl"},
		Stdin: conf,
		Env: []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + c.ID, "CNI_NETNS=" + c.Path(),
			"CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin", "CNI_ARGS=" + args},
	})
}

// Remove takes the namespace away, as the death of a workload does; what is still
// attached to it is left to the agent.
func (c *Container) Remove() error { return removeNetns(c.Path()) }
