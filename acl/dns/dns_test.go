package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// message writes an answer to a question; records are "NAME TTL A|AAAA|CNAME VALUE" each.
func message(t testing.TB, head dnsmessage.Header, question string, records ...string) []byte {
	t.Helper()
	name := func(s string) dnsmessage.Name { return dnsmessage.MustNewName(s) }
	b := dnsmessage.NewBuilder(nil, head)
	b.EnableCompression()
	asked, typ, _ := strings.Cut(question, " ")
	types := map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "TXT": dnsmessage.TypeTXT}
	err := errors.Join(b.StartQuestions(), b.Question(dnsmessage.Question{Name: name(asked), Type: types[typ], Class: dnsmessage.ClassINET}), b.StartAnswers())
	for _, r := range records {
		var owner, kind, value string
		var ttl uint32
		if _, e := fmt.Sscan(r, &owner, &ttl, &kind, &value); e != nil {
			t.Fatal(e)
		}
		h := dnsmessage.ResourceHeader{Name: name(owner), Class: dnsmessage.ClassINET, TTL: ttl}
		switch kind {
		case "A":
			err = errors.Join(err, b.AResource(h, dnsmessage.AResource{A: netip.MustParseAddr(value).As4()}))
		case "AAAA":
			err = errors.Join(err, b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(value).As16()}))
		case "CNAME":
			err = errors.Join(err, b.CNAMEResource(h, dnsmessage.CNAMEResource{CNAME: name(value)}))
		case "TXT":
			err = errors.Join(err, b.TXTResource(h, dnsmessage.TXTResource{TXT: []string{value}}))
		}
	}
	raw, e := b.Finish()
	if err = errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestParse(t *testing.T) {
	long := []string{}
	for i := range 40 {
		long = append(long, fmt.Sprintf("a%d. 60 CNAME a%d.", i, i+1))
	}
	for _, c := range []struct {
		question string
		records  []string
		want     string
	}{
		{"example.com. A", []string{"example.com. 60 A 192.0.2.1", "example.com. 30 A 192.0.2.2"}, "example.com 192.0.2.1 1m0s 192.0.2.2 30s"},
		{"Example.COM. A", []string{"eXample.com. 60 A 192.0.2.1"}, "example.com 192.0.2.1 1m0s"},
		{"example.com. AAAA", []string{"example.com. 0 AAAA 2001:db8::1"}, "example.com 2001:db8::1 0s"},
		{"www.example.com. A", []string{"www.example.com. 60 CNAME a.cdn.example.", "a.cdn.example. 20 CNAME b.cdn.example.", "b.cdn.example. 40 A 192.0.2.1"}, "www.example.com 192.0.2.1 20s"},
		{"www.example.com. A", []string{"b.cdn.example. 10 A 192.0.2.1", "www.example.com. 60 CNAME b.cdn.example."}, "www.example.com 192.0.2.1 10s"},
		{"example.com. A", []string{"example.com. 4294967295 A 192.0.2.1"}, "example.com 192.0.2.1 0s"},
		{"example.com. A", []string{"example.com. 60 TXT x", "example.com. 60 A 192.0.2.1"}, "example.com 192.0.2.1 1m0s"},
		// Of others than what was asked for, nothing is believed.
		{"example.com. A", []string{"other.example. 60 A 192.0.2.1"}, "none"},
		{"example.com. A", []string{"example.com. 60 A 192.0.2.1", "other.example. 60 A 192.0.2.2"}, "example.com 192.0.2.1 1m0s"},
		{"example.com. A", []string{"example.com. 60 CNAME a.example.", "b.example. 60 A 192.0.2.2"}, "none"},
		{"example.com. A", []string{"example.com. 60 CNAME a.example.", "example.com. 60 CNAME b.example.", "b.example. 60 A 192.0.2.2"}, "none"},
		{"a. A", []string{"a. 60 CNAME b.", "b. 60 CNAME a."}, "none"},
		{"a0. A", append(long[:14:14], "a14. 60 A 192.0.2.1"), "a0 192.0.2.1 1m0s"},
		{"a0. A", append(long, "a40. 60 A 192.0.2.1"), "none"},
		{"example.com. TXT", []string{"example.com. 60 A 192.0.2.1"}, "none"},
		{"example.com. A", nil, "none"},
		// Nobody is reached at these.
		{"example.com. A", []string{"example.com. 60 A 127.0.0.1", "example.com. 60 A 0.0.0.0", "example.com. 60 A 169.254.1.1", "example.com. 60 A 224.0.0.1", "example.com. 60 A 255.255.255.255", "example.com. 60 A 240.0.0.1"}, "none"},
		{"example.com. AAAA", []string{"example.com. 60 AAAA ::1", "example.com. 60 AAAA ::", "example.com. 60 AAAA fe80::1", "example.com. 60 AAAA ff02::1", "example.com. 60 AAAA ::ffff:192.0.2.1"}, "none"},
		{"example.com. A", []string{"example.com. 60 A 10.0.0.1"}, "example.com 10.0.0.1 1m0s"},
	} {
		a, err := Parse(message(t, dnsmessage.Header{Response: true}, c.question, c.records...))
		got := a.Name
		for _, x := range a.Addresses {
			got += fmt.Sprint(" ", x.Addr, " ", x.TTL)
		}
		if errors.Is(err, ErrNone) {
			got = "none"
		}
		if got != c.want {
			t.Errorf("%s, %s: %s (%v), want %s", c.question, strings.Join(c.records, ", "), got, err, c.want)
		}
	}
}

