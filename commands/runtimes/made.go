package runtimes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/datastore"
)

// Made is a network that netctl made in a runtime of this host.
type Made struct {
	Network string
	// At is where a person finds it.
	At string
	// Changed says that a person has changed it since: it is that person's.
	Changed bool
	// Orchestrators are those whose endpoints come by it.
	Orchestrators []string

	have  found
	place place
}

// lookTime bounds the looks of All: Docker may be one that its socket starts.
const lookTime = 30 * time.Second

// All is what netctl made in the runtimes of this host, whatever settings say now; what
// people made is not in it. A Docker that does not run has nothing. An error is about the
// runtimes that could not be looked at; what the others have is there beside it.
func All(ctx context.Context, cfg Config) (list []Made, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	cfg.Runtimes = datastore.Runtimes()
	quiet := slog.New(slog.DiscardHandler)
	add := func(p place, orchestrators ...string) {
		have, e := p.look(ctx)
		if errors.Is(e, unix.ECONNREFUSED) { // a socket of who was killed
			return
		}
		if e != nil {
			err = errors.Join(err, e)
			return
		}
		for name, f := range have {
			if f.ours {
				list = append(list, Made{Network: name, At: f.at, Changed: f.changed, Orchestrators: orchestrators, have: f, place: p})
			}
		}
	}
	if d := newDocker(cfg); isSocket(d.api.Socket) {
		add(d, "docker")
	}
	add(newNetavark(cfg, quiet), "podman")
	add(newConflists(cfg, quiet), "cni", "podman")
	slices.SortFunc(list, func(a, b Made) int { return strings.Compare(a.At, b.At) })
	return list, err
}

// Remove takes it away, whether our roles run or not.
func (m Made) Remove(ctx context.Context) error {
	if m.Changed {
		return fmt.Errorf("%s was changed by hand: remove it yourself", m.At)
	}
	if d, is := m.place.(*docker); is {
		end, err := d.standIn(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", m.At, err)
		}
		defer end()
	}
	if err := m.place.remove(ctx, m.have); err != nil {
		return fmt.Errorf("%s: %w", m.At, err)
	}
	return nil
}

// standIn answers Docker in place of our driver, if that does not run: Docker removes no
// network without asking its driver, which has nothing to do then.
func (d *docker) standIn(ctx context.Context) (end func(), err error) {
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", d.socket); err == nil {
		_ = conn.Close()
		return func() {}, nil
	}
	l, err := control.Listen(d.socket, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = serve.Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			text := "{}"
			switch r.URL.Path {
			case "/Plugin.Activate":
				text = `{"Implements": ["NetworkDriver", "IpamDriver"]}`
			case "/NetworkDriver.GetCapabilities":
				text = `{"Scope": "local", "ConnectivityScope": "global"}`
			}
			w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.1+json")
			_, _ = w.Write([]byte(text))
		}))
	}()
	return func() {
		cancel()
		<-ended
		_ = os.Remove(d.socket) // Docker waits for one that is there and refuses
	}, nil
}
