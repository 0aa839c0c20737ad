package datastore

import (
	"fmt"
	"strconv"
)

// DefaultName is the only name of a BGPConfig and a Config.
const DefaultName = "default"

// DefaultAS is the AS number of a cluster that does not set one (a private one,
// RFC 6996).
const DefaultAS = 64511

// maxMesh bounds a mesh that comes about by itself: somebody else's measured wall is
// near 700 nodes.
const maxMesh = 500

// Kind returns KindBGPConfig.
func (*BGPConfig) Kind() Kind { return KindBGPConfig }

// Meta implements Object.
func (c *BGPConfig) Meta() *Metadata { return &c.Metadata }

// SetDefaults implements Object.
func (c *BGPConfig) SetDefaults() {
	if c.Metadata.Name == "" {
		c.Metadata.Name = DefaultName
	}
	s := &c.Spec
	if s.DefaultAS == 0 {
		s.DefaultAS = DefaultAS
	}
	if s.Mesh == nil {
		s.Mesh = new(true)
	}
	if s.Topology.Mode == "" {
		s.Topology.Mode = TopologyAuto
	}
	if s.Topology.MeshLimit == 0 {
		s.Topology.MeshLimit = 50
	}
	if s.HoldTime == nil {
		s.HoldTime = new(90)
	}
	if s.RestartTime == 0 {
		s.RestartTime = 120
	}
	if len(s.Filters) > 0 {
		c.Metadata.Needs = max(c.Metadata.Needs, needsFilters)
	}
	s.BFD.setDefaults()
}

// checkLongLived bounds what the capability can say (RFC 9494, section 3.1).
func checkLongLived(seconds int) error {
	if seconds < 0 || seconds >= 1<<24 {
		return &FieldError{Field: "spec.longLivedTime", Value: decimal(seconds), Reason: "must be from 0 to 16777215 seconds (RFC 9494)"}
	}
	return nil
}

// Validate implements Object.
func (c *BGPConfig) Validate() error {
	s := c.Spec
	switch s.Topology.Mode {
	case "", TopologyAuto, TopologyMesh, TopologyReflectors:
	default:
		return &FieldError{Field: "spec.topology.mode", Value: string(s.Topology.Mode), Reason: "must be auto, mesh or reflectors"}
	}
	if n := s.Topology.MeshLimit; n < 0 || n > maxMesh {
		return &FieldError{Field: "spec.topology.meshLimit", Value: decimal(n), Reason: fmt.Sprintf("must be from 1 to %d nodes", maxMesh)}
	}
	if h := s.HoldTime; h != nil && *h != 0 && (*h < 3 || *h > 65535) {
		return &FieldError{Field: "spec.holdTime", Value: decimal(*h), Reason: "must be 0 or from 3 to 65535 seconds (RFC 4271)"}
	}
	if s.RestartTime < 0 || s.RestartTime > 4095 {
		return &FieldError{Field: "spec.restartTime", Value: decimal(s.RestartTime), Reason: "must be from 1 to 4095 seconds (RFC 4724)"}
	}
	if err := checkLongLived(s.LongLivedTime); err != nil {
		return err
	}
	for i, f := range s.Filters {
		field := indexed("spec.filters", i)
		if _, err := ParseSelector(f.Peers); err != nil {
			return at(field+".peers", err)
		}
		if err := each(field+".filters", f.Filters, CheckName); err != nil {
			return err
		}
	}
	return firstError(checkMeta(c), checkAS("spec.defaultAS", s.DefaultAS, true), s.BFD.validate())
}

// Established says what becomes of flows that began before policy denied them.
type Established string

// The ways.
const (
	EstablishedKeep   Established = "keep"   // they go on
	EstablishedCut    Established = "cut"    // they are ended, within a second
	EstablishedStrict Established = "strict" // they are, and none of their packets passes from the change on
)

// Check says whether it is one of the ways, or none.
func (e Established) Check() error {
	switch e {
	case "", EstablishedKeep, EstablishedCut, EstablishedStrict:
		return nil
	}
	return fmt.Errorf("%q: must be keep, cut or strict: %w", string(e), ErrInvalid)
}

// Kind returns KindConfig.
func (*Config) Kind() Kind { return KindConfig }

// Meta implements Object.
func (c *Config) Meta() *Metadata { return &c.Metadata }

// SetDefaults implements Object.
func (c *Config) SetDefaults() {
	if c.Metadata.Name == "" {
		c.Metadata.Name = DefaultName
	}
}

// Validate implements Object.
func (c *Config) Validate() error {
	// 1280 is the least IPv6 works with (RFC 8200, section 5); IPv4 alone is
	// content with less, but nobody's links are that small.
	if m := c.Spec.MTU; m != 0 && (m < 1280 || m > 65535) {
		return &FieldError{Field: "spec.mtu", Value: decimal(m), Reason: "must be 0 or from 1280 to 65535 bytes"}
	}
	if c.Spec.Established.Check() != nil {
		return &FieldError{Field: "spec.established", Value: string(c.Spec.Established), Reason: "must be keep, cut or strict"}
	}
	return checkMeta(c)
}

func indexed(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

func decimal[T int | uint32](n T) string { return strconv.FormatInt(int64(n), 10) }
