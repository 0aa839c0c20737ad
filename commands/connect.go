package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"netctl/datastore"
	"netctl/datastore/etcd"
)

// patience is after how long a person at a terminal is told what is waited for.
const patience = time.Second

// store opens the cluster's datastore once; run closes it. It need not answer.
func (a *app) store(ctx context.Context) (clusterStore, error) {
	s, err := a.open(ctx)
	if err != nil || a.confirming == nil {
		return s, err
	}
	set, err := a.settings()
	if err != nil {
		return nil, err
	}
	who := whoRuns(set, a.args)
	if a.caller != nil {
		who.User, who.Command = a.caller.name, "api "+a.caller.does
	}
	return confirmedStore{s, a.confirming, who}, nil
}

func (a *app) open(ctx context.Context) (clusterStore, error) {
	if a.opened != nil {
		return a.opened, nil
	}
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	if s.Client.Server != "" {
		return nil, usage("this goes to the datastore itself: leave --server (client.server) out")
	}
	opened, err := etcd.Open(ctx, s.storeOptions())
	if err != nil {
		return nil, err
	}
	a.opened = recorded(opened, whoRuns(s, a.args))
	return a.opened, nil
}

// view reads the objects of kinds. Keys that do not decode are told on stderr.
func (a *app) view(ctx context.Context, kinds ...datastore.Kind) (*datastore.View, error) {
	if c, err := a.api(); err != nil {
		return nil, err
	} else if c != nil {
		return remoteView(ctx, c, kinds)
	}
	s, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	n := needed{}
	n.all(kinds...)
	return a.list(ctx, s, n)
}

// list is view for just so much.
func (a *app) list(ctx context.Context, s datastore.Store, n needed) (*datastore.View, error) {
	defer a.waiting("the datastore")()
	snap, err := n.read(ctx, s)
	if err != nil {
		return nil, err
	}
	v := datastore.NewView()
	if _, err := v.Replace(snap); err != nil {
		for _, p := range v.Problems() {
			a.warn("%s", p)
		}
	}
	return v, nil
}

// read returns the object of that name.
func read[T datastore.Object](ctx context.Context, a *app, name string) (T, error) {
	var zero T
	s, err := a.store(ctx)
	if err != nil {
		return zero, err
	}
	defer a.waiting("the datastore")()
	return datastore.Get[T](ctx, s, name)
}

// modify changes the object of that name.
func modify[T datastore.Object](ctx context.Context, a *app, name string, change func(T) error) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	_, err = datastore.Modify(ctx, s, name, change)
	return err
}

// waiting tells a person at a terminal what takes long; the result ends it.
func (a *app) waiting(what string) (done func()) {
	f, ok := a.err.(*os.File)
	if !ok || !isTerminal(f) {
		return func() {}
	}
	t := time.AfterFunc(patience, func() { fmt.Fprintf(f, "waiting for %s …\n", what) })
	return func() { t.Stop() }
}

// warningPrefix begins each warning.
const warningPrefix = "netctl: warning: "

func (a *app) warn(format string, args ...any) {
	fmt.Fprintln(a.err, datastore.Line(fmt.Sprintf(warningPrefix+format, args...)))
}

// print writes a whole output at once. Whoever wrote what is in it, it does nothing to a
// terminal but what bad does.
func (a *app) print(s string) error {
	reds := strings.Split(s, red)
	for i := range reds {
		parts := strings.Split(reds[i], unmarked)
		for j := range parts {
			parts[j] = datastore.Visible(parts[j])
		}
		reds[i] = strings.Join(parts, unmarked)
	}
	_, err := fmt.Fprint(a.out, strings.Join(reds, red))
	return err
}

// usage makes an error one of the command line: exit code 2.
func usage(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// argument marks what is wrong with an argument as one of the command line, but
// leaves what the datastore says of it.
func argument(err error) error {
	if errors.Is(err, datastore.ErrInvalid) {
		return usageError{err}
	}
	return err
}

// checkNames refuses arguments that cannot be names of a kind before the
// datastore is asked.
func checkNames(k datastore.Kind, names ...string) error {
	for _, n := range names {
		if _, err := datastore.Key(k, n); err != nil {
			text := strings.TrimPrefix(err.Error(), "metadata.name ")
			return usage("%s %s", strings.ToLower(string(k)), text)
		}
	}
	return nil
}
