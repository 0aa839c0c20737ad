package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// Server says where an API is and who asks.
type Server struct {
	// URL is unix:///path or https://host:port.
	URL string
	// CA, Cert and Key are PEM files, which https needs: of the server's authority, and of
	// the client.
	CA, Cert, Key string
}

// Client calls an API. Errors wrap the outcomes of datastore. Safe for concurrent use.
type Client struct {
	url  string
	base string
	http *http.Client
}

// dialTime bounds the making of a connection.
const dialTime = 5 * time.Second

// Check refuses what NewClient would, and touches no file.
func (s Server) Check() error {
	u, err := url.Parse(s.URL)
	switch {
	case err != nil:
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		return nil
	case u.Scheme == "https" && u.Hostname() != "" && u.Port() != "" && (u.Path == "" || u.Path == "/") && u.User == nil:
		if s.CA == "" || s.Cert == "" || s.Key == "" {
			return fmt.Errorf("%q: %w: https needs the server's ca, and cert and key that `netctl api grant` makes", s.URL, datastore.ErrInvalid)
		}
		return nil
	}
	return fmt.Errorf("%q: %w: want unix:///path or https://host:port", s.URL, datastore.ErrInvalid)
}

// NewClient makes a client; the server need not be there.
func NewClient(s Server) (*Client, error) {
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	dialer := &net.Dialer{Timeout: dialTime}
	transport := &http.Transport{TLSHandshakeTimeout: dialTime, DialContext: dialer.DialContext}
	c := &Client{url: s.URL, base: strings.TrimSuffix(s.URL, "/"), http: &http.Client{Transport: transport}}
	if path, local := strings.CutPrefix(s.URL, "unix://"); local {
		c.base = "http://netctl"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) }
		return c, nil
	}
	pair, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err != nil {
		return nil, fmt.Errorf("api: client certificate: %w", err)
	}
	pem, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("api: server's authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("api: server's authority: %s: no certificate in it: %w", s.CA, datastore.ErrInvalid)
	}
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{pair}}
	return c, nil
}

// Close drops connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call makes a request; the answer's body is the caller's to close.
func (c *Client) call(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		text, ok := in.([]byte)
		if !ok {
			var err error
			if text, err = json.Marshal(in); err != nil {
				return nil, err
			}
		}
		body = bytes.NewReader(text)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, c.absent(ctx, err)
	}
	return resp, nil
}

// Get asks for a path with its query; the answer's body is the caller's to close, and may
// be a Failure.
func (c *Client) Get(ctx context.Context, path string) (*http.Response, error) {
	return c.call(ctx, http.MethodGet, path, nil)
}

// absent says why nobody answers, and what to do.
func (c *Client) absent(ctx context.Context, err error) error {
	var whole *url.Error
	if errors.As(err, &whole) {
		err = whole.Err
	}
	does, hint := "does not answer", ""
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		hint = ": nobody listens there; is `netctl api` running (role api, setting api.listen)?"
	case errors.Is(err, fs.ErrPermission):
		hint = ": the socket is root's alone"
	}
	var authority x509.UnknownAuthorityError
	if errors.As(err, &authority) {
		does, hint = "is not trusted", ": the server is of another authority than client.ca"
	}
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" { // of TLS, by the server
		does, hint = "refuses", ": it does not take client.cert: it is of another authority than the API's clients, expired, or not for clients (`netctl api grant` makes one)"
	}
	return datastore.As(datastore.ErrUnavailable, "the API at %s %s: %w%s", c.url, does, err, hint)
}

// do makes a request and decodes its answer into out, which may be nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) (http.Header, error) {
	resp, err := c.call(ctx, method, path, in)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.absent(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, failed(text, resp.Status)
	}
	if out == nil {
		return resp.Header, nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return nil, fmt.Errorf("the API at %s: answer to %s %s: %w", c.url, method, path, err)
	}
	return resp.Header, nil
}

// failed is the error that a Failure tells of.
func failed(text []byte, status string) error {
	var f Failure
	if json.Unmarshal(text, &f) != nil || f.Code == "" {
		return fmt.Errorf("the server answers %s, and is no API of netctl's", status)
	}
	return &control.Error{Code: f.Code, Message: f.Error}
}

// Index says what there is, and who asks.
func (c *Client) Index(ctx context.Context) (i Index, err error) {
	_, err = c.do(ctx, http.MethodGet, "/v1", nil, &i)
	return i, err
}

