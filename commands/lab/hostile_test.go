package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"netctl/datastore"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// rawClient is an etcd client of no netctl's with the certificate of a host's node.
func rawClient(t *testing.T, h *netlab.Host, endpoint string) *clientv3.Client {
	t.Helper()
	f := pki.In(h.Path("/var/lib/netctl-node/tls"), "node")
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(h.Path("/var/lib/netctl-node/tls/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{endpoint}, TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		Logger:      zap.NewNop(),
		DialOptions: dialFrom(h),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dialFrom has an etcd client connect from a host.
func dialFrom(h *netlab.Host) []grpc.DialOption {
	return []grpc.DialOption{grpc.WithContextDialer(func(_ context.Context, addr string) (conn net.Conn, err error) {
		e := h.Do(func() error {
			conn, err = net.Dial("tcp", strings.TrimPrefix(addr, "https://"))
			return err
		})
		return conn, errors.Join(err, e)
	})}
}

// TestHostile: a node that uses its certificate with a client of its own gets what its
// agent needs, and nothing that is another's or people's.
func TestHostile(t *testing.T) {
	l := bareHosts(t, 2)
	n1, n2 := l.Hosts[0], l.Hosts[1]
	token := found(t, n1)
	starts(t, n1)
	sound(t, n1)
	netlab.Must(t, n2, "netctl", "join", token)
	starts(t, n2)
	sound(t, n1, n2)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	netlab.Must(t, n1, "netctl", "profile", "add", "db")
	a, a4, _ := attach(t, n1, "a", "web")
	attach(t, n2, "b", "fresh") // a network and a profile that its own agent makes
	pings(t, a, netip.MustParseAddr("192.168.99.103"))
	if out, failed := netlab.Try(t, n2, "netctl", "pool", "add", "10.66.0.0/16"); failed == nil || failed.Code != 1 || !strings.Contains(failed.Stderr, "it is done on a member of the datastore") {
		t.Errorf("a pool of a node's: %s %v", out, failed)
	}
	if out, failed := netlab.Try(t, n2, "netctl", "token", "create"); failed == nil || !strings.Contains(failed.Stderr, "not allowed") {
		t.Errorf("a token of a node's: %s %v", out, failed)
	}
	netlab.Must(t, n2, "netctl", "endpoint", "show")

	c := rawClient(t, n2, "https://192.168.99.102:2379")
	root := rawClient(t, n1, "https://192.168.99.102:2379") // the first node is a member
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all := func() map[string]string {
		r, err := root.Get(ctx, "/netctl/v1/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]string{}
		for _, kv := range r.Kvs {
			m[string(kv.Key)] = string(kv.Value)
		}
		return m
	}
	objects := all()
	key := func(prefix, holds string) string {
		for k, v := range objects {
			if strings.HasPrefix(k, prefix) && strings.Contains(k+v, holds) {
				return k
			}
		}
		t.Fatalf("no %s… with %s in %v", prefix, holds, objects)
		return ""
	}
	const p = datastore.Prefix
	block1, block2 := key(p+"blocks/", `"affinity":"node1"`), key(p+"blocks/", `"affinity":"node2"`)
	endpoint1, endpoint2 := key(p+"endpoints/", "node1/"), key(p+"endpoints/", "node2/")
	// change writes under the condition that the key is as it is.
	change := func(key, value string) func() error {
		return func() error {
			r, err := root.Get(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			var revision int64
			if len(r.Kvs) > 0 {
				revision = r.Kvs[0].ModRevision
			}
			op := clientv3.OpPut(key, value)
			if value == "" {
				op = clientv3.OpDelete(key)
			}
			done, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(op).Commit()
			if err == nil && !done.Succeeded {
				return errors.New("it changed meanwhile")
			}
			return err
		}
	}
	swap := func(key, old, now string) func() error {
		value := strings.Replace(objects[key], old, now, 1)
		if value == objects[key] {
			t.Fatalf("%s has no %s: %s", key, old, value)
		}
		return change(key, value)
	}
	put := func(key, value string) func() error {
		return func() error { _, err := c.Put(ctx, key, value); return err }
	}
	get := func(key string, options ...clientv3.OpOption) func() error {
		return func() error { _, err := c.Get(ctx, key, options...); return err }
	}
	watch := func(key string, options ...clientv3.OpOption) func() error {
		return func() error {
			bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			for r := range c.Watch(bounded, key, append(options, clientv3.WithCreatedNotify())...) {
				return r.Err()
			}
			return status.Error(codes.PermissionDenied, "ended")
		}
	}
	for name, do := range map[string]func() error{
		"a pool":                      change(p+"pools/10.99.0.0-16", objects[key(p+"pools/", "10.65")]),
		"a pool's end":                change(key(p+"pools/", "10.65"), ""),
		"another's node":              swap(p+"nodes/node1", "192.168.99.102", "192.168.99.9"),
		"another's node's end":        change(p+"nodes/node1", ""),
		"a node more":                 change(p+"nodes/node9", strings.ReplaceAll(objects[p+"nodes/node2"], "node2", "node9")),
		"another's address":           swap(p+"nodes/node2", "192.168.99.103", "192.168.99.102"),
		"a reflector":                 swap(p+"nodes/node2", `"spec":{`, `"spec":{"reflector":{"mode":"always"},`),
		"an AS number":                swap(p+"nodes/node2", `"spec":{`, `"spec":{"as":65000,`),
		"its node's end":              change(p+"nodes/node2", ""),
		"what nobody can read":        put(endpoint2, "{}"),
		"a network behind it":         change(endpoint2, strings.Replace(objects[endpoint2], `"spec":{`, `"spec":{"allowedPrefixes":["10.99.1.0/24"],`, 1)),
		"another's endpoint":          change(endpoint1, objects[endpoint1]),
		"another's endpoint's end":    change(endpoint1, ""),
		"another's block":             swap(block1, `"affinity":"node1"`, `"affinity":"node2"`),
		"another's address's holder":  swap(block1, `"node":"node1"`, `"node":"node2"`),
		"another's address's handle":  swap(block1, `"handle":"node1/`, `"handle":"node2/`),
		"another's block's end":       change(block1, ""),
		"its own block for another":   swap(block2, `"affinity":"node2"`, `"affinity":"node1"`),
		"a block of another":          change(p+"blocks/10.65.255.0-26", strings.ReplaceAll(strings.ReplaceAll(objects[block1], strings.TrimPrefix(block1, p+"blocks/"), "10.65.255.0-26"), netip.PrefixFrom(a4, 26).Masked().String(), "10.65.255.0/26")),
		"a block without a condition": put(block2, objects[block2]),
		"a profile":                   swap(p+"profiles/db", `"outbound":[`, `"labels":{"a":"b"},"outbound":[`),
		"a profile that lets in all":  change(p+"profiles/new", strings.Replace(strings.ReplaceAll(objects[p+"profiles/db"], `"db"`, `"new"`), `allow from tag db`, `allow`, 1)),
		"the cluster's identity":      change(p+"cluster", objects[p+"cluster"]),
		"another's report":            put(datastore.ReportPrefix+"node1/agent", "{}"),
		"another's events":            put(datastore.EventsPrefix+"node1/last", "{}"),
		"a token":                     put(datastore.JoinPrefix+"tokens/00000000", "{}"),
		"its record":                  put(datastore.JoinPrefix+"nodes/node2", `{"member":true}`),
		"the members":                 put(datastore.MembersKey, "{}"),
		"something else":              put("/foo", "bar"),
		"read the tokens":             get(datastore.JoinPrefix, clientv3.WithPrefix()),
		"read one token":              get(datastore.JoinPrefix + "tokens/00000000"),
		"read everything":             get("", clientv3.WithPrefix()),
		"read from its own on":        get(p, clientv3.WithFromKey()),
		"read from before":            get("/netctl/a", clientv3.WithRange("/netctl/v2")),
		"watch the tokens":            watch(datastore.JoinPrefix, clientv3.WithPrefix()),
		"watch everything":            watch("", clientv3.WithPrefix()),
		"delete all":                  func() error { _, err := c.Delete(ctx, p, clientv3.WithPrefix()); return err },
		"a write if not": func() error {
			_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(p+"x"), "=", 7)).Else(clientv3.OpPut(endpoint1, "")).Commit()
			return err
		},
		"a write within": func() error {
			_, err := c.Txn(ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(endpoint1, "")}, nil)).Commit()
			return err
		},
		"a condition that tells": func() error {
			_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(datastore.JoinPrefix+"nodes/node1"), "=", 7)).Commit()
			return err
		},
		"a condition on a value": func() error {
			_, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Value(endpoint1), ">", "a")).Commit()
			return err
		},
		"a lease":        func() error { _, err := c.Grant(ctx, 60); return err },
		"a compaction":   func() error { _, err := c.Compact(ctx, 2); return err },
		"a member":       func() error { _, err := c.MemberAdd(ctx, []string{"https://192.168.99.103:2380"}); return err },
		"a member's end": func() error { _, err := c.MemberRemove(ctx, 1); return err },
		"authentication": func() error { _, err := c.AuthEnable(ctx); return err },
		"a user":         func() error { _, err := c.UserAdd(ctx, "x", "y"); return err },
		"all of it": func() error {
			r, err := c.Snapshot(ctx)
			if err == nil {
				_, err = r.Read(make([]byte, 1))
			}
			return err
		},
		"a defragmentation": func() error { _, err := c.Defragment(ctx, "https://192.168.99.102:2379"); return err },
		"an alarm":          func() error { _, err := c.AlarmDisarm(ctx, &clientv3.AlarmMember{}); return err },
		"a hash":            func() error { _, err := c.HashKV(ctx, "https://192.168.99.102:2379", 0); return err },
		"another leader":    func() error { _, err := c.MoveLeader(ctx, 1); return err },
	} {
		if err := do(); !denied(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is its own it may do, and so its agent could above.
	for name, do := range map[string]func() error{
		"its endpoint": change(endpoint2, objects[endpoint2]),
		"its report":   put(datastore.ReportPrefix+"node2/speaker", `{"apiVersion":"netctl/v1","kind":"Report","metadata":{"name":"node2/speaker"},"spec":{}}`),
		"its events":   put(datastore.EventsPrefix+"node2/last", "{}"),
		"its block":    change(block2, objects[block2]),
		"its node":     change(p+"nodes/node2", objects[p+"nodes/node2"]),
		"read":         get(p, clientv3.WithPrefix()),
		"watch": func() error {
			r := <-c.Watch(ctx, p, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
			return r.Err()
		},
		"the members":    get(datastore.MembersKey),
		"a free address": borrow(t, root, c, block1),
	} {
		if err := do(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	// Removed, it has no rights any more, whatever its certificate says.
	netlab.Must(t, n1, "netctl", "node", "remove", "--force", "node2")
	if _, err := c.Get(ctx, p, clientv3.WithPrefix()); !denied(err) {
		t.Errorf("a node that was removed reads: %v", err)
	}
}

// denied says whether a member refused, rather than something else in between.
func denied(err error) bool {
	return err != nil && (status.Code(err) == codes.PermissionDenied || strings.Contains(err.Error(), "not allowed") || strings.Contains(err.Error(), "PermissionDenied"))
}

// borrow takes an address of another's block, as nodes do whose pools are short.
func borrow(t *testing.T, root, c *clientv3.Client, key string) func() error {
	return func() error {
		ctx := t.Context()
		r, err := root.Get(ctx, key)
		if err != nil {
			return err
		}
		e := datastore.Entry{Key: key, Value: r.Kvs[0].Value}
		o, err := datastore.Decode(e.Key, e.Value)
		if err != nil {
			return err
		}
		b := o.(*datastore.Block)
		last := 0
		for _, x := range b.Spec.Allocations {
			last = x.Ordinal + 1
		}
		b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: last, Handle: "node2/manual/x/eth0", Node: "node2", Time: time.Now().UTC().Truncate(time.Second)})
		text, err := datastore.Encode(b)
		if err != nil {
			return err
		}
		done, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", r.Kvs[0].ModRevision)).Then(clientv3.OpPut(key, string(text))).Commit()
		if err == nil && !done.Succeeded {
			err = errors.New("it changed meanwhile")
		}
		return err
	}
}
