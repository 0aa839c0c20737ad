package routing

import "slices"

// Changes turn one set of routes into another.
type Changes struct {
	// Put are routes to add, or to replace in place where their key exists.
	Put []Route
	// Delete are routes to remove; only prefix and metric count.
	Delete []Route
}

// Empty says that there is nothing to do.
func (c Changes) Empty() bool { return len(c.Put) == 0 && len(c.Delete) == 0 }

// Diff is what makes have into want, each list sorted by prefix. The last of
// several wanted routes with one key counts.
func Diff(want, have []Route) Changes {
	wanted := make(map[Key]Route, len(want))
	for _, r := range want {
		wanted[r.Key()] = r
	}
	var c Changes
	for _, r := range have {
		w, ok := wanted[r.Key()]
		switch {
		case !ok:
			c.Delete = append(c.Delete, r)
		case w.Equal(r):
			delete(wanted, r.Key())
		}
	}
	for _, r := range wanted {
		c.Put = append(c.Put, r)
	}
	slices.SortFunc(c.Put, Compare)
	slices.SortFunc(c.Delete, Compare)
	return c
}
