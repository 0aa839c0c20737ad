package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"netctl/netdev/netlab"
)

const leakyNetwork = "6a2b7979b2de"

// dockerChurn makes the calls of a Docker 20.10 (commands/docker has them recorded), and
// is its API.
type dockerChurn struct {
	*machine
	pool string
	http http.Client

	mu     sync.Mutex
	driver *netlab.Process
	knows  map[string]string // containers by endpoint
}

func newDockerChurn(m *machine) *dockerChurn {
	m.t.Helper()
	c := &dockerChurn{machine: m, knows: map[string]string{}}
	c.http.Transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", m.dir+"/netctl.sock")
	}}
	l, err := net.Listen("unix", m.dir+"/api.sock")
	if err != nil {
		m.t.Fatal(err)
	}
	api := &http.Server{Handler: http.HandlerFunc(c.api)}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = api.Serve(l) }()
	c.start()
	m.t.Cleanup(func() {
		_ = c.driver.Stop()
		_ = api.Close()
		<-ended
	})
	var pool struct {
		PoolID string
		Data   map[string]string
	}
	netlab.Until(m.t, patience, "the driver", func() string {
		return text(c.call(m.t.Context(), "IpamDriver.RequestPool", `{"AddressSpace":"netctl-local","Pool":"","SubPool":"","Options":{},"V6":false}`, &pool))
	})
	c.pool = pool.PoolID
	if err := c.call(m.t.Context(), "NetworkDriver.CreateNetwork", fmt.Sprintf(`{"NetworkID":%q,"Options":{"com.docker.network.generic":{}},"IPv4Data":[{"AddressSpace":"netctl-local","Gateway":%q,"Pool":"0.0.0.0/0"}],"IPv6Data":[]}`,
		leakyNetwork, pool.Data["com.docker.network.gateway"]), nil); err != nil {
		m.t.Fatal(err)
	}
	netlab.Until(m.t, patience, "the network is the cluster's", func() string {
		if out := m.must("netctl get networks"); !strings.Contains(out, "leakydock") {
			return out
		}
		return ""
	})
	return c
}

func (c *dockerChurn) start() {
	p, err := c.host.Start("docker-driver", netlab.Cmd{Args: []string{"netctl", "docker", "--config", "/etc/netctl.yaml",
		"--docker-socket", c.dir + "/netctl.sock", "--docker-aliases", "", "--docker-api", c.dir + "/api.sock"}})
	if err != nil {
		c.t.Error(err)
		return
	}
	c.driver = p
}

func (c *dockerChurn) kill() {
	c.driver.Kill()
	c.start()
}

// api is Docker's.
func (c *dockerChurn) api(w http.ResponseWriter, q *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case strings.HasSuffix(q.URL.Path, "/networks/"+leakyNetwork):
		containers := map[string]map[string]string{}
		for endpoint, id := range c.knows {
			containers[id] = map[string]string{"EndpointID": endpoint}
		}
		text, _ := json.Marshal(containers)
		fmt.Fprintf(w, `{"Name":"leakydock","Options":{},"IPAM":{"Config":[{"Subnet":"0.0.0.0/0"}]},"Containers":%s}`, text)
	case strings.Contains(q.URL.Path, "/containers/"):
		fmt.Fprint(w, `{"Name":"/some","Config":{"Image":"bb:1","Labels":{}}}`)
	default:
		http.Error(w, `{"message":"network not found"}`, http.StatusNotFound)
	}
}

// call makes one call; while there is no driver Docker tries again for 15 s.
func (c *dockerChurn) call(ctx context.Context, method, body string, answer any) error {
	for {
		q, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://d/"+method, strings.NewReader(body))
		if err != nil {
			return err
		}
		r, err := c.http.Do(q)
		var refused *net.OpError
		if errors.As(err, &refused) && refused.Op == "dial" && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		if err != nil {
			return err
		}
		defer r.Body.Close()
		var all bytes.Buffer
		if _, err := all.ReadFrom(r.Body); err != nil {
			return err
		}
		var e struct{ Err, Error string }
		_ = json.Unmarshal(all.Bytes(), &e)
		switch {
		case r.StatusCode != http.StatusOK || e.Err+e.Error != "":
			return fmt.Errorf("%s: %d %s", method, r.StatusCode, strings.TrimSpace(all.String()))
		case answer != nil:
			return json.Unmarshal(all.Bytes(), answer)
		}
		return nil
	}
}

