package commands

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// sample is a valid value of the setting that differs from its default, as it
// is written in a flag, in the environment, and in YAML.
func (s setting) sample(n int) (text, yaml string) {
	switch s.def.(type) {
	case int:
		text = fmt.Sprint(100 + n)
	case bool:
		text = fmt.Sprint(n != 2)
	case time.Duration:
		text = fmt.Sprintf("%ds", 100+n)
	case []string:
		items := map[string]string{
			"roles":                   []string{"agent", "agent,speaker", "datastore,agent"}[n-1],
			"labels":                  fmt.Sprintf("a%d=x,b=y", n),
			"datastore::endpoints":    fmt.Sprintf("https://10.0.0.%d:2379,https://10.0.1.1:2379", n),
			"api::listen":             fmt.Sprintf("https://10.0.0.%d:7443", n),
			"etcd::listen":            fmt.Sprintf("https://10.0.0.%d:2379", n),
			"agent::addresses":        fmt.Sprintf("10.0.0.%d,fd00::%d", n, n),
			"agent::adopt":            fmt.Sprintf("vnet%d*=web,vm-*=db", n),
			"agent::runtimes":         []string{"docker", "docker,podman", "cni,podman"}[n-1],
			"docker::aliases":         fmt.Sprintf("calico%d,bird", n),
			"agent::workloadToHost":   fmt.Sprintf("udp/%d,tcp/53", n),
			"agent::failsafeInbound":  fmt.Sprintf("tcp/%d,tcp/22", n),
			"agent::failsafeOutbound": fmt.Sprintf("tcp/%d,udp/53", n),
		}[s.key]
		return items, "[\"" + strings.ReplaceAll(items, ",", `","`) + "\"]"
	default:
		text = fmt.Sprintf("/value%d", n)
		switch s.key {
		case "log::level":
			text = []string{"debug", "warn", "error"}[n-1]
		case "log::format":
			text = "json"
		case "agent::backend":
			text = []string{"nftables", "iptables", "iptables-nft"}[n-1]
		case "docker::scope":
			text = []string{"global", "local", "global"}[n-1]
		case "agent::established":
			text = []string{"keep", "cut", "strict"}[n-1]
		case "agent::reversePath":
			text = []string{"strict", "loose", "off"}[n-1]
		case "metrics::listen":
			text = fmt.Sprintf("127.0.0.%d", n)
		case "agent::gateway":
			text = fmt.Sprintf("169.254.1.%d", 10+n)
		case "docker::socket":
			text = fmt.Sprintf("/run/docker/plugins/v%d.sock", n)
		case "client::server":
			text = fmt.Sprintf("unix:///run/v%d.sock", n)
		case "etcd::peerURL":
			text = fmt.Sprintf("https://10.0.0.%d:2380", n)
		case "agent::linkPrefix", "node", "tunnels::ipip", "tunnels::vxlan", "tunnels::vxlan6", "tunnels::wireguard":
			text = fmt.Sprintf("v%d", n)
		}
	}
	return text, text
}

