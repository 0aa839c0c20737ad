package commands

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"netctl/acl"
	"netctl/commands/docker"
	"netctl/datastore"
	"netctl/datastore/etcd"
)

// defaultConfigFile is read if it exists and no other is named.
const defaultConfigFile = "/etc/netctl.yaml"

// delimiter parts the levels of a key; a dot would split keys that hold one.
const delimiter = "::"

// setting is one key of the configuration: flag > environment > file > default.
type setting struct {
	key   string // path in the file, levels parted by delimiter
	def   any    // default; its type is the setting's
	flag  string
	env   string
	usage string
}

// section is the first level of the key, "" for keys at the top.
func (s setting) section() string {
	if sec, _, ok := strings.Cut(s.key, delimiter); ok {
		return sec
	}
	return ""
}

// defaultCertificateLife is long enough for a node to be off for months.
const defaultCertificateLife = 365 * 24 * time.Hour

// defaultMetricsPort and the three after it are used by no other program that is known
// to Prometheus' list of ports.
const defaultMetricsPort = 9587

// settingTable is every key there is.
func settingTable() []setting {
	failsafeIn, failsafeOut := acl.DefaultFailsafes()
	return []setting{
		{"node", "", "node-name", "NETCTL_NODE", "this node's `name` (default: the host name)"},
		{"roles", []string(nil), "roles", "NETCTL_ROLES", "`roles` that netctl node runs: datastore, agent, speaker, reflector (in place of speaker), docker, api"},
		{"labels", []string(nil), "labels", "NETCTL_LABELS", "labels of this node, as `NAME=VALUE`,…"},
		{"stateDir", "/var/lib/netctl-node", "state-dir", "NETCTL_STATE_DIR", "`folder` of what must survive a reboot"},
		{"runDir", "/run/netctl-node", "run-dir", "NETCTL_RUN_DIR", "`folder` of sockets and of what ends with the boot"},
		{"log::level", "info", "log-level", "NETCTL_LOG_LEVEL", "debug, info, warn or error"},
		{"log::format", "text", "log-format", "NETCTL_LOG_FORMAT", "text or json"},
		{"metrics::listen", "", "metrics-listen", "NETCTL_METRICS_LISTEN", "IP `address` at which each role shows metrics and health (default: none; anybody who reaches it may read)"},
		{"metrics::port", defaultMetricsPort, "metrics-port", "NETCTL_METRICS_PORT", "TCP `port` of the agent's metrics; the speaker's is the next one, then Docker's driver's, the datastore's and the API's"},
		{"datastore::endpoints", []string(nil), "datastore-endpoints", "NETCTL_DATASTORE_ENDPOINTS", "one unix `URL` or https URLs of etcd (default unix://RUNDIR/etcd.sock)"},
		{"datastore::ca", "", "datastore-ca", "NETCTL_DATASTORE_CA", "`file` of the CA that signed etcd's certificate"},
		{"datastore::cert", "", "datastore-cert", "NETCTL_DATASTORE_CERT", "`file` of the client certificate"},
		{"datastore::key", "", "datastore-key", "NETCTL_DATASTORE_KEY", "`file` of the client key"},
		{"datastore::user", "", "datastore-user", "NETCTL_DATASTORE_USER", "`user` of an external etcd that asks for one"},
		{"datastore::passwordFile", "", "datastore-password-file", "NETCTL_DATASTORE_PASSWORD_FILE", "`file` with that user's password"},
		{"etcd::listen", []string(nil), "etcd-listen", "NETCTL_ETCD_LISTEN", "https `URLs` the embedded etcd serves beside its unix socket"},
		{"etcd::peerURL", "https://127.0.0.1:2380", "etcd-peer-url", "NETCTL_ETCD_PEER_URL", "https `URL` for other members"},
		{"etcd::tls::ca", "", "etcd-tls-ca", "NETCTL_ETCD_TLS_CA", "`file` of the CA of clients and members"},
		{"etcd::tls::cert", "", "etcd-tls-cert", "NETCTL_ETCD_TLS_CERT", "`file` of the server's certificate"},
		{"etcd::tls::key", "", "etcd-tls-key", "NETCTL_ETCD_TLS_KEY", "`file` of the server's key"},
		{"etcd::joinPort", 0, "etcd-join-port", "NETCTL_ETCD_JOIN_PORT", "TCP `port`, the same on each member, where nodes join and certificates are renewed (0: nowhere)"},
		{"etcd::certificateLife", defaultCertificateLife, "etcd-certificate-life", "NETCTL_ETCD_CERTIFICATE_LIFE", "`time` that nodes' certificates hold; they are renewed before a third of it is left"},
		{"etcd::quotaMiB", 2048, "etcd-quota-mib", "NETCTL_ETCD_QUOTA_MIB", "largest size of the database in MiB"},
		{"api::listen", []string(nil), "api-listen", "NETCTL_API_LISTEN", "https `URLs` the API serves beside its unix socket RUNDIR/api.sock"},
		{"api::ca", "", "api-ca", "NETCTL_API_CA", "`file` of the CA of the API's clients (default: etcd.tls.ca)"},
		{"api::cert", "", "api-cert", "NETCTL_API_CERT", "`file` of the API's certificate (default: etcd.tls.cert)"},
		{"api::key", "", "api-key", "NETCTL_API_KEY", "`file` of the API's key (default: etcd.tls.key)"},
		{"client::server", "", "server", "NETCTL_SERVER", "`URL` of an API that does what is asked: unix:///path or https://host:port (default: this machine, by the datastore)"},
		{"client::ca", "", "server-ca", "NETCTL_SERVER_CA", "`file` of the CA that signed the API's certificate"},
		{"client::cert", "", "server-cert", "NETCTL_SERVER_CERT", "`file` of the client certificate for the API"},
		{"client::key", "", "server-key", "NETCTL_SERVER_KEY", "`file` of the client key for the API"},
		{"agent::socket", "", "agent-socket", "NETCTL_AGENT_SOCKET", "the agent's control `socket` (default RUNDIR/agent.sock)"},
		{"agent::addresses", []string(nil), "agent-addresses", "NETCTL_AGENT_ADDRESSES", "this node's BGP `addresses`, one a family (default: found)"},
		{"agent::interface", "", "agent-interface", "NETCTL_AGENT_INTERFACE", "`pattern` of the interface whose address is this node's"},
		{"agent::linkPrefix", "nc", "agent-link-prefix", "NETCTL_AGENT_LINK_PREFIX", "`prefix` of host-side interface names"},
		{"agent::mtu", 0, "agent-mtu", "NETCTL_AGENT_MTU", "MTU of workloads in `bytes` (0: that of the node's interface)"},
		{"agent::gateway", "169.254.1.1", "agent-gateway", "NETCTL_AGENT_GATEWAY", "the workloads' IPv4 gateway `address`"},
		{"agent::lostAfter", 5 * time.Minute, "agent-lost-after", "NETCTL_AGENT_LOST_AFTER", "`time` until an endpoint without its interface is released"},
		{"agent::newFlows", 0, "agent-new-flows", "NETCTL_AGENT_NEW_FLOWS", "`flows` that a workload may begin per second (0: a 256th of the connection tracking table)"},
		{"agent::backend", "auto", "agent-backend", "NETCTL_AGENT_BACKEND", "auto, nftables, iptables, iptables-legacy or iptables-nft: `what` filters packets (auto: nftables where the kernel has it)"},
		{"agent::established", "", "agent-established", "NETCTL_AGENT_ESTABLISHED", "`keep`, cut or strict: what becomes of flows that a change of policy denies (default: as in Config, else cut)"},
		{"agent::reversePath", "auto", "agent-reverse-path", "NETCTL_AGENT_REVERSE_PATH", "`auto`, strict, loose or off: whether packets from other machines with a pool's source must come by the way to that source"},
		{"agent::workloadToHost", []string(nil), "agent-workload-to-host", "NETCTL_AGENT_WORKLOAD_TO_HOST", "what workloads reach on their own host, as `udp/53`,…"},
		{"agent::failsafeInbound", failsafeIn, "agent-failsafe-inbound", "NETCTL_AGENT_FAILSAFE_INBOUND", "`ports` of the host that no policy closes to host endpoints, beside those of the cluster"},
		{"agent::failsafeOutbound", failsafeOut, "agent-failsafe-outbound", "NETCTL_AGENT_FAILSAFE_OUTBOUND", "`ports` of others that no policy closes to host endpoints, beside those of the cluster"},
		{"agent::adopt", []string(nil), "agent-adopt", "NETCTL_AGENT_ADOPT", "interfaces that others make and that are endpoints, as `PATTERN=NETWORK`,…"},
		{"agent::runtimes", datastore.Runtimes(), "agent-runtimes", "NETCTL_AGENT_RUNTIMES", "container `runtimes` of this node that the cluster's networks are made in ([]: none)"},
		{"speaker::socket", "", "speaker-socket", "NETCTL_SPEAKER_SOCKET", "the speaker's control `socket` (default RUNDIR/speaker.sock)"},
		{"speaker::port", 179, "speaker-port", "NETCTL_SPEAKER_PORT", "TCP `port` of BGP"},
		{"docker::socket", docker.DefaultSocket, "docker-socket", "NETCTL_DOCKER_SOCKET", "`socket` that Docker finds the driver at; its name is the driver's"},
		{"docker::aliases", []string{"calico"}, "docker-aliases", "NETCTL_DOCKER_ALIASES", "further `names` of the driver"},
		{"docker::api", docker.DefaultAPI, "docker-api", "NETCTL_DOCKER_API", "`socket` of Docker's own API"},
		{"docker::scope", docker.ScopeLocal, "docker-scope", "NETCTL_DOCKER_SCOPE", "local: each node makes its networks; `global`: a swarm does, of a plugin that Docker manages"},
		{"routes::agentProtocol", 87, "routes-agent-protocol", "NETCTL_ROUTES_AGENT_PROTOCOL", "route protocol `number` of the agent"},
		{"routes::speakerProtocol", 88, "routes-speaker-protocol", "NETCTL_ROUTES_SPEAKER_PROTOCOL", "route protocol `number` of the speaker"},
		{"routes::table", 0, "routes-table", "NETCTL_ROUTES_TABLE", "`number` of the kernel's table that routes are in (0: the main one)"},
		{"routes::maxPaths", 16, "routes-max-paths", "NETCTL_ROUTES_MAX_PATHS", "`number` of next hops that a route of the speaker has at most"},
		{"routes::resilient", false, "routes-resilient", "NETCTL_ROUTES_RESILIENT", "move few flows when next hops of a route come and go"},
		{"tunnels::ipip", "tunl0", "tunnels-ipip", "NETCTL_TUNNELS_IPIP", "`interface` of IPIP tunnels"},
		{"tunnels::vxlan", "vxlan.netctl", "tunnels-vxlan", "NETCTL_TUNNELS_VXLAN", "`interface` of VXLAN tunnels over IPv4"},
		{"tunnels::vxlan6", "vxlan6.netctl", "tunnels-vxlan6", "NETCTL_TUNNELS_VXLAN6", "`interface` of VXLAN tunnels over IPv6"},
		{"tunnels::wireguard", "wg.netctl", "tunnels-wireguard", "NETCTL_TUNNELS_WIREGUARD", "`interface` of WireGuard tunnels"},
		{"tunnels::wireguardPort", 51820, "tunnels-wireguard-port", "NETCTL_TUNNELS_WIREGUARD_PORT", "UDP `port` of WireGuard tunnels, the same on every node"},
	}
}