func (c *dockerChurn) ids(s *slot) string {
	return fmt.Sprintf(`"NetworkID":%q,"EndpointID":%q`, leakyNetwork, s.endpoint)
}

// add is `docker run`, as far as it comes: what fails on its way Docker undoes.
func (c *dockerChurn) add(ctx context.Context, s *slot) (err error) {
	if s.addr != "" { // it says nothing twice of what it knows to be whole
		return nil
	}
	if s.endpoint != "" {
		if err := c.del(ctx, s); err != nil {
			return err
		}
	}
	var given struct{ Address netip.Prefix }
	if err := c.call(ctx, "IpamDriver.RequestAddress", fmt.Sprintf(`{"PoolID":%q,"Address":"","Options":null}`, c.pool), &given); err != nil {
		return err
	}
	s.endpoint, s.held = fmt.Sprintf("%x", []byte(s.c.Name)), given.Address.Addr().String()
	c.mu.Lock()
	c.knows[s.endpoint] = s.c.ID
	c.mu.Unlock()
	options := "{}"
	if s.port != 0 {
		options = fmt.Sprintf(`{"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":%[1]d,"HostPortEnd":%[1]d}]}`, s.port)
	}
	if err := c.call(ctx, "NetworkDriver.CreateEndpoint", fmt.Sprintf(`{%s,"Interface":{"Address":%q,"AddressIPv6":"","MacAddress":""},"Options":%s}`, c.ids(s), given.Address, options), nil); err != nil {
		return err
	}
	var joined struct{ InterfaceName struct{ SrcName string } }
	if err := c.call(ctx, "NetworkDriver.Join", fmt.Sprintf(`{%s,"SandboxKey":%q,"Options":%s}`, c.ids(s), s.c.Path(), options), &joined); err != nil {
		return err
	}
	if s.port != 0 {
		if err := c.call(ctx, "NetworkDriver.ProgramExternalConnectivity", fmt.Sprintf(`{%s,"Options":%s}`, c.ids(s), options), nil); err != nil {
			return err
		}
	}
	// The rest is Docker's, as it is told.
	if out, err := c.host.Exec(ctx, netlab.Cmd{Args: []string{"sh", "-c", fmt.Sprintf("ip link set %s netns %s name eth0", joined.InterfaceName.SrcName, s.c.ID)}}); err != nil {
		return fmt.Errorf("%s%w", out, err)
	}
	_, err = s.c.Exec(ctx, netlab.Cmd{Args: []string{"sh", "-c", fmt.Sprintf("ip addr add %s dev eth0 && ip link set eth0 up && ip route add 169.254.1.1 dev eth0 && ip route add default via 169.254.1.1", given.Address)}})
	if err == nil {
		s.addr = s.held
	}
	return err
}

// del is `docker rm -f`, or what a Docker that was killed says when it is back.
func (c *dockerChurn) del(ctx context.Context, s *slot) error {
	if s.endpoint == "" {
		return nil
	}
	if s.addr != "" {
		for _, method := range []string{"RevokeExternalConnectivity", "Leave"} {
			if err := c.call(ctx, "NetworkDriver."+method, "{"+c.ids(s)+"}", nil); err != nil {
				return err
			}
		}
	}
	if err := c.call(ctx, "NetworkDriver.DeleteEndpoint", "{"+c.ids(s)+"}", nil); err != nil {
		return err
	}
	if err := c.call(ctx, "IpamDriver.ReleaseAddress", fmt.Sprintf(`{"PoolID":%q,"Address":%q}`, c.pool, s.held), nil); err != nil {
		return err
	}
	c.forget(s)
	return nil
}

func (c *dockerChurn) forget(s *slot) {
	c.mu.Lock()
	delete(c.knows, s.endpoint)
	c.mu.Unlock()
	s.endpoint = ""
}
