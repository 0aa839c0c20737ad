package diags

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"regexp"
	"slices"
)

// removed is what is in the place of a secret.
const removed = "[removed]"

// Secrets are what must not leave a host: the contents of files that hold secrets,
// wherever else they are met, and what looks like a secret.
type Secrets struct {
	values [][]byte
	shapes []*regexp.Regexp
}

// leastSecret is the length from which on a value is looked for: a shorter one would be
// found everywhere.
const leastSecret = 4

// longLine is the length from which on each line of a file is looked for by itself.
const longLine = 24

// NewSecrets knows the shapes of secrets alone.
func NewSecrets() *Secrets {
	return &Secrets{shapes: []*regexp.Regexp{
		regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`),
		regexp.MustCompile(`\bnct[A-Za-z0-9_-]{60,}`), // of netctl join
		// What follows such a word and a sign of assignment, in YAML, JSON, URLs and flags.
		regexp.MustCompile(`(?i)((?:private[-_]?key|preshared[-_]?key|password|passwd|passphrase|secret|token)["']?\s*[:=]\s*["']?)[^\s"',;&}{\[]+`),
		regexp.MustCompile(`(?i)(\bBearer\s+)[A-Za-z0-9._~+/=-]+`),
		regexp.MustCompile(`(://[^/\s:@]+:)[^/\s@]+@`), // user and password in a URL
	}}
}

// Read adds what a file holds; that there is none is no error.
func (s *Secrets) Read(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s.Add(text)
	return nil
}

// Add adds a value, and what programs may write of it.
func (s *Secrets) Add(text []byte) {
	text = bytes.TrimSpace(text)
	if len(text) < leastSecret {
		return
	}
	add := func(v []byte) {
		if len(v) >= leastSecret && !slices.ContainsFunc(s.values, func(o []byte) bool { return bytes.Equal(o, v) }) {
			s.values = append(s.values, bytes.Clone(v))
		}
	}
	add(text)
	add([]byte(base64.StdEncoding.EncodeToString(text)))
	add([]byte(hex.EncodeToString(text)))
	if !bytes.Contains(text, []byte("PUBLIC KEY")) && !bytes.Contains(text, []byte("CERTIFICATE")) {
		for line := range bytes.Lines(text) {
			if line = bytes.TrimSpace(line); len(line) >= longLine && !bytes.HasPrefix(line, []byte("-----")) {
				add(line)
			}
		}
	}
	// The longest first: one may begin with another.
	slices.SortFunc(s.values, func(a, b []byte) int { return cmp.Compare(len(b), len(a)) })
}

// Remove is text without the secrets.
func (s *Secrets) Remove(text []byte) []byte {
	for _, v := range s.values {
		text = bytes.ReplaceAll(text, v, []byte(removed))
	}
	for _, shape := range s.shapes {
		text = shape.ReplaceAll(text, []byte("${1}"+removed))
	}
	return text
}
