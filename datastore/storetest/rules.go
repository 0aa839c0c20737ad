package storetest

import (
	"testing"

	"netctl/datastore"
)

// FilterRules are rules of a BGPFilter as people write them; one that cannot be read ends
// the test.
func FilterRules(t testing.TB, texts ...string) (rules []datastore.FilterRule) {
	t.Helper()
	for _, s := range texts {
		r, err := datastore.ParseFilterRule(s)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	return rules
}
