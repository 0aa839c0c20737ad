package datastore

import (
	"fmt"
)

// MaxRules is the largest number of rules of a profile in one direction.
const MaxRules = 1000

// Kind returns KindProfile.
func (*Profile) Kind() Kind { return KindProfile }

// Meta implements Object.
func (p *Profile) Meta() *Metadata { return &p.Metadata }

// SetDefaults implements Object.
func (p *Profile) SetDefaults() {
	p.Metadata.needRules(p.Spec.Inbound, p.Spec.Outbound)
	if p.Spec.Tags == nil {
		p.Spec.Tags = []string{p.Metadata.Name}
	}
	if p.Spec.Inbound == nil {
		p.Spec.Inbound = []Rule{{Action: Allow, From: Side{Tag: Term{Value: p.Metadata.Name}}}}
	}
	if p.Spec.Outbound == nil {
		p.Spec.Outbound = []Rule{{Action: Allow}}
	}
}

// Validate implements Object.
func (p *Profile) Validate() error {
	return firstError(validateRules("spec.inbound", p.Spec.Inbound), validateRules("spec.outbound", p.Spec.Outbound), p.validateParsed())
}

// validateParsed is Validate for a profile whose rules come out of ParseRule.
func (p *Profile) validateParsed() error {
	return firstError(
		checkMeta(p),
		each("spec.tags", p.Spec.Tags, checkWord),
		checkLabels("spec.labels", p.Spec.Labels),
		checkRules("spec.inbound", p.Spec.Inbound),
		checkRules("spec.outbound", p.Spec.Outbound),
		at("spec.qosControls", p.Spec.QoSControls.Validate()))
}

// validateRules checks rules that were not parsed.
func validateRules(field string, rules []Rule) error {
	for i, r := range rules {
		if err := r.Validate(); err != nil {
			return at(indexed(field, i), err)
		}
	}
	return nil
}

func checkRules(field string, rules []Rule) error {
	if err := checkRuleCount(field, rules); err != nil {
		return err
	}
	for i, r := range rules {
		if r.Action == Pass {
			return &FieldError{Field: indexed(field, i), Value: r.String(), Reason: "a profile belongs to no tier that pass could end"}
		}
	}
	return nil
}

func checkRuleCount(field string, rules []Rule) error {
	if len(rules) > MaxRules {
		return &FieldError{Field: field, Reason: fmt.Sprintf("%d rules are more than %d", len(rules), MaxRules)}
	}
	return nil
}
