package commands

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"netctl/datastore"
)

// historyLimit is how many changes are shown unless told.
const historyLimit = 20

// recordedStore is the cluster's datastore, which records who changes what.
type recordedStore struct {
	clusterStore
	recorder *datastore.Recorder
}

func recorded(s clusterStore, who datastore.HistoryRecord) clusterStore {
	return recordedStore{s, &datastore.Recorder{Store: s, Who: who, Remember: true}}
}

// Get implements datastore.Store.
func (s recordedStore) Get(ctx context.Context, key string) (datastore.Entry, error) {
	return s.recorder.Get(ctx, key)
}

// List implements datastore.Store.
func (s recordedStore) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	return s.recorder.List(ctx, prefixes...)
}

// Commit implements datastore.Store.
func (s recordedStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	return s.recorder.Commit(ctx, t)
}

// whoRuns says who runs a command line: whoever became root to do so is who was before.
func whoRuns(s *settings, args []string) datastore.HistoryRecord {
	host, _ := os.Hostname() // it is said without
	who := os.Getenv("SUDO_USER")
	if who == "" {
		if u, err := user.Current(); err == nil {
			who = u.Username
		}
	}
	return datastore.HistoryRecord{User: cmp.Or(who, fmt.Sprint("uid ", os.Getuid())), Host: host, Node: s.Node,
		Command: strings.Join(append([]string{"netctl"}, args...), " ")}
}

func newHistoryCommand(a *app) *cobra.Command {
	limit := historyLimit
	cmd := &cobra.Command{
		Use:   "history [KIND [NAME]]",
		Short: "Show who changed what, and when",
		Long: "Show who changed what, and when, the newest first: of everything, of a kind, or of one object. Each change has the revision by which\n" +
			"netctl undo takes it back. With -o yaml or json the objects before and after it.\n" +
			"Written down is what this command line and the API change, and what agents make and remove for people, not what agents write of\n" +
			"themselves (blocks, endpoints, reports, where a node is). What was written otherwise, by etcdctl or an older netctl, is shown as unknown, as far as\n" +
			"the object as it is now tells. The last " + fmt.Sprint(datastore.HistoryRecords) + " changes of at most " + fmt.Sprint(int(datastore.HistoryAge.Hours()/24)) + " days are kept, in no more than " + fmt.Sprint(datastore.HistoryBytes>>20) + " MiB.",
		Example:           "  netctl history\n  netctl history profile web\n  netctl history pools -o yaml",
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: a.completeKindAndName,
	}
	f := addFormat(cmd)
	cmd.Flags().IntVar(&limit, "limit", historyLimit, "how many `changes`, 0 for all")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if limit < 0 {
			return usage("--limit %d: must not be negative", limit)
		}
		prefix, err := historyPrefix(args)
		if err != nil {
			return err
		}
		list, err := a.history(cmd.Context(), prefix)
		if err != nil {
			return err
		}
		if limit > 0 && len(list) > limit {
			list = list[:limit]
		}
		return a.showHistory(*f, list)
	}
	return cmd
}

// historyPrefix is what begins the keys that arguments are about.
func historyPrefix(args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	kind, err := parseKind(args[0])
	if err != nil {
		return "", err
	}
	if !datastore.HasHistory(kind) {
		return "", usage("history of %ss is not kept: they are written by agents", strings.ToLower(string(kind)))
	}
	if len(args) == 1 {
		return datastore.KindPrefix(kind), nil
	}
	name := nameOfKind(kind, args[1])
	if err := checkNames(kind, name); err != nil {
		return "", err
	}
	return datastore.Key(kind, name)
}

