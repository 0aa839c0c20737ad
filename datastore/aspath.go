package datastore

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// The bounds of an expression over AS paths: its text in bytes, and what it amounts to
// with its repetitions spelled out, since its cost is that for each byte of a path.
const (
	maxASPathText = 256
	maxASPathSize = 1000
)

// CompileASPath reads a regular expression over an AS path in text, "65001 65002
// {65003,65004}" with the sets in braces, "" for a path within the AS. It is RE2's
// language, as far as digits, blanks, commas and braces go, and _ is what FRR and BIRD's
// users expect of it: the begin or end of the path, a blank, a comma or a brace.
func CompileASPath(s string) (*regexp.Regexp, error) {
	if s == "" || len(s) > maxASPathText {
		return nil, fmt.Errorf("it needs from 1 to %d characters", maxASPathText)
	}
	text, err := separated(s)
	if err != nil {
		return nil, err
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		if e := (*syntax.Error)(nil); errors.As(err, &e) {
			return nil, fmt.Errorf("%s: %s", e.Code, e.Expr)
		}
		return nil, err
	}
	if expanse(tree) > maxASPathSize {
		return nil, errors.New("it repeats too much")
	}
	return regexp.Compile(text)
}

// separated puts what _ means in its place. What else stands there is bounded to what
// cannot hide a _ from this: no letters but those of \d, \s, \b and their opposites.
func separated(s string) (string, error) {
	const separator = `(?:^|$|[ ,{}])`
	var b strings.Builder
	class := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\':
			i++
			if i == len(s) || !strings.ContainsRune(`dDsSbB\^$.|?*+()[]{}_,-`, rune(s[i])) {
				return "", errors.New(`\ needs one of d, D, s, S, b, B or a sign behind it`)
			}
			b.WriteString(s[i-1 : i+1])
			continue
		case c == '_' && class:
			return "", errors.New("_ does not stand in [ ]: write the separators there, [ ,{}]")
		case c == '_':
			b.WriteString(separator)
			continue
		case c == '[' && class, c == ':' && class, c == ']' && strings.HasSuffix(strings.TrimSuffix(b.String(), "^"), "[") && class:
			return "", fmt.Errorf(`%q does not stand in [ ]`, c)
		case c == '[':
			class = true
		case c == ']':
			class = false
		case c == '?' && i > 0 && s[i-1] == '(' && (i == 1 || s[i-2] != '\\') && !class && !strings.HasPrefix(s[i:], "?:"):
			return "", errors.New("of the groups that begin with (? there is (?: only")
		case strings.IndexByte("0123456789 ,.^$|?*+(){}-:", c) < 0:
			return "", fmt.Errorf("%q is in no AS path", c)
		}
		b.WriteByte(c)
	}
	return b.String(), nil
}

// expanse is about how many steps an expression has.
func expanse(r *syntax.Regexp) int {
	n := 1 + len(r.Rune)
	for _, sub := range r.Sub {
		n += expanse(sub)
	}
	if r.Op == syntax.OpRepeat {
		n *= max(r.Min, r.Max, 1)
	}
	return min(n, maxASPathSize+1)
}
