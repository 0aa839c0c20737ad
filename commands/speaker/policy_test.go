package speaker

import (
	"testing"
	"time"

	"netctl/datastore"
	"netctl/routing/bgp"
)

// TestPeerCapabilities: what kind Peer says of several paths and of routes that are kept
// for long, as the engine has it.
func TestPeerCapabilities(t *testing.T) {
	for _, c := range []struct {
		spec    datastore.PeerSpec
		send    int
		receive bool
		long    time.Duration
	}{
		{datastore.PeerSpec{}, 0, false, time.Hour},
		{datastore.PeerSpec{AddPath: datastore.AddPathSend, LongLivedTime: new(0)}, -1, false, 0},
		{datastore.PeerSpec{AddPath: datastore.AddPathReceive, LongLivedTime: new(60)}, 0, true, time.Minute},
		{datastore.PeerSpec{AddPath: datastore.AddPathBoth, AddPathLimit: 3}, 3, true, time.Hour},
	} {
		got := bgp.PeerConfig{LongLived: time.Hour} // the cluster's
		(&loop{}).configure(&got, c.spec)
		if got.SendPaths != c.send || got.ReceivePaths != c.receive || got.LongLived != c.long {
			t.Errorf("%+v: sends %d, receives %v, kept %v", c.spec, got.SendPaths, got.ReceivePaths, got.LongLived)
		}
	}
}