// TestParseRefuses: what is no answer, and what is cut off or made up.
func TestParseRefuses(t *testing.T) {
	const question, record = "www.example.com. A", "www.example.com. 60 A 192.0.2.1"
	for what, h := range map[string]dnsmessage.Header{
		"a question": {}, "no such name": {Response: true, RCode: dnsmessage.RCodeNameError}, "an update": {Response: true, OpCode: 5},
	} {
		if a, err := Parse(message(t, h, question, record)); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %+v, %v", what, a, err)
		}
	}
	whole := message(t, dnsmessage.Header{Response: true}, question, record)
	for n := range whole {
		if a, err := Parse(whole[:n]); err == nil {
			t.Errorf("%d bytes of %d: %+v", n, len(whole), a)
		}
	}
	more := append([]byte(nil), whole...)
	binary.BigEndian.PutUint16(more[6:], 9) // answers
	if a, err := Parse(more); err == nil {
		t.Errorf("answers that are not there: %+v", a)
	}
	two := append([]byte(nil), whole...)
	binary.BigEndian.PutUint16(two[4:], 2) // questions
	if a, err := Parse(two); err == nil {
		t.Errorf("two questions: %+v", a)
	}
	circle := append([]byte(nil), whole[:12]...)
	if a, err := Parse(append(circle, 0xc0, 12, 0, 1, 0, 1)); err == nil {
		t.Errorf("a name that is in itself: %+v", a)
	}
}

// FuzzParse: whatever is sent, nothing is learned but addresses that the message has, of the
// name that it asks for.
func FuzzParse(f *testing.F) {
	f.Add(message(f, dnsmessage.Header{Response: true}, "www.example.com. A", "www.example.com. 60 CNAME a.example.", "a.example. 5 A 192.0.2.1"))
	f.Add(message(f, dnsmessage.Header{Response: true}, "example.com. AAAA", "example.com. 60 AAAA 2001:db8::1", "example.com. 60 TXT x"))
	f.Add(message(f, dnsmessage.Header{}, "example.com. A"))
	f.Add([]byte{0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := Parse(b)
		if (err == nil) != (len(a.Addresses) > 0) {
			t.Fatalf("%+v, %v", a, err)
		}
		for _, x := range a.Addresses {
			if !strings.Contains(string(b), string(x.AsSlice())) || !reachable(x.Addr) || x.TTL < 0 {
				t.Errorf("%s of %x", x.Addr, b)
			}
		}
		if len(a.Addresses)*16 > len(b) || len(a.Name) > 255 {
			t.Errorf("%d addresses of %q in %d bytes", len(a.Addresses), a.Name, len(b))
		}
	})
}
