package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// act does an action. By GET it has flags as parameters and arguments as arg, and must be
// one for whom reading is enough.
func (s *server) act(w http.ResponseWriter, r *http.Request, who Caller) error {
	path := r.PathValue("path")
	action, ok := s.actions[path]
	if !ok {
		return fmt.Errorf("%q is no action: GET /v1 says which there are: %w", path, datastore.ErrNotFound)
	}
	var q Request
	var err error
	if readOnly(r.Method) {
		q, err = requestIn(r)
	} else if _, err = query(r); err == nil {
		q, err = requestOf(w, r)
	}
	if err != nil {
		return err
	}
	if err := action.check(q); err != nil {
		return err
	}
	need := action.Rights.Needs(q)
	if readOnly(r.Method) && need > datastore.APIRead {
		return fmt.Errorf("%s is not for GET, which asks for what the role read may: POST it: %w", path, datastore.ErrInvalid)
	}
	if err := who.may(need, "the action "+path); err != nil {
		return err
	}
	return s.do(w, r, who, action, q)
}

func (s *server) do(w http.ResponseWriter, r *http.Request, who Caller, action Action, q Request) error {
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	default:
		return datastore.As(datastore.ErrUnavailable, "%d actions are under way: try again", maxActions)
	}
	deadline := http.NewResponseController(w)
	_ = deadline.SetReadDeadline(time.Time{}) // a client that goes ends the action
	_ = deadline.SetWriteDeadline(time.Now().Add(actionTime + writeTime))
	ctx, cancel := context.WithTimeout(r.Context(), actionTime)
	defer cancel()
	a := s.Backend.Do(ctx, who, action, q)
	status := http.StatusOK
	if a.Err != nil {
		var f Failure
		if f, status = failureOf(a.Err); a.Exit == 2 && f.Code == control.CodeInternal {
			f.Code, status = control.CodeInvalid, http.StatusBadRequest
		}
		a.Code = f.Code
		if a.Exit == 3 { // an answer, and no failure
			a.Code, status = "", http.StatusOK
		}
	}
	if action.Rights.Needs(q) > datastore.APIRead {
		args := q.Args
		if strings.HasPrefix(action.Path, "token/") { // which may be secrets
			args = nil
		}
		s.Log.Info("action done", "by", who.Name, "action", action.Path, "name", q.Name, "args", args, "exit", a.Exit)
	}
	return send(w, status, a)
}

// requestIn reads a request from a URL.
func requestIn(r *http.Request) (Request, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return Request{}, fmt.Errorf("query: %w: %w", datastore.ErrInvalid, err)
	}
	q := Request{Flags: map[string]any{}}
	for name, list := range values {
		switch {
		case name == "arg":
			q.Args = list
		case name == "name":
			q.Name = list[0]
		case len(list) > 1:
			var all []any
			for _, v := range list {
				all = append(all, v)
			}
			q.Flags[name] = all
		case list[0] == "":
			q.Flags[name] = true
		default:
			q.Flags[name] = list[0]
		}
	}
	return q, nil
}

// requestOf reads a request from a body, which may be left out.
func requestOf(w http.ResponseWriter, r *http.Request) (q Request, err error) {
	text, err := body(w, r, MaxAction)
	if err != nil || len(bytes.TrimSpace(text)) == 0 {
		return q, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	dec.UseNumber()
	if err := dec.Decode(&q); err != nil {
		if wrong := new(json.UnmarshalTypeError); errors.As(err, &wrong) && wrong.Field == "" {
			return q, fmt.Errorf("request: %w: want a JSON object, and this is of type %s: GET /v1/openapi.json", datastore.ErrInvalid, wrong.Value)
		}
		return q, fmt.Errorf("request: %w: %w", datastore.ErrInvalid, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return q, fmt.Errorf("request: more than one JSON value: %w", datastore.ErrInvalid)
	}
	return q, nil
}

// check refuses what the action does not know.
func (a Action) check(q Request) error {
	for name := range q.Flags {
		if !a.has(name) {
			return &datastore.FieldError{Field: "flags." + name, Reason: "unknown: " + a.Usage}
		}
	}
	switch {
	case a.Named && q.Name == "":
		return &datastore.FieldError{Field: "name", Reason: "is missing: " + a.Usage}
	case !a.Named && q.Name != "":
		return &datastore.FieldError{Field: "name", Value: q.Name, Reason: "has no place here: " + a.Usage}
	}
	return nil
}

func (a Action) has(flag string) bool {
	for _, f := range a.Flags {
		if f.Name == flag {
			return true
		}
	}
	return false
}
