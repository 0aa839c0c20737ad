package datastore

// Need is what labels must have at least for a selector to hold. Who keeps an index
// of labels finds by it the few that are worth asking Matches about.
//
// It is one of three: a key with one of some values, or with any; several needs of
// which all must be met; several of which one must be.
type Need struct {
	Key    string
	Values []string // nil: any value of Key
	All    []*Need
	Any    []*Need
}

// Need returns nil where labels that lack everything may do, as with !=.
func (s *Selector) Need() *Need { return s.root.need() }

func (exprAll) need() *Need   { return nil }
func (exprNot) need() *Need   { return nil }
func (e exprHas) need() *Need { return &Need{Key: e.key} }

func (e exprCompare) need() *Need {
	switch e.op {
	case opEqual:
		return &Need{Key: e.key, Values: []string{e.value}}
	case opNotEqual:
		return nil
	}
	return &Need{Key: e.key}
}

func (e exprIn) need() *Need {
	if e.not {
		return nil
	}
	return &Need{Key: e.key, Values: e.values}
}

func (e exprAnd) need() *Need {
	var all []*Need
	for _, x := range e {
		if n := x.need(); n != nil {
			all = append(all, n)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return &Need{All: all}
}

func (e exprOr) need() *Need {
	out := &Need{}
	for _, x := range e {
		n := x.need()
		if n == nil {
			return nil
		}
		out.Any = append(out.Any, n)
	}
	return out
}
