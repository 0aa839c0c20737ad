package datastore

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// SyntaxError is a mistake in a rule or a selector. It wraps ErrInvalid.
type SyntaxError struct {
	Language string // "rule", "selector", …
	Word     string // the word that is wrong; empty: the text ends too early
	Expected string
	After    string // the word before, if that helps
	Column   int    // of the word, in characters from 1
}

func (e *SyntaxError) Error() string {
	s := e.Language + ": "
	if e.Word != "" {
		s += fmt.Sprintf("%q: ", e.Word)
	}
	s += "expected " + e.Expected
	if e.After != "" {
		s += fmt.Sprintf(" after %q", e.After)
	}
	return fmt.Sprintf("%s (column %d)", s, e.Column)
}

// Unwrap returns ErrInvalid.
func (e *SyntaxError) Unwrap() error { return ErrInvalid }

type selectorTokenKind int

const (
	tokEnd selectorTokenKind = iota
	tokWord
	tokString
	tokPunct
)

type selectorToken struct {
	kind   selectorTokenKind
	text   string // of a string without its quotes
	column int
}

// selectorPuncts are the operators and brackets; of two that begin alike the
// longer comes first.
func selectorPuncts() []string {
	return []string{"==", "!=", "&&", "||", "!", "(", ")", "{", "}", ","}
}

func lexSelector(s string) ([]selectorToken, error) {
	if err := checkText("selector", s); err != nil {
		return nil, err
	}
	var toks []selectorToken
	for pos := 0; ; {
		pos += len(s[pos:]) - len(strings.TrimLeft(s[pos:], blanks))
		column := utf8.RuneCountInString(s[:pos]) + 1
		if pos == len(s) {
			return append(toks, selectorToken{kind: tokEnd, column: column}), nil
		}
		t, n := lexSelectorToken(s[pos:])
		if n == 0 {
			r, _ := utf8.DecodeRuneInString(s[pos:])
			e := &SyntaxError{Language: "selector", Word: string(r), Expected: "a label, a value in quotes or an operator", Column: column}
			if r == '\'' || r == '"' {
				e.Word, e.Expected = s[pos:], "a closing quote"
			}
			return nil, e
		}
		t.column = column
		toks = append(toks, t)
		pos += n
	}
}

// lexSelectorToken returns the token s begins with and its length in bytes; 0
// if there is none.
func lexSelectorToken(s string) (selectorToken, int) {
	if s[0] == '\'' || s[0] == '"' {
		end := strings.IndexByte(s[1:], s[0])
		if end < 0 {
			return selectorToken{}, 0
		}
		return selectorToken{kind: tokString, text: s[1 : 1+end]}, end + 2
	}
	n := 0
	for n < len(s) && isLabelKey(s[n]) {
		n++
	}
	if n > 0 {
		return selectorToken{kind: tokWord, text: s[:n]}, n
	}
	for _, p := range selectorPuncts() {
		if strings.HasPrefix(s, p) {
			return selectorToken{kind: tokPunct, text: p}, len(p)
		}
	}
	return selectorToken{}, 0
}

// checkText bounds what the parsers of rules and selectors look at.
func checkText(language, s string) error {
	switch {
	case len(s) > maxExpression:
		return &SyntaxError{Language: language, Expected: fmt.Sprintf("at most %d bytes", maxExpression), Column: maxExpression}
	case !utf8.ValidString(s):
		return &SyntaxError{Language: language, Expected: "UTF-8", Column: 1}
	}
	if i := controlAt(language, s); i >= 0 {
		return &SyntaxError{Language: language, Word: s[i : i+1], Expected: "no control characters",
			Column: utf8.RuneCountInString(s[:i]) + 1}
	}
	return nil
}

// controlAt is where s has a control character that parts no words; -1: nowhere. What a
// rule has in quotes is a selector, which looks itself.
func controlAt(language, s string) int {
	var quote rune
	for i, r := range s {
		switch {
		case language == languageRule:
		case quote == 0 && (r == '"' || r == '\''):
			quote = r
		case r == quote:
			quote = 0
		}
		if unicode.IsControl(r) && (quote != 0 || !strings.ContainsRune(blanks, r)) {
			return i
		}
	}
	return -1
}
