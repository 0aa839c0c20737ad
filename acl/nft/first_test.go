package nft

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkFirstPacket is what the router does with a packet that begins a flow, in CPU time of
// the kernel, sending and all: what a thousand rules that do not match it cost is the difference
// from none.
func BenchmarkFirstPacket(b *testing.B) {
	rules := func(format string, n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf(format, 1+i/250, i%250))
		}
		return append(list, "allow udp")
	}
	for _, c := range []struct {
		name  string
		rules []string
		tag   string // of the sender
	}{
		{"no rules", rules("", 0), ""},
		{"1000 networks", rules("allow udp from cidr 10.%d.%d.0/24", 1000), ""},
		{"1000 networks denied", rules("deny udp from cidr 10.%d.%d.0/24", 1000), ""},
		{"1000 tags", rules("allow udp from tag t%d-%d", 1000), ""},
		{"1000 tags, of the first", rules("allow udp from tag t%d-%d", 1000), "t1-0"},
		{"1000 tags, of one between", rules("allow udp from tag t%d-%d", 1000), "t3-0"},
		{"1000 tags, of the last", rules("allow udp from tag t%d-%d", 1000), "t4-249"},
		{"1000 ports", rules("allow udp to ports 3%d%03d", 1000), ""},
	} {
		b.Run(c.name, func(b *testing.B) {
			l, x := wiredLab(b, onNFT)
			if out, err := l.hosts["a"].input("table inet sink { chain in { type filter hook prerouting priority -400; drop; }\n}\n", "nft", "-f", "-"); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
			for i := range 1000 { // and a member of each
				name := fmt.Sprintf("t%d-%d", 1+i/250, i%250)
				x.Apply(profile(b, name, []string{name}, nil, nil))
				x.Apply(endpoint("n2", "n2/cni/"+name+"/eth0", "ncn", []string{name}, fmt.Sprintf("10.9.%d.%d", i/250, i%250)))
			}
			if c.tag != "" {
				x.Apply(endpoint("n2", "n2/cni/n/eth0", "ncn", []string{c.tag}, "192.0.2.9"))
			}
			x.Apply(profile(b, "web", []string{"web"}, c.rules, []string{"allow"}))
			l.apply(x.Flush())
			sys := func() time.Duration {
				var u unix.Rusage
				if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
					b.Fatal(err)
				}
				return time.Duration(u.Stime.Nano())
			}
			sent, spent := 0, time.Duration(0)
			for b.Loop() {
				if sent%10000 == 0 {
					l.router.Run("conntrack", "-F")
				}
				p := udp("192.0.2.9", "10.0.0.1", uint16(10000+sent/10000))
				p.SrcPort = uint16(10000 + sent%10000)
				began := sys()
				l.transmit(l.hosts["n"], p, 0)
				spent += sys() - began
				sent++
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(sent), "ns-kernel/packet")
		})
	}
}
