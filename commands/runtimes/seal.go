package runtimes

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// sealKey is the label by which a file says that netctl wrote it, and that nobody has
// changed it since: its value is the SHA-256 of the text with an empty value there.
const sealKey = "netctl.seal"

const openSeal = `"` + sealKey + `": ""`

// sealed is a text, which holds openSeal once, with its seal.
func sealed(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return []byte(strings.Replace(text, openSeal, `"`+sealKey+`": "`+hex.EncodeToString(sum[:])+`"`, 1))
}

var sealPattern = regexp.MustCompile(`"` + regexp.QuoteMeta(sealKey) + `": "([0-9a-f]{64})"`)

// unsealed says whether a text has a seal (ours), and whether it is broken (changed).
func unsealed(text []byte) (ours, changed bool) {
	at := sealPattern.FindSubmatchIndex(text)
	if at == nil {
		return strings.Contains(string(text), `"`+sealKey+`"`), true
	}
	open := string(text[:at[2]]) + string(text[at[3]:])
	return true, string(sealed(open)) != string(text)
}
