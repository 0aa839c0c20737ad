package agent

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"netctl/acl"
	"netctl/acl/dns"
	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/ipam"
)

const (
	// leastLearned is how long an address of a name is in a set at least, whatever the answer
	// said: who asked has yet to use it. mostLearned is how long at most.
	leastLearned = 5 * time.Second
	mostLearned  = 24 * time.Hour
	// learnedOfSet is the most that is known of a set's domains: addresses, by name.
	learnedOfSet = 4096
	// expireEvery is how often it is looked at what is over.
	expireEvery = time.Second
	// mostEarly is how many answers are kept that come before it is known whose they are.
	mostEarly = 256
	// domainsFile is in the run folder: the clock goes with the boot, too.
	domainsFile = "domains"
	// domainsShare is how much more time passes than a write of it takes before the next.
	domainsShare = 20
)

// domains is what this node has learned of the domains of network sets: the addresses that DNS
// servers told its endpoints, which the index has for as long. The next agent goes on with it,
// by domainsFile. Its owner is the loop.
type domains struct {
	index *acl.Index
	log   *slog.Logger
	file  *control.Kept
	boot  string
	now   func() time.Duration // since the machine started
	post  func(func())
	sets  map[string]*learnedSet
	// learning are the domains that answers are looked at for, by set: others read it.
	learning atomic.Pointer[map[string][]string]
	changed  chan struct{} // holds one: learning may be something else
	early    []heard       // what came before the view
	settled  bool          // the view, and with it learning, was there once
	stale    bool          // the file is not what is here
	writeAt  time.Time     // not before
	timer    *time.Timer   // of the next expiry or write; nil: there is none
	at       time.Time     // when it is due
}

// learnedSet is what is known of the domains of a network set.
type learnedSet struct {
	until map[learnedName]time.Duration // since the machine started
	names map[netip.Addr]int            // how many names have the address
	full  bool                          // there was no room for more
}

type learnedName struct {
	name string
	addr netip.Addr
}

// heard is an answer that an endpoint got.
type heard struct {
	link   int // its index
	answer dns.Answer
	at     time.Duration
}

func newDomains(dir string, index *acl.Index, log *slog.Logger, post func(func())) *domains {
	d := &domains{
		index: index, log: log, post: post, now: ipam.Boottime, file: control.Keep(dir, datastore.FileOptions{Volatile: true}),
		sets: map[string]*learnedSet{}, changed: make(chan struct{}, 1),
	}
	d.learning.Store(&map[string][]string{})
	return d
}

// wanted says whether an answer about a name is to be looked at. It is safe for concurrent use.
func (d *domains) wanted(name string) bool {
	for _, list := range *d.learning.Load() {
		if stands(list, name) {
			return true
		}
	}
	return false
}

func stands(domains []string, name string) bool {
	return slices.ContainsFunc(domains, func(d string) bool { return datastore.DomainMatches(d, name) })
}

// learn takes an answer that the endpoint behind a link got, for the sets that its own rules
// name. It says whether that is news.
func (d *domains) learn(link string, h heard) (news bool) {
	for set, list := range d.index.Learns(link) {
		if !stands(list, h.answer.Name) {
			continue
		}
		for _, a := range h.answer.Addresses {
			until := h.at + min(max(a.TTL, leastLearned), mostLearned)
			news = d.put(set, learnedName{h.answer.Name, a.Addr}, until) || news
		}
	}
	return news
}

// put books an address. It says whether the set gets it by that.
func (d *domains) put(set string, n learnedName, until time.Duration) (news bool) {
	s := d.sets[set]
	if s == nil {
		s = &learnedSet{until: map[learnedName]time.Duration{}, names: map[netip.Addr]int{}}
		d.sets[set] = s
	}
	before, known := s.until[n]
	switch {
	case known && before >= until:
		return false
	case !known && len(s.until) >= learnedOfSet:
		if !s.full {
			d.log.Warn("no room for addresses of a network set's domains", "set", set, "most", learnedOfSet)
		}
		s.full = true
		return false
	}
	s.until[n], d.stale = until, true
	d.wakeAfter(until - d.now())
	if known {
		return false
	}
	if s.names[n.addr]++; s.names[n.addr] == 1 {
		d.index.Learn(set, n.addr)
		return true
	}
	return false
}

// drop forgets what is known of a set, as far as over says. expired is Index.Unlearn's.
func (d *domains) drop(set string, expired bool, over func(n learnedName, until time.Duration) bool) (news bool) {
	s := d.sets[set]
	for n, until := range s.until {
		if !over(n, until) {
			continue
		}
		delete(s.until, n)
		d.stale, s.full = true, false
		if s.names[n.addr]--; s.names[n.addr] == 0 {
			delete(s.names, n.addr)
			d.index.Unlearn(set, n.addr, expired)
			news = true
		}
	}
	if len(s.until) == 0 {
		delete(d.sets, set)
	}
	return news
}