// history is what was changed of keys, newest first, with what nobody recorded.
func (a *app) history(ctx context.Context, prefix string) ([]datastore.HistoryRecord, error) {
	store, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	defer a.waiting("the datastore")()
	list, err := datastore.History(ctx, store)
	if err != nil && list == nil {
		return nil, err
	}
	if err != nil {
		a.warn("%s", oneLine(err))
	}
	var kinds []datastore.Kind
	for _, k := range datastore.Kinds() {
		// Of a node its agent writes where it is.
		if p := datastore.KindPrefix(k); datastore.HasHistory(k) && k != datastore.KindNode && (prefix == "" || strings.HasPrefix(prefix, p)) {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) > 0 {
		snap, err := store.List(ctx, datastore.Prefixes(kinds...)...)
		if err != nil {
			return nil, err
		}
		list = append(list, unrecorded(snap, list)...)
	}
	list = slices.DeleteFunc(list, func(r datastore.HistoryRecord) bool {
		return !slices.ContainsFunc(r.Changes, func(c datastore.HistoryChange) bool { return datastore.Under(c.Key, prefix) || prefix == "" })
	})
	slices.SortStableFunc(list, func(x, y datastore.HistoryRecord) int { return cmp.Compare(y.Revision, x.Revision) })
	return list, nil
}

// unrecorded are the last changes of objects of which the history has no record.
func unrecorded(now datastore.Snapshot, list []datastore.HistoryRecord) (more []datastore.HistoryRecord) {
	last := map[string]datastore.HistoryChange{}
	known := map[string]int64{}
	for _, r := range list { // oldest first
		for _, c := range r.Changes {
			last[c.Key], known[c.Key] = c, r.Revision
		}
	}
	for _, e := range now.Entries {
		if known[e.Key] != e.Revision {
			more = append(more, datastore.HistoryRecord{Revision: e.Revision,
				Changes: []datastore.HistoryChange{{Key: e.Key, Before: last[e.Key].After, After: e.Value}}})
		}
	}
	return more
}

func (a *app) showHistory(f format, list []datastore.HistoryRecord) error {
	switch f {
	case formatJSON, formatYAML:
		if list == nil {
			list = []datastore.HistoryRecord{}
		}
		text, err := json.Marshal(list)
		if err != nil {
			return err
		}
		if f == formatYAML {
			var v any
			if err := json.Unmarshal(text, &v); err != nil {
				return err
			}
			text, err = yaml.Marshal(v)
		} else {
			text, err = indented(text)
		}
		if err != nil {
			return err
		}
		return a.print(string(text))
	}
	if len(list) == 0 {
		return a.print("No change is on record.\n")
	}
	var b strings.Builder
	for _, r := range list {
		if r.User == "" {
			fmt.Fprintf(&b, "revision %d  unknown: not by this command line\n", r.Revision)
		} else {
			fmt.Fprintf(&b, "revision %d  %s  %s@%s  %s\n", r.Revision, r.Time.Local().Format(time.DateTime), r.User, r.Host, r.Command)
		}
		for _, c := range r.Changes {
			b.WriteString(changeText(c, r.User == ""))
		}
	}
	return a.print(b.String())
}

// keyLabel is how messages name the object of a key.
func keyLabel(key string) string {
	kind, name, err := datastore.ParseKey(key)
	if err != nil {
		return key
	}
	return labelOf(kind, name)
}

// changeText is one line for a change, and one for each thing of the object that it took
// away (-) or put there (+).
func changeText(c datastore.HistoryChange, unknown bool) string {
	verb := "changed"
	switch {
	case c.Omitted:
		verb = "changed (not kept: too large, or nobody could read it)"
	case c.Before == nil && unknown:
		verb = "written"
	case c.Before == nil:
		verb = "created"
	case c.Deleted():
		verb = "deleted"
	case c.Sum != "":
		verb = "changed (too large to be shown)"
	}
	text := "    " + keyLabel(c.Key) + " " + verb + "\n"
	if c.Before == nil || c.After == nil {
		return text
	}
	var before, after any
	if json.Unmarshal(c.Before, &before) != nil || json.Unmarshal(c.After, &after) != nil {
		return text
	}
	for _, line := range differences("", before, after) {
		text += "      " + line + "\n"
	}
	return text
}

// differences are lines on what is in one of two JSON values and not in the other.
func differences(path string, before, after any) (lines []string) {
	was, ok := before.(map[string]any)
	is, both := after.(map[string]any)
	if ok && both {
		keys := maps.Clone(was)
		maps.Copy(keys, is)
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			lines = append(lines, differences(strings.TrimPrefix(path+"."+k, "."), was[k], is[k])...)
		}
		return lines
	}
	gone, came := elements(before), elements(after)
	for _, e := range elements(after) {
		if i := slices.Index(gone, e); i >= 0 {
			gone = slices.Delete(gone, i, i+1)
		}
	}
	for _, e := range elements(before) {
		if i := slices.Index(came, e); i >= 0 {
			came = slices.Delete(came, i, i+1)
		}
	}
	for _, e := range gone {
		lines = append(lines, "- "+path+": "+e)
	}
	for _, e := range came {
		lines = append(lines, "+ "+path+": "+e)
	}
	if len(lines) == 0 && !slices.Equal(elements(before), elements(after)) {
		lines = append(lines, "  "+path+": in another order")
	}
	return lines
}

// elements are the texts of what a value holds: of a list each element's.
func elements(v any) (list []string) {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		for _, e := range v {
			list = append(list, elements(e)...)
		}
		return list
	case string:
		return []string{v}
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return []string{string(text)}
}
