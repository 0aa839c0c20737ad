package datastore

import "testing"

func TestDomainMatches(t *testing.T) {
	for _, c := range []struct {
		domain, name string
		want         bool
	}{
		{"example.com", "example.com", true}, {"example.com", "www.example.com", false}, {"example.com", "badexample.com", false}, {"example.com", "", false},
		{"*.example.org", "www.example.org", true}, {"*.example.org", "a.b.example.org", true}, {"*.example.org", "example.org", false},
		{"*.example.org", "badexample.org", false}, {"*.example.org", ".example.org", false}, {"*.org", "example.org", true},
	} {
		if got := DomainMatches(c.domain, c.name); got != c.want {
			t.Errorf("%s stands for %q: %t", c.domain, c.name, got)
		}
	}
}
