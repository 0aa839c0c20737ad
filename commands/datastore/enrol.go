//go:build !bundled

package datastore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"netctl/commands/control"
	"netctl/commands/telemetry"
	"netctl/datastore"
)

// enrol lets nodes into a cluster whose etcd is external until ctx ends: that is all that
// the role does there.
func (c Config) enrol(ctx context.Context, lock *control.Held, shown *telemetry.Role, served chan<- struct{}, log *slog.Logger) error {
	if c.JoinPort == 0 {
		return fmt.Errorf("datastore: the etcd is external (datastore.user), and without etcd.joinPort there is nothing to do: take datastore out of the roles: %w", datastore.ErrInvalid)
	}
	d, err := c.newDoor(log)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	shown.More = nil // of an etcd server
	manager, told := control.NewService(log), make(chan error, 1)
	go func() { told <- manager.Run(ctx, nil) }()
	telling := shownUntil(ctx, shown)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.run(ctx)
	}()
	close(served)
	manager.Synced()
	if c.Ready != nil {
		c.Ready()
	}
	err = control.WatchFolders(ctx, log, append(shown.Folders(), lock.Folder())...)
	stop()
	<-ended
	telling.Wait()
	return errors.Join(err, <-told)
}
