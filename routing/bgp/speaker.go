package bgp

import (
	"context"
	"net/netip"
)

// Speaker is a BGP speaker. Its methods are safe for concurrent use.
type Speaker struct{ config Config }

// New checks the configuration; nothing is opened before Run.
func New(c Config) (*Speaker, error) { return &Speaker{config: c}, nil }

// Run speaks until ctx ends. It then closes every connection without a
// NOTIFICATION, so that peers with graceful restart keep the routes.
func (s *Speaker) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Configure makes peers the whole set of neighbours. It may be called before
// Run, and should be, together with Originate, when routes are adopted.
func (s *Speaker) Configure(peers []PeerConfig) error { return nil }

// Originate adds and withdraws own prefixes. What is there before Run is sent
// ahead of the first End-of-RIB.
func (s *Speaker) Originate(add, withdraw []netip.Prefix) {}

// Reimport asks Import again about everything that is held.
func (s *Speaker) Reimport() {}

// Status returns all sessions by address.
func (s *Speaker) Status() []Session { return nil }

// Routes returns what the Installer was told, by prefix.
func (s *Speaker) Routes() []Route { return nil }

// Conflicts returns the prefixes that several peers announce and only one may.
func (s *Speaker) Conflicts() []Conflict { return nil }

// Problems says in words what is wrong apart from sessions.
func (s *Speaker) Problems() []string { return nil }

// ResetBy says what of next, against p, ends a running session; "" means that
// the change is made in place.
func (p PeerConfig) ResetBy(next PeerConfig) string { return "" }

// Words returns state and reason in one line, without the peer.
func (s Session) Words() string { return s.State }
