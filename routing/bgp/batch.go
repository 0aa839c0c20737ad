package bgp

// installBatch is how many changes the Installer is handed at a time: while it writes
// the first, others are decided about.
const installBatch = 4096

// batch collects changes for the Installer. Those of a flush that have routes go
// elsewhere are handed together, so that it sees which all go the same way.
type batch struct{ changes, moves []Change }

// install makes now the next hops that the Installer knows of d.
func (r *rib) install(b *batch, d *dest, now *hops) {
	c := Change{Prefix: d.key.Prefix(), Was: d.installed.addrs(), Now: now.addrs()}
	d.installed = now
	if len(c.Was) > 0 && len(c.Now) > 0 {
		b.moves = append(b.moves, c)
		return
	}
	if b.changes = append(b.changes, c); len(b.changes) == installBatch {
		r.tell(b.changes)
		b.changes = nil
	}
}

// hand gives the Installer what was collected.
func (r *rib) hand(b *batch) {
	r.tell(b.changes)
	r.tell(b.moves)
	*b = batch{}
}

func (r *rib) tell(changes []Change) {
	if len(changes) > 0 && r.config.Installer != nil {
		r.config.Installer.Install(changes)
	}
}