// expire forgets what is over.
func (d *domains) expire() {
	now, next := d.now(), time.Duration(0)
	for set, s := range d.sets {
		d.drop(set, true, func(_ learnedName, until time.Duration) bool { return until <= now })
		for _, until := range s.until {
			if next == 0 || until < next {
				next = until
			}
		}
	}
	if next > 0 {
		d.wakeAfter(max(next-now, expireEvery))
	}
}

// relearn brings up to date which domains are looked at; link is the name of a link by its
// index. It says whether the index is to be flushed again.
func (d *domains) relearn(link func(int) string) (again bool) {
	if d.index.Relearn() {
		learning := d.index.Learning()
		for set := range d.sets {
			again = d.drop(set, false, func(n learnedName, _ time.Duration) bool { return !stands(learning[set], n.name) }) || again
		}
		d.learning.Store(&learning)
		poke(d.changed)
	}
	d.settled = true
	for _, h := range d.early {
		again = d.learn(link(h.link), h) || again
	}
	d.early = nil
	return again
}

// wakeAfter has tick called in some time.
func (d *domains) wakeAfter(wait time.Duration) {
	at := time.Now().Add(wait)
	if d.timer != nil && !d.at.After(at) {
		return
	}
	if d.timer != nil {
		d.timer.Stop()
	}
	d.at, d.timer = at, time.AfterFunc(wait, func() { d.post(d.tick) })
}

// tick does what is due; the file is written behind it.
func (d *domains) tick() {
	d.timer = nil
	d.expire()
}

// keptDomains is what domainsFile holds.
type keptDomains struct {
	Boot string                 `json:"boot"`
	Sets map[string][]keptUntil `json:"sets"`
}

type keptUntil struct {
	Name    string        `json:"name"`
	Address netip.Addr    `json:"address"`
	Until   time.Duration `json:"until"` // since the machine started, in nanoseconds
}

// recall reads what the agent before had learned in the same boot.
func (d *domains) recall(boot string) {
	d.boot = boot
	text, err := d.file.Read(domainsFile)
	var k keptDomains
	if err == nil {
		err = json.Unmarshal(text, &k)
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && k.Boot != boot {
		return
	}
	if err != nil {
		d.log.Warn("addresses of network sets' domains not read, they are learned anew", "file", d.file.Path(domainsFile), "error", err)
		return
	}
	now, all := d.now(), map[string][]string{}
	for set, list := range k.Sets {
		for _, e := range list {
			if e.Until > now && e.Address.IsValid() {
				d.put(set, learnedName{e.Name, e.Address}, min(e.Until, now+mostLearned))
				all[set] = append(all[set], e.Name)
			}
		}
	}
	d.learning.Store(&all) // until the view says which
	poke(d.changed)
	d.stale = false
}

// write brings the file up to date, as far as it is time.
func (d *domains) write() {
	if !d.stale {
		return
	}
	began := time.Now()
	if began.Before(d.writeAt) {
		d.wakeAfter(d.writeAt.Sub(began))
		return
	}
	var err error
	if len(d.sets) == 0 {
		err = d.file.Remove(domainsFile)
	} else {
		k := keptDomains{Boot: d.boot, Sets: map[string][]keptUntil{}}
		for set, s := range d.sets {
			for n, until := range s.until {
				k.Sets[set] = append(k.Sets[set], keptUntil{n.name, n.addr, until})
			}
		}
		var text []byte
		if text, err = json.Marshal(k); err == nil {
			err = d.file.Write(domainsFile, text)
		}
	}
	took := time.Since(began)
	d.writeAt = time.Now().Add(domainsShare * took)
	if d.stale = err != nil; d.stale {
		d.log.Warn("addresses of network sets' domains not kept for the next start", "error", err)
		d.writeAt = time.Now().Add(retryMax)
		d.wakeAfter(retryMax)
	}
}

// end brings the file up to date for the next agent.
func (d *domains) end() {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.writeAt = time.Time{}
	d.write()
}

// fullSets are problems of sets that had no room.
func (d *domains) fullSets() (list []string) {
	for set, s := range d.sets {
		if s.full {
			list = append(list, fmt.Sprintf("network set %s: %d addresses of its domains are known, and more are not learned: name fewer or narrower domains", set, learnedOfSet))
		}
	}
	slices.Sort(list)
	return list
}

// known lists what is known of a set's domains, or with "" of all.
func (d *domains) known(of string) (list []control.LearnedAddress) {
	now := d.now()
	for set, s := range d.sets {
		if of != "" && set != of {
			continue
		}
		for n, until := range s.until {
			list = append(list, control.LearnedAddress{Set: set, Name: n.name, Address: n.addr, Seconds: max(0, (until - now).Seconds())})
		}
	}
	slices.SortFunc(list, func(a, b control.LearnedAddress) int {
		return cmp.Or(strings.Compare(a.Set, b.Set), strings.Compare(a.Name, b.Name), a.Address.Compare(b.Address))
	})
	return list
}
