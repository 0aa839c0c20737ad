package bgp

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"netctl/routing/gate"
)

// portGate has the kernel drop what comes to the listeners from addresses that are no
// peers', before it answers: to others the port is as if filtered.
type portGate struct {
	mu        sync.Mutex
	program   []unix.SockFilter // nil: everybody may
	peers     map[netip.Addr]uint8
	listeners map[*net.TCPListener]bool
}

func newPortGate() *portGate {
	program, _ := gate.Program(nil)
	return &portGate{program: program, listeners: map[*net.TCPListener]bool{}}
}

// add closes a listener to strangers.
func (g *portGate) add(l net.Listener) error {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listeners[tcp] = true
	return gate.Attach(tcp, g.program)
}

func (g *portGate) remove(l net.Listener) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if tcp, ok := l.(*net.TCPListener); ok {
		delete(g.listeners, tcp)
	}
}

// admit lets exactly these addresses in, each with packets that have at least so many
// hops left. It fails if they are too many for a filter, or for what the kernel has for
// one (net.core.optmem_max), and then lets in everybody, as without one.
func (g *portGate) admit(peers map[netip.Addr]uint8) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.peers != nil && maps.Equal(g.peers, peers) {
		return nil
	}
	program, err := gate.Program(peers)
	g.program, g.peers = program, peers
	for l := range g.listeners {
		if attachErr := gate.Attach(l, program); attachErr != nil {
			// The old one would keep new peers out, and is counted beside the new one.
			if attachErr = gate.Attach(l, nil); attachErr == nil {
				attachErr = gate.Attach(l, program)
			}
			err = errors.Join(err, attachErr)
		}
	}
	return err
}
