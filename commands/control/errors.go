package control

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"netctl/datastore"
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
		{datastore.ErrDetached, CodeDetached, http.StatusServiceUnavailable},
		{datastore.ErrUnavailable, CodeUnavailable, http.StatusServiceUnavailable},
		{datastore.ErrFull, CodeUnavailable, http.StatusServiceUnavailable}, // it takes no write: try again later
		{datastore.ErrExhausted, CodeExhausted, http.StatusConflict},
		{datastore.ErrExists, CodeExists, http.StatusConflict},
		{datastore.ErrInUse, CodeConflict, http.StatusConflict},
		{datastore.ErrConflict, CodeConflict, http.StatusConflict},
		{datastore.ErrNotFound, CodeNotFound, http.StatusNotFound},
		{datastore.ErrDenied, CodeDenied, http.StatusForbidden},
		{datastore.ErrInvalid, CodeInvalid, http.StatusBadRequest},
		{ErrNamespace, CodeNamespace, http.StatusBadRequest},
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
	e = &Error{Code: CodeInternal, Message: strings.ReplaceAll(err.Error(), "\n", "; ")}
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
	return http.StatusInternalServerError
}
