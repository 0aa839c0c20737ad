package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// step is a command that a page shows at a host's prompt, and the output below it.
type step struct {
	line          int // of the page, from 1
	host, command string
	want          []string
	first, last   int // where the output is among the page's lines, from 0; last is behind it
}

// prompt begins a command that is run: lines of a page with other prompts are not.
var prompt = regexp.MustCompile(`^    (node\d|fabric)# (.*)$`)

// stepsOf finds the commands of a page. A command goes on in the next line after a
// backslash, and to the end of a here-document.
func stepsOf(lines []string) (steps []step) {
	for i := 0; i < len(lines); i++ {
		m := prompt.FindStringSubmatch(lines[i])
		if m == nil {
			continue
		}
		s := step{line: i + 1, host: m[1], command: m[2]}
		for strings.HasSuffix(s.command, "\\") && i+1 < len(lines) {
			i++
			s.command += "\n" + strings.TrimPrefix(lines[i], "    ")
		}
		for here := strings.Contains(s.command, "<<'EOF'"); here && i+1 < len(lines); here = lines[i] != "    EOF" {
			i++
			s.command += "\n" + strings.TrimPrefix(lines[i], "    ")
		}
		end := i + 1
		for j := end; j < len(lines) && (lines[j] == "" || strings.HasPrefix(lines[j], "    ")) && !prompt.MatchString(lines[j]); j++ {
			if lines[j] != "" {
				end = j + 1
			}
		}
		for _, l := range lines[i+1 : end] {
			s.want = append(s.want, strings.TrimPrefix(l, "    "))
		}
		s.first, s.last = i+1, end
		steps, i = append(steps, s), end-1
	}
	return steps
}

// volatile are parts of an output that are other ones each time.
var volatile = []struct {
	pattern *regexp.Regexp
	as      string
}{
	{regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`), "MAC"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d`), "DATE"},
	{regexp.MustCompile(`\d\d:\d\d:\d\d(\.\d+)?`), "TIME"},
	{regexp.MustCompile(`[\d.]+ ?(ms|us|seconds?|minutes?|s)\b`), "SPAN"},
	{regexp.MustCompile(`n[ci][0-9a-f]{11}`), "LINK"},
	{regexp.MustCompile(`rtt .*`), "RTT"},
	{regexp.MustCompile(`netctl version [^ ,]+`), "netctl version"},
	{regexp.MustCompile(`is ready; its roles start with: .*`), "runs, and will at each boot"},
	{regexp.MustCompile(`-{2,}`), "--"}, // tables are as wide as what is in them
	{regexp.MustCompile(` +`), " "},
}

func masked(text string) string {
	for _, v := range volatile {
		text = v.pattern.ReplaceAllString(text, v.as)
	}
	return strings.TrimSpace(text)
}

// shown holds an output against what a page shows of it: … stands for anything in a line,
// and on a line of its own for any lines.
func shown(want []string, output string) bool {
	var pattern, masks strings.Builder
	for _, l := range want {
		if l == "…" {
			pattern.WriteString(`(?:.*\n)*?`)
			continue
		}
		pattern.WriteString(strings.ReplaceAll(regexp.QuoteMeta(masked(l)), "…", ".*") + "\n")
	}
	for _, l := range strings.Split(strings.TrimRight(output, "\n"), "\n") {
		masks.WriteString(masked(l) + "\n")
	}
	return regexp.MustCompile(`^` + pattern.String() + `$`).MatchString(masks.String())
}

// learn remembers what the words with … were in an output; later commands that have them
// mean that.
func (r *pageRun) learn(want []string, output string) {
	for _, w := range strings.Fields(strings.Join(want, " ")) {
		if head, tail, ok := strings.Cut(w, "…"); ok && w != "…" {
			r.said[w] = regexp.MustCompile(regexp.QuoteMeta(head) + `\S*` + regexp.QuoteMeta(tail)).FindString(output)
		}
	}
}

