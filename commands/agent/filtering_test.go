package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"netctl/acl"
	"netctl/acl/nft"
	"netctl/datastore"
)

// TestWhatIsKept: a journal that somebody removed is written again with the next change;
// one that cannot be written leaves no outdated one behind, and is tried now and then.
func TestWhatIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "filter")
	fake := &nft.Fake{}
	synctest.Test(t, func(t *testing.T) {
		f := newFiltering("n1", acl.Options{LinkPrefix: "nc"}, fake, path, slog.New(slog.DiscardHandler))
		change := func(endpoints ...string) {
			t.Helper()
			for _, w := range endpoints {
				name := "n1/cni/" + w + "/eth0"
				f.apply(datastore.Change{Kind: datastore.KindEndpoint, Name: name, New: &datastore.Endpoint{
					Metadata: datastore.Metadata{Name: name}, Spec: datastore.EndpointSpec{Node: "n1", Link: "nc" + w}}})
			}
			if _, err := f.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		kept := func(what string) {
			t.Helper()
			if r, err := acl.ReadJournal(path); err != nil || r.String() != fake.String() {
				t.Errorf("%s: kept is %v\n%v", what, err, r)
			}
		}
		change("a")
		kept("at first")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		change("b")
		kept("after it was removed")

		if err := os.Mkdir(path+".new", 0o700); err != nil {
			t.Fatal(err)
		}
		f.journal.Close()
		change("c")
		if _, err := acl.ReadJournal(path); !errors.Is(err, datastore.ErrNotFound) {
			t.Errorf("an outdated one is kept: %v", err)
		}
		if err := os.Remove(path + ".new"); err != nil {
			t.Fatal(err)
		}
		change("d")
		if _, err := os.Stat(path); err == nil {
			t.Error("tried again at once")
		}
		time.Sleep(retryMax)
		change()
		kept("later")
	})
}
