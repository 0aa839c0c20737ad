package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// deleteAtOnce is how many entries one call of the kernel's deletes: what asks for them fits
// into the socket's send buffer.
const deleteAtOnce = 512

// deleter deletes entries, many with one call. Only the last of them is answered for, and
// what failed.
type deleter struct {
	*socket
	batch   []byte
	queued  int
	deleted int
	seq     uint32 // of the last one
}

// add has an entry deleted, now or with the next ones.
func (d *deleter) add(e *entry) error {
	start := len(d.batch)
	family := byte(unix.AF_INET)
	if e.orig.src.Is6() {
		family = unix.AF_INET6
	}
	d.seq++
	b := appendHead(d.batch, msgDelete, 0, d.seq, family)
	b = appendAttribute(b, attrTupleOrig|unix.NLA_F_NESTED, e.origRaw)
	b = appendAttribute(b, attrID, e.idRaw)
	b = appendAttribute(b, attrZone, e.zoneRaw)
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	d.batch = b
	if d.queued++; d.queued < deleteAtOnce {
		return nil
	}
	return d.flush()
}

// flush deletes what was added; that one is gone already is no error.
func (d *deleter) flush() error {
	if d.queued == 0 {
		return nil
	}
	last, at := d.seq, 0
	for range d.queued - 1 {
		at += int(binary.NativeEndian.Uint32(d.batch[at:]))
	}
	binary.NativeEndian.PutUint16(d.batch[at+6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	err := d.send(d.batch)
	queued := d.queued
	d.batch, d.queued = d.batch[:0], 0
	if err != nil {
		return fmt.Errorf("delete conntrack entries: %w", err)
	}
	failed, err := d.failures(last)
	d.deleted += queued - failed
	return err
}

// failures reads the answers up to that of number last.
func (d *deleter) failures(last uint32) (failed int, err error) {
	var errs []error
	for {
		answers, err := d.receive()
		if err != nil {
			return failed, fmt.Errorf("delete conntrack entries: %w", err)
		}
		for h, data := range answers {
			if h.Type != unix.NLMSG_ERROR {
				continue
			}
			if err := errorOf(data); err != nil {
				failed++
				if !errors.Is(err, unix.ENOENT) && len(errs) == 0 {
					errs = append(errs, fmt.Errorf("delete conntrack entry: %w", err))
				}
			}
			if h.Seq == last {
				return failed, errors.Join(errs...)
			}
		}
	}
}
