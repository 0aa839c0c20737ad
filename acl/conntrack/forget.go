package conntrack

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
)

// Forgetter is Delete for many callers: what comes while the kernel goes through its table,
// some ten milliseconds on a large machine, is done together the next time. The zero value
// works in the network namespace of the first caller.
type Forgetter struct {
	mu   sync.Mutex
	next *round // those who wait for the next time; nil: none

	work sync.Mutex // one time after the other
	conn *Conn      // nil: none is open
}

// round is what is deleted in one go.
type round struct {
	addrs []netip.Addr
	done  chan struct{}
	err   error
}

// Forget is Delete.
func (f *Forgetter) Forget(addrs ...netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	f.mu.Lock()
	r := f.next
	if r != nil {
		r.addrs = append(r.addrs, addrs...)
		f.mu.Unlock()
		<-r.done
		return r.err
	}
	r = &round{addrs: slices.Clone(addrs), done: make(chan struct{})}
	f.next = r
	f.mu.Unlock()
	defer close(r.done)
	f.work.Lock()
	defer f.work.Unlock()
	f.mu.Lock()
	f.next = nil
	f.mu.Unlock()
	r.err = f.delete(r.addrs)
	return r.err
}

func (f *Forgetter) delete(addrs []netip.Addr) (err error) {
	if f.conn == nil {
		if f.conn, err = Open(); err != nil {
			return err
		}
	}
	if err = f.conn.Delete(addrs...); err == nil {
		return nil
	}
	f.conn.Close()
	f.conn = nil
	var errs []error
	for _, a := range addrs { // of many callers: what fails for one is no other's
		errs = append(errs, Delete(a))
	}
	return errors.Join(errs...)
}

// Close ends what was opened.
func (f *Forgetter) Close() error {
	f.work.Lock()
	defer f.work.Unlock()
	if f.conn != nil {
		f.conn.Close()
		f.conn = nil
	}
	return nil
}
