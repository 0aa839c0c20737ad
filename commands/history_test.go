package commands

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// chronicle is a store that commands change, and record it.
type chronicle struct {
	t     *testing.T
	store *memory.Store
}

func (c chronicle) run(command string) (out string, code int) {
	return c.runWith(command, "")
}

func (c chronicle) runWith(command, in string) (out string, code int) {
	c.t.Helper()
	var text bytes.Buffer
	who := datastore.HistoryRecord{User: "alice", Host: "master", Node: "n1", Command: "netctl " + command}
	a := &app{in: strings.NewReader(in), out: &text, err: &text, opened: recorded(&readStore{Store: c.store, kinds: map[string]bool{}}, who)}
	err := a.run(c.t.Context(), strings.Fields(command))
	if err != nil {
		fmt.Fprintln(&text, err)
		code = a.exitCode(err)
	}
	return text.String(), code
}

func (c chronicle) must(command string) string {
	c.t.Helper()
	out, code := c.run(command)
	if code != exitOK {
		c.t.Fatalf("%s: %d %s", command, code, out)
	}
	return out
}

// refuses wants one line that holds word.
func (c chronicle) refuses(command, word string) {
	c.t.Helper()
	out, code := c.run(command)
	if code == exitOK || !strings.Contains(out, word) || strings.Count(out, "\n") != 1 {
		c.t.Errorf("%s: %d %s", command, code, out)
	}
}

// revision is that of the store's last change.
func (c chronicle) revision() int64 {
	snap, err := c.store.List(context.Background(), datastore.ClusterKey)
	if err != nil {
		c.t.Fatal(err)
	}
	return snap.Revision
}

func (c chronicle) has(command string, wants ...string) {
	c.t.Helper()
	out := c.must(command)
	for _, w := range wants {
		if !strings.Contains(out, w) {
			c.t.Errorf("%s lacks %q:\n%s", command, w, out)
		}
	}
}

