package bench

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// receiver is one on the loopback, and where it is.
func receiver(t *testing.T, at string) netip.AddrPort {
	t.Helper()
	r, err := Listen(netip.AddrPortFrom(netip.MustParseAddr(at), 0))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return r.Addr()
}

// TestTests: each test gives figures that can be, to a receiver at one address, and to one
// at all of them.
func TestTests(t *testing.T) {
	for _, c := range []struct{ listen, to string }{{"127.0.0.1", "127.0.0.1"}, {"::1", "::1"}, {"::", "127.0.0.3"}, {"0.0.0.0", "127.0.0.3"}} {
		at := netip.AddrPortFrom(netip.MustParseAddr(c.to), receiver(t, c.listen).Port())
		s := Sender{From: Here, To: at}
		for _, test := range Tests() {
			for _, size := range []int{1, 16, 1400, 60000} {
				r, err := s.Run(t.Context(), test, size, shortest)
				switch {
				case err != nil:
					t.Errorf("%s at %s, %s of %d: %v", c.to, c.listen, test, size, err)
				case test.latency() && (r.Latency <= 0 || r.Latency99 < r.Latency || r.Bandwidth != 0),
					!test.latency() && (r.Bandwidth <= 0 || r.Latency != 0), r.Lost < 0 || r.Lost > 1:
					t.Errorf("%s, %s of %d: %+v", c.to, test, size, r)
				}
			}
		}
	}
}

// TestNobodyThere: what does not listen, does not answer or says something else is named.
func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2\n")
			_ = c.Close()
		}
	}()
	s := Sender{From: Here, To: at}
	if _, err := s.Run(t.Context(), TCPLatency, 1, shortest); err == nil || !strings.Contains(err.Error(), at.String()) {
		t.Errorf("of somebody else: %v", err)
	}
	_ = l.Close()
	if _, err := s.Run(t.Context(), TCPLatency, 1, shortest); err == nil || !strings.Contains(err.Error(), "run `netctl bench serve` there") {
		t.Errorf("of nobody: %v", err)
	}
}

// TestStrangers: a receiver says what is wrong with a request, sends nothing to who did not
// ask, and goes on.
func TestStrangers(t *testing.T) {
	at := receiver(t, "127.0.0.1")
	ask := func(text string) (a answer, err error) {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			return a, err
		}
		return a, readLine(c, &a)
	}
	for text, want := range map[string]string{
		"\n":                      "not a line of netctl bench",
		"GET / HTTP/1.1\r\n":      "not a line of netctl bench",
		strings.Repeat("x", 5000): "not a line of netctl bench",
		`{"test":"all","size":1,"time":1}` + "\n":                                 `test "all": want tcp_bw`,
		fmt.Sprintf(`{"test":"udp_bw","size":65508,"time":%d}`+"\n", time.Second): "too large",
		fmt.Sprintf(`{"test":"tcp_bw","size":1,"time":%d}`+"\n", 2*longest):       "want 50ms to 1h",
	} {
		if a, err := ask(text); !strings.Contains(a.Error, want) && !(err != nil && len(text) == 5000) {
			t.Errorf("%.40q: %q %v, want %q", text, a.Error, err, want)
		}
	}
	u, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write(make([]byte, tokenSize)); err != nil {
		t.Fatal(err)
	}
	// What is asked for after it is answered: had there been an answer to the stranger, it would be here.
	if _, err := (&Sender{From: Here, To: at}).Run(t.Context(), UDPLatency, 8, shortest); err != nil {
		t.Fatal(err)
	}
	_ = u.SetReadDeadline(time.Now())
	if n, err := u.Read(make([]byte, 100)); n > 0 || err == nil {
		t.Errorf("a stranger got %d bytes", n)
	}
}

