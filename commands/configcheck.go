package commands

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"netctl/commands/agent"
	"netctl/commands/docker"
	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/netdev"
)

// leastCertificateLife is how many seconds a certificate holds at least.
const leastCertificateLife = 10

// validate refuses a value that a role would refuse, before any role starts: one
// that cannot start would only be started again and again.
func (s *settings) validate() error {
	node := datastore.Node{Metadata: datastore.Metadata{Name: s.Node}}
	labelled := datastore.Node{Metadata: datastore.Metadata{Name: "node", Labels: s.labelMap()}}
	for _, c := range []struct {
		key string
		err error
	}{
		{"node", node.Validate()},
		{"roles", each(s.Roles, func(r string) error { return oneOf(r, supervisedRoles()...) })},
		{"labels", each(s.Labels, checkLabel)},
		{"labels", labelled.Validate()},
		{"stateDir", absolute(s.StateDir)},
		{"runDir", absolute(s.RunDir)},
		{"log::level", oneOf(s.Log.Level, "debug", "info", "warn", "error")},
		{"log::format", oneOf(s.Log.Format, "text", "json")},
		{"metrics::listen", checkListenAddress(s.Metrics.Listen)},
		{"metrics::port", between(s.Metrics.Port, 1, 65536-telemetry.Ports)},
		{s.storeKey(), s.storeOptions().Check()},
		{"etcd::listen", each(s.Etcd.Listen, checkListen)},
		{"etcd::peerURL", checkListen(s.Etcd.PeerURL)},
		{"etcd::joinPort", between(s.Etcd.JoinPort, 0, 65535)},
		{"etcd::certificateLife", between(int(s.Etcd.CertificateLife/time.Second), leastCertificateLife, 1<<31)},
		{"etcd::quotaMiB", between(s.Etcd.QuotaMiB, 16, 1<<20)},
		{"api::listen", each(s.API.Listen, checkListen)},
		{"client::server", s.checkServer()},
		{"agent::socket", absolute(s.Agent.Socket)},
		{"agent::addresses", checkAddresses(s.Agent.Addresses)},
		{"agent::interface", checkPattern(s.Agent.Interface)},
		{"agent::linkPrefix", netdev.ValidPrefix(s.Agent.LinkPrefix)},
		{"agent::mtu", checkMTU(s.Agent.MTU)},
		{"agent::gateway", checkGateway(s.Agent.Gateway)},
		{"agent::lostAfter", between(int(s.Agent.LostAfter), 0, 1<<62)},
		{"agent::newFlows", between(s.Agent.NewFlows, 0, 1<<24)},
		{"agent::backend", agent.CheckBackend(s.Agent.Backend)},
		{"agent::established", datastore.Established(s.Agent.Established).Check()},
		{"agent::reversePath", agent.CheckReversePath(s.Agent.ReversePath)},
		{"agent::adopt", each(s.Agent.Adopt, s.checkAdoption)},
		{"agent::runtimes", each(s.Agent.Runtimes, checkRuntime)},
		{"agent::workloadToHost", each(s.Agent.WorkloadToHost, checkHostPort)},
		{"agent::failsafeInbound", each(s.Agent.FailsafeInbound, checkHostPort)},
		{"agent::failsafeOutbound", each(s.Agent.FailsafeOutbound, checkHostPort)},
		{"speaker::socket", absolute(s.Speaker.Socket)},
		{"speaker::port", between(s.Speaker.Port, 1, 65535)},
		{"docker::socket", checkPluginSocket(s.Docker.Socket)},
		{"docker::aliases", each(s.Docker.Aliases, datastore.CheckName)},
		{"docker::api", absolute(s.Docker.API)},
		{"docker::scope", oneOf(s.Docker.Scope, docker.ScopeLocal, docker.ScopeGlobal)},
		{"routes::agentProtocol", between(s.Routes.AgentProtocol, 5, 255)},
		{"routes::speakerProtocol", between(s.Routes.SpeakerProtocol, 5, 255)},
		{"routes::table", checkTable(s.Routes.Table)},
		{"routes::maxPaths", between(s.Routes.MaxPaths, 1, 256)},
		{"tunnels::ipip", netdev.ValidTunnel(s.Tunnels.IPIP, s.Agent.LinkPrefix)},
		{"tunnels::vxlan", netdev.ValidTunnel(s.Tunnels.VXLAN, s.Agent.LinkPrefix)},
		{"tunnels::vxlan6", netdev.ValidTunnel(s.Tunnels.VXLAN6, s.Agent.LinkPrefix)},
		{"tunnels::wireguard", netdev.ValidTunnel(s.Tunnels.WireGuard, s.Agent.LinkPrefix)},
		{"tunnels::wireguardPort", between(s.Tunnels.WireGuardPort, 1, 65535)},
	} {
		if c.err != nil {
			return s.wrong(c.key, c.err)
		}
	}
	if slices.Contains(s.Roles, "speaker") && slices.Contains(s.Roles, "reflector") {
		return s.wrong("roles", fmt.Errorf("speaker and reflector: one of them speaks BGP on a machine; with an agent the speaker, which reflects too"))
	}
	if key, err := s.checkServing(); err != nil {
		return s.wrong(key, err)
	}
	if s.Routes.AgentProtocol == s.Routes.SpeakerProtocol {
		key := "routes::speakerProtocol"
		if s.origin[key] == "default" {
			key = "routes::agentProtocol"
		}
		return s.wrong(key, fmt.Errorf("%d: agent and speaker must have different numbers", s.Routes.SpeakerProtocol))
	}
	return s.checkTunnelNames()
}

