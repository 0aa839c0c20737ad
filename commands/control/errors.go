package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"netctl/datastore"
)

// The statuses of HTTP (RFC 9110, section 15) that carry outcomes.
const (
	statusBadRequest          = 400
	statusForbidden           = 403
	statusNotFound            = 404
	statusConflict            = 409
	statusInternalServerError = 500
	statusServiceUnavailable  = 503
)

// sentinel is an outcome as the sockets carry it.
type sentinel struct {
	err    error
	code   string
	status int // of HTTP
}

// sentinels maps the outcomes of datastore to the codes of the sockets, both
// ways, first match wins; there is no other table.
func sentinels() []sentinel {
	return []sentinel{
		{datastore.ErrDetached, CodeDetached, statusServiceUnavailable},
		{datastore.ErrUnavailable, CodeUnavailable, statusServiceUnavailable},
		{datastore.ErrFull, CodeUnavailable, statusServiceUnavailable}, // it takes no write: try again later
		{datastore.ErrExhausted, CodeExhausted, statusConflict},
		{datastore.ErrExists, CodeExists, statusConflict},
		{datastore.ErrInUse, CodeConflict, statusConflict},
		{datastore.ErrConflict, CodeConflict, statusConflict},
		{datastore.ErrNotFound, CodeNotFound, statusNotFound},
		{datastore.ErrDenied, CodeDenied, statusForbidden},
		{datastore.ErrInvalid, CodeInvalid, statusBadRequest},
		{ErrNamespace, CodeNamespace, statusBadRequest},
	}
}

// ErrNamespace is a network namespace that cannot be used: gone, not a
// namespace, or the agent's own.
var ErrNamespace = errors.New("network namespace not usable")

// ErrorOf is err as it goes over a socket: an *Error stays what it is, the
// sentinels of datastore get their code, everything else is CodeInternal. The
// message is one line. nil stays nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	e = &Error{Code: CodeInternal, Message: datastore.Said(err)}
	for _, s := range sentinels() {
		if errors.Is(err, s.err) {
			e.Code = s.code
			return e
		}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		e.Code = CodeUnavailable
		e.Message = strings.ReplaceAll(e.Message, context.DeadlineExceeded.Error(), "not done in time")
	}
	return e
}

// Is makes errors.Is find the sentinel that the code stands for, so that a
// client's caller needs no second table.
func (e *Error) Is(target error) bool {
	for _, s := range sentinels() {
		if s.err == target {
			return s.code == e.Code
		}
	}
	return false
}

// Status is the HTTP status that carries the code.
func (e *Error) Status() int {
	for _, s := range sentinels() {
		if s.code == e.Code {
			return s.status
		}
	}
	return statusInternalServerError
}

// Decode reads one JSON value, strictly (unknown fields and trailing bytes are refused);
// nothing leaves into as it is.
func Decode(r io.Reader, into any) error {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	switch err := dec.Decode(into); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return datastore.As(datastore.ErrInvalid, "request: %s", Unread(err))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return datastore.As(datastore.ErrInvalid, "request: more than one JSON value")
	}
	return nil
}

// Unread is an error of encoding/json in words of the input, and of no program's types.
func Unread(err error) string {
	var kind *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return "is no JSON: " + err.Error()
	case errors.As(err, &kind) && kind.Field == "":
		return fmt.Sprintf("must be an object (it is of the type %s)", kind.Value)
	case errors.As(err, &kind):
		return fmt.Sprintf("%s: is of the wrong type (%s)", kind.Field, kind.Value)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "is no JSON: unexpected end of JSON input"
	}
	return strings.TrimPrefix(strings.TrimPrefix(err.Error(), "json: "), "http: ")
}
