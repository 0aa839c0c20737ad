package datastore

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxPeerText bounds a peer's description, and what it is told of a shutdown (RFC 9003,
// section 2), in bytes.
const MaxPeerText = 255

// The families of a peer.
const (
	FamilyIPv4 = "ipv4"
	FamilyIPv6 = "ipv6"
)

// What becomes of next hops, what is announced, who has several paths, what is believed, and what a peer's
// prefix limit does.
const (
	NextHopSelf      = "self"
	NextHopUnchanged = "unchanged"
	AnnounceOwn      = "own"
	AnnounceAll      = "all"
	AddPathSend      = "send"
	AddPathReceive   = "receive"
	AddPathBoth      = "both"
	AcceptDefault    = "default"
	AcceptForeign    = "foreign"
	AcceptBlocks     = "blocks"
	AcceptBlackhole  = "blackhole"
	LimitStops       = "stop"
	LimitWarns       = "warn"
	LimitEnds        = "end"
	RemoteExternal   = "external"
	RemoteInternal   = "internal"
)

// PeerPassword says where the nodes that have a peer find its password: in a file, or in
// a systemd credential of the service.
type PeerPassword struct {
	File       string `json:"file,omitempty"`
	Credential string `json:"credential,omitempty"`
}

// Kind returns KindPeer.
func (*Peer) Kind() Kind { return KindPeer }

// Meta implements Object.
func (p *Peer) Meta() *Metadata { return &p.Metadata }

// SetDefaults implements Object.
func (p *Peer) SetDefaults() {
	s := &p.Spec
	if p.Metadata.Name == "" {
		p.Metadata.Name = s.name()
	}
	if s.Port == 0 {
		s.Port = 179
	}
	if len(s.Filters) > 0 || s.Aggregate {
		p.Metadata.Needs = max(p.Metadata.Needs, needsFilters)
	}
	s.BFD.setDefaults()
}

// needsFilters is the ModelVersion that brought filters and aggregates: who does not know
// them would announce and believe more than is wanted.
const needsFilters = 2

