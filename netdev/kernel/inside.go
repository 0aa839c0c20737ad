package kernel

import (
	"fmt"
	"net"

	"netctl/netdev"
)

// inside are the facts of the workload side that nobody else has reason to change: the
// entries that spare it its questions for the gateways, whatever the host is set to answer.
// Its addresses, routes, MAC and MTU are the workload's and its plugins' business too: Check
// says how they differ. There is one for each of gateways.
func (w Wire) inside(c *conn, index int) (list []fact) {
	hostMAC, _ := net.ParseMAC(netdev.HostMAC)
	for _, gw := range w.gateways() {
		list = append(list, c.known(w.Interface, index, gw, hostMAC))
	}
	return list
}

// Mend makes the workload side of a wire again what an attach makes of it, as far as that
// is nobody else's to change, and returns what differed. The error wraps os.ErrNotExist if
// there is no such interface in the namespace.
func (k *Kernel) Mend(w Wire) (differed []string, err error) {
	if _, err = w.prepare(); err == nil {
		differed, err = w.mend()
	}
	if err != nil {
		return differed, fmt.Errorf("mend %s: %w", w.Interface, err)
	}
	return differed, nil
}

// MendAt is Mend in the namespace in which the workload was attached; os.ErrNotExist also
// where that is not found any more.
func (k *Kernel) MendAt(w Wire, at Place) ([]string, error) {
	ns, err := openPlace(at)
	if err != nil {
		return nil, fmt.Errorf("mend %s: %w", w.Interface, err)
	}
	defer ns.Close()
	w.Netns = ns.fd
	return k.Mend(w)
}

func (w Wire) mend() (differed []string, err error) {
	c, err := dial(w.Netns)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.close() }()
	l, err := c.link(0, w.Interface)
	if err != nil {
		return nil, err
	}
	return putBack(w.Interface, w.inside(c, l.Index))
}
