package agent

import (
	"slices"
	"strings"
	"time"

	"netctl/datastore"
	"netctl/netdev"
)

// local is one endpoint of this node.
type local struct {
	name, link string
	ep         *datastore.Endpoint // nil: not in the view
	busy       int                 // steps at work on it
	created    bool                // the step at work asked for Program
	raise      bool                // to be set up whatever was heard of it
	leaving    bool                // to be out of service
	filtered   bool                // its ACLs are in the kernel
	releasing  bool                // it is gone and being released
	remaking   bool                // its TAP is gone and being made again
	lost       time.Time           // since when the link is missing; zero: it is not
	narrow     int                 // MTU of its routes, while its link may have a larger one; 0: the link's
}

// locals are the endpoints of this node that the view has or that somebody is at
// work on, and which of them are to be looked at. Its owner is the loop.
type locals struct {
	linkPrefix string
	links      *links

	named map[string]*local
	count int             // of those that are in the view
	dirty map[string]bool // their link is to be looked at
	moved map[string]bool // their routes are to be looked at
	sized map[string]bool // their MTU is to be looked at
}

func newLocals(linkPrefix string, k *links) *locals {
	return &locals{linkPrefix: linkPrefix, links: k, named: map[string]*local{}, dirty: map[string]bool{}, moved: map[string]bool{}, sized: map[string]bool{}}
}

// of is the endpoint of that name, made if it is new.
func (s *locals) of(name string) *local {
	lo := s.named[name]
	if lo == nil {
		lo = &local{name: name, link: netdev.LinkName(s.linkPrefix, name)}
		s.named[name] = lo
		s.links.owners[lo.link] = name
	}
	return lo
}

// set takes what the view has of an endpoint; nil: nothing.
func (s *locals) set(name string, ep *datastore.Endpoint) {
	lo := s.of(name)
	if (lo.ep == nil) != (ep == nil) {
		s.count += map[bool]int{true: -1, false: 1}[ep == nil]
	}
	lo.ep = ep
	s.sized[name] = true
	if ep == nil {
		lo.leaving, lo.lost = false, time.Time{}
	} else if lo.link != ep.Spec.Link {
		s.links.disown(lo.link, name)
		lo.link = ep.Spec.Link
		s.links.owners[lo.link] = name
	}
	s.mark(name)
}

// drop forgets an endpoint that is neither in the view nor being changed.
func (s *locals) drop(lo *local) {
	if lo.ep == nil && lo.busy == 0 {
		delete(s.named, lo.name)
		s.links.disown(lo.link, lo.name)
	}
}

// mark has an endpoint's link and routes looked at.
func (s *locals) mark(name string) { s.dirty[name], s.moved[name] = true, true }

// markAll has every endpoint looked at.
func (s *locals) markAll() {
	for name := range s.named {
		s.mark(name)
	}
}

// under are the names that start with prefix.
func (s *locals) under(prefix string) (names []string) {
	for name := range s.named {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// lost are those whose link is missing, by name.
func (s *locals) lost() (names []string) {
	for name, lo := range s.named {
		if lo.ep != nil && !lo.lost.IsZero() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
