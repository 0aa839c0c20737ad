package bfd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// State is a session's state (RFC 5880, section 4.1).
type State uint8

// The states.
const (
	AdminDown State = iota
	Down
	Init
	Up
)

// String is the state's name.
func (s State) String() string { return [...]string{"AdminDown", "Down", "Init", "Up"}[s&3] }

// Diag says why a session left the state Up last (RFC 5880, section 4.1).
type Diag uint8

// The diagnostics that a system without echo and without a forwarding plane of its own has.
const (
	DiagNone      Diag = 0
	DiagExpired   Diag = 1
	DiagNeighbour Diag = 3
	DiagAdmin     Diag = 7
)

// String is the diagnostic in words.
func (d Diag) String() string {
	names := [...]string{
		"no diagnostic", "control detection time expired", "echo function failed", "neighbour signalled session down", "forwarding plane reset",
		"path down", "concatenated path down", "administratively down", "reverse concatenated path down",
	}
	if int(d) < len(names) {
		return names[d]
	}
	return fmt.Sprintf("diagnostic %d", uint8(d))
}

// Packet is a BFD Control packet without authentication (RFC 5880, section 4.1).
type Packet struct {
	Diag  Diag
	State State
	// Poll asks for a packet with Final; Independent: the sender does not share fate with
	// its control plane; Demand: it asks for silence while the session is up.
	Poll, Final, Independent, Demand bool
	// Multiplier is that of the receiver's detection time.
	Multiplier uint8
	// Mine and Yours are the discriminators of the sender and, if it knows it, of the
	// receiver.
	Mine, Yours uint32
	// MinTx is the shortest time between two packets that the sender wishes for its own,
	// MinRx the shortest that it can take, 0: none at all. MinEcho is the latter of Echo packets.
	MinTx, MinRx, MinEcho time.Duration
}

// packetLen is the length of a packet without authentication.
const packetLen = 24

// The bits of the second byte.
const (
	bitPoll        = 1 << 5
	bitFinal       = 1 << 4
	bitIndependent = 1 << 3
	bitAuth        = 1 << 2
	bitDemand      = 1 << 1
	bitMultipoint  = 1
)

// Parse reads a packet and makes the checks of RFC 5880, section 6.8.6, that need no session.
func Parse(b []byte) (p Packet, err error) {
	switch {
	case len(b) < packetLen:
		return p, errors.New("too short")
	case b[0]>>5 != 1:
		return p, fmt.Errorf("version %d", b[0]>>5)
	case int(b[3]) < packetLen || int(b[3]) > len(b):
		return p, fmt.Errorf("length %d of a packet of %d bytes", b[3], len(b))
	case b[1]&bitAuth != 0:
		return p, errors.New("authenticated, and nobody agreed on that")
	case b[2] == 0:
		return p, errors.New("detection multiplier 0")
	case b[1]&bitMultipoint != 0:
		return p, errors.New("multipoint")
	}
	word := func(i int) uint32 { return binary.BigEndian.Uint32(b[i:]) }
	span := func(i int) time.Duration { return time.Duration(word(i)) * time.Microsecond }
	p = Packet{
		Diag: Diag(b[0] & 31), State: State(b[1] >> 6),
		Poll: b[1]&bitPoll != 0, Final: b[1]&bitFinal != 0, Independent: b[1]&bitIndependent != 0, Demand: b[1]&bitDemand != 0,
		Multiplier: b[2], Mine: word(4), Yours: word(8), MinTx: span(12), MinRx: span(16), MinEcho: span(20),
	}
	switch {
	case p.Mine == 0:
		return p, errors.New("discriminator 0")
	case p.Yours == 0 && p.State != Down && p.State != AdminDown:
		return p, fmt.Errorf("state %v without our discriminator", p.State)
	}
	return p, nil
}

// Append adds the packet's bytes to b.
func (p Packet) Append(b []byte) []byte {
	flags := byte(p.State&3) << 6
	for bit, set := range map[byte]bool{bitPoll: p.Poll, bitFinal: p.Final, bitIndependent: p.Independent, bitDemand: p.Demand} {
		if set {
			flags |= bit
		}
	}
	b = append(b, 1<<5|byte(p.Diag&31), flags, p.Multiplier, packetLen)
	b = binary.BigEndian.AppendUint32(b, p.Mine)
	b = binary.BigEndian.AppendUint32(b, p.Yours)
	for _, d := range []time.Duration{p.MinTx, p.MinRx, p.MinEcho} {
		b = binary.BigEndian.AppendUint32(b, uint32(d/time.Microsecond))
	}
	return b
}
