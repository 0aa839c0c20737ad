package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// maxBody bounds what either side of a socket reads as one body, in bytes.
const maxBody = 8 << 20

// AgentClient calls the agent. Errors are *Error, or the context's if that was
// cancelled; an agent that is not there is CodeUnavailable. Safe for concurrent use; it holds no connection.
type AgentClient struct{ socket string }

// NewAgentClient returns a client of the agent that listens on socket; "" is
// AgentSocket.
func NewAgentClient(socket string) *AgentClient {
	if socket == "" {
		socket = AgentSocket
	}
	return &AgentClient{socket}
}

// Attach wires an interface; see AttachRequest.
func (c *AgentClient) Attach(ctx context.Context, r AttachRequest) (Attachment, error) {
	var a Attachment
	return a, call(ctx, c.socket, "agent", http.MethodPost, "/v1/attach", r, &a)
}

// Detach releases an endpoint or every interface of a workload; see
// DetachRequest.
func (c *AgentClient) Detach(ctx context.Context, r DetachRequest) error {
	return call(ctx, c.socket, "agent", http.MethodPost, "/v1/detach", r, nil)
}

// Check returns nil if the endpoint is wired as it was attached.
func (c *AgentClient) Check(ctx context.Context, r CheckRequest) error {
	return call(ctx, c.socket, "agent", http.MethodPost, "/v1/check", r, nil)
}

// Status returns the agent's own view.
func (c *AgentClient) Status(ctx context.Context) (AgentStatus, error) {
	var s AgentStatus
	return s, call(ctx, c.socket, "agent", http.MethodGet, "/v1/status", nil, &s)
}

// SpeakerClient asks the speaker. Errors are as AgentClient's.
type SpeakerClient struct{ socket string }

// NewSpeakerClient returns a client of the speaker that listens on socket; ""
// is SpeakerSocket.
func NewSpeakerClient(socket string) *SpeakerClient {
	if socket == "" {
		socket = SpeakerSocket
	}
	return &SpeakerClient{socket}
}

// Status returns the speaker's own view.
func (c *SpeakerClient) Status(ctx context.Context) (SpeakerStatus, error) {
	var s SpeakerStatus
	return s, call(ctx, c.socket, "speaker", http.MethodGet, "/v1/status", nil, &s)
}

// call makes one request on a connection of its own and decodes the answer into
// out. It writes the request itself: http.Client's transport (two goroutines, a
// pool) costs a process that makes one call more than the call.
func call(ctx context.Context, socket, role, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return &Error{CodeInvalid, fmt.Sprintf("%s: %v", path, err)}
		}
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return absent(socket, role, err)
	}
	defer conn.Close()
	// The deadline of a cancelled context lies in the past: reads and writes end.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	var req bytes.Buffer
	fmt.Fprintf(&req, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", method, path, role, len(body))
	req.Write(body)
	answer, status, err := exchange(conn, req.Bytes())
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s at %s: %w", role, socket, ctx.Err())
	case ctx.Err() != nil:
		return &Error{CodeUnavailable, fmt.Sprintf("%s at %s did not answer in time: it is stopped or overloaded", role, socket)}
	case err != nil:
		return &Error{CodeUnavailable, fmt.Sprintf("%s at %s ended during the call: %v", role, socket, err)}
	case status/100 != 2:
		e := new(Error)
		if json.Unmarshal(answer, e) != nil || e.Code == "" {
			return &Error{CodeInternal, fmt.Sprintf("%s at %s: %s: HTTP status %d", role, socket, path, status)}
		}
		return e
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return &Error{CodeInternal, fmt.Sprintf("%s at %s: answer to %s: %v", role, socket, path, err)}
	}
	return nil
}

func exchange(conn net.Conn, req []byte) (body []byte, status int, err error) {
	if _, err := conn.Write(req); err != nil {
		return nil, 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody))
	return body, resp.StatusCode, err
}

// absent says in one line why nobody answers on a socket and what to do.
func absent(socket, role string, err error) *Error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &Error{CodeUnavailable, fmt.Sprintf("%s socket %s: permission denied: it is root's alone", role, socket)}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return &Error{CodeUnavailable, fmt.Sprintf("%s not running: nobody listens on %s; start `netctl node` or `netctl %s`", role, socket, role)}
	}
	return &Error{CodeUnavailable, fmt.Sprintf("%s socket %s: %v", role, socket, err)}
}
