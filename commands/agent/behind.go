package agent

import (
	"net/netip"
	"slices"

	"netctl/datastore"
)

// behind is what is behind an endpoint of a node.
type behind struct {
	node     string
	prefixes []netip.Prefix
}

// endpoint takes a change of an endpoint of another node; nil: there is none.
func (w *wireguard) endpoint(name string, e *datastore.Endpoint) {
	was, is := w.behind[name], behind{}
	if e != nil && len(e.Spec.AllowedPrefixes) > 0 {
		is = behind{e.Spec.Node, e.Spec.AllowedPrefixes}
	}
	if was.node == is.node && slices.Equal(was.prefixes, is.prefixes) {
		return
	}
	delete(w.behind, name)
	if is.node != "" {
		w.behind[name] = is
	}
	for _, node := range []string{was.node, is.node} {
		if node != "" {
			w.changed[node] = true
		}
	}
}