// asks is a command that may be asked again until the answer is as it should be.
var asks = regexp.MustCompile(`\b(show|status|explain|trace|ping|check|doctor|drops|get|list|route)\b`)

// pageRun is a page and the hosts that its commands run on.
type pageRun struct {
	t     *testing.T
	lab   *netlab.Lab
	lines []string
	said  map[string]string
	units map[string][]*netlab.Process // what runs of systemd's
}

func (r *pageRun) host(name string) *netlab.Host {
	h, err := r.lab.Host(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// newPageRun reads a page and makes as many bare hosts as it speaks of, with folders of their
// own for namespaces, daemons and whoever types.
func newPageRun(t *testing.T, page string) (*pageRun, []step) {
	t.Helper()
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	r := &pageRun{t: t, lines: strings.Split(string(raw), "\n"), said: map[string]string{}, units: map[string][]*netlab.Process{}}
	steps := stepsOf(r.lines)
	nodes := 0
	for _, s := range steps {
		if n, ok := strings.CutPrefix(s.host, "node"); ok {
			nodes = max(nodes, int(n[0]-'0'))
		}
	}
	r.lab = bareHosts(t, nodes)
	for _, h := range append(slices.Clone(r.lab.Hosts), r.lab.Fabric) {
		netlab.Must(t, h, "sh", "-c", "mount -t tmpfs none /run/netns; mkdir -p /run/frr /run/bird; "+
			"for d in /etc/frr /etc/bird /var/tmp; do [ ! -d $d ] || mount -t tmpfs none $d; done; "+
			// What runs may be below /root.
			"mkdir /var/tmp/.upper /var/tmp/.work; mount -t overlay none -o lowerdir=/root,upperdir=/var/tmp/.upper,workdir=/var/tmp/.work /root; [ ! -d /etc/frr ] || touch /etc/frr/vtysh.conf; chmod 755 /etc/frr /run/frr 2>/dev/null; echo 1 >/proc/sys/net/ipv4/ip_forward")
	}
	if strings.Contains(string(raw), " swp1") { // the fabric is a switch with a port for each node's eth0
		for i := range r.lab.Hosts {
			netlab.Must(t, r.lab.Fabric, "sh", "-c", fmt.Sprintf("ip link set n%[1]d.0 down; ip link set n%[1]d.0 nomaster name swp%[1]d; ip link set swp%[1]d up", i+1))
		}
	}
	return r, steps
}

// run runs a command as a person would, and returns all that it prints. What systemd does
// on a machine is done here.
func (r *pageRun) run(h *netlab.Host, command string) (out string, code int) {
	r.t.Helper()
	if words := strings.Fields(command); words[0] == "systemctl" {
		r.systemctl(h, words[1], words[len(words)-1])
		return "", 0
	}
	for word, was := range r.said {
		command = strings.ReplaceAll(command, word, was)
	}
	out, failed := netlab.Try(r.t, h, "bash", "-c", "cd /root; exec 2>&1; "+command)
	if failed != nil {
		out, code = failed.Stdout, failed.Code
	}
	if code == 0 && (strings.HasPrefix(command, "netctl init") || strings.HasPrefix(command, "netctl join")) {
		starts(r.t, h)
		sound(r.t, h)
	}
	return out, code
}

// systemctl does what systemd would: stop, restart, or kill what is then started again.
func (r *pageRun) systemctl(h *netlab.Host, verb, unit string) {
	if unit == "netctl-node" {
		netlab.Must(r.t, h, "sh", "-c", "kill -9 $(cat /var/lib/netctl-node/node.lock)")
		netlab.Until(r.t, patience, "the roles end with what started them", func() string {
			if left, err := h.Find("netctl"); err != nil || len(left) > 0 {
				return fmt.Sprintf("%v, %v", left, err)
			}
			if _, held := netlab.Try(r.t, h, "flock", "-n", "/var/lib/netctl-node/node.lock", "true"); held != nil {
				return "its lock is held" // a process that ends gives up its memory first
			}
			return ""
		})
		if verb == "kill" {
			starts(r.t, h)
		}
		return
	}
	for _, p := range r.units[unit] {
		_ = p.Stop()
	}
	delete(r.units, unit)
	if verb == "restart" {
		r.daemons(h, unit)
	}
}

// daemons starts what the units of Debian's packages of that name start.
func (r *pageRun) daemons(h *netlab.Host, unit string) {
	start := func(name string, args ...string) {
		p, err := h.Start(name, netlab.Cmd{Args: args})
		if err != nil {
			r.t.Fatal(err)
		}
		r.units[unit] = append(r.units[unit], p)
	}
	if unit == "bird" {
		start("bird", "/usr/sbin/bird", "-f", "-c", "/etc/bird/bird.conf", "-s", "/run/bird/bird.ctl", "-P", "/run/bird/bird.pid")
		return
	}
	netlab.Must(r.t, h, "chown", "-R", "frr:frr", "/etc/frr", "/run/frr")
	for _, name := range []string{"zebra", "bfdd", "bgpd"} {
		start(name, "/usr/lib/frr/"+name, "-f", "/etc/frr/frr.conf", "-i", "/run/frr/"+name+".pid", "-z", "/run/frr/zserv.api", "--vty_socket", "/run/frr", "-P", "0")
		netlab.Until(r.t, patience, name, func() string {
			if _, err := netlab.Try(r.t, h, "vtysh", "-d", name, "-c", "show version"); err != nil {
				return err.Error()
			}
			return ""
		})
	}
}

// do runs a step until its output is what the page shows; without one, it must succeed.
func (r *pageRun) do(s step) (out string, wrong string) {
	h := r.host(s.host)
	deadline := time.Now().Add(patience)
	if writes() {
		deadline = time.Now().Add(3 * time.Second)
	}
	for {
		out, code := r.run(h, s.command)
		if len(s.want) == 0 {
			if code != 0 {
				return out, fmt.Sprintf("exit code %d: %s", code, out)
			}
			return out, ""
		}
		if shown(s.want, out) {
			r.learn(s.want, out)
			return out, ""
		}
		if !asks.MatchString(s.command) || time.Now().After(deadline) || slices.Equal(s.want, []string{"?"}) {
			return out, fmt.Sprintf("prints\n%s\nand the page shows\n%s", out, strings.Join(s.want, "\n"))
		}
		netlab.Must(r.t, h, "sleep", "0.1")
	}
}

// writes says whether the pages get what is printed.
func writes() bool { return os.Getenv("NETCTL_WRITE_DOCS") != "" }

// TestPages runs the commands that the pages show at the prompt of a node, from top to
// bottom, each page in a lab of its own, and holds what they print against what is shown.
// NETCTL_WRITE_DOCS=1 writes what they print into the pages instead.
func TestPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, page := range pages {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(`(?m)` + prompt.String()).Match(raw) {
			continue
		}
		ran++
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			t.Parallel()
			r, steps := newPageRun(t, page)
			written, moved := slices.Clone(r.lines), 0
			if writes() {
				defer func() {
					if err := os.WriteFile(page, []byte(strings.Join(written, "\n")), 0o644); err != nil {
						t.Error(err)
					}
				}()
			}
			for _, s := range steps {
				out, wrong := r.do(s)
				if wrong == "" {
					continue
				}
				if !writes() || len(s.want) == 0 {
					t.Fatalf("%s:%d: %s# %s\n%s", page, s.line, s.host, s.command, wrong)
				}
				var lines []string
				for _, l := range strings.Split(strings.TrimRight(out, "\n"), "\n") {
					lines = append(lines, strings.TrimRight("    "+l, " "))
				}
				written = slices.Replace(written, s.first+moved, s.last+moved, lines...)
				moved += len(lines) - (s.last - s.first)
			}
		})
	}
	if ran < 6 {
		t.Errorf("%d pages have commands to run", ran)
	}
}
