package datastore

import (
	"net/netip"
	"strings"
	"testing"
)

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		name string
		key  string // empty: refused
	}{
		{KindPool, "10.0.0.0-26", "/netctl/v1/pools/10.0.0.0-26"},
		{KindPool, "fd00::-64", "/netctl/v1/pools/fd00::-64"},
		{KindPool, "10.0.0.1-26", ""},
		{KindPool, "fd00:0::-64", ""},
		{KindPool, "10.0.0.0", ""},
		{KindPool, "10.0.0.0/26", ""},
		{KindBlock, "10.0.0.64-26", "/netctl/v1/blocks/10.0.0.64-26"},
		{KindNode, "slave-1.example", "/netctl/v1/nodes/slave-1.example"},
		{KindNode, "show", ""},
		{KindNode, "-a", ""},
		{KindNode, "a.", ""},
		{KindNode, "a/b", ""},
		{KindNode, "", ""},
		{KindNode, strings.Repeat("n", 128), "/netctl/v1/nodes/" + strings.Repeat("n", 128)},
		{KindNode, strings.Repeat("n", 129), ""},
		{KindEndpoint, "n/cni/w/eth0", "/netctl/v1/endpoints/n/cni/w/eth0"},
		{KindEndpoint, "n/cni/add/_x", "/netctl/v1/endpoints/n/cni/add/_x"},
		{KindEndpoint, "n/cni/w", ""},
		{KindEndpoint, "n/cni/w/eth0/1", ""},
		{KindEndpoint, "n//w/eth0", ""},
		{KindEndpoint, "n/cni/w/sixteen-bytes-xx", ""},
		{KindEndpoint, "n/cni/w/..", ""},
		{KindConfig, "default", "/netctl/v1/configs/default"},
		{KindBGPConfig, "default", "/netctl/v1/bgpconfigs/default"},
		{KindBGPConfig, "other", ""},
		{"Pod", "x", ""},
	} {
		key, err := Key(c.kind, c.name)
		if key != c.key || (err == nil) != (c.key != "") {
			t.Errorf("%s %s: got %q, %v; want %q", c.kind, c.name, key, err, c.key)
		}
		if c.key == "" {
			if _, _, err := ParseKey(KindPrefix(c.kind) + c.name); err == nil {
				t.Errorf("%s %s: the key is accepted when read", c.kind, c.name)
			}
			continue
		}
		kind, name, err := ParseKey(key)
		if kind != c.kind || name != c.name || err != nil {
			t.Errorf("%s: got %s %s, %v", key, kind, name, err)
		}
	}
}

func TestPoolName(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/26": "10.0.0.0-26", "10.0.0.9/26": "10.0.0.0-26", "fd80:24e2:f998:72d6:0::/64": "fd80:24e2:f998:72d6::-64",
	} {
		if got := PoolName(netip.MustParsePrefix(in)); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestForeignName(t *testing.T) {
	for in, want := range map[string]string{
		"dataman":    "dataman",
		"my network": "x-d12f888be2872d9e1583",
		"show":       "x-1c6333509debf060200e",
	} {
		got := ForeignName(in)
		if got != want || CheckName(got) != nil {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func FuzzKey(f *testing.F) {
	for _, s := range []string{"pools/10.0.0.0-26", "blocks/fd00::-122", "endpoints/n/cni/w/eth0", "nodes/a", "configs/default", "cluster", ""} {
		f.Add(Prefix + s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		kind, name, err := ParseKey(key)
		if err != nil {
			return
		}
		if again, err := Key(kind, name); again != key || err != nil {
			t.Fatalf("%q is %s %q, whose key is %q, %v", key, kind, name, again, err)
		}
		if ForeignName(name) == name && CheckName(name) != nil {
			t.Fatalf("%q", name)
		}
	})
}
