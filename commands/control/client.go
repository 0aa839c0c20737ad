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
	"log/slog"
	"net"
	"net/textproto"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// MaxBody bounds what either side of a socket reads as one body, in bytes.
const MaxBody = 8 << 20

// AgentPatience is how long an attach takes at most, and the wait for an agent that
// was there and is not: one that starts again is back much sooner.
const AgentPatience = 10 * time.Second

// client calls a role.
type client struct {
	socket, role string
	wait         time.Duration // for a role that was there
}

// AgentClient calls the agent. Errors are *Error, or the context's if that was
// cancelled; an agent that is not there is CodeUnavailable. Safe for concurrent use; it holds no connection.
type AgentClient struct{ client }

// NewAgentClient returns a client of the agent that listens on socket; "" is
// AgentSocket.
func NewAgentClient(socket string) *AgentClient {
	if socket == "" {
		socket = AgentSocket
	}
	return &AgentClient{client{socket: socket, role: "agent"}}
}

// Waiting returns a client that waits so long for an agent that was there, and asks
// again what its end cut off; but for Status, Label and LetGo.
func (c *AgentClient) Waiting(d time.Duration) *AgentClient {
	return &AgentClient{client{c.socket, c.role, d}}
}

// Attach wires an interface; see AttachRequest.
func (c *AgentClient) Attach(ctx context.Context, r AttachRequest) (Attachment, error) {
	var a Attachment
	ctx = WithBegan(ctx, time.Now())
	return a, c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/attach", r, &a) })
}

// Detach releases an endpoint or every interface of a workload; see
// DetachRequest.
func (c *AgentClient) Detach(ctx context.Context, r DetachRequest) error {
	return c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/detach", r, nil) })
}

// Check returns nil if the endpoint is wired as it was attached.
func (c *AgentClient) Check(ctx context.Context, r CheckRequest) error {
	return c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/check", r, nil) })
}

// Collect releases what is dead; see CollectRequest.
func (c *AgentClient) Collect(ctx context.Context, r CollectRequest) (Collected, error) {
	var a Collected
	return a, c.call(ctx, methodPost, "/v1/collect", r, &a)
}

// Status returns the agent's own view.
func (c *AgentClient) Status(ctx context.Context) (AgentStatus, error) {
	var s AgentStatus
	return s, c.call(ctx, methodGet, "/v1/status", nil, &s)
}

// Explain returns what the packet filter says of a packet; see ExplainRequest.
func (c *AgentClient) Explain(ctx context.Context, r ExplainRequest) (Explanation, error) {
	var e Explanation
	return e, c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/explain", r, &e) })
}

// Counters returns what rules have counted; see CountersRequest.
func (c *AgentClient) Counters(ctx context.Context, r CountersRequest) (Counters, error) {
	var out Counters
	return out, c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/counters", r, &out) })
}

// Learned returns what is known of the domains of network sets; see LearnedRequest.
func (c *AgentClient) Learned(ctx context.Context, r LearnedRequest) (Learned, error) {
	var out Learned
	return out, c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/learned", r, &out) })
}

// insist makes a call that may be made several times, until somebody answers it or
// the client's wait is over.
func (c *client) insist(ctx context.Context, ask func() error) error {
	err := ask()
	if !c.wasThere(err) || c.wait <= 0 {
		return err
	}
	began := time.Now()
	waiting, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	done := errors.New("answered")
	watched := WatchFolders(waiting, slog.New(slog.DiscardHandler), Folder{Dir: filepath.Dir(c.socket), Look: func(name string) error {
		if name != "" && name != filepath.Base(c.socket) {
			return nil
		}
		for again := true; again; {
			if now := ask(); !isLate(now) { // err says why nobody answered before
				err = now
			}
			again = isCutOff(err) && pause(waiting, cutOffPause)
		}
		if c.wasThere(err) {
			return nil
		}
		return done
	}})
	if watched != nil && !errors.Is(watched, done) {
		return stillAbsent(err, fmt.Sprintf("its socket cannot be watched: %v", watched))
	}
	if c.wasThere(err) {
		return stillAbsent(err, fmt.Sprintf("waited %s for it", time.Since(began).Round(100*time.Millisecond)))
	}
	return err
}

// wasThere says, of a call that failed, whether somebody listened on the socket in
// this boot, or belongs to a node that runs: it can be expected back.
func (c *client) wasThere(err error) bool {
	var a *absence
	if !errors.As(err, &a) {
		return false
	}
	if errors.Is(a.cause, fs.ErrNotExist) {
		others, _ := filepath.Glob(filepath.Join(filepath.Dir(c.socket), "*.sock"))
		return len(others) > 0
	}
	return a.cutOff || errors.Is(a.cause, syscall.ECONNREFUSED)
}

// SpeakerClient asks the speaker. Errors are as AgentClient's.
type SpeakerClient struct{ client }

// NewSpeakerClient returns a client of the speaker that listens on socket; ""
// is SpeakerSocket.
func NewSpeakerClient(socket string) *SpeakerClient {
	if socket == "" {
		socket = SpeakerSocket
	}
	return &SpeakerClient{client{socket: socket, role: "speaker"}}
}

// Waiting returns a client that waits so long for a speaker that was there, and asks
// again what its end cut off; but for Status.
func (c *SpeakerClient) Waiting(d time.Duration) *SpeakerClient {
	return &SpeakerClient{client{c.socket, c.role, d}}
}

// Status returns the speaker's own view.
func (c *SpeakerClient) Status(ctx context.Context) (SpeakerStatus, error) {
	var s SpeakerStatus
	return s, c.call(ctx, methodGet, "/v1/status", nil, &s)
}

