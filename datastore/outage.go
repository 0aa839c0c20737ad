package datastore

import (
	"errors"
	"log/slog"
	"sync"
	"time"
)

// startUp is how long after its start a role does not mind that the datastore
// does not answer: it may start at the same time.
const startUp = 5 * time.Second

// Outage logs what a Follower is told by Lost: each outage once. That the store
// does not answer is a warning after startUp only, and that it has no identity yet
// is none at all: the first agent gives it one. Safe for concurrent use.
type Outage struct {
	log   *slog.Logger
	begin time.Time

	mu      sync.Mutex
	reached bool
	said    string      // of this outage; empty: there is none
	late    *time.Timer // warns of what was said mildly
}

// NewOutage begins with the role.
func NewOutage(log *slog.Logger) *Outage { return &Outage{log: log, begin: time.Now()} }

// Lost logs what Follower.Lost is told.
func (o *Outage) Lost(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	say, msg, mild := o.log.Warn, "datastore away", false
	switch {
	case errors.Is(err, ErrUnidentified):
		say, msg = o.log.Info, "waiting for the cluster's identity"
	case errors.Is(err, ErrDetached):
		say, msg = o.log.Error, "detached from the datastore, nothing changes"
	case !o.reached && time.Since(o.begin) < startUp:
		say, mild = o.log.Info, true
	}
	if o.said == msg {
		o.log.Debug(msg, "error", err)
		return
	}
	o.said = msg
	o.quiet()
	if errors.Is(err, ErrUnidentified) {
		say(msg)
		return
	}
	if mild {
		say(msg, "error", err)
	} else {
		say(msg, "error", err, EventDatastore.Mark())
	}
	if mild {
		var t *time.Timer
		t = time.AfterFunc(startUp-time.Since(o.begin), func() {
			o.mu.Lock()
			defer o.mu.Unlock()
			if o.late == t {
				o.log.Warn(msg, "error", err, EventDatastore.Mark())
			}
		})
		o.late = t
	}
}

// Over ends the outage; without one it says nothing.
func (o *Outage) Over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.quiet()
	if o.said != "" && o.reached {
		o.log.Info("datastore is back", EventDatastore.Mark())
	}
	o.said, o.reached = "", true
}

func (o *Outage) quiet() {
	if o.late != nil {
		o.late.Stop()
		o.late = nil
	}
}
