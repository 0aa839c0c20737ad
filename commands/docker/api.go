package docker

import (
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

// errNoSuch is what Docker's API says of what it does not have.
var errNoSuch = errors.New("there is no such object in Docker")

// maxAnswer bounds what is read of an answer of Docker's API, in bytes.
const maxAnswer = 16 << 20

// api asks Docker's Engine API, of any version: what is asked has been the same since
// 1.24.
type api struct {
	socket string
	client *http.Client
}

func newAPI(socket string) *api {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &api{socket, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// apiNetwork is what /networks/{id} answers, as far as it is used.
type apiNetwork struct {
	Name       string
	Internal   bool
	EnableIPv6 bool
	Options    map[string]string
	IPAM       struct {
		Config []struct{ Subnet, Gateway string }
	}
	Containers map[string]struct{ EndpointID string }
}

// apiContainer is what /containers/{id}/json answers, as far as it is used.
type apiContainer struct {
	Name   string
	Config struct {
		Image  string
		Labels map[string]string
	}
}

func (a *api) get(ctx context.Context, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %s", errNoSuch, strings.TrimSpace(string(text)))
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("of Docker's API: %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return json.Unmarshal(text, into)
}

func (a *api) network(ctx context.Context, id string) (n apiNetwork, err error) {
	return n, a.get(ctx, "/networks/"+url.PathEscape(id), &n)
}

// containerOf is the container that an endpoint of a network is of.
func (a *api) containerOf(ctx context.Context, network, endpoint string) (id string, err error) {
	n, err := a.network(ctx, network)
	if err != nil {
		return "", err
	}
	for id, c := range n.Containers {
		if c.EndpointID == endpoint {
			return id, nil
		}
	}
	return "", fmt.Errorf("%w: a container with the endpoint", errNoSuch)
}

func (a *api) container(ctx context.Context, id string) (c apiContainer, err error) {
	return c, a.get(ctx, "/containers/"+url.PathEscape(id)+"/json", &c)
}
