package nft

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/acl"
)

// FuzzRead has everything that reads messages read anything: it ends, and what it
// says without an error is of the message.
func FuzzRead(f *testing.F) {
	f.Add([]byte{12, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 1})
	f.Add([]byte("\x0c\x00\x01\x80\x08\x00\x01\x00nca\x00\x18\x00\x02\x80\x14\x00\x02\x80\x08\x00\x01\x00\xff\xff\xff\xfc\x06\x00\x02\x00c\x00\x00\x00"))
	f.Add([]byte("\x0b\x00\x01\x00netctl\x00\x00\x08\x00\x03\x00web\x00\x14\x00\x04\x80\x08\x00\x01\x00\x00\x00\x00\x02\x08\x00\x02\x00\xff\xff\xff\xf6"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var err error
		e := readElement(attribute{data: b, err: &err})
		if err == nil && (!bytes.Contains(b, []byte(e.key)) || e.verdict != "" && len(b) < 8) {
			t.Errorf("%x: element %+v", b, e)
		}
		if name, c, err := readChain(b); err == nil && (!bytes.Contains(b, []byte(name)) || !bytes.Contains(b, []byte(c.kind)) || c.base && len(b) < 4) {
			t.Errorf("%x: chain %s %+v", b, name, c)
		}
		if chain, hash, handle, err := readRule(b); err == nil && (!bytes.Contains(b, []byte(chain)) || (hash != [8]byte{} || handle != 0) && len(b) < 12) {
			t.Errorf("%x: rule of %s, %x, %d", b, chain, hash, handle)
		}
		if name, s, err := readSet(b); err == nil && (!bytes.Contains(b, []byte(name)) || s.flags != 0 && len(b) < 8) {
			t.Errorf("%x: set %s %+v", b, name, s)
		}
		if ours := ofOurTable(b); ours && !bytes.Contains(b, []byte("netctl")) {
			t.Errorf("%x is of our table", b)
		}
		if rest := body(b); len(rest) != max(0, len(b)-4) {
			t.Errorf("%x has the body %x", b, rest)
		}
	})
}

// TestReadMalformed: what is cut short, or has a number of another size, is an error.
func TestReadMalformed(t *testing.T) {
	for what, list := range map[string][]byte{
		"half a head":         {8, 0},
		"longer than it is":   {12, 0, 3, 0, 1, 2, 3, 4},
		"shorter than a head": {3, 0, 3, 0},
		"a short policy":      {6, 0, unix.NFTA_CHAIN_POLICY, 0, 1, 2, 0, 0},
		"a short hook number": {12, 0, unix.NFTA_CHAIN_HOOK, 0x80, 6, 0, unix.NFTA_HOOK_HOOKNUM, 0, 1, 2, 0, 0},
		"a nested half":       {6, 0, unix.NFTA_CHAIN_HOOK, 0x80, 8, 0, 0, 0},
	} {
		if name, c, err := readChain(list); err == nil {
			t.Errorf("%s: chain %q %+v", what, name, c)
		}
	}
	if _, _, _, err := readRule([]byte{8, 0, unix.NFTA_RULE_HANDLE, 0, 1, 2, 3, 4}); err == nil {
		t.Error("a handle of 32 bits is read")
	}
}

func FuzzHashOf(f *testing.F) {
	r := &acl.Rule{Comment: "profile web inbound: allow", Verdict: acl.Verdict{Kind: acl.Accept}}
	f.Add(ruleUserData(r))
	f.Add([]byte{0, 200, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if h := hashOf(b); h != [8]byte{} && len(b) < 10 {
			t.Errorf("%x: hash %x from nowhere", b, h)
		}
		if got := hashOf(append(ruleUserData(r), b...)); got != ruleHash(r) {
			t.Errorf("hash %x lost", got)
		}
	})
}
