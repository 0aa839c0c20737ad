package commands

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
	"netctl/datastore/identity"
	"netctl/datastore/ipam"
)

// maxBackup bounds what restore reads, in bytes.
const maxBackup = 1 << 30

// restoreWait is for how long restore waits for the nodes unless it is told.
const restoreWait = time.Minute

type restoreOptions struct {
	dryRun, force bool
	rebuilding    bool // by netctl datastore rebuild, which knows no force
	wait          time.Duration
	without       []string // nodes that are gone for good
}

// flags adds what restore and rebuild have in common.
func (o *restoreOptions) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "check, and say what would happen")
	cmd.Flags().DurationVar(&o.wait, "wait", restoreWait, "how long to wait for the nodes")
	cmd.Flags().StringArrayVar(&o.without, "without", nil, "`node` that is gone for good; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("without", cobra.NoFileCompletions)
}

func (o *restoreOptions) check() error {
	if o.wait < 0 {
		return usage("--wait %s: must not be negative", o.wait)
	}
	return nil
}

func newRestoreCommand(a *app) *cobra.Command {
	o := restoreOptions{}
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Bring back what netctl backup wrote, beside what runs",
		Long: "Bring back what `netctl backup` wrote into FILE (- is stdin), into a datastore that was lost or is to be as it was.\n" +
			"What a person wrote becomes what the backup has; what the backup does not have stays. What runs wins: endpoints and blocks that the\n" +
			"datastore has stay as they are, nodes write back what runs on them, and only then endpoints of the backup take the addresses that\n" +
			"nobody has. Until every node did so no pool gives out an address: they are disabled, with the label netctl/restoring.\n" +
			"If a node does not come in time they stay so: run the same again when it is there, or --without NODE if it never will be.\n" +
			"Says for each kind what was restored, kept and skipped, and why. Everything is checked before anything is written; what is\n" +
			"interrupted is finished by running it again. --force takes another cluster's backup: all but its nodes, blocks and endpoints.",
		Example: "  netctl restore netctl.backup --dry-run\n  netctl restore netctl.backup --without slave",
		Args:    cobra.ExactArgs(1),
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&o.force, "force", false, "take another cluster's backup too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := o.check(); err != nil {
			return err
		}
		b, err := a.readBackup(cmd.Context(), args[0])
		if err == nil {
			err = a.restore(cmd.Context(), b, o)
		}
		if err != nil {
			return fmt.Errorf("restore %s: %w", args[0], err)
		}
		return nil
	}
	return cmd
}

func (a *app) restore(ctx context.Context, b *datastore.Backup, o restoreOptions) error {
	r, err := a.openRestore(ctx, b, o)
	if err != nil {
		return err
	}
	return r.run(ctx)
}

// restore is one run of the command.
type restore struct {
	restoreOptions
	app     *app
	store   datastore.Store
	state   string // the node's state folder
	cluster datastore.Cluster
	foreign bool // the backup is another cluster's
	objects []datastore.Object
	has     map[string]bool // keys of the backup
	said    outcomes
}

// readBackup reads a file that the caller names.
func (a *app) readBackup(ctx context.Context, file string) (*datastore.Backup, error) {
	text, err := a.readInput(ctx, file, maxBackup)
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err // the file is named already
	}
	if err != nil {
		return nil, err
	}
	return datastore.DecodeBackup(text)
}

// openRestore decides whether a backup may be restored here.
func (a *app) openRestore(ctx context.Context, b *datastore.Backup, o restoreOptions) (*restore, error) {
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	store, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	r := &restore{restoreOptions: o, app: a, store: store, state: s.StateDir, has: map[string]bool{}, said: outcomes{}}
	for _, e := range b.Entries {
		o, err := datastore.Decode(e.Key, e.Value)
		if err != nil {
			return nil, err
		}
		r.has[e.Key] = true
		r.objects = append(r.objects, o)
	}
	slices.SortStableFunc(r.objects, func(x, y datastore.Object) int { return kindRank(x) - kindRank(y) })
	return r, r.identify(ctx, b.Cluster)
}

