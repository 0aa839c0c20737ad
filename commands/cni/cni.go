// Package cni owns the CNI plugin: it reads one request (CNI specification
// 0.3.1, 0.4.0, 1.0.0 or 1.1.0), asks the agent over its unix socket, and prints
// the result.
//
// It never touches the datastore or the kernel's networking, reads no
// configuration file and executes nothing but the plugin that a network names for its
// addresses: it opens the network namespace and
// tells the agent the descriptor's number. Nothing but the result or the error
// goes to stdout. Every call ends in bounded time, whatever the agent does.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// How long a call may take, the wait for the agent included. ADD is long enough for a
// store that elects a leader; a DEL that is not done by then is finished later; a
// runtime calls STATUS in passing.
const (
	callTimeout   = control.AgentPatience
	delTimeout    = 2 * time.Second
	statusTimeout = 5 * time.Second
)

// maxConfig bounds what is read from stdin, in bytes.
const maxConfig = 1 << 20

// orchestrator is the first part of the endpoint's name below the node. DEL gets
// no more than container ID and interface from some runtimes, so it cannot depend
// on who calls.
const orchestrator = "cni"

// Run carries out the request that env (as of os.Environ) and stdin make and
// returns the exit code: 0, or 1 with an error object on stdout.
func Run(ctx context.Context, version string, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &call{ctx: ctx, env: environ(env), warn: func(text string) { fmt.Fprintln(stderr, "netctl "+version+": "+text) }}
	out, err := c.run(stdin)
	if err != nil {
		out, _ = json.Marshal(c.failure(err))
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

// About is what the plugin says that is asked nothing: Nomad runs every file of its CNI
// path without arguments and looks for a version.
func About(version string) string {
	return "CNI netctl plugin v" + strings.TrimPrefix(version, "v") + "\nrun `netctl --help` for the commands\n"
}

// call is one request.
type call struct {
	ctx  context.Context
	env  map[string]string
	warn func(string)
	raw  []byte // the network configuration
	conf netConf
}

func (c *call) run(stdin io.Reader) ([]byte, error) {
	command := c.env["CNI_COMMAND"]
	if command == "VERSION" {
		return c.version(stdin)
	}
	verbs := map[string]func() ([]byte, error){"ADD": c.add, "DEL": c.del, "CHECK": c.check, "GC": c.gc, "STATUS": c.status}
	verb := verbs[command]
	if verb == nil {
		return nil, errorf(codeEnvironment, "CNI_COMMAND %q is not supported; ADD, DEL, CHECK, GC, STATUS and VERSION are", command)
	}
	if err := c.configure(stdin); err != nil {
		if command != "DEL" { // container and interface, which are in the environment, name the endpoint
			return nil, err
		}
		c.warn(err.Error() + "; released all the same")
	}
	if since := map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}[command]; c.older(since) {
		return nil, errorf(codeVersion, "cniVersion %s has no %s, which came with %s", c.conf.CNIVersion, command, since)
	}
	return verb()
}

// configure reads the network configuration, as far as it can be read.
func (c *call) configure(stdin io.Reader) (err error) {
	if c.raw, err = read(stdin); err == nil {
		c.conf, err = parseConf(c.raw)
	}
	return err
}

// read takes the network configuration from stdin.
func read(stdin io.Reader) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(stdin, maxConfig+1))
	switch {
	case err != nil:
		return nil, errorf(codeIO, "network configuration on stdin: %v", err)
	case len(raw) > maxConfig:
		return nil, errorf(codeConfig, "network configuration on stdin: more than %d bytes", maxConfig)
	}
	return raw, nil
}

