package datastore

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLine bounds what others wrote and people read as one line, in bytes.
const maxLine = 4096

// Line is a text in one line that does nothing to a terminal: what Visible makes of it,
// with a semicolon for an end of line.
func Line(s string) string {
	if strings.ContainsAny(s, "\r\n") {
		lines := strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
		for i, l := range lines {
			lines[i] = strings.TrimSpace(l)
		}
		s = strings.Join(lines, "; ")
	}
	return Visible(s)
}

// Said is an error for people: on one line, and without the word of ErrInvalid at the end
// of it, or of one of joined errors, since what stands before says what is wrong.
func Said(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimSuffix(l, ": "+ErrInvalid.Error())
	}
	return Line(strings.Join(lines, "\n"))
}

// As is an error that is an outcome to errors.Is and does not say so: its text says more.
// Format and args are those of fmt.Errorf.
func As(outcome error, format string, args ...any) error {
	return &as{fmt.Errorf(format, args...), outcome}
}

type as struct {
	error
	outcome error
}

func (e *as) Unwrap() []error { return []error{e.error, e.outcome} }

// Visible is a text without what moves a terminal's cursor or turns the direction of
// text; ends of lines and tabs stay. Each such character is written as JSON writes it,
// so that JSON stays what it was.
func Visible(s string) string {
	if strings.IndexFunc(s, hidden) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if hidden(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func hidden(r rune) bool {
	switch {
	case r == '\n', r == '\t', ' ' <= r && r <= '~':
		return false
	}
	return unicode.In(r, unicode.Cc, unicode.Bidi_Control)
}

// lines makes a Line of each, of at most maxLine bytes as it is stored.
func lines(texts ...*string) {
	for _, t := range texts {
		if len(*t) > maxLine {
			*t = strings.ToValidUTF8((*t)[:maxLine], "") + "…"
		}
		*t = Line(*t)
	}
}