// identify chooses the cluster that the datastore is to hold.
func (r *restore) identify(ctx context.Context, backup datastore.Cluster) error {
	snap, err := r.store.List(ctx, datastore.ClusterKey)
	if err != nil {
		return err
	}
	stored, _, err := snap.Cluster()
	if err != nil {
		stored = nil // unreadable: written over
	}
	own, err := identity.Own(r.state)
	if err != nil {
		return err
	}
	var here *datastore.Cluster
	where := "the datastore holds"
	switch {
	case stored != nil:
		here = stored
	case own != nil:
		here, where = &datastore.Cluster{UUID: own.UUID, Created: time.Now().UTC().Truncate(time.Second), Generation: own.Generation}, "this node belongs to"
	}
	r.cluster = backup
	switch {
	case here == nil && backup.UUID == "":
		r.cluster = datastore.NewCluster(time.Now())
	case here == nil || here.UUID == backup.UUID:
	case backup.UUID == "":
		r.cluster = *here
	case !r.force && r.rebuilding:
		return fmt.Errorf("is of cluster %s, and %s cluster %s: name copies of that one's nodes, or `netctl restore FILE --force` takes all of this one but its nodes, blocks and endpoints", backup.UUID, where, here.UUID)
	case !r.force:
		return fmt.Errorf("is of cluster %s, and %s cluster %s: use that one's backup, or --force to take all of this one but its nodes, blocks and endpoints", backup.UUID, where, here.UUID)
	default:
		r.app.warn("the backup is of cluster %s: its nodes, blocks and endpoints are left out, and the datastore stays cluster %s", backup.UUID, here.UUID)
		r.cluster, r.foreign = *here, true
	}
	return nil
}

// entitled says before anything is written that this machine may not write all of it: by a
// transaction that may, and does nothing, as its condition never holds.
func (r *restore) entitled(ctx context.Context) error {
	_, err := r.store.Commit(ctx, datastore.Txn{
		If:   []datastore.Condition{{Key: datastore.ClusterKey, Revision: math.MaxInt64}},
		Then: []datastore.Op{{Key: datastore.ClusterKey, Value: []byte("{}")}},
	})
	switch {
	case errors.Is(err, datastore.ErrDenied):
		return fmt.Errorf("nothing was written: it takes the rights of a member of the datastore, or in an external etcd of a user who may write everything: %w", err)
	case errors.Is(err, datastore.ErrConflict):
		return nil
	}
	return err
}

func (r *restore) run(ctx context.Context) error {
	if err := r.entitled(ctx); err != nil {
		return err
	}
	// A pool that cannot be read cannot be kept from giving out addresses either.
	if _, err := datastore.List[*datastore.Pool](ctx, r.store); err != nil {
		return err
	}
	view, err := r.listed(ctx)
	if err != nil {
		return err
	}
	for _, n := range r.without {
		key, err := datastore.Key(datastore.KindNode, n)
		if err != nil || !r.has[key] && view.Node(n) == nil {
			return usage("--without %s: neither the backup nor the datastore has such a node", n)
		}
	}
	if r.dryRun {
		if _, err := r.plan(view); err != nil {
			return err
		}
		return r.app.print(r.said.text() + "Nothing was written (dry run).\n")
	}
	if err := r.write(ctx); err != nil {
		return fmt.Errorf("not finished: %w: run the same again", err)
	}
	c, revision, err := identity.Restored(ctx, r.store, r.state, r.cluster)
	if err != nil {
		return fmt.Errorf("not finished, no node follows the datastore yet: %w: run the same again", err)
	}
	missing, err := r.settle(ctx, revision)
	if err != nil {
		if ctx.Err() != nil { // of which no more is said than that
			r.app.warn("not finished, the pools stay disabled: run the same again")
		}
		return fmt.Errorf("not finished, the pools stay disabled: %w: run the same again", err)
	}
	text := r.said.text() + fmt.Sprintf("Cluster %s, generation %d.\n", c.UUID, c.Generation)
	if err := r.app.print(text); err != nil || len(missing) == 0 {
		return err
	}
	return fmt.Errorf("node %s did not come within %s, and may run endpoints that nobody here knows: the pools stay disabled until you run the same again once it is there, or with --without NODE if it is gone for good",
		fewOf(missing), r.wait)
}

// settle waits for the nodes, gives the backup's endpoints what nobody has, and lets
// the pools give out addresses unless nodes are missing.
func (r *restore) settle(ctx context.Context, revision int64) (missing []string, err error) {
	// What an endpoint of the backup took before would be refused to who runs with it.
	if missing, err = r.await(ctx, revision); err != nil || len(missing) > 0 {
		return missing, err
	}
	if err := r.retry(ctx, r.reclaim); err != nil {
		return nil, err
	}
	return nil, r.retry(ctx, r.enable)
}

// listed is all that the datastore holds.
func (r *restore) listed(ctx context.Context) (*datastore.View, error) {
	return r.app.view(ctx, datastore.Kinds()...)
}

// retry has do done anew if somebody else wrote meanwhile.
func (r *restore) retry(ctx context.Context, do func(context.Context) error) error {
	for races := 0; ; races++ {
		err := do(ctx)
		if !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) || races == maxRaces {
			return err
		}
	}
}

