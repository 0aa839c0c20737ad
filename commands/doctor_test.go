package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"netctl/commands/doctor"
)

// TestShowExamination: what is wrong comes first, each with its fix, and the exit code
// tells the three outcomes apart.
func TestShowExamination(t *testing.T) {
	fine := doctor.Result{Name: "forwarding", State: doctor.Fine, Meaning: "m1", Findings: []doctor.Finding{}}
	skipped := doctor.Result{Name: "docker", State: doctor.Skipped, Meaning: "m2", Reason: "no Docker runs here", Findings: []doctor.Finding{}}
	unknown := doctor.Result{Name: "clock", State: doctor.Unknown, Meaning: "m3", Reason: "nobody tells", Findings: []doctor.Finding{}}
	wrong := doctor.Result{Name: "pools", State: doctor.Wrong, Meaning: "m4", Findings: []doctor.Finding{{What: "pool x lies over y", Fix: []string{"netctl pool remove x", "# or renumber y"}, Fixable: true}}}
	mended := doctor.Result{Name: "rp-filter", State: doctor.Fine, Meaning: "m5", Findings: []doctor.Finding{}, Changes: []string{"a: 2, was 1"}}
	for _, x := range []struct {
		checks []doctor.Result
		code   int
		text   string
	}{
		{[]doctor.Result{fine, skipped, mended}, exitOK, "mended rp-filter: a: 2, was 1\n\n3 checks: 2 fine, 1 do not apply here\n"},
		{[]doctor.Result{fine, unknown}, exitFailed, "? clock: could not tell: nobody tells\n\n2 checks: 1 could not be told, 1 fine\n"},
		{[]doctor.Result{unknown, wrong}, exitNo, "! pools: pool x lies over y\n    meaning: m4\n    fix:     netctl pool remove x\n             # or renumber y\n             or `netctl doctor --fix` does it\n" +
			"? clock: could not tell: nobody tells\n\n2 checks: 1 wrong, 1 could not be told\n"},
	} {
		var out bytes.Buffer
		a := &app{out: &out, err: &out, started: true}
		err := a.showExamination(formatTable, &doctor.Report{Checks: x.checks})
		code := exitOK
		if err != nil {
			code = a.exitCode(err)
		}
		if out.String() != x.text || code != x.code {
			t.Errorf("exit code %d, want %d:\n%s", code, x.code, out.String())
		}
		for _, f := range []format{formatJSON, formatYAML, formatWide} {
			out.Reset()
			if got := a.showExamination(f, &doctor.Report{Checks: x.checks}); (got == nil) != (err == nil) || errors.Is(got, errNo) != errors.Is(err, errNo) {
				t.Errorf("%s: %v, and as a table %v", f, got, err)
			}
			var back doctor.Report
			if f == formatJSON && (json.Unmarshal(out.Bytes(), &back) != nil || len(back.Checks) != len(x.checks)) {
				t.Errorf("%s", out.String())
			}
			if f != formatJSON && !strings.Contains(out.String(), x.checks[0].Name) {
				t.Errorf("%s:\n%s", f, out.String())
			}
		}
	}
}

// TestDoctorArguments: what cannot be meant is refused before anything is looked at.
func TestDoctorArguments(t *testing.T) {
	for _, args := range [][]string{{"--to", "host"}, {"--to", "127.0.0.1"}, {"--to", "fe80::1%eth0"}, {"--to", "0.0.0.0"}, {"-o", "xml"}, {"now"}} {
		var out bytes.Buffer
		if code := runForTest(&out, append([]string{"doctor"}, args...)...); code != exitUsage || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%q: exit code %d\n%s", args, code, out.String())
		}
	}
}

// TestDoctorConfig: the checks look at what the node's settings say.
func TestDoctorConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "netctl.yaml")
	text := "node: n1\nroles: [datastore, agent, speaker]\nstateDir: /s\ndatastore: {endpoints: [\"https://10.0.0.1:2379\"], ca: /c, cert: /d, key: /k}\n" +
		"etcd: {listen: [\"https://10.0.0.1:2379\"], peerURL: \"https://10.0.0.1:2380\", tls: {ca: /c, cert: /e, key: /k}}\nagent: {addresses: [10.0.0.1], linkPrefix: cali}\nspeaker: {port: 1179}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	root := newRootCommand(&app{})
	if err := root.PersistentFlags().Set("config", file); err != nil {
		t.Fatal(err)
	}
	s, err := loadSettings(t.Context(), root.PersistentFlags())
	if err != nil {
		t.Fatal(err)
	}
	c := s.doctorConfig()
	if c.Node != "n1" || c.StateDir != "/s" || c.BGPPort != 1179 || c.LinkPrefix != "cali" || len(c.Roles) != 3 || !s.hasStore() ||
		strings.Join(c.Certificates, " ") != "/c /d /e" || len(c.EtcdListen) != 2 || c.EtcdListen[0] != netip.MustParseAddrPort("10.0.0.1:2380") || c.Addresses[0] != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("%+v", c)
	}
}

// TestDoctorOfExternal: beside an external etcd nothing is asked of this machine that an etcd
// here would need: its ports, and a fast disk.
func TestDoctorOfExternal(t *testing.T) {
	s := &settings{Roles: []string{"datastore", "agent"}}
	s.Agent.Gateway = "169.254.1.1"
	if is := s.doctorConfig().Roles; !slices.Contains(is, "datastore") {
		t.Errorf("of netctl's own: %q", is)
	}
	s.Datastore.User = "root"
	if is := s.doctorConfig().Roles; !slices.Equal(is, []string{"agent"}) || len(s.Roles) != 2 {
		t.Errorf("of an external one: %q", is)
	}
}
