package workload

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestUnmade: what an attach may not make is named with the command that does.
func TestUnmade(t *testing.T) {
	p := &plan{create: []datastore.Object{
		&datastore.Network{Metadata: datastore.Metadata{Name: "shop"}}, &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}},
	}}
	for key, want := range map[string]string{
		"networks/shop": "; there is none, and `netctl network create shop` where that is allowed makes it",
		"profiles/web":  "; there is none, and `netctl profile add web` where that is allowed makes it",
		"networks/sho":  "",
	} {
		denied := fmt.Errorf("assign: write %s%s: %w to user n1", datastore.Prefix, key, datastore.ErrDenied)
		if err := p.unmade(denied); !errors.Is(err, datastore.ErrDenied) || strings.TrimPrefix(err.Error(), denied.Error()) != want {
			t.Errorf("%s: %v", key, err)
		}
	}
}
