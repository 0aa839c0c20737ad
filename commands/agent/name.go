package agent

import "netctl/datastore"

// renamedError says that this host runs as a node of another name. Nothing of that
// node must change meanwhile: its block, its links and its routes are this host's.
type renamedError string

func (e renamedError) Error() string { return string(e) }

// Is makes it a kind of being detached: callers try again later.
func (renamedError) Is(target error) bool { return target == datastore.ErrDetached }

// otherName says why this host must not start as the node that its settings name:
// it is registered under another name, and has endpoints or blocks there. What runs
// goes on as it is until one of the two is no longer so. nil: it may. A host that
// has endpoints or blocks under this name too goes on with these.
func (l *loop) otherName() error {
	own := l.view.Node(l.cfg.Node)
	if l.standing.admitted || own != nil && own.Status.Host == l.host && l.populated(own) {
		return nil
	}
	for _, n := range l.view.OtherNodesOf(l.host, l.cfg.Node) {
		if l.populated(n) {
			return renamedError(n.OtherName(l.cfg.Node, l.cfg.hostIDFile()))
		}
	}
	return nil
}

// populated says whether a node has endpoints or blocks.
func (l *loop) populated(n *datastore.Node) bool {
	return l.view.CountEndpointsOf(n.Metadata.Name) > 0 || len(l.view.BlocksOf(n.Metadata.Name)) > 0
}

// twins is one line for each other node that this host is registered as.
func (l *loop) twins() (list []string) {
	for _, n := range l.view.OtherNodesOf(l.host, l.cfg.Node) {
		list = append(list, "node "+n.Metadata.Name+": is registered by this host too: remove it (`netctl node remove "+n.Metadata.Name+
			" --force`), or if that machine is a copy of this one, its "+l.cfg.hostIDFile())
	}
	return list
}
