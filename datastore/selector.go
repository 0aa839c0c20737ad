package datastore

import (
	"fmt"
	"slices"
	"strings"
)

// Selector is a label expression:
//
//	a == 'b'   a != 'b'   a in {'b', 'c'}   a not in {'b', 'c'}
//	a contains 'b'   a starts with 'b'   a ends with 'b'   has(a)   all()
//	!x   x && y   x || y   (x)
//
// An absent label equals no value, so != and "not in" hold for it. As in Calico, "starts
// with", "ends with" and "not in" may be one word, and nothing at all is all(), as is
// global(): nothing here is in a namespace.
type Selector struct{ root expr }

// String is the canonical form, which parses back to the same selector.
func (s *Selector) String() string { return s.root.text() }

// Matches says whether the expression holds for the labels.
func (s *Selector) Matches(labels map[string]string) bool { return s.root.matches(labels) }

type expr interface {
	matches(labels map[string]string) bool
	need() *Need
	text() string
}

type (
	exprAll     struct{}
	exprHas     struct{ key string }
	exprCompare struct{ key, op, value string }
	exprIn      struct {
		key    string
		not    bool
		values []string // sorted, unique
	}
	exprNot struct{ x expr }
	exprAnd []expr
	exprOr  []expr
)

func (exprAll) matches(map[string]string) bool { return true }
func (exprAll) text() string                   { return "all()" }

func (e exprHas) matches(labels map[string]string) bool { _, ok := labels[e.key]; return ok }
func (e exprHas) text() string                          { return "has(" + e.key + ")" }

const (
	opEqual      = "=="
	opNotEqual   = "!="
	opContains   = "contains"
	opStartsWith = "starts with"
	opEndsWith   = "ends with"
)

func (e exprCompare) matches(labels map[string]string) bool {
	v, ok := labels[e.key]
	switch e.op {
	case opEqual:
		return ok && v == e.value
	case opNotEqual:
		return !ok || v != e.value
	case opContains:
		return ok && strings.Contains(v, e.value)
	case opStartsWith:
		return ok && strings.HasPrefix(v, e.value)
	default:
		return ok && strings.HasSuffix(v, e.value)
	}
}

func (e exprCompare) text() string { return e.key + " " + e.op + " " + quoteValue(e.value) }

func (e exprIn) matches(labels map[string]string) bool {
	v, ok := labels[e.key]
	_, found := slices.BinarySearch(e.values, v)
	return (ok && found) != e.not
}

func (e exprIn) text() string {
	var quoted []string
	for _, v := range e.values {
		quoted = append(quoted, quoteValue(v))
	}
	op := " in {"
	if e.not {
		op = " not in {"
	}
	return e.key + op + strings.Join(quoted, ", ") + "}"
}

// quoteValue prefers single quotes; the grammar has no escapes, and a value
// holds at most one of the two kinds of quotes.
func quoteValue(v string) string {
	if strings.Contains(v, "'") {
		return `"` + v + `"`
	}
	return "'" + v + "'"
}

func (e exprNot) matches(labels map[string]string) bool { return !e.x.matches(labels) }

func (e exprNot) text() string {
	switch e.x.(type) {
	case exprAll, exprHas, exprNot:
		return "!" + e.x.text()
	}
	return "!(" + e.x.text() + ")"
}

func (e exprAnd) matches(labels map[string]string) bool {
	return !slices.ContainsFunc(e, func(x expr) bool { return !x.matches(labels) })
}

func (e exprAnd) text() string {
	var parts []string
	for _, x := range e {
		t := x.text()
		if _, ok := x.(exprOr); ok {
			t = "(" + t + ")"
		}
		parts = append(parts, t)
	}
	return strings.Join(parts, " && ")
}

func (e exprOr) matches(labels map[string]string) bool {
	return slices.ContainsFunc(e, func(x expr) bool { return x.matches(labels) })
}

func (e exprOr) text() string {
	var parts []string
	for _, x := range e {
		parts = append(parts, x.text())
	}
	return strings.Join(parts, " || ")
}

const (
	maxExpression = 4096 // bytes of a rule or selector
	maxNesting    = 64
)

// ParseSelector parses a label expression. The error names the word and its
// column and wraps ErrInvalid.
func ParseSelector(s string) (*Selector, error) {
	toks, err := lexSelector(s)
	if err != nil {
		return nil, err
	}
	if len(toks) == 1 {
		return &Selector{root: exprAll{}}, nil
	}
	p := &selectorParser{toks: toks}
	root, err := p.or()
	if err != nil {
		return nil, err
	}
	if p.peek().kind != tokEnd {
		return nil, p.expected("&& or ||")
	}
	return &Selector{root: root}, nil
}

type selectorParser struct {
	toks  []selectorToken // ends with tokEnd
	pos   int
	depth int
}

func (p *selectorParser) peek() selectorToken { return p.toks[p.pos] }

func (p *selectorParser) accept(kind selectorTokenKind, text string) bool {
	if t := p.peek(); t.kind != kind || t.text != text {
		return false
	}
	p.pos++
	return true
}

