package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/datastore"
)

// TestAttachAwayOfOneInterface: a stored detach of all interfaces of a workload stays in
// force for those that are not attached again.
func TestAttachAwayOfOneInterface(t *testing.T) {
	w, s := cutWorld(t)
	target := control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth1"}
	if _, err := w.api.attach(t.Context(), control.AttachRequest{Target: target, Network: "web", NetnsFD: 101}); err != nil {
		t.Fatal(err)
	}
	w.lose(s)
	if err := w.detach("c1"); !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("detach: %v", err)
	}
	if err := control.StorePending(w.cfg.pendingDir(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1"}}); err != nil {
		t.Fatal(err)
	}
	w.mustAttach("c1", "web", 111)
	if left, err := control.ReadPending(w.cfg.pendingDir()); err != nil || len(left) != 1 || left[0].Request.Target != target {
		t.Errorf("pending %+v, %v", left, err)
	}
	s.cut(false)
	w.written()
	w.until(func() string {
		if got := strings.Join(w.holders(), " "); got != "n1/cni/c1/eth0" {
			return "held by " + got
		}
		return ""
	})
	if got := w.endpoints(); len(got) != 1 {
		t.Errorf("the datastore has %v", got)
	}
}

// TestDetachDuringAttach: a detach that is stored while an attach waits for the agent is of
// a runtime that gave that up, and is done after it; whether the datastore answers or not.
func TestDetachDuringAttach(t *testing.T) {
	w, s := cutWorld(t)
	for i, isAway := range []bool{false, true} {
		if isAway {
			w.lose(s)
		}
		target := control.Target{Orchestrator: "cni", Workload: fmt.Sprint("given-up", i), Interface: "eth0"}
		w.a.detaches.turn <- struct{}{} // so that the attach comes first
		if err := control.StorePending(w.cfg.pendingDir(), control.DetachRequest{Target: target}); err != nil {
			t.Fatal(err)
		}
		if answer := w.waited(target, 200+i); answer.Code != http.StatusOK {
			t.Fatalf("attach: %s", answer.Body)
		}
		<-w.a.detaches.turn
		s.cut(false)
		w.until(func() string {
			left, err := control.ReadPending(w.cfg.pendingDir())
			if got := strings.Join(append(w.endpoints(), w.records()...), " "); err != nil || len(left) > 0 || strings.Contains(got, target.Workload) || w.status().Endpoints != 1 {
				return fmt.Sprint(got, left, err, w.status())
			}
			return w.clean()
		})
	}
}

// waited attaches for a caller who has waited for the agent for some time.
func (w *world) waited(target control.Target, ns int) *httptest.ResponseRecorder {
	body, err := json.Marshal(control.AttachRequest{Target: target, Network: "web", NetnsFD: ns})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/attach", bytes.NewReader(body))
	r.Header.Set("Netctl-Began", time.Now().Add(-3*time.Second).Format(time.RFC3339Nano))
	answer := httptest.NewRecorder()
	serve.Call(w.api.attach).ServeHTTP(answer, r)
	return answer
}

// TestAttachTooLate: an attach that was begun before a detach does not come after it, whether
// that was asked for or stored, of one interface or of all.
func TestAttachTooLate(t *testing.T) {
	w, s := cutWorld(t)
	for i, stored := range []bool{false, true, false, true} {
		if i == 2 {
			w.lose(s)
		}
		target := control.Target{Orchestrator: "cni", Workload: fmt.Sprint("late", i), Interface: "eth0"}
		r := control.DetachRequest{Target: target}
		if stored {
			r.Interface = ""
		}
		if stored && i == 1 {
			if err := control.StorePending(w.cfg.pendingDir(), r); err != nil {
				t.Fatal(err)
			}
			w.until(func() string {
				if left, err := control.ReadPending(w.cfg.pendingDir()); err != nil || len(left) > 0 {
					return fmt.Sprint(left, err)
				}
				return ""
			})
		} else {
			_, _ = w.api.detach(t.Context(), r)
		}
		if answer := w.waited(target, 300+i); answer.Code == http.StatusOK || !strings.Contains(answer.Body.String(), "attach given up: a detach of the endpoint was asked for since\"}") {
			t.Errorf("%d: attach: %s", i, answer.Body)
		}
		if n := w.status().Endpoints; n != 1 {
			t.Errorf("%d: %d endpoints", i, n)
		}
	}
	s.cut(false)
	w.written()
	w.mustAttach("late0", "web", 310) // a new one
}

// TestSettleLooksAnew: an endpoint whose link was gone when the settler began, and which
// was attached again before its turn came, stays.
func TestSettleLooksAnew(t *testing.T) {
	w, s := cutWorld(t)
	slow := slowStore{s, make(chan struct{}), make(chan struct{})}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.wrap = func(datastore.Store) datastore.Store { return slow }
	w.start()
	w.ready()
	w.lose(s)
	w.mustAttach("c2", "web", 102)
	c3 := w.mustAttach("c3", "web", 103)
	w.links.Cut(103)
	w.until(func() string {
		if text := w.links.String() + w.fib.String(); strings.Contains(text, c3.Link) {
			return text
		}
		return ""
	})
	s.cut(false)
	<-slow.asked // the settler is about to write c2
	w.lose(s)
	c3 = w.mustAttach("c3", "web", 113)
	s.cut(false)
	close(slow.on)
	w.written()
	w.contains("links", w.links.String(), c3.Link)
	w.contains("routes", w.fib.String(), c3.Addresses[0].String())
	if got := w.endpoints(); len(got) != 3 {
		t.Errorf("the datastore has %v", got)
	}
}

// slowStore takes c2 when it is told to go on.
type slowStore struct {
	*cutStore
	asked chan struct{} // closed when it has c2
	on    chan struct{}
}

func (s slowStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	for _, op := range t.Then {
		if strings.HasSuffix(op.Key, "/c2/eth0") && strings.Contains(op.Key, "endpoints") {
			if _, err := s.usable(); err == nil && !s.once() {
				close(s.asked)
				<-s.on
			}
		}
	}
	return s.cutStore.Commit(ctx, t)
}
