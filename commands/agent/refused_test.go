package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/acl/nft"
	"netctl/datastore"
)

// TestTheDebtOfWhatWasRefused: flows that began while the kernel lacked something are owed
// until they are cut, also where there was nothing to write any more when it was compared:
// an agent that ends in between leaves that to its successor.
func TestTheDebtOfWhatWasRefused(t *testing.T) {
	dir, fake, log := t.TempDir(), &nft.Fake{}, slog.New(slog.DiscardHandler)
	left := filepath.Join(dir, "flows-to-cut")
	f := newFiltering("n1", acl.Options{LinkPrefix: "nc"}, fake, filepath.Join(dir, "filter"), log)
	f.debt = newDebt(left, log)
	cut, owed := 0, false
	fl := newFlows(log, f.debt, func(conntrack.Cutter) (int, error) { cut++; return 1, nil })
	f.repaired = func(r *acl.Ruleset) {
		_, err := os.Lstat(left)
		owed = err == nil
		fl.repaired(verdicts{rules: r})
	}
	e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "n1/cni/a/eth0"}, Spec: datastore.EndpointSpec{Node: "n1", Link: "nca", Profiles: []string{"web"}}}
	for _, o := range []datastore.Object{&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}}, e} {
		f.apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	fake.Refuse = func(chain string) error {
		if acl.Static(f.options).Chains[chain] != nil {
			return nil
		}
		return errors.New("no memory")
	}
	var refused *acl.RefusedError
	if _, err := f.flush(t.Context()); !errors.As(err, &refused) {
		t.Fatalf("nothing was refused: %v", err)
	}
	fl.work(t.Context())
	if _, err := os.Lstat(left); err == nil || cut != 1 {
		t.Fatalf("cut %d times, owed still: %v", cut, err)
	}
	// It is there before it is compared.
	fake.Refuse = nil
	if _, err := fake.Sync(t.Context(), f.index.Ruleset()); err != nil {
		t.Fatal(err)
	}
	owed, f.resync = false, true
	if _, err := f.flush(t.Context()); err != nil || f.refused != nil {
		t.Fatal(err, f.refused)
	}
	if !owed {
		t.Error("an agent that ended now would leave its successor nothing")
	}
	fl.work(t.Context())
	if _, err := os.Lstat(left); err == nil || cut != 2 {
		t.Errorf("cut %d times, owed still: %v", cut, err)
	}
}