// settings is the configuration, decoded once.
type settings struct {
	File             string `mapstructure:"-"` // "" if none was read
	Node             string
	Roles, Labels    []string
	StateDir, RunDir string
	Log              struct{ Level, Format string }
	Metrics          struct {
		Listen string
		Port   int
	}
	Datastore struct {
		Endpoints          []string
		CA, Cert, Key      string
		User, PasswordFile string
	}
	Etcd struct {
		Listen          []string
		PeerURL         string
		TLS             struct{ CA, Cert, Key string }
		JoinPort        int
		CertificateLife time.Duration
		QuotaMiB        int
	}
	API struct {
		Listen        []string
		CA, Cert, Key string
	}
	Client struct{ Server, CA, Cert, Key string }
	Agent  struct {
		Socket           string
		Addresses        []string
		Interface        string
		LinkPrefix       string
		MTU              int
		Gateway          string
		LostAfter        time.Duration
		NewFlows         int
		Backend          string
		Established      string
		ReversePath      string
		WorkloadToHost   []string
		FailsafeInbound  []string
		FailsafeOutbound []string
		Adopt            []string
		Runtimes         []string
	}
	Speaker struct {
		Socket string
		Port   int
	}
	Docker struct {
		Socket  string
		Aliases []string
		API     string
		Scope   string
	}
	Routes struct {
		AgentProtocol, SpeakerProtocol int
		Table, MaxPaths                int
		Resilient                      bool
	}
	Tunnels struct {
		IPIP, VXLAN, VXLAN6, WireGuard string
		WireGuardPort                  int
	}

	origin map[string]string // key to flag, environment, file or default
}

