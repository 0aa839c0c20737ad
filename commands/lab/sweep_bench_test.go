//go:build bench

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// TestBenchIPIP has the sweep run on a kernel that has IPIP; the machine is emulated,
// which says little of speed and something of ratios.
func TestBenchIPIP(t *testing.T) {
	benchInGuest(t, "TestSweep")
}

// way is one way from a sender to a receiver, and what went by it: MiB a second by size
// of message, each time.
type way struct {
	name     string
	from, to netlab.Place
	at       netip.Addr
	rates    map[int][]float64
}

// TestSweep sends by TCP, in messages of sizes as `qperf -oo msg_size:1:64k:*2 … tcp_bw`
// has them, between containers of two nodes in each mode of their pool and between the two
// nodes, and prints each mode as a share of the latter.
func TestSweep(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		t.Skip("runs in the guest of TestBenchIPIP")
	}
	const rounds = 3
	l := forTest(t, Config{Nodes: 2, Subnets: 1})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", pool4)
	a, a4, _ := attach(t, n1, "a", "web")
	b, b4, _ := attach(t, n2, "b", "web")
	hosts := &way{name: "host", from: n1, to: n2, at: n2.Addr.Addr(), rates: map[int][]float64{}}
	sizes := []int{1, 64, 256, 1024, 2048, 4096, 8192, 16384, 32768, 65536}
	ways := []*way{hosts}
	for _, m := range []struct{ encap, device string }{{"none", "eth1"}, {"ipip", "tunl0"}, {"vxlan", "vxlan.netctl"}} {
		w := &way{name: m.encap, from: a, to: b, at: b4, rates: map[int][]float64{}}
		mode(t, n1, m.encap)
		goes(t, n1, m.device, b4)
		goes(t, n2, m.device, a4)
		pings(t, a, b4)
		for range rounds { // in turn with the hosts, which the machine slows as much
			for _, size := range sizes {
				hosts.measure(t, size)
				w.measure(t, size)
			}
		}
		ways = append(ways, w)
	}
	fmt.Printf("%-8s", "bytes")
	for _, w := range ways {
		fmt.Printf(" %14s", w.name)
	}
	sum := map[string]float64{}
	for _, size := range sizes {
		fmt.Printf("\n%-8d", size)
		for _, w := range ways {
			rate := middle(w.rates[size])
			if size >= 2048 { // the documents' means are of these
				sum[w.name] += rate
			}
			fmt.Printf(" %8.1f MiB/s", rate)
		}
	}
	fmt.Printf("\n%-8s", "2k-64k")
	for _, w := range ways {
		fmt.Printf(" %10.0f %%  ", 100*sum[w.name]/sum["host"])
	}
	fmt.Println()
}

func middle(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// measure sends messages of one size for a while.
func (w *way) measure(t *testing.T, size int) {
	t.Helper()
	const length = 300 * time.Millisecond
	var in net.Listener
	if err := w.to.Do(func() (err error) {
		in, err = net.Listen("tcp", netip.AddrPortFrom(w.at, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out net.Conn
	if err := w.from.Do(func() (err error) {
		out, err = net.DialTimeout("tcp", in.Addr().String(), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	c, err := in.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = out.(*net.TCPConn).SetNoDelay(false) // as qperf, which leaves that as it is
	began := time.Now()
	go func() {
		defer out.Close()
		message := make([]byte, size)
		for time.Since(began) < length {
			if _, err := out.Write(message); err != nil {
				return
			}
		}
	}()
	sum, piece := 0, make([]byte, 64<<10)
	for {
		n, err := c.Read(piece)
		sum += n
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	w.rates[size] = append(w.rates[size], float64(sum)/(1<<20)/time.Since(began).Seconds())
}
