// Package api owns the HTTP API: who may call it, how objects, watches and actions are
// spelled over HTTP, the description of all that (OpenAPI), and the client.
//
// It decides nothing about objects: what is read, written and done is a Backend's, which
// is the command line's own code. It never touches the kernel.
//
// Invariants: every request and every write to a client ends in bounded time; however
// many clients watch, the store is followed once; a client that is too slow is told so
// and let go, and slows nobody down.
package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"netctl/datastore"
)

// Bounds of what a client sends, in bytes: an object, and an action with its files.
const (
	MaxObject = 1 << 20
	MaxAction = 8 << 20
)

// Action is a command of the command line as the API has it, POST /v1/actions/PATH.
type Action struct {
	Path    string // words parted by /, as "node/drain"
	Summary string
	Usage   string // of the command line
	// Named says that the command has a name before its verb (`profile NAME rule add`).
	Named bool
	// Args says that it takes arguments.
	Args bool
	// Prints says that its answer may be JSON (Answer.Result).
	Prints bool
	Flags  []Flag
	Rights Rights
}

// Rights are who may do an action.
type Rights struct {
	Role datastore.APIRole
	// Args is who may give it arguments, if that is more; Flags is by flag.
	Args  datastore.APIRole
	Flags map[string]datastore.APIRole
}

// Needs is the role that a request needs.
func (r Rights) Needs(q Request) datastore.APIRole {
	need := r.Role
	if len(q.Args) > 0 {
		need = max(need, r.Args)
	}
	for name := range q.Flags {
		need = max(need, r.Flags[name])
	}
	return need
}

// Flag is one of a command.
type Flag struct {
	Name, Usage string
	Type        string // of JSON: string, integer, boolean, array (of strings)
	Required    bool
}

// Request asks for an action.
type Request struct {
	Name string   `json:"name,omitempty"`
	Args []string `json:"args,omitempty"`
	// Flags are by their long names; a value is a string, number, boolean or list of strings.
	Flags map[string]any `json:"flags,omitempty"`
	// Stdin is what the command reads for -, Files by name what it reads for others: it
	// never reads the server's.
	Stdin string            `json:"stdin,omitempty"`
	Files map[string]string `json:"files,omitempty"`
}

// Answer is what an action said. One that failed has Error and Code, as every error of
// the API.
type Answer struct {
	Output string `json:"output,omitempty"`
	// Result is the output of a command that can print JSON and was not given the flag output.
	Result   json.RawMessage `json:"result,omitempty"`
	Warnings []string        `json:"warnings,omitempty"`
	// Exit is the command's exit code: 0 done, 1 failed, 2 usage, 3 the answer is no.
	Exit  int    `json:"exit"`
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`
	// Err is the error behind Error; it stays on the server.
	Err error `json:"-"`
}

// Mode says what may exist before an object is written.
type Mode int

// The modes.
const (
	Apply   Mode = iota // whatever there is
	Create              // nothing
	Replace             // the object
)

// Written is what became of an object.
type Written struct {
	Object   datastore.Object
	Verb     string // created, updated or unchanged
	Warnings []string
}

// Backend does what the API is asked to, with the checks and transactions of the command
// line. Errors wrap the outcomes of datastore.
type Backend interface {
	// List returns the objects of a kind by key, and the store's revision.
	List(ctx context.Context, k datastore.Kind) ([]datastore.Object, int64, error)
	// Read returns one object.
	Read(ctx context.Context, k datastore.Kind, name string) (datastore.Object, error)
	// Write writes an object; revision is that which it was read in, 0: whatever.
	Write(ctx context.Context, who Caller, o datastore.Object, revision int64, m Mode) (Written, error)
	Delete(ctx context.Context, who Caller, k datastore.Kind, name string, force bool) (warnings []string, err error)
	Do(ctx context.Context, who Caller, action Action, q Request) Answer
	// Name is an object's name as people write it.
	Name(k datastore.Kind, s string) string
}

// Caller is who asks.
type Caller struct {
	Name   string // "root" on the unix socket
	Role   datastore.APIRole
	Serial string // of the certificate; "" on the unix socket
}

// Plural is a kind as it stands in paths: "pools".
func Plural(k datastore.Kind) string { return datastore.Plural(k) }

// kindAt is the inverse of Plural.
func kindAt(word string) (datastore.Kind, error) {
	kinds := datastore.Kinds()
	if i := slices.IndexFunc(kinds, func(k datastore.Kind) bool { return Plural(k) == word }); i >= 0 {
		return kinds[i], nil
	}
	return "", fmt.Errorf("%q is no kind: %s: %w", word, strings.Join(plurals(), ", "), datastore.ErrNotFound)
}

func plurals() []string {
	var out []string
	for _, k := range datastore.Kinds() {
		out = append(out, Plural(k))
	}
	slices.Sort(out)
	return out
}

// objectPath is where an object is.
func objectPath(k datastore.Kind, name string) string {
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return "/v1/" + Plural(k) + "/" + strings.Join(parts, "/")
}
