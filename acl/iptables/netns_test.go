package iptables

import (
	"testing"

	"netctl/netdev/netlab"
)

type netns struct {
	*netlab.Netns
	t testing.TB
}

func newNetns(t testing.TB) *netns {
	t.Helper()
	return &netns{netlab.NetnsForTest(t), t}
}
