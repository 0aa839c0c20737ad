package speaker

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/routing"
)

// TestNodeForANewerSpeaker: a peer whose object only a newer netctl can read stays
// a peer, also across a restart.
func TestNodeForANewerSpeaker(t *testing.T) {
	path := filepath.Join(t.TempDir(), "speaker.json")
	self, peer := stored(t, 1, machine("a", "192.168.99.1/24")), stored(t, 2, machine("b", "192.168.99.2/24"))
	newer := peer
	newer.Revision = 3
	newer.Value = []byte(strings.Replace(string(peer.Value), `{"name":"b"`, `{"name":"b","needs":9`, 1))
	follow := func(before routing.Plan) *follower {
		f := newFollower("a", hostFile(t, "a"), &state{}, func() {}, slog.New(slog.DiscardHandler))
		f.resume(before)
		return f
	}
	peers := func(p routing.Plan) (list []netip.Addr) {
		for _, peer := range p.Peers {
			list = append(list, peer.Address)
		}
		return list
	}
	want := []netip.Addr{netip.MustParseAddr("192.168.99.2")}

	f := follow(routing.Plan{})
	if err := f.Replace(datastore.Snapshot{Revision: 2, Entries: []datastore.Entry{self, peer}}); err != nil {
		t.Fatal(err)
	}
	if p := <-f.plans; !reflect.DeepEqual(peers(p), want) || p.Understood != nil {
		t.Fatalf("got %+v", p)
	}
	if err := f.Apply(datastore.Batch{Revision: 3, Events: []datastore.Entry{newer}}); err != nil {
		t.Fatal(err)
	}
	p := <-f.plans
	if !reflect.DeepEqual(peers(p), want) || len(p.Problems) != 0 || len(p.Understood) != 1 { // the problem is b's
		t.Fatalf("got %+v", p)
	}
	if err := remember(control.Keep(filepath.Dir(path), datastore.FileOptions{}), lastRun{Plan: p}); err != nil {
		t.Fatal(err)
	}
	m, err := recall(path)
	if err != nil {
		t.Fatal(err)
	}
	f = follow(m.Plan)
	if err := f.Replace(datastore.Snapshot{Revision: 3, Entries: []datastore.Entry{self, newer}}); err != nil {
		t.Fatal(err)
	}
	if p := <-f.plans; !reflect.DeepEqual(peers(p), want) || len(p.Problems) != 0 || len(p.Understood) != 1 {
		t.Fatalf("after a restart: %+v", p)
	}
}