// sectionsEverywhere are those whose flags every command has.
func sectionsEverywhere() []string { return []string{"datastore", "log", "client"} }

// addSettingFlags declares the flags of a section; "" is what every command has.
func addSettingFlags(fs *pflag.FlagSet, section string) {
	for _, s := range settingTable() {
		if s.section() != section && !(section == "" && (slices.Contains(sectionsEverywhere(), s.section()))) {
			continue
		}
		if section == "" && s.key == "roles" {
			continue // only netctl node has roles
		}
		s.addTo(fs)
	}
}

func (s setting) addTo(fs *pflag.FlagSet) {
	switch def := s.def.(type) {
	case string:
		fs.String(s.flag, def, s.usage)
	case []string:
		fs.StringSlice(s.flag, def, s.usage)
	case int:
		fs.Int(s.flag, def, s.usage)
	case bool:
		fs.Bool(s.flag, def, s.usage)
	case time.Duration:
		fs.Duration(s.flag, def, s.usage)
	}
}

// settings reads the configuration once. Errors name the file and line, the
// variable, or the flag.
func (a *app) settings() (*settings, error) {
	if a.loaded == nil {
		s, err := loadSettings(a.cmd.Context(), a.cmd.Flags())
		if err != nil {
			return nil, usageError{err}
		}
		a.loaded = s
	}
	return a.loaded, nil
}

