package commands

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"netctl/datastore"
)

// question is an Ask that agents answer through the datastore.
type question struct {
	datastore.Ask
	store datastore.Store
}

// answerLook is how often answers are looked for.
const answerLook = 20 * time.Millisecond

// put writes the Ask: as anybody's, or with the rights of a node as that node's.
func (q *question) put(ctx context.Context, node string) error {
	if q.ID == "" {
		id := make([]byte, 8)
		if _, err := rand.Read(id); err != nil {
			return err
		}
		q.ID, q.By = hex.EncodeToString(id), datastore.Anybody
	}
	err := q.write(ctx)
	if errors.Is(err, datastore.ErrDenied) && q.By == datastore.Anybody && node != "" {
		q.By = node
		err = q.write(ctx)
	}
	return err
}

func (q *question) write(ctx context.Context) error {
	op, err := datastore.RecordOp(datastore.AskKey(q.By, q.ID), q.Ask)
	if err == nil {
		_, err = q.store.Commit(ctx, datastore.Txn{Then: []datastore.Op{op}})
	}
	return err
}

// remove takes the Ask away; where it cannot, an agent does.
func (q *question) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceReady)
	defer cancel()
	_, _ = q.store.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: datastore.AskKey(q.By, q.ID)}}})
}

// await reads answers until those of all nodes are as wanted, or enough in their order, for
// a time at most.
func (q *question) await(ctx context.Context, most time.Duration, wanted func(datastore.Answer) bool, enough ...func(datastore.Answer) bool) (map[string]datastore.Answer, error) {
	for until := time.Now().Add(most); ; {
		answers, err := datastore.ReadAnswers(ctx, q.store, q.ID, q.Nodes)
		if err != nil {
			return nil, err
		}
		missing := false
		for _, n := range q.Nodes {
			a, ok := answers[n]
			if missing = !ok || !wanted(a); missing || len(enough) > 0 && enough[0](a) {
				break
			}
		}
		if !missing || time.Now().After(until) {
			return answers, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(answerLook):
		}
	}
}