func (p *selectorParser) expected(what string) error {
	t := p.peek()
	e := &SyntaxError{Language: "selector", Word: t.text, Expected: what, Column: t.column}
	if p.pos > 0 {
		e.After = p.toks[p.pos-1].text
	}
	return e
}

func (p *selectorParser) or() (expr, error) {
	parts, err := p.chain("||", p.and)
	if err != nil || len(parts) == 1 {
		return first(parts), err
	}
	var flat exprOr
	for _, x := range parts {
		if o, ok := x.(exprOr); ok {
			flat = append(flat, o...)
		} else {
			flat = append(flat, x)
		}
	}
	return flat, nil
}

func (p *selectorParser) and() (expr, error) {
	parts, err := p.chain("&&", p.unary)
	if err != nil || len(parts) == 1 {
		return first(parts), err
	}
	var flat exprAnd
	for _, x := range parts {
		if a, ok := x.(exprAnd); ok {
			flat = append(flat, a...)
		} else {
			flat = append(flat, x)
		}
	}
	return flat, nil
}

func first(parts []expr) expr {
	if len(parts) == 0 {
		return nil
	}
	return parts[0]
}

func (p *selectorParser) chain(op string, next func() (expr, error)) ([]expr, error) {
	var parts []expr
	for {
		x, err := next()
		if err != nil {
			return nil, err
		}
		parts = append(parts, x)
		if !p.accept(tokPunct, op) {
			return parts, nil
		}
	}
}

func (p *selectorParser) unary() (expr, error) {
	if p.depth++; p.depth > maxNesting {
		return nil, p.expected(fmt.Sprintf("at most %d levels of ! and parentheses", maxNesting))
	}
	defer func() { p.depth-- }()
	if p.accept(tokPunct, "!") {
		x, err := p.unary()
		return exprNot{x}, err
	}
	if p.accept(tokPunct, "(") {
		x, err := p.or()
		if err != nil {
			return nil, err
		}
		if !p.accept(tokPunct, ")") {
			return nil, p.expected("&&, || or )")
		}
		return x, nil
	}
	return p.term()
}

func (p *selectorParser) term() (expr, error) {
	t := p.peek()
	if t.kind != tokWord {
		return nil, p.expected("a label, has(…), all(), ! or (")
	}
	p.pos++
	if p.accept(tokPunct, "(") {
		return p.call(t)
	}
	if checkLabelKey(t.text) != nil {
		p.pos--
		return nil, p.expected("a label")
	}
	return p.comparison(t.text)
}

func (p *selectorParser) call(name selectorToken) (expr, error) {
	var x expr
	switch name.text {
	case "all", "global":
		x = exprAll{}
	case "has":
		t := p.peek()
		if t.kind != tokWord || checkLabelKey(t.text) != nil {
			return nil, p.expected("a label")
		}
		p.pos++
		x = exprHas{t.text}
	default:
		return nil, &SyntaxError{Language: "selector", Word: name.text, Expected: "has(…), all() or global()", Column: name.column}
	}
	if !p.accept(tokPunct, ")") {
		return nil, p.expected(")")
	}
	return x, nil
}

func (p *selectorParser) comparison(key string) (expr, error) {
	const ops = "==, !=, in, not in, contains, starts with or ends with"
	t := p.peek()
	switch {
	case p.accept(tokPunct, opEqual), p.accept(tokPunct, opNotEqual), p.accept(tokWord, opContains):
		return p.compared(key, t.text)
	case p.accept(tokWord, "starts"), p.accept(tokWord, "ends"):
		if !p.accept(tokWord, "with") {
			return nil, p.expected("with")
		}
		return p.compared(key, t.text+" with")
	case p.accept(tokWord, "startswith"):
		return p.compared(key, opStartsWith)
	case p.accept(tokWord, "endswith"):
		return p.compared(key, opEndsWith)
	case p.accept(tokWord, "notin"):
		return p.set(key, true)
	case p.accept(tokWord, "not"):
		if !p.accept(tokWord, "in") {
			return nil, p.expected("in")
		}
		return p.set(key, true)
	case p.accept(tokWord, "in"):
		return p.set(key, false)
	}
	return nil, p.expected(ops)
}

func (p *selectorParser) compared(key, op string) (expr, error) {
	v, err := p.value()
	return exprCompare{key, op, v}, err
}

func (p *selectorParser) value() (string, error) {
	t := p.peek()
	if t.kind != tokString {
		return "", p.expected("a value in quotes")
	}
	p.pos++
	return t.text, nil
}

func (p *selectorParser) set(key string, not bool) (expr, error) {
	if !p.accept(tokPunct, "{") {
		return nil, p.expected("{")
	}
	in := exprIn{key: key, not: not}
	for {
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		in.values = append(in.values, v)
		if p.accept(tokPunct, "}") {
			slices.Sort(in.values)
			in.values = slices.Compact(in.values)
			return in, nil
		}
		if !p.accept(tokPunct, ",") {
			return nil, p.expected(", or }")
		}
	}
}
