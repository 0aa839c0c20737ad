// Package engine owns what netctl asks of Docker's Engine API, on its socket: which
// networks and containers there are, and that networks are made and removed.
//
// It never keeps a connection but while Events follows what happens, and decides
// nothing.
package engine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// ErrNoSuch is what Docker's API says of what it does not have.
var ErrNoSuch = errors.New("there is no such object in Docker")

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 16 << 20

// Client asks the API of any version: what is asked has been the same since 1.24. It is
// safe for concurrent use.
type Client struct {
	Socket string
	client *http.Client
}

// New returns a client of the API at a unix socket.
func New(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Network is a network of Docker's, as far as it is used. Containers are those that run,
// by their IDs; a list of networks comes without.
type Network struct {
	ID         string `json:"Id"`
	Name       string
	Driver     string
	Internal   bool
	EnableIPv6 bool
	Options    map[string]string
	Labels     map[string]string
	IPAM       IPAM
	Containers map[string]struct{ EndpointID string }
}

// IPAM is where a network has its addresses from.
type IPAM struct {
	Driver string
	Config []Subnet
}

// Subnet is a network's, whose gateway may be left out.
type Subnet struct {
	Subnet  string
	Gateway string `json:",omitempty"`
}

// Container is a container of Docker's, as far as it is used.
type Container struct {
	Name   string
	Config struct {
		Image  string
		Labels map[string]string
	}
}

// request begins a request, whose answer's body the caller closes. An answer that is no
// success is an error.
func (c *Client) request(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, content)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	var told struct{ Message string }
	_ = json.Unmarshal(text, &told) // else it says it as it is
	said := strings.TrimSpace(cmp.Or(told.Message, string(text)))
	if resp.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %s", ErrNoSuch, said)
	}
	return nil, fmt.Errorf("of Docker's API: %s: %s", resp.Status, said)
}

// do makes a request; into takes the answer unless it is nil.
func (c *Client) do(ctx context.Context, method, path string, body, into any) error {
	resp, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// Network is the network with an ID; ErrNoSuch: there is none.
func (c *Client) Network(ctx context.Context, id string) (n Network, err error) {
	return n, c.do(ctx, http.MethodGet, "/networks/"+url.PathEscape(id), nil, &n)
}

// Networks are all of them.
func (c *Client) Networks(ctx context.Context) (list []Network, err error) {
	return list, c.do(ctx, http.MethodGet, "/networks", nil, &list)
}

// CreateNetwork makes a network; ID and Containers are not said. Docker refuses a name
// that it has, as far as it can.
func (c *Client) CreateNetwork(ctx context.Context, n Network) error {
	return c.do(ctx, http.MethodPost, "/networks/create", map[string]any{
		"Name": n.Name, "CheckDuplicate": true, "Driver": n.Driver, "IPAM": n.IPAM, "EnableIPv6": n.EnableIPv6, "Labels": n.Labels, "Options": n.Options,
	}, nil)
}

// RemoveNetwork removes a network that no running container is in.
func (c *Client) RemoveNetwork(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/networks/"+url.PathEscape(id), nil, nil)
}

// Events calls fn once it is sure to hear of networks that are made and removed, and
// then for each. It ends with ctx, or when Docker does, with the cause.
func (c *Client) Events(ctx context.Context, fn func()) error {
	filters := url.QueryEscape(`{"type":["network"],"event":["create","destroy"]}`)
	resp, err := c.request(ctx, http.MethodGet, "/events?filters="+filters, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	fn()
	for from := json.NewDecoder(resp.Body); ; fn() {
		var event struct{}
		if err := from.Decode(&event); err != nil {
			return err
		}
	}
}

// ContainerOf is the ID of the container that an endpoint of a network is of.
func (c *Client) ContainerOf(ctx context.Context, network, endpoint string) (id string, err error) {
	n, err := c.Network(ctx, network)
	if err != nil {
		return "", err
	}
	for id, c := range n.Containers {
		if c.EndpointID == endpoint {
			return id, nil
		}
	}
	return "", fmt.Errorf("%w: a container with the endpoint", ErrNoSuch)
}

// Container is the container with an ID; ErrNoSuch: there is none.
func (c *Client) Container(ctx context.Context, id string) (told Container, err error) {
	return told, c.do(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/json", nil, &told)
}
