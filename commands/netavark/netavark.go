// Package netavark owns the network plugin of Podman 5 and later: it answers one
// call of netavark's plugin API 1.0.0 (create, setup, teardown, info), for which it
// asks the agent over its unix socket.
//
// Like the CNI plugin it never touches the datastore or the kernel's networking,
// reads no configuration file and executes nothing: it opens the network namespace
// and tells the agent the descriptor's number. Nothing but the answer or the error
// goes to stdout. Every call ends in bounded time, whatever the agent does.
package netavark

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// How long a call may take, the wait for the agent included. A teardown that is not
// done by then is finished later.
const (
	setupTimeout    = control.AgentPatience
	teardownTimeout = 2 * time.Second
)

// maxInput bounds what is read from stdin, in bytes.
const maxInput = 1 << 20

// apiVersion is of the plugin API (netavark, plugin-API.md).
const apiVersion = "1.0.0"

// orchestrator is the first part of the endpoint's name below the node.
const orchestrator = "podman"

// Called reports whether the arguments are those of a call from netavark or Podman:
// exactly create, exactly info, or exactly setup PATH or teardown PATH.
func Called(args []string) bool {
	switch len(args) {
	case 1:
		return args[0] == "create" || args[0] == "info"
	case 2:
		return (args[0] == "setup" || args[0] == "teardown") && !strings.HasPrefix(args[1], "-")
	}
	return false
}

// Run carries out the call that args (which Called is true of), env (as of
// os.Environ) and stdin make and returns the exit code: 0, or 1 with an error object
// on stdout.
func Run(ctx context.Context, version string, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &call{ctx: ctx, socket: socket(env), warn: func(text string) { fmt.Fprintln(stderr, "netctl "+version+": "+text) }}
	out, err := c.run(version, args, stdin)
	if err != nil {
		out, _ = json.Marshal(failure{strings.ReplaceAll(err.Error(), "\n", "; ")})
	}
	if len(out) > 0 {
		if _, e := stdout.Write(append(out, '\n')); e != nil {
			return 1
		}
	}
	if err != nil {
		return 1
	}
	return 0
}

// failure is an error as it is printed. Podman takes no other key.
type failure struct {
	Error string `json:"error"`
}

// call is one request.
type call struct {
	ctx    context.Context
	socket string // the agent's
	warn   func(string)
}

// socket is where the agent listens: netavark's calls have no word on it but the
// environment's, which is Podman's.
func socket(env []string) (path string) {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "NETCTL_AGENT_SOCKET="); ok {
			path = v
		}
	}
	return cmp.Or(path, control.AgentSocket)
}

func (c *call) run(version string, args []string, stdin io.Reader) ([]byte, error) {
	if args[0] == "info" {
		return json.Marshal(struct {
			Version    string `json:"version"`
			APIVersion string `json:"api_version"`
		}{strings.TrimPrefix(version, "v"), apiVersion})
	}
	raw, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: stdin: %w", args[0], err)
	case len(raw) > maxInput:
		return nil, fmt.Errorf("%s: stdin: more than %d bytes", args[0], maxInput)
	case args[0] == "create":
		return create(raw)
	case args[0] == "setup":
		return c.setup(args[1], raw)
	}
	return nil, c.teardown(raw)
}

func (c *call) setup(path string, raw []byte) ([]byte, error) {
	var s setup
	if err := decode(raw, &s); err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	req, ports, err := s.request(path)
	if err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	// That it is a network namespace, and not the host's own, is checked by the agent,
	// which opens the same descriptor: it stays open until the answer is there.
	ns, err := control.OpenNetns(path)
	if err != nil {
		return nil, fmt.Errorf("setup: %w", err)
	}
	defer ns.Close()
	req.NetnsFD = int(ns.Fd())
	ctx, cancel := context.WithTimeout(c.ctx, setupTimeout)
	defer cancel()
	agent := control.NewAgentClient(c.socket).Waiting(setupTimeout)
	a, err := agent.Attach(ctx, req)
	if errors.Is(err, datastore.ErrInUse) && s.Network.chosen() {
		err = fmt.Errorf("%w (Podman chose it, on this node alone: make the network again, so that netctl does)", err)
	}
	if err != nil {
		return nil, err
	}
	if err := agent.PublishOrDetach(ctx, req, a, ports); err != nil {
		if errors.Is(err, datastore.ErrInUse) && strings.Count(err.Error(), "/"+req.Workload+"/") > 1 { // this one and who has it
			err = fmt.Errorf("%w (that is another network of this container: make one of them with -o publish=no)", err)
		}
		return nil, err
	}
	if a.Warning != "" {
		c.warn(a.Warning)
	}
	return json.Marshal(statusOf(a))
}

// teardown succeeds for what is not there. It opens no namespace: by now the path may
// be another container's. What has become wrong in the rest of the network does not
// keep Podman from cleaning up.
func (c *call) teardown(raw []byte) error {
	var t teardown
	var kind *json.UnmarshalTypeError
	err := json.Unmarshal(raw, &t)
	switch wrong := decodeError(err); {
	case errors.As(err, &kind) && t.ContainerID != "" && t.Options.Interface != "":
		c.warn("teardown: " + wrong.Error() + "; released all the same")
	case err != nil:
		return fmt.Errorf("teardown: %w", wrong)
	}
	if err := named(t.ContainerID, t.Options.Interface); err != nil {
		return fmt.Errorf("teardown: %w", err)
	}
	req := control.DetachRequest{Target: target(t.ContainerID, t.Options.Interface)}
	if t.Network.Name != "" {
		req.Network = datastore.ForeignName(t.Network.Name)
	}
	ctx, cancel := context.WithTimeout(c.ctx, teardownTimeout)
	defer cancel()
	pending := filepath.Join(filepath.Dir(c.socket), "pending")
	later, err := control.KeepDetach(pending, req, control.NewAgentClient(c.socket).Detach(ctx, req))
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		return nil
	case later != nil:
		c.warn(later.Error() + "; the endpoint is released once that is over")
	}
	return err
}

// target names the endpoint.
func target(containerID, interfaceName string) control.Target {
	return control.Target{Orchestrator: orchestrator, Workload: datastore.ForeignName(containerID), Interface: interfaceName}
}
