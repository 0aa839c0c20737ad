package datastore

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Token is the one word that lets a machine into a cluster: where to ask, how to know
// that it is the cluster that answers, and a secret that is good once.
type Token struct {
	// Authority is the SHA-256 of the DER certificate of the cluster's authority.
	Authority [sha256.Size]byte
	// ID names the token; it is no secret.
	ID [4]byte
	// Secret is known to nobody but who holds the token: the cluster keeps its hash.
	Secret [16]byte
	// Expires is in whole seconds. It is written here for people; the cluster judges.
	Expires time.Time
	// Member says that it lets in a member of the datastore too.
	Member bool
	// Endpoints are where nodes are let in, at least one.
	Endpoints []netip.AddrPort
}

// tokenPrefix begins every token; what follows is base64url of the version, the length in
// bytes of everything, the fields, and the first bytes of a SHA-256 of all that.
const (
	tokenPrefix  = "nct"
	tokenVersion = 1
	tokenSum     = 4
	tokenHead    = 1 + 2 + 1 + 4 // version, length, flags, expiry
	tokenLeast   = tokenHead + sha256.Size + 4 + 16 + 1 + tokenSum
	// MaxTokenEndpoints bounds a token.
	MaxTokenEndpoints = 9
	maxTokenText      = 1024
)

const tokenMember = 1 // a flag

// NewToken returns a token with a new name and secret.
func NewToken(authority [sha256.Size]byte, member bool, expires time.Time, endpoints []netip.AddrPort) Token {
	t := Token{Authority: authority, Member: member, Expires: expires.UTC().Truncate(time.Second), Endpoints: endpoints}
	if len(endpoints) > MaxTokenEndpoints {
		t.Endpoints = endpoints[:MaxTokenEndpoints]
	}
	_, _ = rand.Read(t.ID[:])
	_, _ = rand.Read(t.Secret[:])
	return t
}

// Name is ID as people see it.
func (t Token) Name() string { return hex.EncodeToString(t.ID[:]) }

// Hash is what the cluster keeps of the secret.
func (t Token) Hash() string {
	sum := sha256.Sum256(append(t.ID[:], t.Secret[:]...))
	return hex.EncodeToString(sum[:])
}

// String is the token as it is handed over.
func (t Token) String() string {
	b := []byte{tokenVersion, 0, 0, 0}
	if t.Member {
		b[3] = tokenMember
	}
	b = binary.BigEndian.AppendUint32(b, uint32(t.Expires.Unix()))
	b = append(b, t.Authority[:]...)
	b = append(b, t.ID[:]...)
	b = append(b, t.Secret[:]...)
	b = append(b, byte(len(t.Endpoints)))
	for _, e := range t.Endpoints {
		raw := e.Addr().Unmap().AsSlice()
		b = append(append(b, byte(len(raw))), raw...)
		b = binary.BigEndian.AppendUint16(b, e.Port())
	}
	binary.BigEndian.PutUint16(b[1:], uint16(len(b)+tokenSum))
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:tokenSum]...))
}

// ParseToken is the inverse of Token.String. Its error wraps ErrInvalid and never holds
// the text, which may be most of a secret.
func ParseToken(text string) (Token, error) {
	body, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok || len(text) > maxTokenText {
		return Token{}, tokenError("begins with %s and has about a hundred letters: this is none (`netctl token create` prints one)", tokenPrefix)
	}
	// What was cut may end within a group of letters.
	whole := base64.RawURLEncoding.DecodedLen(len(body))
	b := make([]byte, whole)
	n, err := base64.RawURLEncoding.Strict().Decode(b, []byte(body))
	if err != nil && n < len(body)*3/4-2 {
		return Token{}, tokenError("has a letter that is in no token: copy it again, whole")
	}
	b = b[:n]
	if len(b) < 3 {
		return Token{}, tokenError("is cut off after %d letters: copy it whole", len(text))
	}
	if b[0] != tokenVersion {
		return Token{}, tokenError("is of version %d, and this netctl knows %d: it is damaged, or the cluster's netctl is newer", b[0], tokenVersion)
	}
	length := int(binary.BigEndian.Uint16(b[1:]))
	want := len(tokenPrefix) + base64.RawURLEncoding.EncodedLen(length)
	switch {
	case len(text) < want && want <= maxTokenText:
		return Token{}, tokenError("is cut off: these are %d of its %d letters; copy it whole", len(text), want)
	case len(text) != want || err != nil || length < tokenLeast:
		return Token{}, tokenError("is damaged: copy it again, whole")
	}
	sum := sha256.Sum256(b[:length-tokenSum])
	if !bytes.Equal(sum[:tokenSum], b[length-tokenSum:]) {
		return Token{}, tokenError("is damaged: copy it again, whole")
	}
	return parseTokenFields(b[3 : length-tokenSum])
}

// parseTokenFields reads what is between a token's length and its sum.
func parseTokenFields(b []byte) (Token, error) {
	t := Token{Member: b[0]&tokenMember != 0, Expires: time.Unix(int64(binary.BigEndian.Uint32(b[1:])), 0).UTC()}
	b = b[5:]
	b = b[copy(t.Authority[:], b):]
	b = b[copy(t.ID[:], b):]
	b = b[copy(t.Secret[:], b):]
	count := int(b[0])
	for b = b[1:]; len(b) > 0; {
		size := int(b[0])
		if len(b) < 1+size+2 {
			break
		}
		addr, ok := netip.AddrFromSlice(b[1 : 1+size])
		if !ok {
			break
		}
		t.Endpoints = append(t.Endpoints, netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[1+size:])))
		b = b[1+size+2:]
	}
	if len(b) > 0 || len(t.Endpoints) != count || count == 0 || count > MaxTokenEndpoints {
		return Token{}, tokenError("names no address that this netctl understands")
	}
	return t, nil
}

func tokenError(format string, args ...any) error {
	return fmt.Errorf("the token "+format+": %w", append(args, ErrInvalid)...)
}
