package datastore

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// AsksPrefix and AnswersPrefix are the roots of what somebody asks agents about the
// kernels of their nodes, and of what they answer. Both last for seconds: who asks removes
// its Ask, and an agent that was asked removes an Ask that outlived AskLife, and its own
// Answers with the Ask.
const (
	AsksPrefix    = "/netctl/asks/v1/"
	AnswersPrefix = "/netctl/answers/v1/"
)

// AskLife is for how long an Ask is looked at, and AskBytes how large it, or an Answer, is
// at most.
const (
	AskLife  = 20 * time.Second
	AskBytes = 256 << 10
)

// Anybody is whose an Ask is that a node's own rights do not suffice to write: an agent
// does whatever it asks. Of one that is a node's it sends a packet on that node only.
const Anybody = "*"

// Ask is what agents of Nodes are asked.
type Ask struct {
	ID    string   `json:"id"`
	Nodes []string `json:"nodes"`
	// Trace is a flow to be watched in the kernel.
	Trace *TraceFlow `json:"trace,omitempty"`
	// Changes are of objects, and what is asked is how many flows they would cut.
	Changes []AskedChange `json:"changes,omitempty"`
	// Go says that all of them are ready: the packet may be sent.
	Go bool `json:"go,omitempty"`
	// By is whose it is, of its key: a node, or Anybody.
	By string `json:"-"`
}

// AskedChange is an object as it would be stored; without Value it is deleted.
type AskedChange struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value,omitempty"`
}

// TraceFlow is the flow of one packet, and of what may follow it.
type TraceFlow struct {
	// From is the node that sends it, Endpoint whose it is; "": the node's own.
	From     string `json:"from"`
	Endpoint string `json:"endpoint,omitempty"`
	// Sources are what its source may have become; the first of them is what it is.
	Sources     []netip.Addr `json:"sources"`
	Destination netip.Addr   `json:"destination"`
	Protocol    uint8        `json:"protocol"`
	// SourcePort is of ICMP the identifier of the echo request; DestinationPort is there
	// where the protocol has ports.
	SourcePort      uint16 `json:"sourcePort,omitempty"`
	DestinationPort uint16 `json:"destinationPort,omitempty"`
}

// Check says what of it is impossible.
func (f TraceFlow) Check() error {
	if len(f.Sources) == 0 || len(f.Sources) > maxSources {
		return fmt.Errorf("trace: %d sources: want 1 to %d: %w", len(f.Sources), maxSources, ErrInvalid)
	}
	for _, a := range append([]netip.Addr{f.Destination}, f.Sources...) {
		if !a.IsValid() || a.Zone() != "" || a.Is4() != f.Destination.Is4() || a.IsMulticast() || a.IsUnspecified() {
			return fmt.Errorf("trace: address %s: want those of hosts, all IPv4 or all IPv6: %w", a, ErrInvalid)
		}
	}
	return nil
}

const maxSources = 8

// Answer is what the agent of one node answers.
type Answer struct {
	// Ready says that the kernel watches; the rest comes later.
	Ready bool `json:"ready,omitempty"`
	// Told says that this is all.
	Told  bool   `json:"told,omitempty"`
	Error string `json:"error,omitempty"`
	// Sent is what became of the packet at its sender; "": it was not sent there.
	Sent string `json:"sent,omitempty"`
	// Answered says that somebody answered it.
	Answered bool `json:"answered,omitempty"`
	// Flows is how many Changes would cut.
	Flows int `json:"flows,omitempty"`
	// Steps are what it met, in order, and Fate what became of it on the node.
	Steps []TraceStep `json:"steps,omitempty"`
	Fate  Fate        `json:"fate,omitempty"`
	// Lost says that some steps may be missing.
	Lost bool `json:"lost,omitempty"`
}

// Fate is what became of a packet on a node.
type Fate string

// The fates.
const (
	Unseen    Fate = ""          // it did not come
	Dropped   Fate = "dropped"   // the last step did it
	Vanished  Fate = "vanished"  // after the last step, and no chain of nftables did it
	Forwarded Fate = "forwarded" // it left by the interface Out of the last step
	Delivered Fate = "delivered" // to an endpoint, or the node itself
)

// TraceStep is a chain that a packet passed, or a rule in it that it matched.
type TraceStep struct {
	Table string `json:"table"` // family and name
	Chain string `json:"chain"`
	// Hook is a base chain's, as nft(8) names it, with its priority.
	Hook string `json:"hook,omitempty"`
	// Position is the rule's in the chain, from 1; 0: the chain's policy, or its end.
	Position int    `json:"position,omitempty"`
	Verdict  string `json:"verdict"`
	// Rule is the model's, Comment what the rule says of itself.
	Rule    *RulePlace `json:"rule,omitempty"`
	Comment string     `json:"comment,omitempty"`
	// In and Out are the interfaces, Endpoint whose Out is.
	In       string `json:"in,omitempty"`
	Out      string `json:"out,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
}

// AskKey is the key of an Ask of somebody: a node, or Anybody.
func AskKey(by, id string) string { return AsksPrefix + by + "/" + id }

// AnswerKey is the key of a node's Answer.
func AnswerKey(node, id string) string { return AnswersPrefix + node + "/" + id }

// DecodeAsk reads an Ask.
func DecodeAsk(e Entry) (a Ask, err error) {
	by, id, is := strings.Cut(strings.TrimPrefix(e.Key, AsksPrefix), "/")
	if len(e.Value) > AskBytes || !is {
		return a, fmt.Errorf("%s: %w: is too large or has no ID", e.Key, ErrInvalid)
	}
	if err = decodeRecord(e, &a); err == nil && a.ID != id {
		err = fmt.Errorf("%s: is of %q: %w", e.Key, a.ID, ErrInvalid)
	}
	if err == nil && a.Trace != nil {
		err = a.Trace.Check()
	}
	a.By = by
	return a, err
}

// ReadAnswers returns what nodes have answered to an Ask.
func ReadAnswers(ctx context.Context, s Store, id string, nodes []string) (map[string]Answer, error) {
	out := map[string]Answer{}
	keys := make([]string, 0, len(nodes))
	for _, n := range nodes {
		keys = append(keys, AnswerKey(n, id))
	}
	snap, err := s.List(ctx, keys...)
	if err != nil {
		return nil, err
	}
	for _, e := range snap.Entries {
		var a Answer
		node, _, _ := strings.Cut(strings.TrimPrefix(e.Key, AnswersPrefix), "/")
		if len(e.Value) <= AskBytes && decodeRecord(e, &a) == nil {
			out[node] = a
		}
	}
	return out, nil
}
