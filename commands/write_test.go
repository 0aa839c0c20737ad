package commands

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// limited refuses every commit after the first few.
type limited struct {
	datastore.Store
	left int
}

var errLimit = errors.New("no more")

func (l *limited) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if l.left--; l.left < 0 {
		return 0, errLimit
	}
	return l.Store.Commit(ctx, t)
}

// TestWriteSaysHowFarItCame writes three transactions' worth of objects into a
// store that takes two.
func TestWriteSaysHowFarItCame(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	var list []manifest
	for i := range 250 {
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprintf("p%03d", i)}}
		p.SetDefaults()
		list = append(list, manifest{object: p})
	}
	view := datastore.NewView()
	plans, err := planWrite(view, list, modeApply)
	if err != nil {
		t.Fatal(err)
	}
	through := 0
	err = commitPlans(ctx, &limited{s, 2}, view, plans, func(planned) { through++ })
	if !errors.Is(err, errLimit) {
		t.Fatalf("got %v", err)
	}
	stored, err := datastore.List[*datastore.Profile](ctx, s)
	if err != nil || len(stored) != through || through != 2*(datastore.MaxTxnOps-2) {
		t.Errorf("%d objects told, %d stored, %v", through, len(stored), err)
	}
	if got, want := farther(through, len(list), errLimit).Error(), "after 196 of 250 objects: no more"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if err := farther(0, len(list), errLimit); !errors.Is(err, errLimit) {
		t.Errorf("nothing was written, and the error is %v", err)
	}
}

// TestWriteStaysBelowTheRequestLimit: etcd refuses large requests, however few
// objects they hold.
func TestWriteStaysBelowTheRequestLimit(t *testing.T) {
	var plans []planned
	for i := range 3 {
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprintf("p%d", i)}}
		plans = append(plans, planned{manifest: manifest{object: p}, verb: "created", op: datastore.Op{Key: "k", Value: make([]byte, datastore.MaxTxnBytes*2/15)}})
	}
	if n, txn := firstTxn(datastore.NewView(), plans); n != 2 || len(txn.Then) != 2 {
		t.Errorf("%d objects in %d operations, want 2", n, len(txn.Then))
	}
	plans[0].op.Value = make([]byte, 2*datastore.MaxTxnBytes)
	if n, _ := firstTxn(datastore.NewView(), plans); n != 1 {
		t.Errorf("%d objects beside one that is too large, want it alone", n)
	}
}
