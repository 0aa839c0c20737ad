package docker

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
	"sync"

	"netctl/commands/control"
	"netctl/datastore"
)

// network is a network of Docker's with our driver, as it was created.
type network struct {
	ID string
	// Name is what Docker calls it, learned after it was created; "": not yet.
	Name string `json:",omitempty"`
	// Tokens tie it to its pools' IDs, see poolID.
	Tokens []string `json:",omitempty"`
	// Subnets are those that were asked for.
	Subnets []netip.Prefix `json:",omitempty"`
	// Pools and Profile are the network's if it is the first of its name.
	Pools    []netip.Prefix `json:",omitempty"`
	Profile  string         `json:",omitempty"`
	MTU      int            `json:",omitempty"` // bytes
	Internal bool           `json:",omitempty"`
	IPv6     bool           `json:",omitempty"`
	// Made says that the cluster has a network of the name.
	Made bool `json:",omitempty"`
}

// endpoint is an endpoint of Docker's in one of these networks.
type endpoint struct {
	ID, Network string
	Addresses   []netip.Addr
	MAC         string
	// Sandbox is where its namespace is to be found; "": it has not joined one.
	Sandbox   string     `json:",omitempty"`
	Gateway   netip.Addr `json:",omitzero"`
	Peer      string     `json:",omitempty"` // the interface that Docker takes into the sandbox
	Named     bool       `json:",omitempty"` // its container is known
	Published bool       `json:",omitempty"` // it has ports of the node
}

// state is what the role remembers, in two folders: networks for ever, since Docker
// tells of each only once; endpoints for this boot. It is safe for concurrent use and
// hands out copies.
type state struct {
	mu        sync.Mutex
	networks  map[string]network
	endpoints map[string]endpoint
	lasting   *control.Kept
	passing   *control.Kept
}

// openState reads what an earlier process left.
func openState(stateDir, runDir, folder string) (*state, error) {
	s := &state{
		networks: map[string]network{}, endpoints: map[string]endpoint{},
		lasting: control.Keep(filepath.Join(stateDir, folder), datastore.FileOptions{}),
		passing: control.Keep(filepath.Join(runDir, folder), datastore.FileOptions{Volatile: true}),
	}
	return s, errors.Join(load(s.lasting, s.networks), load(s.passing, s.endpoints))
}

// load reads every file of a folder, by the ID in its name. One that cannot be read is
// an error beside the good ones.
func load[T any](files *control.Kept, into map[string]T) error {
	dir := files.Path("")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		id, is := strings.CutSuffix(e.Name(), ".json")
		if !is || strings.HasPrefix(id, ".") {
			continue
		}
		text, err := files.Read(e.Name())
		var x T
		if err == nil {
			err = json.Unmarshal(text, &x)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", filepath.Join(dir, e.Name()), err))
			continue
		}
		into[id] = x
	}
	return errors.Join(errs...)
}

func write[T any](files *control.Kept, id string, x T) error {
	text, err := json.Marshal(x)
	if err == nil {
		err = files.Write(id+".json", append(text, '\n'))
	}
	return err
}

// folders are where the files are.
func (s *state) folders() []control.Folder {
	return []control.Folder{s.lasting.Folder(), s.passing.Folder()}
}

func (s *state) network(id string) (network, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.networks[id]
	return n, ok
}

// networkOf is the network that a pool's token belongs to.
func (s *state) networkOf(token string) (network, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.networks {
		if token != "" && slices.Contains(n.Tokens, token) {
			return n, true
		}
	}
	return network{}, false
}

// allNetworks are those for which is holds.
func (s *state) allNetworks(is func(network) bool) (list []network) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.networks {
		if is(n) {
			list = append(list, n)
		}
	}
	return list
}

func (s *state) putNetwork(n network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keepNetwork(n)
}

// keepNetwork needs mu held.
func (s *state) keepNetwork(n network) error {
	s.networks[n.ID] = n
	if err := write(s.lasting, n.ID, n); err != nil {
		return fmt.Errorf("remember network %s: %w", n.ID, err)
	}
	return nil
}

// changeNetwork changes a network that is still there.
func (s *state) changeNetwork(id string, change func(*network)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.networks[id]
	if !ok {
		return nil
	}
	change(&n)
	return s.keepNetwork(n)
}

func (s *state) dropNetwork(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.networks, id)
	return s.lasting.Remove(id + ".json")
}

func (s *state) endpoint(id string) (endpoint, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[id]
	return e, ok
}

// allEndpoints are those for which is holds.
func (s *state) allEndpoints(is func(endpoint) bool) (list []endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.endpoints {
		if is(e) {
			list = append(list, e)
		}
	}
	return list
}

func (s *state) putEndpoint(e endpoint) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keepEndpoint(e)
}

// keepEndpoint needs mu held.
func (s *state) keepEndpoint(e endpoint) error {
	s.endpoints[e.ID] = e
	if err := write(s.passing, e.ID, e); err != nil {
		return fmt.Errorf("remember endpoint %s: %w", e.ID, err)
	}
	return nil
}

// changeEndpoint changes an endpoint that is still there.
func (s *state) changeEndpoint(id string, change func(*endpoint)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[id]
	if !ok {
		return nil
	}
	change(&e)
	return s.keepEndpoint(e)
}

func (s *state) dropEndpoint(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.endpoints, id)
	return s.passing.Remove(id + ".json")
}
