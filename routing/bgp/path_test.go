package bgp

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// A dead path ends the session at once, with the right words, and no route outlives it,
// whatever was agreed of restarts.
func TestPathDown(t *testing.T) {
	for name, c := range map[string]struct {
		gr   func(*open)
		code []byte
	}{
		"no restart": {nil, []byte{codeCease, ceaseBFD}},
		"restart":    {withGR(false, false, true), []byte{codeCease, ceaseBFD}},
		"restart, N": {withGR(false, true, true), []byte{codeCease, ceaseHard, codeCease, ceaseBFD}},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
				r := g.learnt(c.gr)
				g.has(bothRoutes...)
				g.refuse.Store(true)
				g.s.PathDown(addr("10.9.0.2"), time.Now(), "control detection time expired")
				g.has()
				if body := r.expect(codec.BGP_MSG_NOTIFICATION); !slices.Equal(body, c.code) {
					t.Errorf("notification %d, want %d", body, c.code)
				}
				st := g.session()
				if want := "BFD down: control detection time expired"; st.Notice != "this side said "+want {
					t.Errorf("notice %q", st.Notice)
				}
			})
		})
	}
}

// A peer that takes nothing in does not delay what becomes of its routes.
func TestPathDownOfAFullConnection(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := g.learnt(nil)
		g.has(bothRoutes...)
		r.pause.Lock()
		defer r.pause.Unlock()
		g.s.Originate(prefixes("10.0.0.0/26"), nil) // is the last thing that it reads
		synctest.Wait()
		at := time.Now()
		g.s.PathDown(addr("10.9.0.2"), at, "control detection time expired")
		g.has()
		if took := time.Since(at); took > 0 {
			t.Errorf("after %v", took)
		}
	})
}

// What was found before the session came up is said of another one: the peer has
// restarted. Nor does it end a restart.
func TestPathDownBeforeTheSession(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		heard := time.Now()
		time.Sleep(time.Millisecond)
		r := g.learnt(withGR(false, true, true))
		g.s.PathDown(addr("10.9.0.2"), heard, "control detection time expired")
		g.s.PathDown(addr("10.9.0.3"), time.Now(), "nobody")
		g.has(bothRoutes...)
		g.words("Established")
		_ = r.c.Close()
		synctest.Wait()
		g.s.PathDown(addr("10.9.0.2"), time.Now(), "control detection time expired")
		g.has(bothRoutes...)
		g.up(withGR(true, true, true))
		g.has(bothRoutes...)
		g.words("Established")
	})
}