// versions are the versions of the specification that are answered, oldest
// first.
func versions() []string { return []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// older reports whether the request's version is before v.
func (c *call) older(v string) bool {
	return slices.Index(versions(), c.conf.CNIVersion) < slices.Index(versions(), v)
}

// version answers VERSION. Podman calls it on every command, with nonsense in
// the other variables, so nothing but the version asked for is looked at. From
// a terminal nothing will ever come.
func (c *call) version(stdin io.Reader) ([]byte, error) {
	all := versions()
	answer := struct {
		CNIVersion string   `json:"cniVersion"`
		Supported  []string `json:"supportedVersions"`
	}{all[len(all)-1], all}
	if f, ok := stdin.(*os.File); ok {
		if st, err := f.Stat(); err != nil || st.Mode()&os.ModeCharDevice != 0 {
			return json.Marshal(answer)
		}
	}
	var asked struct {
		CNIVersion string `json:"cniVersion"`
	}
	if raw, err := read(stdin); err == nil && json.Unmarshal(raw, &asked) == nil && asked.CNIVersion != "" {
		answer.CNIVersion = asked.CNIVersion
	}
	return json.Marshal(answer)
}

func (c *call) add() ([]byte, error) {
	if err := c.require("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"); err != nil {
		return nil, err
	}
	prev, err := parseResult(c.conf.PrevResult)
	if err != nil {
		return nil, err
	}
	req, err := c.request()
	if err != nil {
		return nil, err
	}
	ports, err := c.conf.ports()
	if err != nil {
		return nil, err
	}
	ns, err := c.namespace()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	req.NetnsFD = int(ns.Fd())
	agent, ctx, cancel := c.waiting()
	defer cancel()
	a, names, err := c.attach(ctx, agent, req)
	if err != nil {
		return nil, err
	}
	if err := agent.PublishOrDetach(ctx, req, a, ports); err != nil {
		if d := c.ipam(); d != nil {
			c.also(d.release())
		}
		return nil, err
	}
	if a.Warning != "" {
		c.warn(a.Warning)
	}
	return c.encode(attached(prev, a, c.env["CNI_NETNS"], names))
}

// attach has the interface made, with addresses of netctl's or of the plugin that the
// network names.
func (c *call) attach(ctx context.Context, agent *control.AgentClient, req control.AttachRequest) (control.Attachment, dns, error) {
	names := c.conf.dns()
	d := c.ipam()
	if d == nil {
		a, err := agent.Attach(ctx, req)
		return a, names, err
	}
	a, theirs, err := d.attach(ctx, agent, req)
	if names.empty() {
		names = theirs
	}
	return a, names, err
}

// del succeeds for what is not there, without namespace and without prevResult.
// It never opens a path: by now that may be another container's.
func (c *call) del() ([]byte, error) {
	if err := c.require("CNI_CONTAINERID", "CNI_IFNAME"); err != nil {
		return nil, err
	}
	req := control.DetachRequest{Target: c.target()}
	if c.conf.Name != "" {
		req.Network = datastore.ForeignName(c.conf.Name)
	}
	ctx, cancel := context.WithTimeout(c.ctx, delTimeout)
	defer cancel()
	later, err := control.KeepDetach(filepath.Join(filepath.Dir(c.socket()), "pending"), req, c.agent().Detach(ctx, req))
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		err = nil
	case later != nil:
		c.warn(later.Error() + "; the endpoint is released once that is over")
	}
	if d := c.ipam(); d != nil {
		if e := d.release(); err == nil {
			err = e
		} else {
			c.also(e)
		}
	}
	return nil, err
}

func (c *call) check() ([]byte, error) {
	if err := c.require("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"); err != nil {
		return nil, err
	}
	prev, err := parseResult(c.conf.PrevResult)
	if err != nil {
		return nil, err
	}
	if prev == nil {
		return nil, errorf(codeConfig, "prevResult is missing; CHECK needs it")
	}
	addrs, ok := prev.addresses(c.env["CNI_IFNAME"])
	if !ok {
		return nil, errorf(codeConfig, "prevResult: no interface %s in a sandbox", c.env["CNI_IFNAME"])
	}
	ns, err := c.namespace()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	agent, ctx, cancel := c.waiting()
	defer cancel()
	if d := c.ipam(); d != nil {
		if _, err := d.run(ctx, "CHECK"); err != nil {
			return nil, err
		}
	}
	return nil, agent.Check(ctx, control.CheckRequest{Target: c.target(), NetnsFD: int(ns.Fd()), Addresses: addrs})
}

// status answers whether ADD would be worth trying.
func (c *call) status() ([]byte, error) {
	ctx, cancel := context.WithTimeout(c.ctx, statusTimeout)
	defer cancel()
	s, err := c.agent().Status(ctx)
	switch {
	case err != nil:
		return nil, errorf(codeNotAvailable, "%v", err)
	case s.Detached != "":
		return nil, errorf(codeNotAvailable, "agent of node %s is detached: %s", s.Node, s.Detached)
	case s.Store != "":
		return nil, errorf(codeNotAvailable, "agent of node %s: %s", s.Node, s.Store)
	}
	if d := c.ipam(); d != nil {
		_, err = d.run(ctx, "STATUS")
		return nil, err
	}
	return nil, nil
}

// also tells what went wrong beside what is answered.
func (c *call) also(err error) {
	if err != nil {
		c.warn(err.Error())
	}
}

// target names the endpoint; a container ID may be foreign to the model.
func (c *call) target() control.Target {
	return control.Target{Orchestrator: orchestrator, Workload: datastore.ForeignName(c.env["CNI_CONTAINERID"]), Interface: c.env["CNI_IFNAME"]}
}

// socket is where the agent listens: the network's word, the environment's, or
// the default.
func (c *call) socket() string {
	for _, s := range []string{c.conf.AgentSocket, c.env["NETCTL_AGENT_SOCKET"]} {
		if s != "" {
			return s
		}
	}
	return control.AgentSocket
}

func (c *call) agent() *control.AgentClient { return control.NewAgentClient(c.socket()) }

// waiting is the agent for a call that waits for it, and the time that the call has.
func (c *call) waiting() (*control.AgentClient, context.Context, context.CancelFunc) {
	wait := c.conf.agentWait()
	ctx, cancel := context.WithTimeout(c.ctx, max(wait, callTimeout))
	return c.agent().Waiting(wait), ctx, cancel
}

// environ is env as a map; of a name given twice the last counts.
func environ(env []string) map[string]string {
	m := make(map[string]string, len(env))
	for _, e := range env {
		if k, v, ok := strings.Cut(e, "="); ok {
			m[k] = v
		}
	}
	return m
}
