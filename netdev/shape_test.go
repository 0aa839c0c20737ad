package netdev

import (
	"math"
	"testing"

	"netctl/datastore"
)

// TestBucket: whatever is asked, the filter's numbers fit it and let the largest packet
// through.
func TestBucket(t *testing.T) {
	for _, tt := range []struct {
		rate datastore.Rate
		want Bucket
	}{
		{datastore.Rate{Bits: 8e6, Burst: 8 << 20}, Bucket{1e6, 1 << 20, 25000 + 1<<20}},
		{datastore.Rate{Bits: 8e9}, Bucket{1e9, 25e6, 50e6}},
		{datastore.Rate{Bits: 8e6, Burst: 8}, Bucket{1e6, minBurst, 25000 + minBurst}},
		{datastore.Rate{Bits: 8000, Burst: math.MaxUint32}, Bucket{1000, 200000, 200025}},
		{datastore.Rate{Bits: math.MaxUint64, Burst: math.MaxUint64}, Bucket{math.MaxUint64 / 8, maxBurst, 1 << 31}},
	} {
		if got := NewBucket(tt.rate); got != tt.want {
			t.Errorf("%+v: %+v, want %+v", tt.rate, got, tt.want)
		}
	}
}