func loadSettings(ctx context.Context, flags *pflag.FlagSet) (*settings, error) {
	return loadSettingsFrom(ctx, flags, true)
}

// loadSettingsFrom is loadSettings, with or without the environment.
func loadSettingsFrom(ctx context.Context, flags *pflag.FlagSet, environment bool) (*settings, error) {
	v := viper.NewWithOptions(viper.KeyDelimiter(delimiter))
	file, lines, err := readConfigFile(ctx, v, flags)
	if err != nil {
		return nil, err
	}
	s := &settings{File: file, origin: map[string]string{}}
	for _, st := range settingTable() {
		v.SetDefault(st.key, st.def)
		s.origin[st.key] = "default"
		if v.InConfig(strings.ToLower(strings.Split(st.key, delimiter)[0])) && lines[st.key] > 0 {
			s.origin[st.key] = fmt.Sprintf("%s:%d", file, lines[st.key])
		}
		if environment {
			if err := v.BindEnv(st.key, st.env); err != nil {
				return nil, err
			}
			if os.Getenv(st.env) != "" {
				s.origin[st.key] = "environment " + st.env
			}
		}
		if f := flags.Lookup(st.flag); f != nil {
			if err := v.BindPFlag(st.key, f); err != nil {
				return nil, err
			}
			if f.Changed {
				s.origin[st.key] = "flag --" + st.flag
			}
		}
	}
	for _, st := range settingTable() {
		if err := st.check(v, s.origin[st.key]); err != nil {
			return nil, err
		}
	}
	if err := v.UnmarshalExact(s); err != nil {
		return nil, fmt.Errorf("config %s: %w", file, err)
	}
	return s, s.finish()
}