// name is what a peer is called unless somebody says otherwise: its address, or its
// interface without the signs of a pattern, and behind it the node, if it is one node's.
func (s *PeerSpec) name() string {
	name := strings.Trim(strings.Map(func(r rune) rune {
		if strings.ContainsRune(`*?[]^\`, r) {
			return -1
		}
		return r
	}, s.Neighbour()), "_.-")
	if name == "" || s.Node == "" {
		return name
	}
	return name + "-" + s.Node
}

// Neighbour is where the peer is: its address or interface.
func (s *PeerSpec) Neighbour() string {
	if s.Address.IsValid() {
		return s.Address.String()
	}
	return s.Interface
}

// checkPeerName takes IPv6 addresses beside names.
func checkPeerName(name string) error { return CheckName(strings.ReplaceAll(name, ":", ".")) }

// Validate implements Object.
func (p *Peer) Validate() error {
	s := p.Spec
	if s.Node != "" {
		if err := CheckName(s.Node); err != nil {
			return at("spec.node", err)
		}
	}
	if err := firstError(s.checkNeighbour(), checkMeta(p)); err != nil {
		return err
	}
	if s.Node != "" && s.NodeSelector != "" {
		return &FieldError{Field: "spec.nodeSelector", Value: s.NodeSelector, Reason: "stands beside node: a peer is one node's, or that of those a selector picks"}
	}
	if s.NodeSelector != "" {
		if _, err := ParseSelector(s.NodeSelector); err != nil {
			return at("spec.nodeSelector", err)
		}
	}
	return firstError(s.checkSession(), s.BFD.validate(), s.checkHops(), s.checkRoutes(), checkWords("spec.description", s.Description), checkWords("spec.shutdown", s.Shutdown))
}

// checkNeighbour checks who the peer is.
func (s *PeerSpec) checkNeighbour() error {
	if s.Interface != "" {
		if err := s.checkInterface(); err != nil {
			return err
		}
	} else if err := checkAddr("spec.address", s.Address); err != nil {
		return err
	}
	switch {
	case s.Address.IsLinkLocalUnicast():
		return &FieldError{Field: "spec.address", Value: s.Address.String(), Reason: "is link-local: name the interface instead, or an address that can be routed"}
	case s.RemoteAS == "":
		return checkAS("spec.as", s.AS, false)
	case s.AS != 0:
		return &FieldError{Field: "spec.remoteAS", Value: s.RemoteAS, Reason: "stands beside as: the peer has that AS number, or any external or internal one"}
	}
	return at("spec.remoteAS", oneOf(s.RemoteAS, RemoteExternal, RemoteInternal))
}

// checkInterface checks a peer that has no address.
func (s *PeerSpec) checkInterface() error {
	refuse := func(field, value, reason string) error {
		return &FieldError{Field: field, Value: value, Reason: reason}
	}
	_, err := path.Match(s.Interface, "")
	switch {
	case s.Address.IsValid():
		return refuse("spec.address", s.Address.String(), "stands beside interface: a peer is at an address or at the other end of an interface")
	case err != nil || len(s.Interface) > MaxName || strings.ContainsFunc(s.Interface, func(r rune) bool { return r == '/' || r <= ' ' || r > '~' }):
		return refuse("spec.interface", s.Interface[:min(len(s.Interface), 32)], "is no name or pattern of interfaces")
	case s.SourceAddress.IsValid():
		return refuse("spec.sourceAddress", s.SourceAddress.String(), "stands beside interface, whose link-local address is this side's")
	case s.Multihop > 0:
		return refuse("spec.multihop", decimal(s.Multihop), "stands beside interface, at whose other end the peer is")
	}
	return nil
}

// checkSession checks how the session is held.
func (s *PeerSpec) checkSession() error {
	if a := s.SourceAddress; a.IsValid() {
		if err := checkAddr("spec.sourceAddress", a); err != nil {
			return err
		}
		switch {
		case a.Is4() != s.Address.Is4():
			return &FieldError{Field: "spec.sourceAddress", Value: a.String(), Reason: "is of another family than " + s.Address.String()}
		case a == s.Address:
			return &FieldError{Field: "spec.sourceAddress", Value: a.String(), Reason: "is the peer's own"}
		}
	}
	switch {
	case s.LocalAS == s.AS && s.AS != 0:
		return &FieldError{Field: "spec.localAS", Value: decimal(s.LocalAS), Reason: "is the peer's: leave it out, or give the node that AS number"}
	case s.Multihop < 0 || s.Multihop > 255:
		return &FieldError{Field: "spec.multihop", Value: decimal(s.Multihop), Reason: "must be from 1 to 255 hops"}
	case s.TTLSecurity < 0 || s.TTLSecurity > 254:
		return &FieldError{Field: "spec.ttlSecurity", Value: decimal(s.TTLSecurity), Reason: "must be from 1 to 254 hops"}
	case s.TTLSecurity > 0 && s.Multihop > 0:
		return &FieldError{Field: "spec.multihop", Value: decimal(s.Multihop), Reason: "stands beside ttlSecurity, which says how many hops away the peer is"}
	case s.KeepaliveTime < 0 || s.KeepaliveTime > 21845:
		return &FieldError{Field: "spec.keepaliveTime", Value: decimal(s.KeepaliveTime), Reason: "must be from 1 to 21845 seconds"}
	}
	if err := s.Password.check(); err != nil {
		return at("spec.password", err)
	}
	if err := checkAS("spec.localAS", s.LocalAS, true); err != nil {
		return err
	}
	if h := s.HoldTime; h != nil && *h != 0 && (*h < 3 || *h > 65535) {
		return &FieldError{Field: "spec.holdTime", Value: decimal(*h), Reason: "must be 0 or from 3 to 65535 seconds (RFC 4271)"}
	}
	if s.LongLivedTime != nil {
		if err := checkLongLived(*s.LongLivedTime); err != nil {
			return err
		}
	}
	if s.ConnectRetry < 0 || s.ConnectRetry > 3600 {
		return &FieldError{Field: "spec.connectRetry", Value: decimal(s.ConnectRetry), Reason: "must be from 1 to 3600 seconds"}
	}
	return each("spec.families", s.Families, func(f string) error { return oneOf(f, FamilyIPv4, FamilyIPv6) })
}

// check bounds where roles look for a password.
func (p *PeerPassword) check() error {
	switch {
	case p == nil:
		return nil
	case (p.File == "") == (p.Credential == ""):
		return &FieldError{Reason: "needs either file or credential"}
	case p.File != "" && (!path.IsAbs(p.File) || path.Clean(p.File) != p.File || len(p.File) > 4095 || strings.ContainsFunc(p.File, unicode.IsControl)):
		return &FieldError{Field: ".file", Value: p.File[:min(len(p.File), 64)], Reason: "must be the absolute path of a file, without . and .."}
	case p.Credential != "":
		return at(".credential", checkWord(p.Credential))
	}
	return nil
}

// checkRoutes checks what is announced and believed.
func (s *PeerSpec) checkRoutes() error {
	if s.PrefixLimit < 0 || s.PrefixLimit > maxPrefixLimit {
		return &FieldError{Field: "spec.prefixLimit", Value: decimal(s.PrefixLimit), Reason: fmt.Sprintf("must be from 1 to %d", maxPrefixLimit)}
	}
	if s.PrefixRestart < 0 || s.PrefixRestart > 86400 {
		return &FieldError{Field: "spec.prefixRestart", Value: decimal(s.PrefixRestart), Reason: "must be from 1 to 86400 seconds"}
	}
	if s.PrefixRestart > 0 && s.PrefixAction != "" && s.PrefixAction != LimitStops {
		return &FieldError{Field: "spec.prefixRestart", Value: decimal(s.PrefixRestart), Reason: "stands beside prefixAction " + s.PrefixAction + ", after which nothing starts again"}
	}
	if s.RouteBudget < 0 || s.RouteBudget > maxPrefixLimit {
		return &FieldError{Field: "spec.routeBudget", Value: decimal(s.RouteBudget), Reason: fmt.Sprintf("must be from 1 to %d", maxPrefixLimit)}
	}
	if s.PrefixWarning < 0 || s.PrefixWarning > 100 {
		return &FieldError{Field: "spec.prefixWarning", Value: decimal(s.PrefixWarning), Reason: "must be from 1 to 100 percent of the limit"}
	}
	if len(s.Accept) == 1 && s.Accept[0] == AcceptBlackhole {
		return &FieldError{Field: "spec.accept[0]", Value: AcceptBlackhole, Reason: "stands alone, and nothing is believed: add default, foreign or blocks"}
	}
	if s.AddPathLimit < 0 || s.AddPathLimit > 255 {
		return &FieldError{Field: "spec.addPathLimit", Value: decimal(s.AddPathLimit), Reason: "must be from 1 to 255 paths"}
	}
	if s.AddPathLimit > 0 && s.AddPath != AddPathSend && s.AddPath != AddPathBoth {
		return &FieldError{Field: "spec.addPathLimit", Value: decimal(s.AddPathLimit), Reason: "stands without addPath send or both: one path is sent"}
	}
	return firstError(
		at("spec.addPath", oneOf(s.AddPath, "", AddPathSend, AddPathReceive, AddPathBoth)),
		at("spec.nextHop", oneOf(s.NextHop, "", NextHopSelf, NextHopUnchanged)),
		at("spec.announce", oneOf(s.Announce, "", AnnounceOwn, AnnounceAll)),
		at("spec.prefixAction", oneOf(s.PrefixAction, "", LimitStops, LimitWarns, LimitEnds)),
		each("spec.accept", s.Accept, func(a string) error { return oneOf(a, AcceptDefault, AcceptForeign, AcceptBlocks, AcceptBlackhole) }),
		each("spec.filters", s.Filters, CheckName),
		checkCommunities("spec.communities", s.Communities))
}

// maxPrefixLimit bounds how much a peer may ever cost.
const maxPrefixLimit = 10_000_000

// oneOf refuses other words than these.
func oneOf(word string, words ...string) error {
	if slices.Contains(words, word) {
		return nil
	}
	if words[0] == "" {
		words = words[1:]
	}
	return &FieldError{Value: word, Reason: "must be one of " + strings.Join(words, ", ")}
}

// checkWords refuses what is too long, or would move a terminal's cursor.
func checkWords(field, s string) error {
	if len(s) > MaxPeerText || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return &FieldError{Field: field, Value: s[:min(len(s), 32)],
			Reason: fmt.Sprintf("must be text of at most %d bytes without control characters", MaxPeerText)}
	}
	return nil
}

// ResetBy names what of next, against p, ends the running sessions of the nodes that keep
// the peer; they start anew. Everything else changes in them.
func (p *Peer) ResetBy(next *Peer) (fields []string) {
	was, now := p.Spec, next.Spec
	for _, f := range []struct {
		name    string
		changed bool
	}{
		{"address", was.Address != now.Address}, {"interface", was.Interface != now.Interface}, {"as", was.AS != now.AS},
		{"remoteAS", was.RemoteAS != now.RemoteAS}, {"localAS", was.LocalAS != now.LocalAS},
		{"password", (was.Password == nil) != (now.Password == nil)}, {"sourceAddress", was.SourceAddress != now.SourceAddress},
		{"families", !slices.Equal(was.Families, now.Families)}, {"addPath", was.AddPath != now.AddPath}, {"shutdown", was.Shutdown == "" && now.Shutdown != ""},
	} {
		if f.changed {
			fields = append(fields, f.name)
		}
	}
	return fields
}

// Scope is which nodes have the peer: "global", "node n1", "nodes rack == 'A1'".
func (p *Peer) Scope() string {
	switch {
	case p.Spec.Node != "":
		return "node " + p.Spec.Node
	case p.Spec.NodeSelector != "":
		return "nodes " + p.Spec.NodeSelector
	}
	return "global"
}

// Selects says whether a node of that name and these labels has the peer.
func (p *Peer) Selects(node string, labels map[string]string) bool {
	switch {
	case p.Spec.Node != "":
		return p.Spec.Node == node
	case p.Spec.NodeSelector != "":
		s, err := ParseSelector(p.Spec.NodeSelector)
		return err == nil && s.Matches(labels)
	}
	return true
}
