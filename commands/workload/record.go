package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// maxRecord bounds a record's file in bytes.
const maxRecord = 1 << 20

// Record is one attach as this machine knows it, whatever becomes of the store.
type Record struct {
	// Endpoint is the object as it was written.
	Endpoint *datastore.Endpoint `json:"endpoint"`
	// Attachment is what the caller was told.
	Attachment control.Attachment `json:"attachment"`
	// FitMTU says that nobody asked for an MTU: it is what the way to the other nodes
	// has room for.
	FitMTU bool `json:"fitMTU,omitempty"`
	// Runtime is who attached it, as far as could be told; "": nobody knows.
	Runtime string `json:"runtime,omitempty"`
	// Boot is the boot the attach happened in, Index the link's in that boot, Dev and
	// Ino the namespace (0: there was none yet), Netns where its caller found it.
	Boot  string `json:"boot"`
	Index int    `json:"index,omitempty"`
	Netns string `json:"netns,omitempty"`
	Dev   uint64 `json:"dev"`
	Ino   uint64 `json:"ino"`
	// Destinations are what the workload is to reach by this interface.
	Destinations []netip.Prefix `json:"destinations,omitempty"`
	// Bandwidth is what its link holds by all limits of the endpoint and its profiles; nil: what
	// its runtime asked for.
	Bandwidth *datastore.Bandwidth `json:"bandwidth,omitempty"`
	// Cluster is whose endpoint it is.
	Cluster datastore.Cluster `json:"cluster"`
	// Unsettled says that the store, which was away, has yet to hear of it.
	Unsettled bool `json:"unsettled,omitempty"`
	// Refused is why the store did not take it: it is cut off until it is detached.
	Refused string `json:"refused,omitempty"`
}

// Wire is the link as it was attached; boot is this boot, in which an index of
// another means nothing. The workload side's MAC and MTU are left out: a plugin
// behind ours in a chain may have changed them (CNI specification, section 4,
// CHECK).
func (rec *Record) Wire(boot string, gateway netip.Addr) kernel.Wire {
	w := kernel.Wire{
		Interface: rec.Endpoint.Spec.Interface, Link: rec.Endpoint.Spec.Link, Peer: rec.Attachment.Peer, HostMTU: rec.Attachment.MTU,
		Addresses: rec.Endpoint.Spec.Addresses, Gateway4: gateway, Bandwidth: rec.Endpoint.Spec.Bandwidth, Tap: rec.Endpoint.Spec.Tap,
	}
	if w.Tap.Is() { // the kernel does not know the machine's side
		w.MAC = rec.Endpoint.Spec.MAC
	}
	if rec.Bandwidth != nil {
		w.Bandwidth = *rec.Bandwidth
	}
	for _, gw := range rec.Attachment.Gateways {
		if gw.Is4() && w.Peer != "" {
			w.Gateway4 = gw
		}
	}
	if rec.Boot == boot {
		w.Index = rec.Index
	}
	return w
}

// Adopted says that the link is somebody else's.
func (rec *Record) Adopted() bool {
	return rec.Endpoint.Spec.Orchestrator == datastore.OrchestratorAdopted
}

// Place is where the workload's namespace was found.
func (rec *Record) Place() kernel.Place {
	return kernel.Place{Path: rec.Netns, Dev: rec.Dev, Ino: rec.Ino}
}

// Records keeps one file for each attached endpoint, 0600, in a folder that goes
// with the boot, as the endpoints do. They come back if somebody removes them.
type Records struct {
	dir  string
	kept *control.Kept
}

// NewRecords returns the records in dir, which need not exist.
func NewRecords(dir string) *Records {
	return &Records{dir, control.Keep(dir, datastore.FileOptions{Volatile: true})}
}

// Folder is where the records are.
func (r *Records) Folder() control.Folder { return r.kept.Folder() }

func name(link string) string { return link + ".json" }

// Put writes the record of an endpoint.
func (r *Records) Put(rec *Record) error {
	text, err := json.Marshal(rec)
	if err == nil {
		err = r.kept.Write(name(rec.Endpoint.Spec.Link), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("attach record of %s: %w", rec.Endpoint.Metadata.Name, err)
	}
	return nil
}

// Read returns the record of a link; ErrNotFound if there is none.
func (r *Records) Read(link string) (*Record, error) {
	text, err := r.kept.Read(name(link))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("attach record of %s: %w", link, datastore.ErrNotFound)
	}
	var rec *Record
	if err == nil {
		rec, err = parseRecord(text)
	}
	if err == nil && rec.Endpoint.Spec.Link != link {
		err = fmt.Errorf("%w: is of link %s", datastore.ErrInvalid, rec.Endpoint.Spec.Link)
	}
	if err != nil {
		return nil, fmt.Errorf("attach record %s: %w", r.kept.Path(name(link)), err)
	}
	return rec, nil
}

func parseRecord(text []byte) (*Record, error) {
	if len(text) > maxRecord {
		return nil, fmt.Errorf("%w: %d bytes", datastore.ErrInvalid, len(text))
	}
	rec := new(Record)
	if err := json.Unmarshal(text, rec); err != nil {
		return nil, fmt.Errorf("%w: %w", datastore.ErrInvalid, err)
	}
	if rec.Endpoint == nil {
		return nil, fmt.Errorf("%w: no endpoint", datastore.ErrInvalid)
	}
	return rec, rec.Endpoint.Validate()
}

// All returns every record, by link. Those that cannot be read are reported
// beside the good ones.
func (r *Records) All() ([]*Record, error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attach records: %w", err)
	}
	var (
		all  []*Record
		errs []error
	)
	for _, e := range entries {
		link, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		rec, err := r.Read(link)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, rec)
	}
	return all, errors.Join(errs...)
}

// Any tells whether there may be a record, without reading one.
func (r *Records) Any() bool {
	names, err := os.ReadDir(r.dir)
	return err != nil && !errors.Is(err, fs.ErrNotExist) ||
		slices.ContainsFunc(names, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".json") })
}

// Remove deletes the record of a link; that there is none is no error.
func (r *Records) Remove(link string) error {
	if err := r.kept.Remove(name(link)); err != nil {
		return fmt.Errorf("attach record of %s: %w", link, err)
	}
	return nil
}

// Sweep removes what writes that were cut off left. Nobody may be writing.
func (r *Records) Sweep() error {
	left, err := filepath.Glob(filepath.Join(r.dir, ".*.json-*"))
	errs := []error{err}
	for _, f := range left {
		errs = append(errs, os.Remove(f))
	}
	return errors.Join(errs...)
}