// List returns the objects of a kind, and the store's revision. query may be nil; see
// docs/api.md.
func (c *Client) List(ctx context.Context, k datastore.Kind, query url.Values) ([]datastore.Object, int64, error) {
	var l List
	path := "/v1/" + Plural(k)
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	if _, err := c.do(ctx, http.MethodGet, path, nil, &l); err != nil {
		return nil, 0, err
	}
	objects := make([]datastore.Object, 0, len(l.Items))
	for _, raw := range l.Items {
		o, err := decode(raw)
		if err != nil {
			return nil, 0, err
		}
		objects = append(objects, o)
	}
	return objects, l.Revision, nil
}

// decode reads a manifest of a server, which may be newer.
func decode(raw []byte) (datastore.Object, error) {
	var head struct {
		Kind     datastore.Kind `json:"kind"`
		Metadata struct {
			Name     string `json:"name"`
			Revision int64  `json:"revision"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, err
	}
	key, err := datastore.Key(head.Kind, head.Metadata.Name)
	if err != nil {
		return nil, err
	}
	if o, err := datastore.DecodeManifest(raw); err == nil {
		return o, nil
	}
	o, err := datastore.Decode(key, raw)
	if err == nil {
		o.Meta().Revision = head.Metadata.Revision
	}
	return o, err
}

// Read returns one object.
func (c *Client) Read(ctx context.Context, k datastore.Kind, name string) (datastore.Object, error) {
	var raw json.RawMessage
	if _, err := c.do(ctx, http.MethodGet, objectPath(k, name), nil, &raw); err != nil {
		return nil, err
	}
	return decode(raw)
}

// Write writes an object, if Meta().Revision is not 0 only over that revision.
func (c *Client) Write(ctx context.Context, o datastore.Object, m Mode) (Written, error) {
	text, err := datastore.EncodeManifest(o)
	if err != nil {
		return Written{}, err
	}
	method, path := http.MethodPut, objectPath(o.Kind(), o.Meta().Name)
	switch m {
	case Create:
		method, path = http.MethodPost, "/v1/"+Plural(o.Kind())
	case Replace:
		path += "?replace=true"
	}
	var raw json.RawMessage
	head, err := c.do(ctx, method, path, text, &raw)
	if err != nil {
		return Written{}, err
	}
	w := Written{Verb: head.Get("Netctl-Verb"), Warnings: warnings(head)}
	w.Object, err = decode(raw)
	return w, err
}

func warnings(h http.Header) (list []string) {
	for _, text := range h.Values("Warning") {
		if said, err := strconv.Unquote(strings.TrimPrefix(text, "299 netctl ")); err == nil {
			list = append(list, said)
		}
	}
	return list
}

// Do asks for an action. That the action failed is in the Answer; the error is that
// nobody did it.
func (c *Client) Do(ctx context.Context, path string, q Request) (a Answer, err error) {
	resp, err := c.call(ctx, http.MethodPost, "/v1/actions/"+path, q)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, c.absent(ctx, err)
	}
	if resp.StatusCode/100 == 2 || bytes.Contains(text, []byte(`"exit"`)) {
		return a, json.Unmarshal(text, &a)
	}
	return a, failed(text, resp.Status)
}

// Event is one of a watch.
type Event struct {
	// Type is put, delete, synced (all that there was has been told), reset (forget
	// everything: what there is follows) or, as the last one, resync (watch again).
	Type string
	// ID is the revision that the watch may be taken up after; 0: none.
	ID   int64
	Data []byte
}

// Watch calls fn for each event of kinds (none: all) after a revision (0: with all that
// there is first), until ctx ends, fn fails or the stream does. It never returns nil.
func (c *Client) Watch(ctx context.Context, kinds []datastore.Kind, after int64, fn func(Event) error) error {
	q := url.Values{}
	for _, k := range kinds {
		q.Add("kind", Plural(k))
	}
	if after > 0 {
		q.Set("after", strconv.FormatInt(after, 10))
	}
	resp, err := c.call(ctx, http.MethodGet, "/v1/watch?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return failed(text, resp.Status)
	}
	if err := ReadEvents(resp.Body, fn); !errors.Is(err, io.EOF) {
		return err
	}
	return datastore.As(datastore.ErrUnavailable, "the API at %s ended the watch", c.url)
}

// ReadEvents reads server-sent events to the end of r (io.EOF) or until fn fails.
func ReadEvents(r io.Reader, fn func(Event) error) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	var e Event
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(line, "\n"), []byte(": "))
		switch string(name) {
		case "id":
			if e.ID, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return err
			}
		case "event":
			e.Type = string(value)
		case "data":
			e.Data = value
		case "":
			if len(line) == 1 && e.Type != "" {
				if err := fn(e); err != nil {
					return err
				}
				e = Event{}
			}
		}
	}
}
