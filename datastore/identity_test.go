package datastore_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
)

func TestJudge(t *testing.T) {
	own := datastore.Identity{UUID: "a", Generation: 3, Store: 7, Revision: 100}
	cluster := func(uuid string, generation int64) *datastore.Cluster {
		return &datastore.Cluster{UUID: uuid, Generation: generation}
	}
	for _, c := range []struct {
		name     string
		cluster  *datastore.Cluster
		id       uint64
		revision int64
		want     string // "" attached
	}{
		{"same", cluster("a", 3), 7, 100, ""},
		{"later", cluster("a", 3), 7, 101, ""},
		{"empty", nil, 8, 1, "no cluster identity"},
		{"emptied", nil, 7, 101, "no cluster identity"},
		{"other cluster", cluster("b", 3), 7, 100, "holds cluster b"},
		{"other cluster, adopted there", cluster("b", 9), 8, 500, "holds cluster b"},
		{"older generation", cluster("a", 2), 7, 100, "generation went back from 3 to 2"},
		{"restored", cluster("a", 3), 8, 50, "another etcd"},
		{"restored with a bumped revision", cluster("a", 3), 8, 5000, "another etcd"},
		{"went back", cluster("a", 3), 7, 99, "revision went back from 100 to 99"},
		{"adopted", cluster("a", 4), 8, 50, ""},
	} {
		err := own.Judge(c.cluster, c.id, c.revision)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (!errors.Is(err, datastore.ErrDetached) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "netctl datastore adopt")):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestClusterRoundTrip(t *testing.T) {
	a, b := datastore.NewCluster(time.Now()), datastore.NewCluster(time.Now())
	if a.UUID == b.UUID || len(a.UUID) != 36 || a.Generation != 1 {
		t.Fatalf("%+v, %+v", a, b)
	}
	value, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := datastore.DecodeCluster(value)
	if err != nil || !reflect.DeepEqual(back, a) {
		t.Fatalf("%s: %+v, %v", value, back, err)
	}
	i, err := datastore.DecodeIdentity([]byte(`{"uuid":"a","generation":2,"store":18446744073709551615,"revision":9007199254740993}`))
	if err != nil || i != (datastore.Identity{UUID: "a", Generation: 2, Store: 18446744073709551615, Revision: 9007199254740993}) {
		t.Fatalf("%+v, %v", i, err)
	}
}

// TestIdentityOfANewerNetctl: a key more must not detach a whole cluster.
func TestIdentityOfANewerNetctl(t *testing.T) {
	c, err := datastore.DecodeCluster([]byte(`{"uuid":"a","created":"2026-01-02T03:04:05Z","generation":1,"colour":{"of":[]}}`))
	if err != nil || c.UUID != "a" || c.Generation != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	i, err := datastore.DecodeIdentity([]byte(`{"colour":1,"uuid":"a","generation":2,"store":7,"revision":9}`))
	if err != nil || i.Store != 7 {
		t.Errorf("%+v, %v", i, err)
	}
	for _, bad := range []string{`{"uuid":"a","uuid":"a","generation":1}`, `{"uuid":1,"generation":1}`, `{"uuid":"a","generation":1}x`, `{"uuid":"a","generation":1,"x":}`} {
		if c, err := datastore.DecodeCluster([]byte(bad)); err == nil {
			t.Errorf("%s is taken as %+v", bad, c)
		}
	}
}

func FuzzDecodeIdentity(f *testing.F) {
	f.Add([]byte(`{"uuid":"a","generation":2,"store":7,"revision":9}`))
	f.Add([]byte(`{"uuid":"a","created":"2026-01-02T03:04:05Z","generation":1}`))
	f.Add([]byte(`{"uuid":"a","generation":0}`))
	f.Add([]byte(``))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, value []byte) {
		if i, err := datastore.DecodeIdentity(value); err != nil {
			if !errors.Is(err, datastore.ErrInvalid) {
				t.Error(err)
			}
		} else if i.UUID == "" || i.Generation < 1 || i.Revision < 0 {
			t.Errorf("took %+v", i)
		}
		c, err := datastore.DecodeCluster(value)
		if err != nil {
			if !errors.Is(err, datastore.ErrInvalid) {
				t.Error(err)
			}
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := datastore.DecodeCluster(again); err != nil || back.UUID != c.UUID || back.Generation != c.Generation || !back.Created.Equal(c.Created) {
			t.Errorf("%s became %+v, %v", again, back, err)
		}
	})
}