// storeKey is the setting that is at fault where the datastore's contradict each other: one
// that was set.
func (s *settings) storeKey() string {
	for _, key := range []string{"datastore::endpoints", "datastore::ca", "datastore::cert", "datastore::key"} {
		if s.origin[key] != "default" {
			return key
		}
	}
	return "datastore::endpoints"
}

// checkServing refuses what nobody could connect to; at fault is key.
func (s *settings) checkServing() (key string, err error) {
	var lacking []string
	has, t := 0, s.Etcd.TLS
	for _, f := range []struct{ name, file string }{{"ca", t.CA}, {"cert", t.Cert}, {"key", t.Key}} {
		if f.file == "" {
			lacking = append(lacking, f.name)
		} else {
			key, has = "etcd::tls::"+f.name, has+1
		}
	}
	switch {
	case has != 0 && has != 3:
		return key, fmt.Errorf("wants %s beside it, all three", strings.Join(lacking, " and "))
	case has == 0 && len(s.Etcd.Listen) > 0:
		return "etcd::listen", fmt.Errorf("%q wants etcd.tls ca, cert and key", s.Etcd.Listen[0])
	}
	return "", nil
}

// checkPluginSocket refuses what Docker does not take for a plugin.
func checkPluginSocket(path string) error {
	if name, is := strings.CutSuffix(filepath.Base(path), ".sock"); !is || name == "" {
		return fmt.Errorf("%q: want a file NAME.sock: the driver's name is NAME", path)
	}
	return absolute(path)
}

// checkTable refuses the tables that the kernel fills itself.
func checkTable(n int) error {
	if n == 253 || n == 255 {
		return fmt.Errorf("%d: that table is the kernel's; 0 is the main one, and any other number does", n)
	}
	return between(n, 0, 1<<31-1)
}

// checkTunnelNames refuses two tunnels of one name; at fault is one that was set.
func (s *settings) checkTunnelNames() error {
	names := map[string]string{"tunnels::ipip": s.Tunnels.IPIP, "tunnels::vxlan": s.Tunnels.VXLAN, "tunnels::vxlan6": s.Tunnels.VXLAN6, "tunnels::wireguard": s.Tunnels.WireGuard}
	for key, name := range names {
		for other, same := range names {
			if key != other && name == same && s.origin[key] != "default" {
				return s.wrong(key, fmt.Errorf("%q: another tunnel has that name", name))
			}
		}
	}
	return nil
}

// each is the first error of a list's items.
func each(list []string, check func(string) error) error {
	for _, item := range list {
		if err := check(item); err != nil {
			return err
		}
	}
	return nil
}

func oneOf(value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%q: want one of %s", value, strings.Join(allowed, ", "))
}

func between(n, least, most int) error {
	switch {
	case n < least:
		return fmt.Errorf("%d: want at least %d", n, least)
	case n > most:
		return fmt.Errorf("%d: want at most %d", n, most)
	}
	return nil
}

func absolute(name string) error {
	if !filepath.IsAbs(name) {
		return fmt.Errorf("%q: want an absolute path", name)
	}
	return nil
}

func checkLabel(label string) error {
	if k, _, ok := strings.Cut(label, "="); !ok || k == "" {
		return fmt.Errorf("%q: want NAME=VALUE", label)
	}
	return nil
}

func (s *settings) checkServer() error {
	if s.Client.Server == "" {
		return nil
	}
	return s.server().Check()
}

func checkListen(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Port() == "" || u.Path != "" {
		return fmt.Errorf("%q: want https://ADDRESS:PORT", text)
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil {
		return fmt.Errorf("%q: want an address to listen on, not a name", text)
	}
	return nil
}

func checkAddresses(list []string) error {
	var have [2]bool
	for _, text := range list {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("%q is no address", text)
		}
		family := 0
		if a.Is6() {
			family = 1
		}
		if have[family] {
			return fmt.Errorf("%q: at most one address of each family", text)
		}
		have[family] = true
	}
	return nil
}

func (s *settings) checkAdoption(text string) error {
	a, err := netdev.ParseAdoption(text)
	if err != nil {
		return err
	}
	return a.Apart(s.Agent.LinkPrefix, s.Tunnels.IPIP, s.Tunnels.VXLAN, s.Tunnels.VXLAN6, s.Tunnels.WireGuard)
}

func checkPattern(pattern string) error {
	if _, err := path.Match(pattern, ""); err != nil {
		return fmt.Errorf("%q: %w", pattern, err)
	}
	return nil
}

func checkMTU(mtu int) error {
	if mtu == 0 {
		return nil
	}
	return between(mtu, netdev.MinMTU, netdev.MaxMTU)
}

func checkGateway(text string) error {
	if g, err := netip.ParseAddr(text); err != nil || !g.Is4() {
		return fmt.Errorf("%q is not an IPv4 address", text)
	}
	return nil
}

func checkHostPort(text string) error {
	_, err := agent.ParseHostPort(text)
	return err
}

// checkListenAddress refuses what is no address to listen at; "" is nowhere.
func checkListenAddress(text string) error {
	if text == "" {
		return nil
	}
	_, err := netip.ParseAddr(text)
	return err
}

func checkRuntime(r string) error {
	if !slices.Contains(datastore.Runtimes(), r) {
		return fmt.Errorf("%q: must be one of %s", r, strings.Join(datastore.Runtimes(), ", "))
	}
	return nil
}
