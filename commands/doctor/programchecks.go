package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ourLinks are patterns of the names of interfaces that are netctl's.
func (s *scene) ourLinks() []string {
	list := []string{s.cfg.LinkPrefix + "*"}
	for _, name := range s.cfg.Tunnels {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// examples are names that interfaces of netctl have, with their kinds.
func (s *scene) examples() map[string]string {
	list := map[string]string{s.cfg.LinkPrefix + "0123456789a": "veth"}
	for kind, name := range s.cfg.Tunnels {
		list[name] = strings.TrimSuffix(string(kind), "6")
	}
	return list
}

const networkManagerFile = "/etc/NetworkManager/conf.d/90-netctl.conf"

func networkManager(_ context.Context, s *scene) ([]Finding, error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	runs, err := s.named("NetworkManager")
	if err != nil || len(runs) == 0 {
		return nil, cmpErr(err, skip("NetworkManager does not run here"))
	}
	// networkmanager.conf(5): later files win, the last of a name is the one of the first
	// folder.
	var unmanaged string
	byName := map[string]string{}
	for _, dir := range []string{"/etc/NetworkManager/conf.d", "/run/NetworkManager/conf.d", "/usr/lib/NetworkManager/conf.d"} {
		names, err := s.Names(dir + "/*.conf")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if byName[path.Base(n)] == "" {
				byName[path.Base(n)] = n
			}
		}
	}
	files := []string{"/etc/NetworkManager/NetworkManager.conf"}
	for _, base := range sortedKeys(byName) {
		files = append(files, byName[base])
	}
	for _, f := range files {
		text, err := s.Read(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range parseINI(text) {
			switch {
			case e.section == "keyfile" && e.key == "unmanaged-devices":
				unmanaged = e.value
			case e.section == "keyfile" && e.key == "unmanaged-devices+":
				unmanaged += ";" + e.value
			}
		}
	}
	var managed []string
	for name := range s.examples() {
		if !unmanages(unmanaged, name) {
			managed = append(managed, name)
		}
	}
	if len(managed) == 0 {
		return nil, nil
	}
	var words []string
	for _, p := range s.ourLinks() {
		words = append(words, "interface-name:"+p)
	}
	text := "[keyfile]\nunmanaged-devices+=" + strings.Join(words, ";") + "\n"
	return []Finding{{
		What:    who(runs) + " runs, and no setting of it keeps it off netctl's interfaces (" + strings.Join(s.ourLinks(), ", ") + ")",
		Fix:     []string{paste(networkManagerFile, text), "nmcli general reload"},
		repairs: []repair{writeFile(networkManagerFile, text), runs1("nmcli", "general", "reload")},
	}}, nil
}

// runs1 is runs for a program without which the next start has to do.
func runs1(program string, args ...string) repair {
	return func(ctx context.Context, h Host) (string, error) {
		_, err := runs(program, args...)(ctx, h)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return "", err
	}
}

func sortedKeys(m map[string]string) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// unmanages says whether a list of devices (networkmanager.conf(5), device list format)
// has an interface of that name.
func unmanages(list, name string) bool {
	for word := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ';' || r == ',' }) {
		word = strings.TrimSpace(word)
		if word == "*" {
			return true
		}
		pattern, ok := strings.CutPrefix(word, "interface-name:")
		if !ok {
			continue
		}
		if is, err := path.Match(strings.TrimPrefix(pattern, "="), name); err == nil && is {
			return true
		}
	}
	return false
}

// entry is a line of a file with sections.
type entry struct{ section, key, value string }

func parseINI(text string) (list []entry) {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
			list = append(list, entry{section, "", ""})
		default:
			k, v, _ := strings.Cut(line, "=")
			list = append(list, entry{section, strings.TrimSpace(k), strings.TrimSpace(v)})
		}
	}
	return list
}

const (
	networkdFile   = "/etc/systemd/networkd.conf.d/90-netctl.conf"
	networkdLinks  = "/etc/systemd/network/05-netctl.network"
	networkdKeeps  = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n"
	networkdIgnore = "[Match]\nName=%s\n\n[Link]\nUnmanaged=yes\n"
)

