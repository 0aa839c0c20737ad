package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"

	"netctl/commands/control"
	"netctl/datastore"
)

// portMap is one port that `docker run -p` publishes, as Docker tells its drivers.
type portMap struct {
	Proto       uint8  // IANA protocol number
	Port        uint16 // of the container
	HostIP      string
	HostPort    uint16 // 0: any
	HostPortEnd uint16 // the last of those that will do
}

// mostTries bounds how many ports are tried where any will do.
const mostTries = 16

// portMaps reads the option of that name, which comes as whatever JSON makes of it.
func portMaps(option any) (list []portMap, err error) {
	text, err := json.Marshal(option)
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("published ports: %w", err)
	}
	return list, nil
}

// expose publishes ports. Docker asks it of the endpoint that has the container's
// default route, and of no other.
func (p *plugin) expose(ctx context.Context, r endpointCall) (any, error) {
	maps, err := portMaps(r.Options[optPortMap])
	if err != nil || len(maps) == 0 {
		return nothing{}, err
	}
	for try := 1; ; try++ {
		req := control.PortRequest{Target: target(r.EndpointID)}
		loose := false
		for _, m := range maps {
			port, other, err := choose(ctx, m)
			if err != nil {
				return nil, err
			}
			loose = loose || other
			req.Ports = append(req.Ports, port)
		}
		_, err := heed(ctx, p, func(ctx context.Context) (nothing, error) {
			return nothing{}, p.agent.Waiting(callTimeout/2).Publish(ctx, req)
		})
		if loose && errors.Is(err, datastore.ErrConflict) && try < mostTries {
			continue // somebody else has the one that was free
		}
		if err != nil {
			return nil, err
		}
		return nothing{}, p.state.changeEndpoint(r.EndpointID, func(e *endpoint) { e.Published = true })
	}
}

// unexpose ends that. When the endpoint is gone its ports are too.
func (p *plugin) unexpose(ctx context.Context, r endpointCall) (any, error) {
	e, ok := p.state.endpoint(r.EndpointID)
	if !ok || !e.Published {
		return nothing{}, nil
	}
	ctx, cancel := short(ctx)
	defer cancel()
	if err := p.agent.Publish(ctx, control.PortRequest{Target: target(r.EndpointID)}); err != nil && !errors.Is(err, datastore.ErrNotFound) {
		p.log.Warn("ports stay published until the endpoint goes", "endpoint", r.EndpointID, "error", err)
	}
	return nothing{}, p.state.changeEndpoint(r.EndpointID, func(e *endpoint) { e.Published = false })
}

// choose is a port of the host for a mapping, which no process there uses. other: another
// would do as well.
func choose(ctx context.Context, m portMap) (port datastore.HostPort, other bool, err error) {
	names := map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"} // IANA protocol numbers
	port = datastore.HostPort{Protocol: names[m.Proto], HostPort: m.HostPort, Port: m.Port}
	if port.Protocol == "" {
		return port, false, fmt.Errorf("published port %d: there is no protocol number %d to publish", m.Port, m.Proto)
	}
	if port.HostIP, err = control.HostAddress(m.HostIP); err != nil {
		return port, false, fmt.Errorf("published port %d: %w", m.Port, err)
	}
	last := max(m.HostPort, m.HostPortEnd)
	other = m.HostPort == 0 || last > m.HostPort
	for {
		free, err := vacant(ctx, port)
		if err == nil {
			port.HostPort = free
			return port, other, nil
		}
		if port.HostPort == last {
			return port, other, fmt.Errorf("published port %d/%s: a process on this host has it: %w", port.HostPort, port.Protocol, err)
		}
		port.HostPort++
	}
}

// vacant finds out whether a process has a port, or which one none has.
func vacant(ctx context.Context, p datastore.HostPort) (uint16, error) {
	host := ""
	if p.HostIP.IsValid() {
		host = p.HostIP.String()
	}
	at := net.JoinHostPort(host, strconv.Itoa(int(p.HostPort)))
	var l net.ListenConfig
	switch p.Protocol {
	case "tcp":
		s, err := l.Listen(ctx, "tcp", at)
		if err != nil {
			return 0, err
		}
		defer s.Close()
		return s.Addr().(*net.TCPAddr).AddrPort().Port(), nil
	case "udp":
		s, err := l.ListenPacket(ctx, "udp", at)
		if err != nil {
			return 0, err
		}
		defer s.Close()
		return s.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
	}
	if p.HostPort == 0 {
		return 0, fmt.Errorf("%s needs a port of the host to be named", p.Protocol)
	}
	return p.HostPort, nil
}
