package commands

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"netctl/commands/install"
)

// installedIn lays netctl down in the folder of an image, and says what became of the
// configuration.
func installedIn(t *testing.T, root string, roles ...string) install.Action {
	t.Helper()
	self := filepath.Join(t.TempDir(), "netctl")
	if err := os.WriteFile(self, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := install.New(install.Options{Root: root, Self: self, Roles: roles, Replace: true})
	if err == nil {
		err = p.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range p.Steps {
		if s.Path == install.ConfigFile {
			return s.Action
		}
	}
	t.Fatal("nothing of the configuration")
	return ""
}

// loads reads the settings of a node that is made, with what is said on the command line.
func loads(t *testing.T, n *newNode, args ...string) {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.String("config", n.config, "")
	for _, st := range settingTable() {
		if st.key == "roles" {
			st.addTo(flags)
		}
	}
	err := flags.Parse(args)
	if err == nil {
		n.s, err = loadSettingsFrom(t.Context(), flags, false)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestInstalledThenJoined: what an install laid down as configuration is nobody's, and
// what a node writes in its place is no install's.
func TestInstalledThenJoined(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, install.ConfigFile)
	node := func() *newNode {
		return &newNode{command: "join", config: file, root: root, address: netip.MustParseAddr("192.0.2.2")}
	}
	installedIn(t, root, "datastore", "agent", "speaker")
	n := node()
	if err := n.unconfigured(); err != nil || !n.laid {
		t.Fatalf("laid down: %t, %v", n.laid, err)
	}
	laid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	loads(t, n)
	if err := n.chooseRoles([]string{"agent"}); err != nil {
		t.Fatal(err)
	}
	// Changed, it is somebody's, also if that happens while the cluster is asked.
	if err := os.WriteFile(file, append(laid, "node: n2\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"changed": node().unconfigured(), "changed meanwhile": n.configure([]string{"https://192.0.2.1:2379"}, 2378)} {
		if err == nil || !strings.Contains(err.Error(), "somebody's configuration") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := os.WriteFile(file, laid, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.unconfigured(); err != nil {
		t.Fatal(err)
	}
	if err := n.configure([]string{"https://192.0.2.1:2379"}, 2378); err != nil {
		t.Fatal(err)
	}
	made, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(made), madeBy+"join") || !strings.Contains(string(made), "roles: [agent, speaker]\n") {
		t.Fatalf("%v\n%s", err, made)
	}
	n.undo()
	if err := node().unconfigured(); err == nil || !strings.Contains(err.Error(), "in a cluster already") {
		t.Errorf("joined: %v", err)
	}
	// It stays as it is through another install, and an uninstall.
	if is := installedIn(t, root, "reflector"); is != install.Kept {
		t.Errorf("another install: %s", is)
	}
	p, err := install.NewUninstall(root)
	if err == nil {
		err = p.Apply()
	}
	if err != nil {
		t.Fatal(err)
	}
	if is, err := os.ReadFile(file); err != nil || string(is) != string(made) {
		t.Errorf("after uninstall: %v\n%s", err, is)
	}
}

// TestPackagedThenJoined: a package lays down the same configuration, and no manifest.
func TestPackagedThenJoined(t *testing.T) {
	root := t.TempDir()
	n := &newNode{command: "join", config: filepath.Join(root, install.ConfigFile), root: root}
	installedIn(t, root, install.DefaultRoles()...)
	if err := os.Remove(filepath.Join(root, install.Manifest)); err != nil {
		t.Fatal(err)
	}
	if err := n.unconfigured(); err != nil || !n.laid {
		t.Errorf("%t, %v", n.laid, err)
	}
	if err := os.WriteFile(n.config, []byte("roles: [datastore, agent, speaker]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.unconfigured(); err == nil || n.laid {
		t.Errorf("a person's: %t, %v", n.laid, err)
	}
}

// TestRolesOfInstall: those that an install was asked for stay, but who has the datastore
// is the node's.
func TestRolesOfInstall(t *testing.T) {
	for _, c := range []struct {
		installed string
		member    bool
		args      []string
		want      string // "": refused
	}{
		{"datastore,agent,speaker", false, nil, "agent,speaker"},
		{"datastore,agent,speaker", true, nil, "datastore,agent,speaker"},
		{"agent,reflector", true, nil, "datastore,agent,reflector"},
		{"agent,reflector", false, nil, "agent,reflector"},
		{"datastore", false, nil, "given"},
		{"agent,reflector", false, []string{"--roles", "agent"}, "agent"},
		{"agent,reflector", false, []string{"--roles", "agent,datastore"}, ""},
	} {
		root := t.TempDir()
		installedIn(t, root, strings.Split(c.installed, ",")...)
		n := &newNode{command: "join", config: filepath.Join(root, install.ConfigFile), root: root, member: c.member}
		if err := n.unconfigured(); err != nil {
			t.Error(err)
			continue
		}
		loads(t, n, c.args...)
		err := n.chooseRoles([]string{"given"})
		if is := strings.Join(n.s.Roles, ","); (err == nil) != (c.want != "") || err == nil && is != c.want {
			t.Errorf("%+v: %s, %v", c, is, err)
		}
	}
}

// TestUnfinishedJoin: what a join left that was killed is in nobody's way, a node's
// certificates are.
func TestUnfinishedJoin(t *testing.T) {
	n := &newNode{command: "join", s: &settings{StateDir: t.TempDir()}}
	if err := n.write(n.files("node").Key, []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.unused(); err != nil {
		t.Errorf("a key alone: %v", err)
	}
	if err := n.write(n.files("node").Cert, []byte("certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.unused(); err == nil || !strings.Contains(err.Error(), "this machine is, or was, a node") {
		t.Errorf("key and certificate: %v", err)
	}
}
