package datastore

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode/utf8"
)

// scanner walks over JSON text (RFC 8259) without copying it. It accepts what
// encoding/json accepts, but for values that lie deeper than maxDepth.
type scanner struct {
	raw []byte
	pos int
}

// errSyntax says that the text is no JSON. Whoever needs to know where and why
// asks encoding/json (syntaxError).
var errSyntax = errors.New("no JSON")

// maxDepth is how deep objects and lists may lie in each other where the model
// does not say what is to come.
const maxDepth = 1000

// next skips white space and returns the byte after it without consuming it; 0
// is the end of the text.
func (s *scanner) next() byte {
	for ; s.pos < len(s.raw); s.pos++ {
		switch c := s.raw[s.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

// take consumes the next byte that is no white space if it is c.
func (s *scanner) take(c byte) bool {
	if s.next() != c {
		return false
	}
	s.pos++
	return true
}

// word consumes a literal such as null if it comes next.
func (s *scanner) word(w string) bool {
	s.next()
	if !bytes.HasPrefix(s.raw[s.pos:], []byte(w)) {
		return false
	}
	s.pos += len(w)
	return true
}

// text consumes a string. The result is part of raw unless it has to be changed:
// escapes are resolved, and bytes that are no UTF-8 become U+FFFD.
func (s *scanner) text() ([]byte, error) {
	if !s.take('"') {
		return nil, errSyntax
	}
	start, plain := s.pos, true
	for ; s.pos < len(s.raw); s.pos++ {
		// Nearly every text is of such bytes only.
		for s.pos < len(s.raw) {
			c := s.raw[s.pos]
			if c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
				break
			}
			s.pos++
		}
		if s.pos == len(s.raw) {
			break
		}
		switch c := s.raw[s.pos]; {
		case c == '"':
			s.pos++
			t := s.raw[start : s.pos-1]
			if plain || !bytes.Contains(t, []byte{'\\'}) && utf8.Valid(t) {
				return t, nil
			}
			return unquote(s.raw[start-1 : s.pos])
		case c == '\\':
			plain = false
			s.pos++ // what follows is no end; unquote checks it
		case c < ' ':
			return nil, errSyntax
		case c >= utf8.RuneSelf:
			plain = false
		}
	}
	return nil, errSyntax
}

func unquote(quoted []byte) ([]byte, error) {
	var t string
	if err := json.Unmarshal(quoted, &t); err != nil {
		return nil, errSyntax
	}
	return []byte(t), nil
}

// number consumes a number and returns its text.
func (s *scanner) number() ([]byte, error) {
	s.next()
	start := s.pos
	s.one("-")
	if !s.one("0") && !s.digits() {
		return nil, errSyntax
	}
	if s.one(".") && !s.digits() {
		return nil, errSyntax
	}
	if s.one("eE") {
		s.one("+-")
		if !s.digits() {
			return nil, errSyntax
		}
	}
	return s.raw[start:s.pos], nil
}

// one consumes the next byte if it is one of set.
func (s *scanner) one(set string) bool {
	if s.pos == len(s.raw) || strings.IndexByte(set, s.raw[s.pos]) < 0 {
		return false
	}
	s.pos++
	return true
}

// digits consumes decimal digits and says whether there were any.
func (s *scanner) digits() bool {
	start := s.pos
	for s.pos < len(s.raw) && s.raw[s.pos] >= '0' && s.raw[s.pos] <= '9' {
		s.pos++
	}
	return s.pos > start
}

// value consumes any value and returns its text.
func (s *scanner) value() ([]byte, error) {
	s.next()
	start := s.pos
	if err := s.skip(0); err != nil {
		return nil, err
	}
	return s.raw[start:s.pos], nil
}

func (s *scanner) skip(depth int) error {
	if depth > maxDepth {
		return errSyntax
	}
	var err error
	switch s.next() {
	case '{':
		return s.members(func() error {
			if _, err := s.text(); err != nil {
				return err
			}
			if !s.take(':') {
				return errSyntax
			}
			return s.skip(depth + 1)
		}, '}')
	case '[':
		return s.members(func() error { return s.skip(depth + 1) }, ']')
	case '"':
		_, err = s.text()
	case 't', 'f', 'n':
		if !s.word("true") && !s.word("false") && !s.word("null") {
			err = errSyntax
		}
	default:
		_, err = s.number()
	}
	return err
}

// members consumes what stands between the bracket that comes next and its end,
// calling each where a member begins.
func (s *scanner) members(each func() error, end byte) error {
	s.pos++
	if s.take(end) {
		return nil
	}
	for {
		s.next()
		if err := each(); err != nil {
			return err
		}
		switch {
		case s.take(','):
		case s.take(end):
			return nil
		default:
			return errSyntax
		}
	}
}

// syntaxError says where and why raw is no JSON; nil: it is.
func syntaxError(raw []byte) error {
	var any json.RawMessage
	var syntax *json.SyntaxError
	if err := json.Unmarshal(raw, &any); errors.As(err, &syntax) {
		return &FieldError{Reason: syntax.Error() + " (" + position(raw, syntax.Offset) + ")"}
	}
	return nil
}