// TestMany: the receiver serves so many tests and says so to the next.
func TestMany(t *testing.T) {
	at := receiver(t, "127.0.0.1")
	text, err := json.Marshal(request{TCPLatency, 1, time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for i := range mostTests + 1 {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(append(text, '\n')); err != nil {
			t.Fatal(err)
		}
		var a answer
		if err := readLine(c, &a); err != nil || (a.Error != "") != (i == mostTests) {
			t.Errorf("test %d: %+v %v", i, a, err)
		}
	}
}

// TestLateEcho: the echo of an earlier message is not taken for that of the last.
func TestLateEcho(t *testing.T) {
	in, out := io.Pipe()
	go func() {
		for _, n := range []uint32{6, 7} {
			b := make([]byte, 8)
			binary.BigEndian.PutUint32(b, n)
			_, _ = out.Write(b)
		}
		_ = out.CloseWithError(errors.New("nothing more"))
	}()
	message := make([]byte, 8)
	number(message, 7)
	if err := echoed(in, make([]byte, 8), message); err != nil {
		t.Error(err)
	}
	if err := echoed(in, make([]byte, 8), message); err == nil {
		t.Error("an echo that there was not")
	}
}

func TestParseSizes(t *testing.T) {
	for text, want := range map[string][]int{
		"1": {1}, "64k": {65536}, "1M": {1 << 20}, "4,1,4": {1, 4}, "1:8:*2": {1, 2, 4, 8}, "1:64K:*2": {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536},
		"1K:3K:1K": {1024, 2048, 3072}, "1,2:4:*2": {1, 2, 4},
	} {
		if got, err := ParseSizes(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1", "2M", "1025K", "x", "1:2", "8:1:*2", "1:8:*1", "1:8:*0", "1:8:0", "1:8:", "1:1M:1", "9223372036854775807K", "1,,2"} {
		if got, err := ParseSizes(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// figures are those of two ways.
func figures() (Plan, []Series) {
	p := Plan{Tests: []Test{TCPBandwidth, UDPLatency}, Sizes: []int{1, 1 << 10, 64 << 10}}
	var all []Series
	for i, name := range []string{"host", "routed <2>"} {
		s := Series{Way: name}
		for _, size := range p.Sizes {
			s.Results = append(s.Results, Result{Test: TCPBandwidth, Size: size, Bandwidth: float64(2-i) * 1e6 * float64(size)})
			if size <= MaxDatagram {
				s.Results = append(s.Results, Result{Test: UDPLatency, Size: size, Latency: 10, Lost: 0.25 * float64(i)})
			}
		}
		all = append(all, s)
	}
	return p, all
}

func TestText(t *testing.T) {
	want := `TCP bandwidth, MB/s
   bytes      host   routed <2>
       1      2.00         1.00
      1K    2048.0       1024.0
     64K  131072.0      65536.0
    mean     100 %         50 %

UDP latency, µs (half of there and back, median)
   bytes    host            routed <2>
       1    10.0   10.0 (25.0 % lost)
      1K    10.0   10.0 (25.0 % lost)
    mean   100 %                100 %
`
	if got := Text(figures()); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("%s", got)
	}
}

// TestSVG: the picture is well-formed, has a point for each figure, and nothing of it lies
// outside.
func TestSVG(t *testing.T) {
	p, all := figures()
	points := 0
	dec := xml.NewDecoder(strings.NewReader(string(SVG(p, all))))
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := tok.(xml.StartElement)
		if !ok || e.Name.Local != "circle" && e.Name.Local != "rect" {
			continue
		}
		points++
		for _, a := range e.Attr {
			var v float64
			if strings.HasSuffix(a.Name.Local, "y") {
				if _, err := fmt.Sscan(a.Value, &v); err != nil || v < 0 || v > panelHeight-bottomSpace {
					t.Errorf("%s of a point is %s", a.Name.Local, a.Value)
				}
			}
		}
	}
	if want := 2*(3+1) + 2*(2+1) + 1; points != want { // figures and legends, and the ground
		t.Errorf("%d points, want %d", points, want)
	}
	if page := string(HTML(p, all)); strings.Contains(page, "<2>") || !strings.Contains(page, "routed &lt;2&gt;") {
		t.Error("the name of a way is text of the page")
	}
}
