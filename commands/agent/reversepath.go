package agent

import (
	"fmt"
	"time"

	"netctl/acl"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// reversePathAuto is the setting agent.reversePath that goes by the host's uplinks.
const reversePathAuto = "auto"

// CheckReversePath reads the setting agent.reversePath.
func CheckReversePath(s string) error {
	_, err := (&Config{ReversePath: s}).reversePath(false)
	return err
}

// reversePath is how sources of pools are judged on a host with several uplinks or not. Where
// there are several, what is sent by one may be answered by another.
func (c *Config) reversePath(uplinks bool) (acl.ReversePath, error) {
	switch {
	case c.ReversePath != "" && c.ReversePath != reversePathAuto:
		return acl.ParseReversePath(c.ReversePath)
	case uplinks:
		return acl.ReversePathLoose, nil
	}
	return acl.ReversePathStrict, nil
}

// judgeSources has sources of pools judged as the host's uplinks allow.
func (l *loop) judgeSources() {
	f := l.filtering
	r := l.cfg.sources(l.links.addrs)
	if r == f.options.ReversePath {
		return
	}
	f.options.ReversePath = r
	f.index.SetReversePath(r)
	f.judged.drop() // no delta tells of it
	f.restated()
}

// sources is how sources are judged on a host with the addresses: several interfaces that
// have some may lead to other machines.
func (c *Config) sources(host []kernel.Address) acl.ReversePath {
	one, uplinks := "", false
	for _, a := range host {
		if !a.Loopback && !a.Prefix.Addr().IsLinkLocalUnicast() && !netdev.LeadsAway(a.Link) {
			uplinks = uplinks || one != "" && one != a.Link
			one = a.Link
		}
	}
	if c.pathless {
		return acl.ReversePathOff
	}
	r, _ := c.reversePath(uplinks) // finish told of an error
	return r
}

// Sources is how sources are judged where the host's uplinks are not known.
func (c *Config) Sources() acl.ReversePath { return c.sources(nil) }

// ReversePathSetting is in what a node says of packets that the reverse path had dropped.
const ReversePathSetting = "agent.reversePath"

// reversePath is what packets came with a pool's source by another way than that is reached by.
type reversePath struct {
	known           bool
	dropped, before uint64
	last            time.Time // when one was dropped
}

// seen takes how many were dropped, and returns what is wrong with it: for pathRest after the
// last one.
func (r *reversePath) seen(dropped uint64, now time.Time) string {
	switch {
	case !r.known || dropped < r.dropped:
		r.known, r.before = true, dropped
	case dropped > r.dropped:
		r.last = now
	}
	r.dropped = dropped
	if now.Sub(r.last) >= pathRest {
		r.before = dropped
		return ""
	}
	return fmt.Sprintf("%d packets from other machines had the source of a pool and came by another way than that is reached by, and were dropped: who sends them, `netctl drops` tells; if nodes do, the fabric is not symmetric, and agent.reversePath is to be loose or off",
		dropped-r.before)
}
