package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
)

// delegation is a network's own choice of who assigns addresses: a plugin of that type
// (CNI specification, section 4, "Plugin Delegation"). What it assigns is written down as
// an address of netctl's is, so that no other node gives it to somebody else.
type delegation struct {
	call *call
	kind string
}

// ipam is who assigns addresses instead of netctl; nil: netctl does.
func (c *call) ipam() *delegation {
	if t := c.conf.IPAM.Type; t != "" && t != "netctl" {
		return &delegation{c, t}
	}
	return nil
}

// attach asks the plugin for addresses and the agent for an interface that has them. An
// address that somebody holds by now, on another node most often, is given back: plugins
// that count on from there come to one that is free.
func (d *delegation) attach(ctx context.Context, agent *control.AgentClient, req control.AttachRequest) (control.Attachment, dns, error) {
	req.Held = true
	for tried := []netip.Addr{}; ; {
		out, err := d.run(ctx, "ADD")
		if err != nil {
			return control.Attachment{}, dns{}, err
		}
		res, err := d.result(out)
		if err == nil {
			req.Addresses, err = res.all()
		}
		if err != nil {
			d.call.also(d.release())
			return control.Attachment{}, dns{}, err
		}
		a, err := agent.Attach(ctx, req)
		var e *control.Error
		switch {
		case err == nil:
			return a, res.DNS, nil
		case errors.As(err, &e) && e.Code == control.CodeExists:
			// The addresses may be those of what is there.
			return a, dns{}, err
		}
		undone := d.release()
		d.call.also(undone)
		again := slices.ContainsFunc(req.Addresses, func(a netip.Addr) bool { return slices.Contains(tried, a) })
		if e == nil || e.Code != control.CodeConflict || again || undone != nil || ctx.Err() != nil {
			return a, dns{}, err
		}
		tried = append(tried, req.Addresses...)
	}
}

// release gives the addresses back, in time of its own. A plugin that is not there has none.
func (d *delegation) release() error {
	if _, err := d.find(); err != nil {
		d.call.warn(err.Error())
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.call.ctx), delTimeout)
	defer cancel()
	_, err := d.run(ctx, "DEL")
	return err
}

func (d *delegation) result(out []byte) (*result, error) {
	res, err := parseResult(out)
	switch {
	case err != nil:
		return nil, errorf(codeDecode, "ipam plugin %s: %s", d.kind, strings.TrimPrefix(err.Error(), "prevResult: "))
	case res == nil || len(res.IPs) == 0:
		return nil, errorf(codeConfig, "ipam plugin %s: gave no address", d.kind)
	}
	return res, nil
}

// all are the result's addresses, at most one a family.
func (r *result) all() ([]netip.Addr, error) {
	s := said{where: "ipam"}
	for _, ip := range r.IPs {
		s.values = append(s.values, ip.Address)
	}
	return firstAddresses(s)
}

// maxAnswer bounds what is read of a plugin's answer, in bytes.
const maxAnswer = 1 << 20

// run executes the plugin with the request's own configuration and variables and returns
// what it prints.
func (d *delegation) run(ctx context.Context, command string) ([]byte, error) {
	path, err := d.find()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.WaitDelay = time.Second
	for k, v := range d.call.env {
		if k != "CNI_COMMAND" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.Env = append(cmd.Env, "CNI_COMMAND="+command)
	var out, diag bounded
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(d.call.raw), &out, &diag
	err = cmd.Run()
	for line := range strings.Lines(diag.String()) {
		d.call.warn("ipam plugin " + d.kind + ": " + strings.TrimSpace(line))
	}
	if err == nil {
		return out.Bytes(), nil
	}
	var refused failure
	if json.Unmarshal(out.Bytes(), &refused) == nil && refused.Code != 0 && refused.Msg != "" {
		return nil, errorf(refused.Code, "ipam plugin %s: %s", d.kind, strings.TrimSuffix(refused.Msg+"; "+refused.Details, "; "))
	}
	if ctx.Err() != nil {
		return nil, errorf(codeTryAgain, "ipam plugin %s: did not answer in time", d.kind)
	}
	return nil, errorf(codeInternal, "ipam plugin %s: %s: %v", d.kind, command, err)
}

// find looks for the plugin in the folders of CNI_PATH.
func (d *delegation) find() (string, error) {
	folders := filepath.SplitList(d.call.env["CNI_PATH"])
	if len(folders) == 0 {
		return "", errorf(codeEnvironment, "CNI_PATH is not set; it says where the ipam plugin %s is", d.kind)
	}
	for _, dir := range folders {
		path := filepath.Join(dir, d.kind)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", errorf(codeConfig, "ipam type %q: no such plugin in %s; leave ipam out and netctl assigns addresses itself", d.kind, d.call.env["CNI_PATH"])
}

// bounded keeps the first maxAnswer bytes of what is written.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), max(0, maxAnswer-b.Len()))])
	return len(p), nil
}
