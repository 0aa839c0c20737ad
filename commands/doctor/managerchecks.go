package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
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
