package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"netctl/commands/control"
	"netctl/datastore"
)

// attachment is one that the runtime still has (CNI specification, section 2, "GC").
type attachment struct {
	ContainerID string `json:"containerID"`
	Interface   string `json:"ifname"`
}

// gc releases what is dead of what the same runtime attached to this network and does not
// list. A list is of one runtime alone, also where several have a network of that name.
func (c *call) gc() ([]byte, error) {
	if c.env["CNI_PATH"] == "" {
		return nil, errorf(codeEnvironment, "CNI_PATH is not set")
	}
	var valid []attachment // libcni leaves an empty list out
	if err := json.Unmarshal(c.conf.Valid, &valid); len(c.conf.Valid) > 0 && err != nil {
		return nil, errorf(codeDecode, "network configuration: cni.dev/valid-attachments: must be a list of containerID and ifname")
	}
	req := control.CollectRequest{Orchestrator: orchestrator, Network: datastore.ForeignName(c.conf.Name), Runtime: c.runtime()}
	for i, a := range valid {
		if !identifier(a.ContainerID) || !interfaceName(a.Interface) {
			return nil, errorf(codeConfig, "cni.dev/valid-attachments[%d]: containerID %q, ifname %q: is no attachment", i, a.ContainerID, a.Interface)
		}
		req.Valid = append(req.Valid, control.Target{Workload: datastore.ForeignName(a.ContainerID), Interface: a.Interface})
	}
	if req.Runtime == "" {
		c.warn("nothing is released: who asks cannot be told")
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, callTimeout)
	defer cancel()
	done, err := c.agent().Collect(ctx, req)
	for _, name := range done.Released {
		c.warn("released " + name + ", which is dead and not listed")
	}
	if d := c.ipam(); d != nil {
		if _, e := d.run(ctx, "GC"); err == nil {
			err = e
		} else {
			c.also(e)
		}
	}
	return nil, err
}

// runtime is who calls, as far as that shows: the program that executes this one, which is
// the same for ADD and GC of one runtime, and where it looks for plugins. "": it does not.
func (c *call) runtime() string {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", os.Getppid()))
	if err != nil {
		return ""
	}
	return program + " " + c.env["CNI_PATH"]
}
