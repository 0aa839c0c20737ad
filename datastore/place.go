package datastore

import (
	"fmt"
	"strings"
)

// RulePlace says which rule of the model it is, and what it says.
type RulePlace struct {
	// ID stays the same as long as the rule says the same, wherever in its list it is.
	ID        string `json:"id,omitempty"`
	Kind      Kind   `json:"kind"`
	Name      string `json:"name"`
	Tier      string `json:"tier,omitempty"`   // of a Policy
	Staged    bool   `json:"staged,omitempty"` // of a Policy that decides nothing
	Direction string `json:"direction"`        // as the object's own key of the list
	Position  int    `json:"position"`         // from 1
	Rule      string `json:"rule"`
}

// String is the place in words: profile web, inbound rule 1: allow from tag web.
func (p RulePlace) String() string {
	owner := strings.ToLower(string(p.Kind)) + " " + p.Name
	if p.Staged {
		owner = "staged " + owner
	}
	if p.Tier != "" {
		owner = "tier " + p.Tier + ", " + owner
	}
	text := fmt.Sprintf("%s, %s rule %d: %s", owner, p.Direction, p.Position, p.Rule)
	if p.Tier == TenantTier {
		text += " (another tenant)"
	}
	return text
}
