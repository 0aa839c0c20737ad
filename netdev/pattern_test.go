package netdev

import (
	"errors"
	"strings"
	"testing"

	"netctl/datastore"
)

func TestParseAdoption(t *testing.T) {
	for text, want := range map[string]string{
		"vnet*=web": "", "veth[0-9]*=web": "", "tap-1=web": "",
		"vnet*": "must be PATTERN=NETWORK", "=web": "must be PATTERN=NETWORK", "v*=": "network", "v*=a b": "network", "[=web": "no pattern",
		"*=web": "matches lo", "n*=web": "matches nc0", "nc?????????f*=web": "matches nc", "tunl*=web": "matches tunl0",
	} {
		a, err := ParseAdoption(text)
		if err == nil {
			err = a.Apart("nc", "tunl0")
		}
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", text, err)
		case want != "" && (!errors.Is(err, datastore.ErrInvalid) && !strings.Contains(text, "=a b") && text != "v*=" || err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v", text, err)
		}
	}
	if list := []Adoption{{"vnet*", "web"}}; !Adopts(list, "vnet0") || Adopts(list, "eth0") {
		t.Error("Adopts")
	}
}
