package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
)

// loose is an attach as Docker's driver asks for it.
func loose(workload, sandbox, gateway, addr string) control.AttachRequest {
	return control.AttachRequest{
		Target: control.Target{Orchestrator: "docker", Workload: workload, Interface: "eth"}, Network: "web", NetnsPath: sandbox, Loose: true, Held: true,
		Gateway: netip.MustParseAddr(gateway), Addresses: []netip.Addr{netip.MustParseAddr(addr)},
	}
}

// TestLoose: an address is held, attached with a gateway of its own that the host
// answers for as long as it is needed, and repeated; its labels and ports come after.
func TestLoose(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	held, err := w.api.hold(t.Context(), control.HoldRequest{Within: []netip.Prefix{netip.MustParsePrefix("10.0.0.64/28")}})
	if err != nil || held.Address.String() != "10.0.0.64" || held.Pool.String() != "10.0.0.0/24" {
		t.Fatalf("held %+v, %v", held, err)
	}
	if _, err := w.attach("c1", "web", 101, "10.0.0.64"); !errors.Is(err, datastore.ErrInUse) {
		t.Errorf("somebody else: %v", err)
	}
	req := loose("e1", "/run/docker/netns/a", "169.254.1.2", "10.0.0.64")
	a, err := w.api.attach(t.Context(), req)
	if err != nil || a.Peer == "" || a.Gateways[0] != req.Gateway {
		t.Fatalf("%+v, %v", a, err)
	}
	w.contains("routes", w.fib.String(), "169.254.1.1 dev lo", "169.254.1.2 dev lo", "10.0.0.64 dev "+a.Link)
	w.contains("packet filter", w.nft.String(), "169.254.1.2", `"`+a.Link+`" . 10.0.0.64`)
	if again, err := w.api.attach(t.Context(), req); err != nil || again.MAC != a.MAC {
		t.Errorf("said again: %+v, %v", again, err)
	}
	moved := req
	moved.NetnsPath = "/run/docker/netns/b"
	if a, err = w.api.attach(t.Context(), moved); err != nil || len(w.holders()) != 1 {
		t.Errorf("in another sandbox: %+v, %v, %v", a, err, w.holders())
	}
	if _, err := w.api.attach(t.Context(), loose("e9", "/run/docker/netns/a", "169.254.7.7", "10.0.0.65")); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("a gateway that is none of ours: %v", err)
	}
	if _, err := w.api.labels(t.Context(), control.LabelRequest{Target: req.Target, Labels: map[string]string{"docker.name": "db"}}); err != nil {
		t.Fatal(err)
	}
	web := []datastore.HostPort{{Protocol: "tcp", HostPort: 8080, Port: 80}}
	if _, err := w.api.ports(t.Context(), control.PortRequest{Target: req.Target, Ports: web}); err != nil {
		t.Fatal(err)
	}
	w.contains("packet filter", w.nft.String(), "dnat ip to 10.0.0.64:80")
	w.mu.Lock()
	if got := strings.Join(w.undirected, "; "); !strings.Contains(got, "tcp") || !strings.HasSuffix(got, " with true") || strings.Contains(got, "to []") {
		t.Errorf("flows that went to the host are ended too early, or not at all: %q", got)
	}
	w.mu.Unlock()
	ep, err := datastore.Get[*datastore.Endpoint](t.Context(), w.store, a.Endpoint)
	if err != nil || ep.Metadata.Labels["docker.name"] != "db" || !slices.Equal(ep.Spec.HostPorts, web) {
		t.Errorf("%+v, %v", ep, err)
	}
	other := loose("e2", "/run/docker/netns/c", "169.254.1.1", "10.0.0.66")
	if _, err := w.api.attach(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if _, err := w.api.ports(t.Context(), control.PortRequest{Target: other.Target, Ports: web}); !errors.Is(err, datastore.ErrInUse) || !strings.Contains(err.Error(), "e1/eth publishes it") {
		t.Errorf("the port of another: %v", err)
	}
	// A new agent knows all of it.
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.contains("routes", w.fib.String(), "169.254.1.2 dev lo")
	if _, err := w.api.detach(t.Context(), control.DetachRequest{Target: req.Target}); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		if strings.Contains(w.fib.String(), "169.254.1.2") || strings.Contains(w.nft.String(), "dnat ip") {
			return w.fib.String() + w.nft.String()
		}
		return ""
	})
	w.contains("routes", w.fib.String(), "169.254.1.1 dev lo")
}

// granted is the datastore as a node finds it that is no member of it and in which there
// is nothing yet.
type granted struct{ datastore.Store }

func (g granted) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	grant := datastore.Grant{Node: "n1", Get: func(string, int64) (datastore.Entry, error) { return datastore.Entry{}, nil }}
	if err := grant.Write(t); err != nil {
		return 0, err
	}
	return g.Store.Commit(ctx, t)
}

// TestNetworkOfJoined: such a node makes a network with pools and IPv6; what gives rights
// it does not, and says in one line where it is made.
func TestNetworkOfJoined(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	w.api.store = granted{w.store}
	pools := datastore.NetworkSpec{Pools: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, IPv6: true}
	if got, err := w.api.network(t.Context(), control.NetworkRequest{Name: "web", Spec: pools}); err != nil || !got.Created {
		t.Errorf("with pools: %+v, %v", got, err)
	}
	for name, r := range map[string]control.NetworkRequest{
		"inner": {Name: "inner", Outbound: []string{"allow to tag inner"}}, "app": {Name: "app", Spec: datastore.NetworkSpec{Profile: "other"}},
	} {
		_, err := w.api.network(t.Context(), r)
		if !errors.Is(err, datastore.ErrDenied) || !strings.HasPrefix(err.Error(), "network "+name+": ") || !strings.HasSuffix(err.Error(), "make it on a member of the datastore") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := datastore.Get[*datastore.Network](t.Context(), w.store, name); !errors.Is(err, datastore.ErrNotFound) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
}

// TestNetworkOfRuntime: a network is made once, with its profile, and stays as it is.
func TestNetworkOfRuntime(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	req := control.NetworkRequest{Name: "inner", Spec: datastore.NetworkSpec{Pools: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}}, Outbound: []string{"allow to tag inner"}}
	if got, err := w.api.network(t.Context(), req); err != nil || !got.Created {
		t.Fatalf("%+v, %v", got, err)
	}
	p, err := datastore.Get[*datastore.Profile](t.Context(), w.store, "inner")
	if err != nil || len(p.Spec.Inbound) != 1 || len(p.Spec.Outbound) != 1 || p.Spec.Outbound[0].String() != "allow to tag inner" {
		t.Errorf("%+v, %v", p, err)
	}
	req.Spec.Pools, req.Outbound = nil, nil
	if got, err := w.api.network(t.Context(), req); err != nil || got.Created || len(got.Spec.Pools) != 1 {
		t.Errorf("made again: %+v, %v", got, err)
	}
	if _, err := w.api.network(t.Context(), control.NetworkRequest{Name: "show"}); !errors.Is(err, datastore.ErrInvalid) && err == nil {
		t.Error("a name that is none is taken")
	}
	pools, err := w.api.pools(t.Context(), struct{}{})
	if err != nil || len(pools.Pools) != 1 || pools.Pools[0].Closed != "" {
		t.Errorf("pools: %+v, %v", pools, err)
	}
	if _, err := w.api.hold(t.Context(), control.HoldRequest{IPv6: true}); !errors.Is(err, datastore.ErrInvalid) || !strings.Contains(err.Error(), "node n1 has none itself") {
		t.Errorf("IPv6 on a node without: %v", err)
	}
}
