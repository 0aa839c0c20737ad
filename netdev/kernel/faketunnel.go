package kernel

import (
	"fmt"
	"maps"
	"slices"
)

// SetTunnel is Kernel.SetTunnel.
func (f *Fake) SetTunnel(t Tunnel) (int, error) {
	if err := f.fail("tunnel", t.Name); err != nil {
		return 0, fmt.Errorf("tunnel %s: %w", t.Name, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tunnels == nil {
		f.tunnels = map[string]fakeTunnel{}
	}
	old, there := f.tunnels[t.Name]
	if !there {
		f.index++
		old.index = f.index
	}
	f.tunnels[t.Name] = fakeTunnel{t, old.index}
	return old.index, nil
}

// fakeTunnel is a tunnel's device.
type fakeTunnel struct {
	Tunnel
	index int
}

// RemoveTunnel is Kernel.RemoveTunnel.
func (f *Fake) RemoveTunnel(name string) error {
	if err := f.fail("remove tunnel", name); err != nil {
		return fmt.Errorf("remove tunnel %s: %w", name, err)
	}
	f.LoseTunnel(name)
	return nil
}

// LoseTunnel deletes a tunnel's device as another program would.
func (f *Fake) LoseTunnel(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, there := f.tunnels[name]
	if delete(f.tunnels, name); there {
		f.tell(Event{Change: HostChanged, Link: name, Index: t.index})
	}
}

// Tunnels is Kernel.Tunnels.
func (f *Fake) Tunnels() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.tunnels)), nil
}

// Tunnel is one of them.
func (f *Fake) Tunnel(name string) (Tunnel, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, there := f.tunnels[name]
	return t.Tunnel, there
}
