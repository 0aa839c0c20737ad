package cni

import (
	"errors"
	"fmt"
	"strings"

	"netctl/commands/control"
)

// Error codes: those of the specification (section 5, "Error"), 8 as the
// reference implementation uses it, and from 100 our own.
const (
	codeVersion      = 1
	codeUnknown      = 3
	codeEnvironment  = 4
	codeIO           = 5
	codeDecode       = 6
	codeConfig       = 7
	codeNamespace    = 8
	codeTryAgain     = 11
	codeNotAvailable = 50
	codeInternal     = 100
	codeExists       = 101
	codeTaken        = 102
	codeExhausted    = 103
)

// codes maps what the agent says to what CNI says; there is no other table.
func codes() map[string]int {
	return map[string]int{
		control.CodeInvalid:     codeConfig,
		control.CodeNotFound:    codeUnknown,
		control.CodeExists:      codeExists,
		control.CodeConflict:    codeTaken,
		control.CodeExhausted:   codeExhausted,
		control.CodeUnavailable: codeTryAgain,
		control.CodeDetached:    codeTryAgain,
		control.CodeNamespace:   codeNamespace,
		control.CodeDenied:      codeInternal,
		control.CodeInternal:    codeInternal,
	}
}

// failure is an error as it is printed. Msg is one line.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

func (f *failure) Error() string { return f.Msg }

func errorf(code int, format string, args ...any) error {
	return &failure{Code: code, Msg: strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")}
}

// failure is err as an answer in the request's version, or in the newest if that
// is not one of ours.
func (c *call) failure(err error) *failure {
	var f *failure
	if !errors.As(err, &f) {
		e := control.ErrorOf(err)
		code, ok := codes()[e.Code]
		if !ok {
			code = codeInternal
		}
		f = &failure{Code: code, Msg: strings.ReplaceAll(e.Message, "\n", "; ")}
	}
	f.CNIVersion = c.conf.CNIVersion
	if c.older(versions()[0]) {
		f.CNIVersion = versions()[len(versions())-1]
	}
	return f
}