// TestHistoryAndUndo: every change of what people write is on record, with who, and can be
// taken back, and that too; what somebody changed since is not lost by it.
func TestHistoryAndUndo(t *testing.T) {
	c := chronicle{t, memory.New()}
	c.has("history", "No change is on record")
	c.must("pool add 10.0.0.0/16")
	pool := c.revision()
	c.must("profile add web")
	c.must("profile web rule add inbound allow tcp to ports 80")
	rule := c.revision()
	c.has("history profile web", fmt.Sprintf("revision %d  ", rule), "alice@master  netctl profile web rule add inbound allow tcp to ports 80\n", "profile web changed\n", "+ spec.inbound: allow tcp to ports 80\n", "profile web created\n")
	if out := c.must("history pools"); strings.Contains(out, "web") || !strings.Contains(out, "pool 10.0.0.0/16 created") {
		t.Error(out)
	}
	if out := c.must("history --limit 1"); strings.Count(out, "revision") != 1 || !strings.Contains(out, "rule add") {
		t.Error(out)
	}
	c.has("history profile web -o yaml", "command: netctl profile web rule add", "before:", "after:")

	// A dry run says so, and changes nothing.
	c.has(fmt.Sprintf("undo %d --dry-run", rule), "profile web updated (dry run)\n")
	c.has("delete profile web --dry-run", "profile web deleted (dry run)\n")
	c.refuses("delete profile nope --dry-run", "profile nope: not found")
	if now := c.revision(); now != rule {
		t.Errorf("dry runs made revision %d of %d", now, rule)
	}
	c.has("get profile web -o yaml", "allow tcp to ports 80")

	// Back, and that back.
	c.must(fmt.Sprint("undo ", rule))
	undone := c.revision()
	if out := c.must("get profile web -o yaml"); strings.Contains(out, "80") {
		t.Error(out)
	}
	c.has("history profile web", fmt.Sprintf("netctl undo %d\n", rule), "- spec.inbound: allow tcp to ports 80\n")
	c.must(fmt.Sprint("undo ", undone))
	c.has("get profile web -o yaml", "allow tcp to ports 80")

	// Changed since, by somebody who keeps no history.
	p, err := datastore.Modify(t.Context(), c.store, "web", func(p *datastore.Profile) error { p.Spec.Tags = append(p.Spec.Tags, "x"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	c.has("history profile", fmt.Sprintf("revision %d  unknown", p.Metadata.Revision), "+ spec.tags: x\n")
	c.refuses(fmt.Sprint("undo ", rule), "profile web was changed since, last at revision")
	c.refuses(fmt.Sprint("undo ", p.Metadata.Revision), "no change of that revision")
	c.must(fmt.Sprintf("undo %d --force", rule))
	if out := c.must("get profile web -o yaml"); strings.Contains(out, "80") || strings.Contains(out, "- x\n") {
		t.Error(out)
	}

	// What was created goes, unless it is used; what was removed comes back.
	c.must("network create net --profile web")
	network := c.revision()
	created := int64(0)
	list, err := datastore.History(t.Context(), c.store)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		if r.Command == "netctl profile add web" {
			created = r.Revision
		}
	}
	c.refuses(fmt.Sprintf("undo %d --force", created), "in use by network net")
	c.refuses(fmt.Sprintf("undo %d --force --dry-run", created), "in use by network net")
	c.refuses("delete profile web --dry-run", "profile web: in use by network net")
	c.must(fmt.Sprint("undo ", network))
	c.must(fmt.Sprint("undo ", pool))
	if out := c.must("get pools") + c.must("get networks"); strings.Contains(out, "10.0") || strings.Contains(out, "net ") {
		t.Error(out)
	}
	c.must(fmt.Sprint("undo ", c.revision()))
	c.has("get pools", "10.0.0.0/16")
	c.must("profile remove web")
	c.must(fmt.Sprint("undo ", c.revision()))
	c.must("get profile web -o yaml")

	// Several at once: all or none.
	manifests := "apiVersion: netctl/v1\nkind: Profile\nmetadata: {name: a}\nspec: {tags: [t]}\n---\napiVersion: netctl/v1\nkind: Network\nmetadata: {name: b}\nspec: {profile: a}\n"
	if out, code := c.runWith("apply -f -", manifests); code != exitOK {
		t.Fatal(out)
	}
	both := c.revision()
	c.has("history network b", "profile a created", "network b created")
	c.must("profile a tag add u")
	c.refuses(fmt.Sprint("undo ", both), "profile a was changed since")
	c.must("get network b -o yaml")
	c.must(fmt.Sprint("undo ", c.revision()))
	c.must(fmt.Sprint("undo ", both))
	for _, gone := range []string{"get profile a", "get network b"} {
		if _, code := c.run(gone); code != exitFailed {
			t.Errorf("%s: it is there", gone)
		}
	}

	// A command that changes nothing leaves no record.
	before := c.revision()
	c.must("profile web tag show")
	if now := c.revision(); now != before {
		t.Errorf("revision %d, was %d", now, before)
	}
	c.refuses("undo x", "is no revision")
	c.refuses("undo 99999", "no change of that revision")
	c.refuses("history endpoints", "is not kept")
	c.refuses("history profile -x-", "")
}

// TestHistoryOfALargeObject: of what it became a sum is kept, by which it can be undone,
// and what was done since is told.
func TestHistoryOfALargeObject(t *testing.T) {
	c := chronicle{t, memory.New()}
	manifest := func(rules int) string {
		var b strings.Builder
		b.WriteString("apiVersion: netctl/v1\nkind: Profile\nmetadata: {name: web}\nspec:\n  inbound:\n")
		for i := range rules {
			fmt.Fprintf(&b, "  - allow tcp from cidr 2001:db8:1234:5678::%x/128 to ports 50001,50003,50005,50007,50009,50011,50013\n", i+1)
		}
		return b.String()
	}
	apply := func(rules int) int64 {
		t.Helper()
		if out, code := c.runWith("apply -f -", manifest(rules)); code != exitOK {
			t.Fatal(out)
		}
		return c.revision()
	}
	created, grown, again := apply(0x300), apply(0x301), apply(0x302)
	c.has("history profile web", "profile web created", "profile web changed (too large to be shown)")
	list, err := datastore.History(t.Context(), c.store)
	if err != nil || len(list) != 3 || list[1].Changes[0].After != nil || len(list[1].Changes[0].Before) < 64<<10 {
		t.Fatalf("%d records, %v", len(list), err)
	}
	c.refuses(fmt.Sprint("undo ", grown), "profile web was changed since")
	for _, r := range []int64{again, grown} {
		c.must(fmt.Sprint("undo ", r))
	}
	if out := c.must("get profile web -o yaml"); strings.Contains(out, "::301/128") || !strings.Contains(out, "::300/128") {
		t.Error("it is not as it was")
	}
	c.must(fmt.Sprint("undo ", created))
	c.has("history --limit 1", "profile web deleted")
	c.must(fmt.Sprint("undo ", c.revision()))
	if out := c.must("get profile web -o yaml"); !strings.Contains(out, "::300/128") {
		t.Error("it is not there again")
	}
}
