package etcd

import (
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

func TestPagesAreOfAboutAMebibyte(t *testing.T) {
	for _, c := range []struct{ entries, size, want int }{
		{100, 500, 2097}, {3, 1 << 20, 1}, {100, 0, pageMost}, {2000, 5000, 209},
	} {
		var page []*mvccpb.KeyValue
		for range c.entries {
			page = append(page, &mvccpb.KeyValue{Value: make([]byte, c.size)})
		}
		if got := pageAfter(page); got != int64(c.want) {
			t.Errorf("after %d entries of %d bytes: %d, want %d", c.entries, c.size, got, c.want)
		}
	}
}
