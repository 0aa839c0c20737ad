// Package netlab owns test hosts: machines made of namespaces on this one, with a
// fabric between them, containers in them, and probes that count what a fault
// costs. `netctl lab` and the end-to-end tests run on it.
//
// A host is a network, mount and UTS namespace held by one anchor process. Its
// hostname is its name, and the places that netctl uses (/etc/netctl.yaml,
// /run/netctl-node, …) are its own, from the lab's folder, so that every role, the
// CNI plugin and ip(8) run in it with their default paths. /run/netns is shared
// with the machine: a namespace that is named there is seen in every host.
//
// It never changes a setting, link, route or rule of the machine itself, and never
// ends a process outside its own namespaces.
//
// Invariants: everything of a lab lies in its folder, its namespaces and in
// /run/netns/<id>-*, and Remove takes all of it away; a lab that is not made to
// persist dies with the process that made it; two labs share nothing.
package netlab

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Options says what lab to make.
type Options struct {
	// Dir is the lab's folder; it must not exist or be empty.
	Dir string
	// Nodes is the number of hosts; they are called node1, node2, …
	Nodes int
	// Subnets is over how many subnets the second interfaces are spread, in turn;
	// default 1. The fabric routes between them.
	Subnets int
	// IPv6 gives the second interfaces an address of fd00:99::/64 as well; IPv6Only
	// gives every interface an IPv6 address and no other.
	IPv6, IPv6Only bool
	// Persist lets the lab outlive this process.
	Persist bool
	// Binary, if set, is linked as /opt/cni/bin/netctl in every host.
	Binary string
}

// Lab is a number of hosts and the fabric between them.
type Lab struct {
	Dir string
	// ID starts the names of the lab's entries in /run/netns.
	ID    string
	Hosts []*Host
	// Fabric is the router between the hosts: it has the first address of each
	// subnet and stands for the rest of the world.
	Fabric  *Host
	persist bool
}

const stateFile = "lab.json"

// state is what lab.json holds.
type state struct {
	ID     string  `json:"id"`
	Hosts  []*Host `json:"hosts"`
	Fabric *Host   `json:"fabric"`
}

// New makes a lab; what fails leaves nothing behind.
func New(o Options) (_ *Lab, err error) {
	if o.Subnets == 0 {
		o.Subnets = 1
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if left, err := os.ReadDir(o.Dir); err == nil && len(left) > 0 {
		return nil, fmt.Errorf("lab %s: the folder is not empty: is another lab up there?", o.Dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	sweepNetns()
	l := &Lab{Dir: o.Dir, ID: labID(o), persist: o.Persist}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("lab %s: %w", l.Dir, err), l.Remove())
		}
	}()
	if err := shareNetnsFolder(); err != nil {
		return nil, err
	}
	if l.Fabric, err = l.newHost("fabric"); err != nil {
		return nil, err
	}
	for i := range o.Nodes {
		h, err := l.newHost(fmt.Sprintf("node%d", i+1))
		if err != nil {
			return nil, err
		}
		l.Hosts = append(l.Hosts, h)
		if err := h.furnish(o.Binary); err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if err := l.wire(o); err != nil {
		return nil, err
	}
	return l, l.save()
}

func (o Options) check() error {
	switch {
	case o.Dir == "":
		return fmt.Errorf("lab: no folder")
	case o.IPv6 && o.IPv6Only:
		return fmt.Errorf("lab: IPv6 beside IPv4 and IPv6 only: choose one")
	case os.Geteuid() != 0:
		return fmt.Errorf("lab: needs root, for namespaces and mounts")
	}
	return CheckSize(o.Nodes, o.Subnets)
}

// CheckSize says why no lab can have so many nodes and subnets.
func CheckSize(nodes, subnets int) error {
	switch {
	case nodes < 1 || nodes > maxNodes:
		return fmt.Errorf("lab: %d nodes: must be 1 to %d", nodes, maxNodes)
	case subnets < 1 || subnets > maxSubnets:
		return fmt.Errorf("lab: %d subnets: must be 1 to %d", subnets, maxSubnets)
	}
	return nil
}

// passing starts the ID of a lab that does not persist, followed by the process.
const passing = "test"

// labID is a name that only a lab in this folder has at a time.
func labID(o Options) string {
	sum := sha256.Sum256([]byte(o.Dir))
	kind := passing
	if o.Persist {
		kind = "lab"
	}
	return fmt.Sprintf("%s%d-%s", kind, os.Getpid(), hex.EncodeToString(sum[:2]))
}

// sweepNetns takes away the names that labs of killed processes left; all else of
// them is gone with the process.
func sweepNetns() {
	names, _ := filepath.Glob(filepath.Join(netnsFolder, passing+"*-*-*"))
	for _, n := range names {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(n), passing), "-")
		if owner, err := strconv.Atoi(pid); err == nil && unix.Kill(owner, 0) == unix.ESRCH {
			_ = removeNetns(n)
		}
	}
}

