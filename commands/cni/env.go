package cni

import (
	"errors"
	"os"
	"strings"

	"netctl/commands/control"
)

// require checks the variables that the verb needs (CNI specification, section
// 2, "Parameters").
func (c *call) require(names ...string) error {
	for _, name := range names {
		v := c.env[name]
		switch {
		case v == "":
			return errorf(codeEnvironment, "%s is not set", name)
		case name == "CNI_CONTAINERID" && !identifier(v):
			return errorf(codeEnvironment, "%s %q: must begin with a letter or digit, then letters, digits, _ . -", name, v)
		case name == "CNI_IFNAME" && !interfaceName(v):
			return errorf(codeEnvironment, "%s %q: no interface name (1 to 15 bytes without blanks, / and :)", name, v)
		}
	}
	return nil
}

// identifier is what the specification allows as container ID or network name.
func identifier(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}

// interfaceName is what the kernel takes as one (dev_valid_name).
func interfaceName(s string) bool {
	return s != "" && len(s) <= 15 && s != "." && s != ".." && !strings.ContainsAny(s, "/: \t\n\v\f\r")
}

// ownNamespace is the namespace that the plugin, like the agent, lives in.
const ownNamespace = "/proc/self/ns/net"

// namespace opens the container's. That it is a network namespace is checked by
// the agent, which opens the same descriptor.
func (c *call) namespace() (*os.File, error) {
	path := c.env["CNI_NETNS"]
	f, err := control.OpenNetns(path)
	if err != nil {
		return nil, errorf(codeNamespace, "%v", err)
	}
	st, err := f.Stat()
	if err == nil {
		if own, e := os.Stat(ownNamespace); e == nil && os.SameFile(st, own) {
			err = errors.New("is the host's own, and must be the container's")
		}
	}
	if err != nil {
		f.Close()
		return nil, errorf(codeNamespace, "network namespace %s: %v", path, err)
	}
	return f, nil
}
