package bfd

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"
)

// whole is a packet with every field set.
var whole = Packet{
	Diag: DiagNeighbour, State: Up, Poll: true, Final: true, Independent: true, Demand: true, Multiplier: 5,
	Mine: 0x01020304, Yours: 0x0a0b0c0d, MinTx: 100 * time.Millisecond, MinRx: 250 * time.Millisecond, MinEcho: time.Microsecond,
}

const wholeHex = "23fa0518010203040a0b0c0d000186a00003d09000000001"

func TestPacket(t *testing.T) {
	b := whole.Append(nil)
	if got := hex.EncodeToString(b); got != wholeHex {
		t.Errorf("%s, want %s", got, wholeHex)
	}
	if p, err := Parse(append(b, "more"...)); err != nil || p != whole {
		t.Errorf("%+v, %v", p, err)
	}
}

// What RFC 5880, section 6.8.6, says must be discarded.
func TestDiscarded(t *testing.T) {
	for want, change := range map[string]func(b []byte) []byte{
		"too short":        func(b []byte) []byte { return b[:23] },
		"version 0":        func(b []byte) []byte { b[0] &= 31; return b },
		"length 23":        func(b []byte) []byte { b[3] = 23; return b },
		"length 25":        func(b []byte) []byte { b[3] = 25; return b },
		"authenticated":    func(b []byte) []byte { b[1] |= bitAuth; return b },
		"multiplier 0":     func(b []byte) []byte { b[2] = 0; return b },
		"multipoint":       func(b []byte) []byte { b[1] |= bitMultipoint; return b },
		"discriminator 0":  func(b []byte) []byte { clear(b[4:8]); return b },
		"state Up without": func(b []byte) []byte { clear(b[8:12]); return b },
	} {
		b := change(whole.Append(nil))
		if _, err := Parse(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%x: %v, want %s", b, err, want)
		}
	}
	for _, s := range []State{Down, AdminDown} {
		p := Packet{State: s, Multiplier: 1, Mine: 1}
		if got, err := Parse(p.Append(nil)); err != nil || got != p {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

// FuzzParse: what is taken in is what would be sent, and a session that hears it, packet
// after packet, keeps to what it may do.
func FuzzParse(f *testing.F) {
	down := Packet{State: Down, Multiplier: 3, Mine: 1, MinTx: time.Second, MinRx: time.Second}
	initial, up := down, down
	initial.State, initial.Yours = Init, 7
	up.State, up.Yours = Up, 7
	f.Add(whole.Append(nil))
	f.Add(up.Append(initial.Append(down.Append(nil))))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMachine(100*time.Millisecond, 3, 7)
		for ; len(b) > 0; b = b[min(len(b), packetLen):] {
			p, err := Parse(b)
			if err != nil {
				m.expire()
				continue
			}
			if again, err := Parse(p.Append(nil)); err != nil || again != p {
				t.Errorf("%x: %+v, again %+v, %v", b, p, again, err)
			}
			was := m.state
			answer := m.receive(p)
			if answer != p.Poll || m.state == AdminDown || was == Down && m.state == Up && p.State != Init {
				t.Errorf("%+v: %v became %v, answer %v", p, was, m.state, answer)
			}
			if d := m.detection(); d < 100*time.Millisecond {
				t.Errorf("%+v: detection time %v", p, d)
			}
			if every := m.every(); every != 0 && every < 100*time.Millisecond {
				t.Errorf("%+v: a packet every %v", p, every)
			}
			if out := m.packet(answer); out.Poll && out.Final {
				t.Errorf("%+v: %+v", p, out)
			}
		}
	})
}
