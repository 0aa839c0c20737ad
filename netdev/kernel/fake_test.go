package kernel

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
)

// wiring is everything that Kernel and Fake have in common.
type wiring interface {
	Create(Wire) (Made, error)
	Up(string) error
	Detach(string, int) error
	Check(Wire) error
	Links(...int) ([]Link, error)
	Addresses() ([]Address, error)
	Subnets() ([]netip.Prefix, error)
	Watch(context.Context, func(Event)) error
	Run(context.Context) error
	Forwarding4() (bool, error)
	Forwarding6() (bool, error)
	Loopback() (bool, error)
	Hold(Wire, bool) ([]string, error)
	WatchPeers(context.Context, func(Event)) error
	OpenNetns(pid, fd int) (*Netns, error)
}

// TestFakeBehavesAsTheKernel runs one history on both.
func TestFakeBehavesAsTheKernel(t *testing.T) {
	for name, k := range map[string]wiring{"kernel": newHost(t), "fake": &Fake{}} {
		t.Run(name, func(t *testing.T) {
			inside := newNetns(t)
			w := Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1", "fd80::1"), MTU: 1400}
			if err := k.Check(w); err == nil || !strings.Contains(err.Error(), "nc0 is gone") {
				t.Errorf("Check of nothing: %v", err)
			}
			if err := k.Up("nc0"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Up of nothing: %v", err)
			}
			made, err := k.Create(w)
			if err != nil || len(made.MAC) != len("00:00:00:00:00:00") || made.Index == 0 {
				t.Fatalf("Create = %+v, %v", made, err)
			}
			if err := k.Check(w); err == nil || !strings.Contains(err.Error(), "nc0 is down") {
				t.Errorf("Check before Up: %v", err)
			}
			if err := k.Up("nc0"); err != nil {
				t.Error(err)
			}
			w.MAC = made.MAC
			if err := k.Check(w); err != nil {
				t.Error(err)
			}
			if _, err := k.Create(w); !errors.Is(err, datastore.ErrExists) {
				t.Errorf("a second Create: %v", err)
			}
			other := w
			other.Link = "nc1"
			if _, err := k.Create(other); !errors.Is(err, datastore.ErrExists) || !strings.Contains(err.Error(), "eth0 in the network namespace") {
				t.Errorf("Create of a taken interface: %v", err)
			}
			if links, err := k.Links(); err != nil || len(links) != 1 || links[0].Name != "nc0" || !links[0].Up || links[0].MTU != 1400 {
				t.Errorf("Links = %+v, %v", links, err)
			}
			for range 2 {
				if err := k.Detach("nc0", 0); err != nil {
					t.Error(err)
				}
			}
			if links, err := k.Links(); err != nil || len(links) != 0 {
				t.Errorf("Links = %+v, %v", links, err)
			}
			if _, err := k.Create(w); err != nil {
				t.Errorf("the same again: %v", err)
			}
		})
	}
}

func TestFakePrintsItself(t *testing.T) {
	f := &Fake{}
	f.SetAddresses(Address{Prefix: netip.MustParsePrefix("192.168.99.102/24"), Subnet: netip.MustParsePrefix("192.168.99.0/24"), Link: "eth1"})
	if _, err := f.Forwarding4(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create(Wire{Netns: 7, Interface: "eth0", Link: "nc0", MAC: "02:00:00:00:00:01", MTU: 1500, Addresses: addrs("10.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	const want = `ip_forward = 1
192.168.99.102/24 dev eth1
nc0: mtu 1500 state DOWN group 28259 link/ether ee:ee:ee:ee:ee:ee netns 7
  eth0: link/ether 02:00:00:00:00:01
    inet 10.0.0.1/32
    default via 169.254.1.1 dev eth0
    169.254.1.1 dev eth0 scope link
`
	if got := f.String(); got != want {
		t.Errorf("got\n%s", got)
	}
	f.Drop(7)
	if links, err := f.Links(); err != nil || len(links) != 0 {
		t.Errorf("Links after Drop = %v, %v", links, err)
	}
	f.Fail = func(op, object string) error { return errors.New(op + " " + object) }
	if err := f.Up("nc0"); err == nil || err.Error() != "set nc0 up: up nc0" {
		t.Errorf("Up: %v", err)
	}
}