func flagsFor(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	fs.String("config", "", "")
	for _, s := range settingTable() {
		s.addTo(fs)
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

// nested is YAML that sets one key.
func nested(key, value string) string {
	var b strings.Builder
	parts := strings.Split(key, delimiter)
	for i, p := range parts {
		b.WriteString(strings.Repeat("  ", i) + p + ":")
		if i == len(parts)-1 {
			b.WriteString(" " + value)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// field reads a decoded setting by its key.
func field(s *settings, key string) string {
	v := reflect.ValueOf(s).Elem()
	for _, part := range strings.Split(key, delimiter) {
		v = v.FieldByNameFunc(func(n string) bool { return strings.EqualFold(n, part) })
	}
	if list, ok := v.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	if d, ok := v.Interface().(time.Duration); ok {
		return fmt.Sprintf("%ds", int(d.Seconds()))
	}
	return fmt.Sprint(v.Interface())
}

// TestEverySettingThreeWays sets each key in the file, over that in the
// environment, and over that by its flag.
func TestEverySettingThreeWays(t *testing.T) {
	for _, st := range settingTable() {
		t.Run(st.key, func(t *testing.T) {
			// Some are worth nothing without others.
			for _, group := range [][]string{
				{"datastore::user", "datastore::passwordFile", "datastore::endpoints", "datastore::ca"},
				{"datastore::endpoints", "datastore::ca", "datastore::cert", "datastore::key"},
				{"etcd::listen", "etcd::tls::ca", "etcd::tls::cert", "etcd::tls::key"},
			} {
				if !slices.Contains(group, st.key) {
					continue
				}
				for _, other := range settingTable() {
					if value, _ := other.sample(1); other.key != st.key && slices.Contains(group, other.key) {
						t.Setenv(other.env, value)
					}
				}
			}
			inFile, yaml := st.sample(1)
			inEnv, _ := st.sample(2)
			byFlag, _ := st.sample(3)
			file := filepath.Join(t.TempDir(), "netctl.yaml")
			if err := os.WriteFile(file, []byte(nested(st.key, yaml)), 0o600); err != nil {
				t.Fatal(err)
			}
			check := func(want, origin string, args ...string) {
				t.Helper()
				s, err := loadSettings(t.Context(), flagsFor(t, append([]string{"--config", file}, args...)...))
				if err != nil {
					t.Fatal(err)
				}
				if got := field(s, st.key); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if !strings.HasPrefix(s.origin[st.key], origin) {
					t.Errorf("origin %q, want %q", s.origin[st.key], origin)
				}
			}
			check(inFile, file+":")
			t.Setenv(st.env, inEnv)
			check(inEnv, "environment "+st.env)
			check(byFlag, "flag --"+st.flag, "--"+st.flag, byFlag)
		})
	}
}

func TestConfigFileErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"nod: n1\n", `:1: unknown key "nod"; the keys are: node, roles,`},
		{"agent:\n  mut: 3\n", `:2: unknown key "agent.mut"`},
		{"agent:\n  mtu: big\n", `:2: agent.mtu: "big" is not a whole number`},
		{"agent: 7\n", ":1: want keys and values"},
		{"node: [a]\n", ":1: node: want a string"},
		{"roles: agent\n", ":1: roles: want a list of strings"},
		{"node: a\nnode: b\n", ":2"},
		{"agent:\n  lostAfter: 5\n", `:2: agent.lostAfter: "5" is not a duration`},
		{"agent:\n  gateway: fe80::1\n", `:2: agent.gateway: "fe80::1" is not an IPv4 address`},
		{"routes:\n  agentProtocol: 88\n", ":2: routes.agentProtocol: 88: agent and speaker must have different numbers"},
		{"routes:\n  agentProtocol: 2\n", ":2: routes.agentProtocol: 2: want at least 5"},
		{"routes:\n  table: 255\n", ":2: routes.table: 255: that table is the kernel's; 0 is the main one, and any other number does"},
		{"routes:\n  maxPaths: 0\n", ":2: routes.maxPaths: 0: want at least 1"},
		{"routes:\n  resilient: perhaps\n", "routes.resilient: \"perhaps\" is not true or false"},
		{"tunnels:\n  ipip: nctun\n", `:2: tunnels.ipip: interface "nctun": begins with "nc"`},
		{"tunnels:\n  vxlan: a/b\n", ":2: tunnels.vxlan: interface"},
		{"tunnels:\n  vxlan6: tunl0\n", `:2: tunnels.vxlan6: "tunl0": another tunnel has that name`},
		{"agent:\n  mtu: 100000\n", ":2: agent.mtu: 100000: want at most 65535"},
		{"agent:\n  lostAfter: -5m\n", ":2: agent.lostAfter: "},
		{"agent:\n  addresses: [x]\n", `:2: agent.addresses: "x" is no address`},
		{"agent:\n  addresses: [10.0.0.1, 10.0.0.2]\n", "at most one address of each family"},
		{"agent:\n  linkPrefix: a/b\n", ":2: agent.linkPrefix: "},
		{"agent:\n  interface: '['\n", ":2: agent.interface: "},
		{"agent:\n  runtimes: [docker, rkt]\n", `:2: agent.runtimes: "rkt": must be one of docker, podman, cni`},
		{"agent:\n  workloadToHost: [foo]\n", `:2: agent.workloadToHost: "foo"`},
		{"speaker:\n  port: 70000\n", ":2: speaker.port: 70000: want at most 65535"},
		{"etcd:\n  quotaMiB: -1\n", ":2: etcd.quotaMiB: -1: want at least 16"},
		{"etcd:\n  listen: [http://10.0.0.1:2379]\n", ":2: etcd.listen: "},
		{"etcd:\n  peerURL: x\n", ":2: etcd.peerURL: "},
		{"stateDir: relative\n", `:1: stateDir: "relative": want an absolute path`},
		{"labels: [\"a b=c\"]\n", ":1: labels: "},
		{"roles: [speaker, reflector]\n", `:1: roles: speaker and reflector: one of them speaks BGP on a machine`},
		{"roles: [bogus]\n", `:1: roles: "bogus": want one of datastore, agent, speaker`},
		{"node: a\n---\nnode: b\n", ":2: one document only"},
		{"node: show\n", "node:"},
		{"labels: [rack]\n", `:1: labels: "rack": want NAME=VALUE`},
		{"log:\n  level: loud\n", `:2: log.level: "loud"`},
		{"\tnode: x\n", "netctl.yaml:1: found character"},
		{"node: x\n\tlabels: y\n", "netctl.yaml:2: "},
	} {
		file := filepath.Join(t.TempDir(), "netctl.yaml")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := loadSettings(t.Context(), flagsFor(t, "--config", file))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.text, err, c.want)
		}
	}
	if _, err := loadSettings(t.Context(), flagsFor(t, "--config", "/nonexistent/netctl.yaml")); err == nil {
		t.Error("a named file that does not exist is no error")
	}
}

// TestLabelsKeepTheirCase: viper lower-cases keys, so labels are values.
func TestLabelsKeepTheirCase(t *testing.T) {
	s, err := loadSettings(t.Context(), flagsFor(t, "--labels", "Rack=A1,topology.zone=z1"))
	if err != nil {
		t.Fatal(err)
	}
	if got := s.labelMap(); got["Rack"] != "A1" || got["topology.zone"] != "z1" {
		t.Errorf("labels %v", got)
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add("node: n1\nagent:\n  mtu: 1400\n")
	f.Add("labels: [Rack=A1]\ndatastore: {endpoints: [https://127.0.0.1:2379]}\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = checkConfig("f", []byte(text))
	})
}

// TestOnlyMember: where neither an agent nor a reflector shares the events, the member of the
// datastore does.
func TestOnlyMember(t *testing.T) {
	for roles, want := range map[string]bool{"datastore": true, "datastore speaker": true, "datastore agent speaker": false, "datastore reflector": false, "agent": false, "": false} {
		if s := (&settings{Roles: strings.Fields(roles)}); s.datastoreConfig().Shares != want {
			t.Errorf("%q: want %v", roles, want)
		}
	}
}