func networkd(_ context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent, roleSpeaker) {
		return nil, skip("no role here makes routes")
	}
	runs, err := s.named("systemd-networkd", "systemd-network")
	if err != nil || len(runs) == 0 {
		return nil, cmpErr(err, skip("systemd-networkd does not run here"))
	}
	keeps := map[string]string{}
	drops, err := s.networkFiles("/etc/systemd/networkd.conf.d", "/run/systemd/networkd.conf.d", "/usr/local/lib/systemd/networkd.conf.d", "/usr/lib/systemd/networkd.conf.d", "*.conf")
	if err != nil {
		return nil, err
	}
	for _, f := range append([]string{"/usr/lib/systemd/networkd.conf", "/etc/systemd/networkd.conf"}, drops...) {
		text, err := s.Read(f)
		if err != nil {
			continue
		}
		for _, e := range parseINI(text) {
			if e.section == "Network" {
				keeps[e.key] = e.value
			}
		}
	}
	if !isNo(keeps["ManageForeignRoutes"]) || !isNo(keeps["ManageForeignRoutingPolicyRules"]) {
		found = append(found, Finding{
			What:    who(runs) + " runs, and removes routes and rules of others when it starts again: ManageForeignRoutes and ManageForeignRoutingPolicyRules are not \"no\"",
			Fix:     []string{paste(networkdFile, networkdKeeps), "systemctl restart systemd-networkd"},
			repairs: []repair{writeFile(networkdFile, networkdKeeps), runs1("systemctl", "try-restart", "systemd-networkd")},
		})
	}
	files, err := s.networkFiles("/etc/systemd/network", "/run/systemd/network", "/usr/local/lib/systemd/network", "/usr/lib/systemd/network", "*.network")
	if err != nil {
		return found, err
	}
	examples := s.examples()
	for _, name := range sortedKeys(examples) {
		file, unmanaged, err := s.matching(files, name, examples[name])
		if err != nil {
			return found, err
		}
		if file == "" || unmanaged {
			continue
		}
		text := fmt.Sprintf(networkdIgnore, strings.Join(s.ourLinks(), " "))
		return append(found, Finding{
			What:    fmt.Sprintf("systemd-networkd configures interfaces of netctl, such as %s, by %s", name, file),
			Fix:     []string{paste(networkdLinks, text), "networkctl reload"},
			repairs: []repair{writeFile(networkdLinks, text), runs1("networkctl", "reload")},
		}), nil
	}
	return found, nil
}

func isNo(v string) bool {
	return slices.Contains([]string{"no", "n", "false", "f", "off", "0"}, strings.ToLower(v))
}

// networkFiles lists files by their base names: one of an earlier folder replaces those of
// its name in later ones. The last argument is the pattern.
func (s *scene) networkFiles(args ...string) (files []string, err error) {
	byName := map[string]string{}
	pattern := args[len(args)-1]
	for _, dir := range args[:len(args)-1] {
		names, err := s.Names(dir + "/" + pattern)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if byName[path.Base(n)] == "" {
				byName[path.Base(n)] = n
			}
		}
	}
	for _, base := range sortedKeys(byName) {
		files = append(files, byName[base])
	}
	return files, nil
}

// matching is the first file that matches an interface (systemd.network(5), [Match]), and
// whether it leaves that alone. Files with conditions that are not known here match none.
func (s *scene) matching(files []string, name, kind string) (file string, unmanaged bool, err error) {
	for _, f := range files {
		text, err := s.Read(f)
		if err != nil {
			return "", false, err
		}
		list, matches, conditions := parseINI(text), true, 0
		for _, e := range list {
			if e.section != "Match" || e.key == "" {
				continue
			}
			conditions++
			switch e.key {
			case "Name":
				matches = matches && globs(e.value, name)
			case "Kind", "Driver":
				matches = matches && globs(e.value, kind)
			case "Type":
				matches = matches && globs(e.value, map[string]string{"veth": "ether", "vxlan": "ether", "ipip": "tunnel", "wireguard": "wireguard"}[kind])
			default:
				matches = false
			}
		}
		if conditions == 0 || !matches {
			continue // without conditions it is not read at all
		}
		return f, slices.ContainsFunc(list, func(e entry) bool {
			return e.section == "Link" && e.key == "Unmanaged" && !isNo(e.value)
		}), nil
	}
	return "", false, nil
}

// globs says whether one of the patterns matches; behind a "!" they must not.
func globs(patterns, text string) bool {
	patterns, not := strings.CutPrefix(patterns, "!")
	is := slices.ContainsFunc(strings.Fields(patterns), func(p string) bool { ok, _ := path.Match(p, text); return ok })
	return is != not
}

// otherPlugins are plugins of clusters, which bring a daemon, with that daemon.
func otherPlugins() map[string]string {
	return map[string]string{
		"flannel": "flanneld", "weave-net": "weaver", "cilium-cni": "cilium-agent", "antrea": "antrea-agent", "kube-ovn": "kube-ovn-daemon",
		"kube-router": "kube-router", "canal": "flanneld", "romana": "romana_agent", "ovn-k8s-cni-overlay": "ovnkube", "terway": "terwayd",
	}
}

