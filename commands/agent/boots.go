package agent

import (
	"strings"

	"netctl/commands/control"
)

// boots is which boot of the machine this is, and which one an agent ran in last:
// it tells what went with an earlier boot from what was lost in this one.
type boots struct {
	state *control.Kept // holds the last one
	this  string
	last  string // "": none, or not known
}

// lastBootFile is the name of its file in the state folder.
const lastBootFile = "boot"

func readBoots(state *control.Kept, this string) *boots {
	b := &boots{state: state, this: this}
	if text, err := state.Read(lastBootFile); err == nil {
		b.last = strings.TrimSpace(string(text))
	}
	return b
}

// note writes that this boot's agent has looked for what the last one left.
func (b *boots) note() error {
	if b.last == b.this {
		return nil
	}
	if err := b.state.Write(lastBootFile, []byte(b.this+"\n")); err != nil {
		return err
	}
	b.last = b.this
	return nil
}
