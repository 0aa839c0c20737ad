// Package bfd detects that the path to a neighbour is dead, by packets that both send all
// the time: Bidirectional Forwarding Detection (RFC 5880), asynchronous, over a single hop
// (RFC 5881), for IPv4 and IPv6.
//
// It owns the sessions and their sockets, and knows nothing of who asked for them: what
// becomes of a dead path is the business of Config.OnDown.
//
// Invariants: machine.go is pure. A goroutine per session owns its machine and its timers,
// one per local address reads. The kernel drops what is from no neighbour or came through a
// router (TTL below 255) before anybody is woken.
package bfd

import (
	"log/slog"
	"net/netip"
	"time"
)

// Port is where BFD Control packets of a single hop go (RFC 5881, section 4).
const Port = 3784

// Peer is a neighbour; it is known by both addresses.
type Peer struct {
	Address, Local netip.Addr
	// Interval is between two packets, each way, at least; the neighbour may want more.
	Interval time.Duration
	// Multiplier is how many of them may be lost, the last one included, until the
	// neighbour takes the path for dead. Ours is the neighbour's to choose.
	Multiplier uint8
	// Away is how long this system may be away when Run ends, until the neighbour takes the
	// path for dead. The next Run goes on with what is up then. 0: it is switched off.
	Away time.Duration
}

// Config is an Engine.
type Config struct {
	// OnDown is called when the path to a neighbour is dead: its session was up and is not,
	// and nobody switched it off. heard is when it was last heard of as up. It must not block.
	OnDown func(peer netip.Addr, heard time.Time, words string)
	// OnChange is called when a state changed. It must not block.
	OnChange func()
	Log      *slog.Logger
}

// Status is what is known of a session.
type Status struct {
	Peer, Local netip.Addr
	State       State
	Since       time.Time // of State
	// RemoteState is what the neighbour last said, while it is Heard.
	RemoteState State
	Heard       bool
	// Diag is why the session was last not up any more, and when; RemoteDiag is the
	// neighbour's word on it.
	Diag, RemoteDiag Diag
	DiagAt           time.Time
	// Every is the agreed time between two of our packets, Detection how long the
	// neighbour may be silent.
	Every, Detection time.Duration
	// Mine and Yours are the discriminators of this side and the neighbour.
	Mine, Yours uint32
	In, Out     uint64 // packets
	Ups         int    // how often it came up
	// Trouble says why nothing is sent or can be heard; "" for nothing.
	Trouble string
}

// Words says the state, and where it is not up why, without anything that changes all the time.
func (s Status) Words() string {
	switch {
	case s.State == Up:
		return "up"
	case s.State == AdminDown:
		return "switched off"
	case s.State == Init:
		return "coming up"
	case s.Heard && s.RemoteState == AdminDown:
		return "down: switched off by the neighbour"
	case s.Diag != DiagNone:
		return "down: " + s.why()
	case s.Trouble != "":
		return "down: " + s.Trouble
	}
	return "down: nothing heard"
}

// why is the last diagnostic in words.
func (s Status) why() string {
	if s.Diag == DiagNeighbour && s.RemoteDiag != DiagNone {
		return s.Diag.String() + " (" + s.RemoteDiag.String() + ")"
	}
	return s.Diag.String()
}

// LastDiagnostic is why it was last not up any more; "" if it always was since it came up first.
func (s Status) LastDiagnostic() string {
	if s.Diag == DiagNone {
		return ""
	}
	return s.why()
}
