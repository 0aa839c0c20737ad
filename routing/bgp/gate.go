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
	peers     map[netip.Addr]uint8
	listeners map[*net.TCPListener]string // the link of one that is bound to it
}

func newPortGate() *portGate {
	return &portGate{listeners: map[*net.TCPListener]string{}}
}

// add closes a listener to strangers; link is that of a link-local address, which is
// bound to it.
func (g *portGate) add(l net.Listener, link string) error {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listeners[tcp] = link
	program, err := g.program(link)
	return errors.Join(err, gate.Attach(tcp, program))
}

// program is the filter of the listeners of a link, for the peers there; "": of all
// others. nil: everybody may.
func (g *portGate) program(link string) ([]unix.SockFilter, error) {
	there := map[netip.Addr]uint8{}
	for a, least := range g.peers {
		if a.Zone() == link {
			there[a] = least
		}
	}
	return gate.Program(there)
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
	g.peers = peers
	_, err := g.program("")
	for l, link := range g.listeners {
		program, linkErr := g.program(link)
		if link != "" {
			err = errors.Join(err, linkErr)
		}
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
