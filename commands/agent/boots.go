package agent

import (
	"os"
	"strings"

	"netctl/datastore"
)

// boots is which boot of the machine this is, and which one an agent ran in last:
// it tells what went with an earlier boot from what was lost in this one.
type boots struct {
	file string // holds the last one
	this string
	last string // "": none, or not known
}

func readBoots(file, this string) *boots {
	b := &boots{file: file, this: this}
	if text, err := os.ReadFile(file); err == nil {
		b.last = strings.TrimSpace(string(text))
	}
	return b
}

// note writes that this boot's agent has looked for what the last one left.
func (b *boots) note() error {
	if b.last == b.this {
		return nil
	}
	if err := datastore.WriteFile(b.file, []byte(b.this+"\n"), datastore.FileOptions{}); err != nil {
		return err
	}
	b.last = b.this
	return nil
}