// write writes what was planned.
func (r *restore) write(ctx context.Context) error {
	written := map[string]bool{}
	return r.retry(ctx, func(ctx context.Context) error {
		view, err := r.listed(ctx)
		if err != nil {
			return err
		}
		before := r.said
		r.said = outcomes{}
		plans, err := r.plan(view)
		if err != nil {
			return err
		}
		for key := range written {
			r.said[key] = before[key]
		}
		return commitPlans(ctx, r.store, view, plans, func(p planned) { written[p.op.Key] = true })
	})
}

// await waits until every node has reported to the datastore since revision: an agent
// reports once it has written back what runs.
func (r *restore) await(ctx context.Context, revision int64) (missing []string, err error) {
	// No deadline: a watch would keep some of it to find out why nothing answers.
	within, stop := context.WithCancel(ctx)
	defer stop()
	defer time.AfterFunc(r.wait, stop).Stop()
	defer r.app.waiting("the nodes to write back what runs")()
	changed := errors.New("a report")
	for {
		view, err := r.app.view(ctx, datastore.KindNode, datastore.KindReport)
		if err != nil {
			return nil, err
		}
		missing = r.missing(view, revision)
		if len(missing) == 0 || within.Err() != nil {
			return missing, nil
		}
		err = r.store.Watch(within, datastore.Prefixes(datastore.KindNode, datastore.KindReport), view.Revision(), func(datastore.Batch) error { return changed })
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if within.Err() == nil && !errors.Is(err, changed) && !errors.Is(err, datastore.ErrCompacted) {
			return nil, err
		}
	}
}

// missing are the nodes that ever had an agent and have not reported since revision.
func (r *restore) missing(view *datastore.View, revision int64) (names []string) {
	for _, n := range view.Nodes() {
		name := n.Metadata.Name
		rep := view.Report(name, datastore.ReportAgent)
		if n.Status.Host != "" && (rep == nil || rep.Metadata.Revision <= revision) && !slices.Contains(r.without, name) {
			names = append(names, name)
		}
	}
	return names
}

// reclaim has the backup's endpoints hold their addresses, and takes those away of
// which somebody else has one.
func (r *restore) reclaim(ctx context.Context) error {
	if r.foreign {
		return nil
	}
	view, err := r.listed(ctx)
	if err != nil {
		return err
	}
	var blocks []*datastore.Block
	var endpoints []*datastore.Endpoint
	was := map[string]*datastore.Endpoint{}
	for _, o := range r.objects {
		switch o := o.(type) {
		case *datastore.Block:
			blocks = append(blocks, o)
		case *datastore.Endpoint:
			if now := view.Endpoint(o.Metadata.Name); now == nil {
				r.said.revise(o, "skipped", "its node has ended it meanwhile")
			} else if slices.Equal(now.Spec.Addresses, o.Spec.Addresses) {
				endpoints, was[o.Metadata.Name] = append(endpoints, now), o
			} else {
				r.said.revise(o, "kept", "it runs with other addresses")
			}
		}
	}
	re := ipam.PlanReclaim(view, blocks, endpoints, time.Now())
	var plans []planned
	for _, b := range re.Blocks {
		cond, op, err := datastore.OpPut(b)
		if err != nil {
			return err
		}
		plans = append(plans, planned{manifest: manifest{object: b}, verb: "updated", cond: cond, op: op})
	}
	for _, ep := range endpoints {
		why, refused := re.Refused[ep.Metadata.Name]
		if !refused {
			continue
		}
		if !sameObject(ep, was[ep.Metadata.Name]) {
			continue // somebody changed it: it is not what a restore wrote
		}
		cond, op, err := datastore.OpDelete(ep)
		if err != nil {
			return err
		}
		plans = append(plans, planned{manifest: manifest{object: ep, file: why}, verb: "updated", cond: cond, op: op})
	}
	return commitPlans(ctx, r.store, view, plans, func(p planned) {
		if p.op.Value == nil {
			r.said.note(p.object, "skipped", p.file)
		}
	})
}

// enable has the pools give out addresses again that this or an earlier run disabled.
func (r *restore) enable(ctx context.Context) error {
	view, err := r.listed(ctx)
	if err != nil {
		return err
	}
	var plans []planned
	for _, p := range view.Pools() {
		if p.Metadata.Labels[datastore.LabelRestoring] == "" {
			continue
		}
		open := *p
		open.Spec.Disabled = false
		open.Metadata.Labels = without(p.Metadata.Labels, datastore.LabelRestoring)
		cond, op, err := datastore.OpPut(&open)
		if err != nil {
			return err
		}
		plans = append(plans, planned{manifest: manifest{object: &open}, verb: "updated", cond: cond, op: op})
	}
	return commitPlans(ctx, r.store, view, plans, func(planned) {})
}
