package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// neighbourTable is one of the kernel's two neighbour tables, which all namespaces
// share, as a /proc shows it. Both files are there in the machine's own network
// namespace only; elsewhere nothing is known.
type neighbourTable struct {
	proc string
	stat string // its name in net/stat
	ip   string // its name in sys/net
}

func neighbourTables(proc string, v6 bool) []neighbourTable {
	list := []neighbourTable{{proc, "arp_cache", "ipv4"}}
	if v6 {
		list = append(list, neighbourTable{proc, "ndisc_cache", "ipv6"})
	}
	return list
}

func (n neighbourTable) setting() string { return "net." + n.ip + ".neigh.default.gc_thresh3" }

// limit is how many entries it takes beside the permanent ones; 0: not known.
func (n neighbourTable) limit() int {
	text, err := os.ReadFile(filepath.Join(n.proc, "sys/net", n.ip, "neigh/default/gc_thresh3"))
	if err != nil {
		return 0
	}
	limit, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return limit
}

// refused is how often it took no more since the machine started.
func (n neighbourTable) refused() (sum uint64) {
	text, err := os.ReadFile(filepath.Join(n.proc, "net/stat", n.stat))
	if err != nil {
		return 0
	}
	column := -1
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		fields := strings.Fields(line)
		if i == 0 { // one line for each CPU follows
			for c, name := range fields {
				if name == "table_fulls" {
					column = c
				}
			}
		} else if column >= 0 && column < len(fields) {
			v, _ := strconv.ParseUint(fields[column], 16, 64)
			sum += v
		}
	}
	return sum
}

// roomFor says why that many entries cannot be had; nil: they may, or it is not known.
func (n neighbourTable) roomFor(need int) error {
	if limit := n.limit(); limit > 0 && need > limit {
		return fmt.Errorf("lab: the hosts need %d entries of the kernel's neighbour table, which all namespaces share and which takes %d: "+
			"sysctl -w %s=%d", need, limit, n.setting(), 2*need)
	}
	return nil
}

// crowding watches the tables while a lab starts.
type crowding struct {
	tables []neighbourTable
	before []uint64
}

func watchCrowding(tables []neighbourTable) *crowding {
	c := &crowding{tables: tables}
	for _, t := range tables {
		c.before = append(c.before, t.refused())
	}
	return c
}

// cause says which table was full since the start; nil: none.
func (c *crowding) cause() error {
	for i, t := range c.tables {
		if n := t.refused() - c.before[i]; n > 0 {
			return fmt.Errorf("the kernel's neighbour table, which all namespaces share, was full %d times: sysctl -w %s=%d",
				n, t.setting(), max(4*t.limit(), 4096))
		}
	}
	return nil
}
