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
	files, err := s.networkFilesOfCNI()
	if err != nil {
		return found, err
	}
	first, ours := "", ""
	for _, f := range files {
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

// networkFilesOfCNI are the files that runtimes read networks from.
func (s *scene) networkFilesOfCNI() ([]string, error) {
	files, err := s.Names("/etc/cni/net.d/*")
	return slices.DeleteFunc(files, func(f string) bool {
		ext := path.Ext(f)
		return ext != ".conf" && ext != ".conflist" && ext != ".json"
	}), err
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
	files, err := s.networkFilesOfCNI()
	if err != nil {
		return found, err
	}
	for _, f := range files {
		text, err := s.Read(f)
		if err != nil {
			return found, err
		}
		// One that is no configuration is named by other-cni.
		if types, err := pluginTypes(text); err == nil && slices.ContainsFunc(types, func(t string) bool { return t == "calico" || t == "calico-ipam" }) {
			found = append(found, Finding{What: f + ": a network of plugin calico", Fix: []string{"mv " + f + " " + f + ".off"}})
		}
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
