package nft

import "testing"

func TestKnownToJudge(t *testing.T) {
	for release, want := range map[string]bool{"5.10.0-32-cloud-amd64": false, "5.15.0-91-generic": false, "4.18.0-513.el8": false, "5.19.0": true, "6.1.0-57": true, "10.2.1": true, "odd": false} {
		if got := judges(release); got != want {
			t.Errorf("%s: %v", release, got)
		}
	}
}