// BGPRoutes returns the paths that the speaker knows of; see BGPQuery.
func (c *SpeakerClient) BGPRoutes(ctx context.Context, q BGPQuery) (BGPPaths, error) {
	var p BGPPaths
	return p, c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/bgp/routes", q, &p) })
}

// BGPSession returns all about the session with a peer, by its address or name; refresh
// has that asked to tell everything again.
func (c *SpeakerClient) BGPSession(ctx context.Context, peer string, refresh bool) (BGPSession, error) {
	var s BGPSession
	return s, c.insist(ctx, func() error {
		return c.call(ctx, methodPost, "/v1/bgp/session", BGPQuery{Peer: peer, Refresh: refresh}, &s)
	})
}

// absence is an Error of a call that nobody answered.
type absence struct {
	text   *Error
	cause  error
	cutOff bool // somebody took it, and ended
}

func (a *absence) Error() string { return a.text.Error() }
func (a *absence) Unwrap() error { return a.text }

// stillAbsent is an absence with what was done about it.
func stillAbsent(err error, what string) error {
	var a *absence
	if !errors.As(err, &a) {
		return err
	}
	return &absence{&Error{CodeUnavailable, fmt.Sprintf("%v (%s)", err, what)}, a.cause, a.cutOff}
}

// cutOffPause is the wait after a call that was cut off: who ends of it does so
// seldom.
const cutOffPause = 100 * time.Millisecond

// pause waits; false: ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func isCutOff(err error) bool {
	var a *absence
	return errors.As(err, &a) && a.cutOff
}

// isLate says that it was the caller's own time that ended before somebody listened.
func isLate(err error) bool {
	var a *absence
	return errors.As(err, &a) && errors.Is(a.cause, context.DeadlineExceeded)
}

// TimeoutHeader says how long the caller waits for the answer: the other side ends
// sooner, and can say why.
const TimeoutHeader = "Netctl-Timeout"

// BeganHeader says when a call was first made (RFC 3339): it may have waited for the other
// side, and been made before.
const BeganHeader = "Netctl-Began"

type beganKey struct{}

// WithBegan is the context of a call that was first made then.
func WithBegan(ctx context.Context, began time.Time) context.Context {
	return context.WithValue(ctx, beganKey{}, began)
}

// Began is when the caller first made the call that ctx belongs to, by this machine's clock;
// zero if it did not say so.
func Began(ctx context.Context) time.Time {
	began, _ := ctx.Value(beganKey{}).(time.Time)
	return began
}

// call makes one request on a connection of its own and decodes the answer into
// out. It writes the request itself: http.Client's transport (two goroutines, a
// pool) costs a process that makes one call more than the call.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	socket, role := c.socket, c.role
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
	fmt.Fprintf(&req, "%s %s HTTP/1.0\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", method, path, role, len(body))
	if end, ok := ctx.Deadline(); ok {
		fmt.Fprintf(&req, "%s: %s\r\n", TimeoutHeader, time.Until(end)*9/10)
	}
	if began := Began(ctx); !began.IsZero() {
		fmt.Fprintf(&req, "%s: %s\r\n", BeganHeader, began.Format(time.RFC3339Nano))
	}
	req.WriteString("\r\n")
	req.Write(body)
	answer, status, err := exchange(conn, req.Bytes())
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s at %s: %w", role, socket, ctx.Err())
	case ctx.Err() != nil:
		return &Error{CodeUnavailable, fmt.Sprintf("%s at %s did not answer in time: it is stopped or overloaded", role, socket)}
	case err != nil:
		return &absence{&Error{CodeUnavailable, fmt.Sprintf("%s at %s ended during the call: %v", role, socket, err)}, err, true}
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

// The methods of requests.
const (
	methodGet  = "GET"
	methodPost = "POST"
)

// exchange sends a request of HTTP/1.0, whose answer is never in chunks, and reads that.
func exchange(conn net.Conn, req []byte) (body []byte, status int, err error) {
	if _, err := conn.Write(req); err != nil {
		return nil, 0, err
	}
	in := bufio.NewReader(io.LimitReader(conn, MaxBody))
	text := textproto.NewReader(in)
	line, err := text.ReadLine() // HTTP/1.0 200 OK
	if err != nil {
		return nil, 0, cut(err)
	}
	if words := strings.Fields(line); len(words) < 2 || !strings.HasPrefix(words[0], "HTTP/1.") {
		return nil, 0, fmt.Errorf("malformed answer %q", line)
	} else if status, err = strconv.Atoi(words[1]); err != nil {
		return nil, 0, fmt.Errorf("malformed answer %q", line)
	}
	header, err := text.ReadMIMEHeader()
	if err != nil {
		return nil, 0, cut(err)
	}
	if body, err = io.ReadAll(in); err != nil {
		return nil, 0, err
	}
	if length, err := strconv.Atoi(header.Get("Content-Length")); err == nil && length > len(body) {
		return nil, 0, io.ErrUnexpectedEOF
	}
	return body, status, nil
}

// cut is an end in the midst of something.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// absent says in one line why nobody answers on a socket and what to do.
func absent(socket, role string, err error) error {
	text := fmt.Sprintf("%s socket %s: %v", role, socket, err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		text = fmt.Sprintf("%s socket %s: permission denied: it is root's alone", role, socket)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		text = fmt.Sprintf("%s not running: nobody listens on %s; start `netctl node` or `netctl %s`", role, socket, role)
	case errors.Is(err, syscall.EAGAIN): // its queue is full
		text = fmt.Sprintf("%s at %s does not answer: it is stopped or overloaded", role, socket)
	}
	return &absence{&Error{CodeUnavailable, text}, err, false}
}
