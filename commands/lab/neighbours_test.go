package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// proc is a folder with the files that tell of a neighbour table.
func proc(t *testing.T, limit, fulls string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"sys/net/ipv4/neigh/default/gc_thresh3": limit + "\n",
		"net/stat/arp_cache": "entries  allocs   table_fulls\n" +
			"00000010 00000020 0000000a\n00000010 00000000 " + fulls + "\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestNeighbourTable: a lab that does not fit into the kernel's table is not started, and
// one that failed says so if that was full meanwhile.
func TestNeighbourTable(t *testing.T) {
	for _, c := range []struct {
		nodes int
		limit string
		want  string
	}{
		{40, "1024", ""},
		{150, "1024", ""},
		{40, "128", "lab: the hosts need 160 entries of the kernel's neighbour table, which all namespaces share and which takes 128: sysctl -w net.ipv4.neigh.default.gc_thresh3=320"},
		{20, "256", "need 460 entries"},
		{2, "16", ""},
	} {
		table := neighbourTables(proc(t, c.limit, "00000000"), false)[0]
		err := table.roomFor(netlab.Options{Nodes: c.nodes}.Neighbours())
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d nodes, a table of %s: %v, want %s", c.nodes, c.limit, err, c.want)
		}
	}
	tables := neighbourTables(proc(t, "1024", "00000000"), false)
	crowd := watchCrowding(tables)
	if err := crowd.cause(); err != nil {
		t.Errorf("nothing happened: %v", err)
	}
	tables[0].proc = proc(t, "1024", "00000011")
	want := "the kernel's neighbour table, which all namespaces share, was full 17 times: sysctl -w net.ipv4.neigh.default.gc_thresh3=4096"
	if err := crowd.cause(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	nowhere := neighbourTables(t.TempDir(), true)
	if err := nowhere[1].roomFor(1 << 20); err != nil || watchCrowding(nowhere).cause() != nil {
		t.Errorf("in a namespace that does not show it: %v", err)
	}
	if got := short(strings.Repeat("é", mostSaid)); len(got) > mostSaid+4 || !strings.HasSuffix(got, "é …") {
		t.Errorf("%d bytes, %q", len(got), got)
	}
}
