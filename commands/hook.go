package commands

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
)

type hookOptions struct {
	attachOptions
	lxc lxcEvent
}

func newHookCommand(a *app) *cobra.Command {
	var o hookOptions
	cmd := &cobra.Command{
		Use:   "hook",
		Short: "Attach and detach containers of runc, crun and LXC, as a hook of theirs",
		Long: "Attach a container as it starts, and detach it once it has stopped: one command for both hooks of a runtime. Of an OCI\n" +
			"runtime (createRuntime and poststop) it reads the container's state on stdin; of LXC (start-host and post-stop, with\n" +
			"lxc.hook.version = 1) its variables. The container needs a network namespace of its own without a network.",
		Example: "  netctl hook --network web <state.json\n" +
			"  netctl hook --network web --profile db --label tier=data <state.json",
		// LXC adds arguments of its own to hooks of version 0: they tell the same.
		Args:                  cobra.ArbitraryArgs,
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.lxc = lxcEvent{os.Getenv("LXC_NAME"), os.Getenv("LXC_HOOK_TYPE"), os.Getenv("LXC_PID")}
			if len(args) == 3 && args[1] == "lxc" {
				o.lxc.name, o.lxc.kind = cmp.Or(o.lxc.name, args[0]), cmp.Or(o.lxc.kind, args[2])
				args = nil
			}
			if len(args) > 0 {
				return usage("hook takes no arguments: %q", args[0])
			}
			return a.hook(cmd.Context(), &o)
		},
	}
	o.flags(a, cmd)
	return cmd
}

// event is what a hook is called for: a container that starts, whose process has a
// namespace, or one that has stopped.
type event struct {
	orchestrator string
	id           string
	pid          int // of what starts
	stopped      bool
	labels       map[string]string
}

// lxcEvent is what LXC says by its variables (lxc.container.conf(5), "Container hooks").
type lxcEvent struct{ name, kind, pid string }

// ociState is what an OCI runtime writes to its hooks (runtime specification, "State").
type ociState struct {
	ID          string            `json:"id"`
	Status      string            `json:"status"`
	PID         int               `json:"pid"`
	Annotations map[string]string `json:"annotations"`
}

// maxState bounds a state in bytes, mostLabels how many annotations become labels.
const (
	maxState   = 1 << 20
	mostLabels = 32
)

func (e lxcEvent) event() (event, error) {
	out := event{orchestrator: "lxc", id: e.name, stopped: e.kind == "post-stop", labels: map[string]string{"name": e.name, "lxc.name": e.name}}
	switch e.kind {
	case "start-host":
		var err error
		if out.pid, err = strconv.Atoi(e.pid); err != nil || out.pid <= 0 {
			return out, fmt.Errorf("LXC_PID %q is no process; the hook must be start-host", e.pid)
		}
	case "post-stop":
	default:
		return out, fmt.Errorf("the hook of LXC must be start-host or post-stop, not %q", e.kind)
	}
	return out, nil
}

// parseState reads the state that an OCI runtime passes.
func parseState(stdin io.Reader) (out event, err error) {
	raw, err := io.ReadAll(io.LimitReader(stdin, maxState+1))
	if err != nil {
		return out, fmt.Errorf("the container's state on stdin: %w", err)
	}
	var s ociState
	switch err := json.Unmarshal(raw, &s); {
	case len(raw) > maxState:
		return out, fmt.Errorf("the container's state on stdin has more than %d bytes", maxState)
	case err != nil:
		return out, fmt.Errorf("stdin is not the state that an OCI runtime writes to its hooks: %w", err)
	case s.ID == "":
		return out, fmt.Errorf("the container's state on stdin has no id")
	case s.Status == "":
		return out, fmt.Errorf("the state of container %s has no status", s.ID)
	}
	out = event{orchestrator: "oci", id: s.ID, pid: s.PID, stopped: s.Status == "stopped", labels: map[string]string{"name": s.ID}}
	if !out.stopped && s.PID <= 0 {
		return out, fmt.Errorf("the state of container %s (%s) has no pid; the hook must be createRuntime or poststop", s.ID, s.Status)
	}
	for k, v := range s.Annotations {
		if len(out.labels) < mostLabels && !strings.HasPrefix(k, "netctl/") && datastore.CheckLabel(k, v) == nil {
			out.labels[k] = v
		}
	}
	return out, nil
}

func (a *app) hook(ctx context.Context, o *hookOptions) error {
	e, err := o.lxc.event()
	if o.lxc.kind == "" {
		if f, ok := a.in.(*os.File); ok && isTerminal(f) {
			return usage("hook is for a container's runtime, which says on stdin or by LXC's variables what happened: see `netctl hook --help`")
		}
		e, err = parseState(a.in)
	}
	if err != nil {
		return fmt.Errorf("hook: %w", err)
	}
	r := &o.request
	r.Orchestrator, r.Workload = e.orchestrator, datastore.ForeignName(e.id)
	if r.Workload != e.id {
		e.labels[datastore.LabelContainer] = e.id
	}
	if e.stopped {
		return a.detachStopped(ctx, control.DetachRequest{Target: r.Target, Network: r.Network})
	}
	r.Labels = e.labels
	if _, err = a.attach(ctx, &o.attachOptions, netnsOf(e.pid)); err != nil {
		return fmt.Errorf("container %s: %w", e.id, err)
	}
	return nil
}

// detachStopped releases the endpoint of a container that has stopped, or has that done
// later: nobody calls the hook again.
func (a *app) detachStopped(ctx context.Context, r control.DetachRequest) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, control.AgentPatience)
	defer cancel()
	return a.keepDetach(s, r, control.NewAgentClient(s.Agent.Socket).Detach(ctx, r))
}