// check tells a value of the wrong type with where it came from.
func (s setting) check(v *viper.Viper, origin string) error {
	raw := v.Get(s.key)
	text := fmt.Sprint(raw)
	var err error
	switch s.def.(type) {
	case time.Duration:
		if _, ok := raw.(time.Duration); !ok {
			_, err = time.ParseDuration(text)
		}
	case int:
		if _, ok := raw.(int); !ok {
			_, err = fmt.Sscanf(text+"\n", "%d\n", new(int))
		}
	case bool:
		_, err = strconv.ParseBool(text)
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %q is not %s", origin, strings.ReplaceAll(s.key, delimiter, "."), text, s.kind())
	}
	return nil
}

func (s setting) kind() string {
	switch s.def.(type) {
	case time.Duration:
		return "a duration such as 5m"
	case int:
		return "a whole number"
	case bool:
		return "true or false"
	case []string:
		return "a list of strings"
	}
	return "a string"
}

// finish fills in what follows from other settings, and validates.
func (s *settings) finish() error {
	if s.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node: no host name, set one in the configuration: %w", err)
		}
		s.Node = host
	}
	for p, name := range map[*string]string{&s.Agent.Socket: "agent.sock", &s.Speaker.Socket: "speaker.sock"} {
		if *p == "" {
			*p = filepath.Join(s.RunDir, name)
		}
	}
	if len(s.Datastore.Endpoints) == 0 {
		s.Datastore.Endpoints = []string{"unix://" + filepath.Join(s.RunDir, "etcd.sock")}
	}
	for _, list := range []*[]string{&s.Roles, &s.Labels, &s.Datastore.Endpoints, &s.Etcd.Listen, &s.API.Listen, &s.Agent.Addresses, &s.Agent.WorkloadToHost, &s.Agent.FailsafeInbound, &s.Agent.FailsafeOutbound, &s.Agent.Runtimes, &s.Docker.Aliases} {
		for i, item := range *list {
			(*list)[i] = strings.TrimSpace(item) // "a, b" in a flag or variable
		}
	}
	return s.validate()
}

// wrong names the place that a bad value came from.
func (s *settings) wrong(key string, err error) error {
	return fmt.Errorf("%s: %s: %w", s.origin[key], strings.ReplaceAll(key, delimiter, "."), err)
}

// membersFile is where the state folder keeps who the datastore's members are.
const membersFile = "members.json"

// storeOptions is how every role and command reaches the datastore.
func (s *settings) storeOptions() etcd.Options {
	d := s.Datastore
	return etcd.Options{Endpoints: d.Endpoints, CA: d.CA, Cert: d.Cert, Key: d.Key, User: d.User, PasswordFile: d.PasswordFile, Members: filepath.Join(s.StateDir, membersFile)}
}

// external says whether the datastore is an etcd that netctl does not run, and that knows
// nodes as its users.
func (s *settings) external() bool { return s.Datastore.User != "" }

// labelMap is the labels as a map; keys keep their case.
func (s *settings) labelMap() map[string]string {
	m := map[string]string{}
	for _, l := range s.Labels {
		k, v, _ := strings.Cut(l, "=")
		m[k] = v
	}
	return m
}