func otherCNI(_ context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	for plugin, daemon := range otherPlugins() {
		runs, err := s.named(daemon)
		if err != nil {
			return nil, err
		}
		if len(runs) > 0 && !slices.ContainsFunc(found, func(f Finding) bool { return strings.HasPrefix(f.What, who(runs)) }) {
			found = append(found, Finding{What: fmt.Sprintf("%s runs: the daemon of network plugin %s", who(runs), plugin),
				Fix: []string{"systemctl disable --now " + daemon, "# remove " + plugin + "'s files from /etc/cni/net.d"}})
		}
	}
	files, err := s.Names("/etc/cni/net.d/*")
	if err != nil {
		return found, err
	}
	first, ours := "", ""
	for _, f := range files {
		if ext := path.Ext(f); ext != ".conf" && ext != ".conflist" && ext != ".json" {
			continue
		}
		text, err := s.Read(f)
		if err != nil {
			return found, err
		}
		types, err := pluginTypes(text)
		if err != nil {
			found = append(found, Finding{What: fmt.Sprintf("%s: %v: runtimes that read it have no network", f, err), Fix: []string{"rm " + f + "   # or correct it"}})
			continue
		}
		first = cmp.Or(first, f)
		if slices.Contains(types, "netctl") {
			ours = cmp.Or(ours, f)
		}
		for _, t := range types {
			if otherPlugins()[t] != "" {
				found = append(found, Finding{What: fmt.Sprintf("%s: a network of plugin %s", f, t), Fix: []string{"mv " + f + " " + f + ".off"}})
			}
		}
	}
	runs, err := s.named("containerd", "crio")
	if err != nil {
		return found, err
	}
	if ours != "" && first != ours && len(runs) > 0 {
		found = append(found, Finding{What: fmt.Sprintf("%s takes the first file of /etc/cni/net.d, %s, and not netctl's, %s", who(runs), first, ours),
			Fix: []string{fmt.Sprintf("mv %s /etc/cni/net.d/00-%s", ours, path.Base(ours))}})
	}
	return found, nil
}

// pluginTypes are those of a CNI configuration, or of a list of them.
func pluginTypes(text string) ([]string, error) {
	var conf struct {
		Type    string
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal([]byte(text), &conf); err != nil {
		return nil, fmt.Errorf("no CNI configuration: %w", err)
	}
	types := []string{conf.Type}
	for _, p := range conf.Plugins {
		types = append(types, p.Type)
	}
	return types, nil
}

func calico(_ context.Context, s *scene) (found []Finding, err error) {
	runs, err := s.named("calico-felix", "calico-node", "felix", "confd", "calico")
	if err != nil {
		return nil, err
	}
	if runs = slices.DeleteFunc(runs, func(p Process) bool { return p.Name == "confd" }); len(runs) > 0 {
		found = append(found, Finding{What: who(runs) + " runs", Fix: []string{"systemctl disable --now calico-node calico-felix", "docker rm -f calico-node"}})
	}
	links, err := s.foreign()
	if err != nil {
		return found, err
	}
	var left []string
	for _, l := range links {
		if strings.HasPrefix(l.Name, "cali") || l.Name == "vxlan.calico" || l.Name == "wireguard.cali" {
			left = append(left, l.Name)
		}
	}
	if len(left) > 0 {
		found = append(found, Finding{What: "interfaces of Calico's are here: " + few(left), Fix: []string{"for l in " + strings.Join(left[:min(len(left), 20)], " ") + "; do ip link del $l; done   # once no container uses them"}})
	}
	routes, err := s.routes()
	if err != nil {
		return found, err
	}
	const protocol = 80
	n := 0
	for _, r := range routes {
		if r.Protocol == protocol {
			n++
		}
	}
	if n > 0 {
		found = append(found, Finding{What: fmt.Sprintf("%d routes of Calico's (protocol 80) are here", n), Fix: []string{"ip route flush proto 80; ip -6 route flush proto 80"}})
	}
	return found, nil
}

// few names some of many.
func few(list []string) string {
	if len(list) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:5], ", "), len(list)-5)
	}
	return strings.Join(list, ", ")
}