func (l *Lab) save() error {
	b, err := json.MarshalIndent(state{l.ID, l.Hosts, l.Fabric}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Dir, stateFile), append(b, '\n'), 0o600)
}

// Open finds the lab that another process made in dir; os.ErrNotExist if there is
// none. A host whose anchor has ended is there, but nothing can be done in it.
func Open(dir string) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", dir, err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil || s.Fabric == nil {
		return nil, fmt.Errorf("lab %s: %s is not readable: %w", dir, stateFile, err)
	}
	l := &Lab{Dir: dir, ID: s.ID, Hosts: s.Hosts, Fabric: s.Fabric, persist: true}
	for _, h := range append(l.Hosts, l.Fabric) {
		h.lab = l
		if h.Alive() {
			if err := h.enter(); err != nil {
				return nil, errors.Join(fmt.Errorf("lab %s: %s: %w", dir, h.Name, err), l.Close())
			}
		}
	}
	return l, nil
}

// Host finds a host by name.
func (l *Lab) Host(name string) (*Host, error) {
	var names []string
	for _, h := range append(l.Hosts[:len(l.Hosts):len(l.Hosts)], l.Fabric) {
		if h.Name == name {
			return h, nil
		}
		names = append(names, h.Name)
	}
	return nil, fmt.Errorf("lab %s: no host %q: there are %s", l.Dir, name, strings.Join(names, ", "))
}

// all lists what there is, also of a lab half made.
func (l *Lab) all() []*Host {
	list := l.Hosts[:len(l.Hosts):len(l.Hosts)]
	if l.Fabric != nil {
		list = append(list, l.Fabric)
	}
	return list
}

// Close lets go of the lab; one that persists stays as it is.
func (l *Lab) Close() error {
	for _, h := range l.all() {
		h.leave()
	}
	return nil
}

// Remove ends every process in the lab and takes away all that belongs to it.
func (l *Lab) Remove() error {
	var errs []error
	for _, h := range l.all() {
		h.leave()
		errs = append(errs, h.end())
	}
	names, err := filepath.Glob(filepath.Join(netnsFolder, l.ID+"-*"))
	errs = append(errs, err)
	for _, n := range names {
		errs = append(errs, removeNetns(n))
	}
	if err := errors.Join(append(errs, os.RemoveAll(l.Dir))...); err != nil {
		return fmt.Errorf("lab %s: remove: %w", l.Dir, err)
	}
	return nil
}

// Addresses of the fabric, as in the documents' demo.
const (
	maxNodes   = 150
	maxSubnets = 50
	firstHost  = 102
)

// mgmt is the first interfaces' subnet.
func (o Options) mgmt() netip.Prefix {
	if o.IPv6Only {
		return netip.MustParsePrefix("fd00:1::/64")
	}
	return netip.MustParsePrefix("192.168.1.0/24")
}

// subnets are those of the second interfaces at place i, one a family.
func (o Options) subnets(i int) []netip.Prefix {
	switch {
	case o.IPv6Only:
		return []netip.Prefix{subnet6(i)}
	case o.IPv6:
		return []netip.Prefix{subnet(i), subnet6(i)}
	}
	return []netip.Prefix{subnet(i)}
}

// subnet is the second interfaces' subnet i, subnet6 its IPv6 sister.
func subnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(99 + i), 0}), 24)
}

func subnet6(i int) netip.Prefix {
	a := netip.MustParseAddr("fd00:99::").As16()
	a[7] = byte(i)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// hostIn is the address with the given number in a subnet, with its length; in
// IPv6 the number is written as in IPv4 (…::102).
func hostIn(p netip.Prefix, n int) netip.Prefix {
	a := p.Addr().AsSlice()
	if p.Addr().Is4() {
		a[3] = byte(n)
	} else {
		a[14], a[15] = byte(n/100), byte(n/10%10<<4|n%10)
	}
	addr, _ := netip.AddrFromSlice(a)
	return netip.PrefixFrom(addr, p.Bits())
}
