package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"
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
	f.tunnels[t.Name] = fakeTunnel{t, old.index, old.peers, old.told}
	return old.index, nil
}

// fakeTunnel is a tunnel's device.
type fakeTunnel struct {
	Tunnel
	index int
	peers map[WireGuardKey]WireGuardPeer
	told  int // how often one of them was written
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

// SetWireGuardPeers is Kernel.SetWireGuardPeers.
func (f *Fake) SetWireGuardPeers(device string, peers []WireGuardPeer, nobodys []netip.Prefix, remove []WireGuardKey) error {
	if err := f.fail("peers", device); err != nil {
		return fmt.Errorf("peers of %s: %w", device, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t, there := f.tunnels[device]
	if !there {
		return fmt.Errorf("peers of %s: %w", device, os.ErrNotExist)
	}
	have := maps.Clone(t.peers)
	if have == nil {
		have = map[WireGuardKey]WireGuardPeer{}
	}
	take := func(list []netip.Prefix) { // an address is one peer's
		for key, p := range have {
			p.Allowed = slices.DeleteFunc(slices.Clone(p.Allowed), func(a netip.Prefix) bool { return slices.Contains(list, a) })
			have[key] = p
		}
	}
	for _, p := range peers {
		take(p.Allowed)
		p.Allowed = append(slices.Clone(have[p.Key].Allowed), p.Allowed...)
		if !p.Endpoint.IsValid() {
			p.Endpoint = have[p.Key].Endpoint
		}
		have[p.Key] = p
		t.told++
	}
	take(nobodys)
	for _, key := range remove {
		delete(have, key)
	}
	t.peers = have
	f.tunnels[device] = t
	return nil
}

// WireGuardPeers is Kernel.WireGuardPeers: a peer answers unless f.Silent says otherwise,
// and is sent what f.Sent says, which nobody answers.
func (f *Fake) WireGuardPeers(device string) (map[WireGuardKey]WireGuardState, error) {
	peers, _ := f.Peers(device)
	have := map[WireGuardKey]WireGuardState{}
	for _, p := range peers {
		is := WireGuardState{Allowed: p.Allowed, Endpoint: p.Endpoint, Sent: f.Sent.Load()}
		if f.Silent == nil || !f.Silent(p.Key) {
			is.Answered = time.Now()
		}
		have[p.Key] = is
	}
	return have, nil
}

// Roam has a peer's packets come from another address.
func (f *Fake) Roam(device string, key WireGuardKey, from netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.tunnels[device].peers[key]
	p.Endpoint = from
	f.tunnels[device].peers[key] = p
}

// Peers are those of a device of WireGuard tunnels, by their endpoints, and how often
// one of them was written.
func (f *Fake) Peers(device string) (list []WireGuardPeer, written int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tunnels[device]
	return slices.SortedFunc(maps.Values(t.peers), func(a, b WireGuardPeer) int { return a.Endpoint.Compare(b.Endpoint) }), t.told
}
