package bgp

import (
	"fmt"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// longLived is a Long-Lived Graceful Restart capability (RFC 9494), by Family: for how
// long stale routes may be kept once the restart time is over, and F.
type longLived struct {
	time       [2]time.Duration
	forwarding [2]bool
}

// MaxLongLived is the longest time that the capability can say.
const MaxLongLived = (1<<24 - 1) * time.Second

// capability is l on the wire.
func (l *longLived) capability() codec.ParameterCapabilityInterface {
	var tuples []*codec.CapLongLivedGracefulRestartTuple
	for f, d := range l.time {
		if d > 0 {
			tuples = append(tuples, codec.NewCapLongLivedGracefulRestartTuple(Family(f).routeFamily(), l.forwarding[f], uint32(d/time.Second)))
		}
	}
	return codec.NewCapLongLivedGracefulRestart(tuples)
}

func longLivedFrom(c *codec.CapLongLivedGracefulRestart) *longLived {
	l := &longLived{}
	for _, t := range c.Tuples {
		if f, ok := familyFrom(t.AFI, t.SAFI); ok {
			l.time[f], l.forwarding[f] = time.Duration(t.RestartTime)*time.Second, t.Flags&0x80 != 0
		}
	}
	return l
}

// words are what l says.
func (l *longLived) words() string {
	text := "long-lived graceful restart"
	sep := " of "
	for f, d := range l.time {
		if d > 0 {
			text += fmt.Sprintf("%s%d s for %v", sep, d/time.Second, Family(f))
			sep = ", "
		}
		if d > 0 && l.forwarding[f] {
			text += " kept"
		}
	}
	return text
}

// agreed is for how long stale paths of the peer are kept by family. This side's time
// bounds the peer's: it "MAY be reduced by local configuration" (RFC 9494, section 4.2).
func (l *longLived) agreed(peers *longLived) (out [2]time.Duration) {
	for f := range out {
		if l != nil && peers != nil {
			out[f] = min(l.time[f], peers.time[f])
		}
	}
	return out
}

// aging is what becomes of a peer's stale paths of a family behind the restart time. The
// clock runs on in a new session until its End-of-RIB.
type aging struct {
	time  time.Duration // as agreed with the session that ended
	clock *time.Timer
}

// stop ends it: nothing is kept any more.
func (a *aging) stop() {
	if a.clock != nil {
		a.clock.Stop()
		a.clock = nil
	}
}

// old are the attributes of a path that is kept for long: a with LLGR_STALE.
func (a *attrs) old() *attrs {
	b := *a
	b.seen, b.variants = nil, nil
	b.rest = withMore(a.rest, attrCommunities, string([]byte{0xff, 0xff, 0, byte(LLGRStale & 0xff)}), 4)
	if b.longStale = true; a.id != "" {
		b.id = "kept for long: " + a.id
	}
	return &b
}

// ages reports whether a path is one that is kept for long.
func (p *peer) ages(f Family, path *path) bool {
	return path.stale && path.attrs.received().longStale && p.aging[f].clock != nil
}

// keepsOld reports whether the peer, back again, has kept what is kept for it for long.
func (s *session) keepsOld(f Family) bool {
	l := s.open.long
	return s.families[f] && l != nil && l.time[f] > 0 && l.forwarding[f]
}

// age is the end of the peer's restart time (RFC 9494, section 4.2): its stale paths of
// the families in question are kept, and get the community LLGR_STALE, but those with
// NO_LLGR. Others go.
func (r *rib) age(p *peer, which func(Family) bool) {
	known := map[*attrs]*attrs{}
	for d, path := range p.all() {
		f := d.family()
		switch a := path.attrs.received(); {
		case !path.stale || a.adopted || !which(f) || p.ages(f, path):
		case p.aging[f].time == 0 || a.noLong:
			r.remove(p, d, path)
		default:
			if p.aging[f].clock == nil {
				r.ageUntil(p, f)
			}
			if !a.longStale {
				if known[a] == nil {
					known[a] = a.old()
				}
				path.attrs = known[a]
				r.judge(p, d, path) // filters see it as it is now
				r.mark(d)
			}
		}
	}
}

// ageUntil starts the clock of the paths that are kept for long.
func (r *rib) ageUntil(p *peer, f Family) {
	state := &p.aging[f]
	var clock *time.Timer
	clock = r.after(state.time, func() {
		if state.clock == clock {
			state.clock = nil
			r.drop(p, func(family Family, path *path) bool { return family == f && path.attrs.received().longStale })
		}
	})
	state.clock = clock
}
