package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
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

// last is the last port of the host that will do; 0: any will.
func (m portMap) last() uint16 { return max(m.HostPort, m.HostPortEnd) }

// loose says that more than one port will do.
func (m portMap) loose() bool { return m.HostPort == 0 || m.last() > m.HostPort }

// mostTries bounds how many ports are tried where any will do; of a range every one is.
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
	var ports []datastore.HostPort
	for _, m := range maps {
		port, err := choose(ctx, m)
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	err = p.publish(ctx, r.EndpointID, ports)
	if errors.Is(err, datastore.ErrConflict) && slices.ContainsFunc(maps, portMap.loose) {
		err = p.publishEach(ctx, r.EndpointID, maps)
	}
	if err != nil {
		return nil, err
	}
	return nothing{}, p.state.changeEndpoint(r.EndpointID, func(e *endpoint) { e.Published = true })
}

func (p *plugin) publish(ctx context.Context, id string, ports []datastore.HostPort) error {
	_, err := heed(ctx, p, func(ctx context.Context) (nothing, error) {
		return nothing{}, p.agent.Waiting(callTimeout/2).Publish(ctx, control.PortRequest{Target: target(id), Ports: ports})
	})
	return err
}

// publishEach publishes one port more each time: so it is known which one another
// endpoint has, which no socket shows, and for that the next that will do is tried.
func (p *plugin) publishEach(ctx context.Context, id string, maps []portMap) (err error) {
	var ports []datastore.HostPort
	defer func() {
		if err != nil && len(ports) > 0 {
			p.withdraw(context.WithoutCancel(ctx), id)
		}
	}()
	for _, m := range maps {
		for try := 1; ; try++ {
			port, err := choose(ctx, m)
			if err != nil {
				return err
			}
			if err = p.publish(ctx, id, append(slices.Clone(ports), port)); err == nil {
				ports = append(ports, port)
				break
			}
			anew := m.HostPort == 0 && try < mostTries
			if !errors.Is(err, datastore.ErrConflict) || !anew && port.HostPort >= m.last() {
				return err
			}
			if !anew {
				m.HostPort = port.HostPort + 1
			}
		}
	}
	return nil
}

// unexpose ends that. When the endpoint is gone its ports are too.
func (p *plugin) unexpose(ctx context.Context, r endpointCall) (any, error) {
	e, ok := p.state.endpoint(r.EndpointID)
	if !ok || !e.Published {
		return nothing{}, nil
	}
	p.withdraw(ctx, r.EndpointID)
	return nothing{}, p.state.changeEndpoint(r.EndpointID, func(e *endpoint) { e.Published = false })
}

func (p *plugin) withdraw(ctx context.Context, id string) {
	ctx, cancel := short(ctx)
	defer cancel()
	if err := p.agent.Publish(ctx, control.PortRequest{Target: target(id)}); err != nil && !errors.Is(err, datastore.ErrNotFound) {
		p.log.Warn("ports stay published until the endpoint goes", "endpoint", id, "error", err)
	}
}

// choose is the first port of the host for a mapping that no process there uses.
func choose(ctx context.Context, m portMap) (port datastore.HostPort, err error) {
	names := map[uint8]string{6: "tcp", 17: "udp", 132: "sctp"} // IANA protocol numbers
	port = datastore.HostPort{Protocol: names[m.Proto], HostPort: m.HostPort, Port: m.Port}
	if port.Protocol == "" {
		return port, fmt.Errorf("published port %d: there is no protocol number %d to publish", m.Port, m.Proto)
	}
	if port.HostIP, err = control.HostAddress(m.HostIP); err != nil {
		return port, fmt.Errorf("published port %d: %w", m.Port, err)
	}
	for {
		free, err := vacant(ctx, port)
		if err == nil {
			port.HostPort = free
			return port, nil
		}
		if port.HostPort == m.last() {
			return port, fmt.Errorf("published port %d/%s: a process on this host has it: %w", port.HostPort, port.Protocol, err)
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