func bird(_ context.Context, s *scene) ([]Finding, error) {
	if !s.has(roleSpeaker, roleReflector) {
		return nil, skip("nobody here is to speak BGP")
	}
	runs, err := s.named("bird", "bird6", "bgpd", "gobgpd", "exabgp")
	if err != nil || len(runs) == 0 {
		return nil, err
	}
	sockets, err := s.sockets()
	if err != nil {
		return nil, err
	}
	holds := slices.ContainsFunc(sockets, func(x Socket) bool {
		return !x.UDP && x.Addr.Port() == s.cfg.BGPPort && slices.ContainsFunc(runs, func(p Process) bool { return p.PID == x.PID })
	})
	what := who(runs) + " runs: another speaker of BGP"
	if holds {
		what += fmt.Sprintf(", and holds TCP port %d", s.cfg.BGPPort)
	}
	return []Finding{{What: what, Fix: []string{"systemctl disable --now bird bird6 frr gobgpd", "# or have that listen on another port or address, and `speaker: {port: N}` in /etc/netctl.yaml"}}}, nil
}

// otherNetctl knows the network manager of Arch Linux, which Debian has too.
func otherNetctl(_ context.Context, s *scene) (found []Finding, err error) {
	profiles, err := s.Names("/etc/netctl/*")
	if err != nil {
		return nil, err
	}
	profiles = slices.DeleteFunc(profiles, func(p string) bool { return slices.Contains([]string{"examples", "hooks", "interfaces"}, path.Base(p)) })
	library, err := s.Names("/usr/lib/netctl/*")
	if err != nil {
		return nil, err
	}
	units, err := s.Names("/etc/systemd/system/multi-user.target.wants/netctl*@*.service")
	if err != nil {
		return nil, err
	}
	if len(library) > 0 || len(profiles) > 0 {
		f := Finding{What: "the network manager netctl of Arch Linux is here (/etc/netctl, /usr/lib/netctl)", Fix: []string{"apt-get remove netctl || pacman -R netctl"}}
		if len(profiles) > 0 {
			f.What += " with profiles " + few(profiles)
		}
		if len(units) > 0 {
			f.Fix = append([]string{"systemctl disable --now " + path.Base(units[0])}, f.Fix...)
		}
		found = append(found, f)
	}
	for _, file := range []string{"/usr/bin/netctl", "/bin/netctl", "/usr/sbin/netctl"} {
		if text, err := s.Read(file); err == nil && strings.HasPrefix(text, "#!") {
			found = append(found, Finding{What: file + " is a script of another program: which one a shell starts depends on PATH", Fix: []string{"# call /usr/local/bin/netctl by its full name, or remove the other program"}})
			break
		}
	}
	return found, nil
}

// The oldest versions that work: Docker's of the network drivers' protocol as it is
// today, and Podman's that hands addresses to CNI plugins.
const (
	oldestDocker = "20.10"
	oldestPodman = "4.0"
)

func docker(ctx context.Context, s *scene) ([]Finding, error) {
	version, err := s.Docker(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, skip("no Docker runs here")
	}
	if err != nil {
		return nil, fmt.Errorf("ask Docker for its version: %w", err)
	}
	older, err := olderThan(version, oldestDocker)
	if err != nil || !older {
		return nil, err
	}
	return []Finding{{What: "Docker " + version + " is older than " + oldestDocker, Fix: []string{"apt-get update && apt-get install docker.io"}}}, nil
}

func podman(ctx context.Context, s *scene) ([]Finding, error) {
	out, err := s.Run(ctx, "podman", "--version")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, skip("there is no Podman here")
	}
	if err != nil {
		return nil, fmt.Errorf("podman --version: %w", err)
	}
	words := strings.Fields(out) // podman version 4.3.1
	if len(words) == 0 {
		return nil, errors.New("podman --version: no answer")
	}
	version := words[len(words)-1]
	older, err := olderThan(version, oldestPodman)
	if err != nil || !older {
		return nil, err
	}
	return []Finding{{What: "Podman " + version + " is older than " + oldestPodman, Fix: []string{"apt-get update && apt-get install podman"}}}, nil
}

// olderThan compares the first two numbers of versions.
func olderThan(version, least string) (bool, error) {
	two := regexp.MustCompile(`^v?(\d+)\.(\d+)`)
	have, want := two.FindStringSubmatch(version), two.FindStringSubmatch(least)
	if have == nil {
		return false, fmt.Errorf("version %q is not understood", version)
	}
	for i := 1; i <= 2; i++ {
		h, _ := strconv.Atoi(have[i])
		w, _ := strconv.Atoi(want[i])
		if h != w {
			return h < w, nil
		}
	}
	return false, nil
}
