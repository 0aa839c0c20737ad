package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"netctl/datastore"
	"netctl/datastore/identity"
)

// Each node keeps a copy of what the datastore holds, in the form of a backup, from which
// `netctl datastore rebuild` writes it again when it is lost. It is brought up to date a
// while after a change, however many there were, and at once when the datastore goes away
// or is not the right one any more: nothing is seen after that.

// copyPause is the least time between two writes of the copy. copyShare and copyRate bound
// what they cost: a write is followed by a pause of so many times what it took, and one in
// which so many bytes a second make as many as it wrote.
const (
	copyPause = 10 * time.Second
	copyShare = 50
	copyRate  = 256 << 10
)

// copier keeps the copy.
type copier struct {
	loop  *loop
	path  string
	due   chan struct{} // holds one: the model changed
	hurry chan struct{} // holds one: it does not change any more
}

func newCopier(l *loop) *copier {
	return &copier{loop: l, path: l.cfg.copyFile(), due: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
}

// Run writes until ctx ends.
func (c *copier) Run(ctx context.Context) error {
	pause := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.due:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.hurry:
		case <-time.After(pause):
		}
		began := time.Now()
		wrote, err := c.write(ctx)
		if err != nil && ctx.Err() == nil {
			c.loop.log.Warn("copy of the datastore not kept", "file", c.path, "error", err)
		}
		if wrote > 0 || err != nil {
			pause = max(copyPause, copyShare*time.Since(began), time.Duration(wrote)*time.Second/copyRate)
		}
		select { // of before
		case <-c.hurry:
		default:
		}
	}
}

// write replaces the file, if there is anything to keep, and returns its size. One of another generation of the cluster is kept beside it:
// what that held may be lost.
func (c *copier) write(ctx context.Context) (size int, err error) {
	var (
		objects  []datastore.Object
		cluster  datastore.Cluster
		revision int64
	)
	if doErr := c.loop.do(ctx, func() {
		l := c.loop
		l.idle++
		if l.standing.listed == 0 {
			return
		}
		if err = l.copyLog.Begin(); err != nil {
			return
		}
		cluster, revision = l.standing.cluster, l.standing.followed
		for _, k := range datastore.Kinds() {
			objects = slices.AppendSeq(objects, l.view.Each(k))
		}
	}); cmp.Or(doErr, err) != nil || revision == 0 || cluster.UUID == "" {
		return 0, cmp.Or(doErr, err)
	}
	b, left := datastore.BackupOf(objects, cluster, revision, c.loop.cfg.Version, time.Now())
	for _, err := range left {
		c.loop.log.Warn("not in the copy of the datastore", "error", err)
	}
	text, err := b.Encode()
	if err != nil {
		return 0, err
	}
	if err := c.keepFormer(cluster); err != nil {
		return 0, err
	}
	if err := datastore.WriteFile(c.path, text, datastore.FileOptions{}); err != nil {
		return 0, err
	}
	doErr := c.loop.do(ctx, func() { err = c.loop.copyLog.Made() })
	return len(text), cmp.Or(doErr, err)
}

// keepFormer puts a copy aside that is of another generation of the cluster.
func (c *copier) keepFormer(now datastore.Cluster) error {
	f, err := os.Open(c.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	was, err := datastore.BackupCluster(f)
	if err == nil && was.UUID == now.UUID && was.Generation == now.Generation {
		return nil
	}
	return datastore.PutAside(c.path, was.Generation)
}

// goByCopy takes the copy for what the datastore holds, if that was away since the agent
// started and nothing newer was seen of it: endpoints can be attached then.
func (l *loop) goByCopy() {
	if l.standing.listed != 0 || l.standing.stage != away || l.standing.byCopy {
		return
	}
	l.standing.byCopy = true
	b, err := l.readCopy()
	if err != nil {
		l.log.Info("copy of the datastore not used", "cause", oneLine(err.Error()))
		return
	}
	snap := datastore.Snapshot{Entries: b.Entries, Revision: b.Revision}
	changes, err := l.view.Replace(l.withUnsettled(snap))
	if err != nil {
		l.log.Warn("entries of the datastore not used", "error", err)
	}
	l.addresses.Reset(l.view)
	for _, c := range changes {
		l.changed(c)
	}
	if l.otherName() != nil {
		return // nothing changes until the datastore says what is right
	}
	l.standing.listed, l.standing.followed, l.standing.cluster, l.standing.admitted = b.Revision, b.Revision, b.Cluster, true
	l.filtering.held = false // whoever flushes the filter between putBack and now is found out
	l.locals.markAll()
	l.log.Info("goes by the copy of the datastore", "revision", b.Revision, "endpoints", l.view.CountEndpointsOf(l.cfg.Node))
}

// readCopy reads the copy; one of another cluster, or of before something that this node
// saw, is refused.
func (l *loop) readCopy() (*datastore.Backup, error) {
	b, whole, err := datastore.ReadCopy(l.cfg.copyFile())
	if err != nil {
		return nil, err
	}
	own, err := identity.Own(l.cfg.StateDir)
	switch {
	case err != nil:
		return nil, err
	case own == nil || own.UUID != b.Cluster.UUID || own.Generation != b.Cluster.Generation:
		return nil, errors.New("it is of another cluster, or of another generation of it")
	case !whole:
		return nil, fmt.Errorf("it is of revision %d, and this node may have seen more", b.Revision)
	case b.Revision < own.Revision:
		return nil, fmt.Errorf("it is of revision %d, and this node has seen %d", b.Revision, own.Revision)
	}
	return b, nil
}
