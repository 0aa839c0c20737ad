package datastore

import (
	"strings"
)

// The roles that report.
const (
	ReportAgent   = "agent"
	ReportSpeaker = "speaker"
)

// Kind returns KindReport.
func (*Report) Kind() Kind { return KindReport }

// Meta implements Object.
func (r *Report) Meta() *Metadata { return &r.Metadata }

// SetDefaults implements Object; a report has none.
func (*Report) SetDefaults() {}

// Validate implements Object.
func (r *Report) Validate() error { return checkMeta(r) }

// ReportName is the name of the report of a node's role.
func ReportName(node, role string) string { return node + "/" + role }

// Of is the node and the role that the report is of.
func (r *Report) Of() (node, role string) {
	node, role, _ = strings.Cut(r.Metadata.Name, "/")
	return node, role
}

func checkReportName(name string) error {
	node, role, _ := strings.Cut(name, "/")
	if role != ReportAgent && role != ReportSpeaker {
		return &FieldError{Value: name, Reason: "is no name of a report, like node1/" + ReportAgent + " or node1/" + ReportSpeaker}
	}
	return CheckName(node)
}
