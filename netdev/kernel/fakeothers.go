package kernel

import "slices"

// SetOthers makes the interfaces and routes anew that are somebody else's.
func (f *Fake) SetOthers(links []Interface, routes []Route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.others, f.ways = links, routes
	f.tell(Event{Change: HostChanged})
}

// Interfaces is Kernel.Interfaces, of those that SetOthers made.
func (f *Fake) Interfaces() ([]Interface, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.others), nil
}

// MainRoutes is Kernel.MainRoutes, in the same way.
func (f *Fake) MainRoutes() ([]Route, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ways), nil
}
