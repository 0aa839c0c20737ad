package kernel

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev"
)

// bucketHandle marks the filters (tc-tbf(8)) that hold a rate of ours; those of a plugin
// after ours are its own.
const bucketHandle = netdev.GroupShaper << 16

// shaped are the facts that hold the rates of a wire: what the workload is sent waits on
// the link itself, what it sends on a device of its own, where all that arrives on the
// link is led first.
func (s *side) shaped() (list []fact) {
	own := func() (int, error) { return s.link.Index, nil }
	if r := s.wire.Bandwidth.Ingress; r.Bits != 0 {
		list = append(list, s.k.bucket(s.wire.Link, own, r))
	} else {
		list = append(list, s.noBucket())
	}
	shaper := netdev.ShaperName(s.wire.Link)
	index := func() (int, error) {
		l, err := s.k.link(0, shaper)
		return l.Index, err
	}
	r := s.wire.Bandwidth.Egress
	if r.Bits == 0 {
		return append(list, s.noShaper(shaper))
	}
	return append(list, s.shaper(shaper), s.k.bucket(shaper, index, r), s.redirect(shaper, index))
}

// noBucket is that the link has no filter of ours.
func (s *side) noBucket() fact {
	return fact{
		differs: func() (string, error) {
			if s.link.queue != "tbf" {
				return "", nil
			}
			q, err := s.k.rootQueue(s.link.Index)
			return when(q.handle == bucketHandle, s.wire.Link+": has a rate that is not wanted any more"), err
		},
		put: func() error {
			return s.k.host.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: s.link.Index, Handle: bucketHandle, Parent: netlink.HANDLE_ROOT}})
		},
		born: true,
	}
}

// noShaper is that a link has no device where what the workload sends waits. What arrives
// is led to it no more before it goes.
func (s *side) noShaper(name string) fact {
	return fact{
		differs: func() (string, error) {
			l, err := s.k.link(0, name)
			return when(err == nil && l.group == netdev.GroupShaper, name+": is not wanted any more"), ignoreAbsent(err)
		},
		put: func() error {
			err := s.k.host.QdiscDel(s.ingress())
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // somebody has done it
				err = nil
			}
			return errors.Join(err, s.k.dropShaper(s.wire.Link))
		},
		born: true,
	}
}

// bucket is the token bucket filter that holds a rate where packets leave a device. Its
// numbers change in place: nothing that waits is lost.
func (k *Kernel) bucket(name string, device func() (int, error), r datastore.Rate) fact {
	b := netdev.NewBucket(r)
	want := netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{Handle: bucketHandle, Parent: netlink.HANDLE_ROOT},
		Rate:       b.Rate, Limit: b.Limit, Buffer: netlink.Xmittime(b.Rate, b.Burst),
	}
	return fact{
		differs: func() (string, error) {
			text := fmt.Sprintf("%s: filter for %d bit/s is missing", name, r.Bits)
			index, err := device()
			if err != nil {
				return text, ignoreAbsent(err)
			}
			q, err := k.rootQueue(index)
			same := q.kind == "tbf" && q.handle == bucketHandle && q.rate == want.Rate && q.limit == want.Limit && q.buffer == want.Buffer
			return when(!same, text), err
		},
		put: func() error {
			index, err := device()
			if err != nil {
				return err
			}
			q := want
			q.LinkIndex = index
			return k.host.QdiscReplace(&q)
		},
	}
}

// rootQueue is the queue where packets leave a device; its zero value: it has no token
// bucket filter. Only for who has one a list is asked for, which is of all devices.
func (k *Kernel) rootQueue(index int) (rawQueue, error) {
	l, err := k.link(index, "")
	if err != nil || l.queue != "tbf" {
		return rawQueue{}, err
	}
	res, err := k.conn.dump(message(unix.RTM_GETQDISC, 0, make([]byte, sizeofTcMsg), nil))
	if err != nil {
		return rawQueue{}, fmt.Errorf("list queues: %w", err)
	}
	for _, m := range res {
		if q, err := parseQueue(m); err != nil || q.index == index && q.parent == netlink.HANDLE_ROOT {
			return q, err
		}
	}
	return rawQueue{}, nil
}

