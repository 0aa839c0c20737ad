package kernel

import (
	"fmt"
	"maps"
	"slices"
)

// Forwarding4 is Kernel.Forwarding4.
func (f *Fake) Forwarding4() (bool, error) { return f.setForward("ip_forward") }

// Forwarding6 is Kernel.Forwarding6.
func (f *Fake) Forwarding6() (bool, error) { return f.setForward("forwarding6") }

// Loopback is Kernel.Loopback.
func (f *Fake) Loopback() (bool, error) { return false, nil }

// IPv6Off is Kernel.IPv6Off; Refuse is asked for "ipv6" and the interface.
func (f *Fake) IPv6Off(link string) string {
	if err := f.fail("ipv6", link); err != nil {
		return err.Error()
	}
	return ""
}

func (f *Fake) setForward(what string) (bool, error) {
	if err := f.fail("forward", what); err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.forward, what) {
		return false, nil
	}
	f.forward = append(f.forward, what)
	return true, nil
}

// StopForwarding switches forwarding of IPv4 or IPv6 off as another program would.
func (f *Fake) StopForwarding(v4 bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what := map[bool]string{true: "ip_forward", false: "forwarding6"}[v4]
	f.forward = slices.DeleteFunc(f.forward, func(s string) bool { return s == what })
	f.tell(Event{Change: ForwardingOff, V4: v4})
}

// Forwarding4By is Kernel.Forwarding4By.
func (f *Fake) Forwarding4By(index int) (was bool, err error) {
	if err := f.fail("forward", fmt.Sprint(index)); err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	was = f.closed[index]
	if delete(f.closed, index); was {
		f.tell(Event{Change: SettingChanged, Index: index})
	}
	return was, nil
}

// StopForwardingBy switches it off for one interface of the host, as another program would.
func (f *Fake) StopForwardingBy(index int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed == nil {
		f.closed = map[int]bool{}
	}
	f.closed[index] = true
	f.tell(Event{Change: SettingChanged, Index: index})
}

// Closed are the interfaces of the host for which it is switched off.
func (f *Fake) Closed() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.closed))
}

// ReturnPath is Kernel.ReturnPath.
func (f *Fake) ReturnPath(links ...string) (ReturnPath, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.path
	p.Strict = slices.DeleteFunc(slices.Clone(p.Strict), func(l string) bool { return l != "all" && !slices.Contains(links, l) })
	return p, nil
}

// SetReturnPath says what that is from now on.
func (f *Fake) SetReturnPath(p ReturnPath) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.path = p
}