// shaper is the device where what the workload sends waits.
func (s *side) shaper(name string) fact {
	return fact{
		differs: func() (string, error) {
			l, err := s.k.link(0, name)
			if err != nil {
				return name + " is missing", ignoreAbsent(err)
			}
			return when(l.kind != "ifb" || l.group != netdev.GroupShaper || !l.Up, name+" is down, or not netctl's"), nil
		},
		put: func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.Group = name, netdev.GroupShaper
			err := s.k.host.LinkAdd(&netlink.Ifb{LinkAttrs: attrs})
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
			l, err := s.k.link(0, name)
			if err == nil && l.kind != "ifb" {
				err = fmt.Errorf("%s on the host: %w", name, datastore.ErrExists)
			}
			if err != nil {
				return err
			}
			return errors.Join(s.k.host.LinkSetGroup(device(l.Index), int(netdev.GroupShaper)), s.k.host.LinkSetUp(device(l.Index)))
		},
	}
}

// redirect leads all that arrives on the link to the device of that index, from where it
// comes back as if it had just arrived.
func (s *side) redirect(name string, to func() (int, error)) fact {
	filters := func() ([]netlink.Filter, error) {
		list, err := again(func() ([]netlink.Filter, error) { return s.k.host.FilterList(device(s.link.Index), ingressHandle) })
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // it has no such queue
			return nil, nil
		}
		return list, err
	}
	return fact{
		differs: func() (string, error) {
			text := fmt.Sprintf("%s: what arrives is not led to %s", s.wire.Link, name)
			index, err := to()
			if err != nil {
				return text, ignoreAbsent(err)
			}
			list, err := filters()
			for _, f := range list {
				if leadsTo(f, index) {
					return "", nil
				}
			}
			return text, err
		},
		put: func() error {
			index, err := to()
			if err != nil {
				return err
			}
			if err := s.k.host.QdiscAdd(s.ingress()); err != nil && !errors.Is(err, unix.EEXIST) {
				return err
			}
			action := netlink.NewMirredAction(index)
			return s.k.host.FilterAdd(&netlink.U32{
				FilterAttrs: netlink.FilterAttrs{LinkIndex: s.link.Index, Parent: ingressHandle, Priority: 1, Protocol: unix.ETH_P_ALL},
				Actions:     []netlink.Action{action},
			})
		},
	}
}

// ingressHandle is the number of the queue that all that arrives on a device passes.
const ingressHandle = 0xffff0000

func (s *side) ingress() *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: s.link.Index, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS}}
}

func leadsTo(f netlink.Filter, index int) bool {
	u, is := f.(*netlink.U32)
	if !is {
		return false
	}
	for _, a := range u.Actions {
		if m, is := a.(*netlink.MirredAction); is && m.Ifindex == index {
			return true
		}
	}
	return false
}

// ignoreAbsent is err, but for that something is not there.
func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// dropShaper has the device of a link retired, if there is one.
func (k *Kernel) dropShaper(link string) error {
	l, err := k.link(0, netdev.ShaperName(link))
	if err == nil && l.group == netdev.GroupShaper {
		err = k.retireLink(l)
	}
	if err = ignoreAbsent(err); err != nil {
		return fmt.Errorf("detach %s: %w", netdev.ShaperName(link), cause(err))
	}
	return nil
}

// retireShapers retires the devices whose links are gone, which did not take them along.
func (k *Kernel) retireShapers() error {
	all, err := k.links()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	wanted := map[string]bool{}
	for _, l := range all {
		if l.group == netdev.Group {
			wanted[netdev.ShaperName(l.Name)] = true
		}
	}
	var errs []error
	for _, l := range all {
		if l.group == netdev.GroupShaper && !wanted[l.Name] {
			errs = append(errs, k.retireLink(l))
		}
	}
	return errors.Join(errs...)
}
