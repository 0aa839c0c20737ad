package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/commands/diags"
	"netctl/commands/doctor"
	"netctl/commands/telemetry"
	"netctl/datastore"
)

// mostOutput bounds what is taken of a program's output or of a file, in bytes.
const mostOutput = 16 << 20

// diagsParts are the parts of the archive, in its order.
func (a *app) diagsParts(s *settings) []diags.Part {
	parts := []diags.Part{
		{Name: "version.txt", Do: func(context.Context) ([]byte, error) { return versionText(s), nil }},
		{Name: "settings.yaml", Do: func(context.Context) ([]byte, error) { return []byte(s.yaml()), nil }},
		{Name: "status.txt", Do: func(ctx context.Context) ([]byte, error) { return a.statusPart(ctx, formatWide) }},
		{Name: "status.json", Do: func(ctx context.Context) ([]byte, error) { return a.statusPart(ctx, formatJSON) }},
		{Name: "doctor.txt", Do: func(ctx context.Context) ([]byte, error) { return a.doctorPart(ctx, s) }},
		{Name: "events.txt", Do: func(context.Context) ([]byte, error) { return eventsPart(s) }},
		{Name: "datastore.txt", Do: func(ctx context.Context) ([]byte, error) { return a.datastorePart(ctx) }},
		{Name: "agent.json", Do: asked(func(ctx context.Context) (any, error) { return control.NewAgentClient(s.Agent.Socket).Status(ctx) })},
		{Name: "speaker.json", Do: asked(func(ctx context.Context) (any, error) { return control.NewSpeakerClient(s.Speaker.Socket).Status(ctx) })},
		{Name: "bgp-routes.json", Do: asked(func(ctx context.Context) (any, error) {
			return control.NewSpeakerClient(s.Speaker.Socket).BGPRoutes(ctx, control.BGPQuery{})
		})},
		{Name: "nft.txt", Do: eachRun([]string{"nft", "list", "table", "inet", "netctl"}, []string{"nft", "list", "table", "arp", "netctl"}, []string{"nft", "list", "tables"})},
		{Name: "iptables.txt", Do: eachRun([]string{"iptables-save"}, []string{"ip6tables-save"})},
		{Name: "links.txt", Do: eachRun([]string{"ip", "-d", "-s", "link"}, []string{"ip", "address"})},
		{Name: "routes.txt", Do: eachRun([]string{"ip", "-d", "-4", "route", "show", "table", "all"}, []string{"ip", "-d", "-6", "route", "show", "table", "all"}, []string{"ip", "nexthop"})},
		{Name: "rules.txt", Do: eachRun([]string{"ip", "-4", "rule"}, []string{"ip", "-6", "rule"})},
		{Name: "neighbours.txt", Do: eachRun([]string{"ip", "-s", "neighbour"}, []string{"ip", "neighbour", "show", "proxy"})},
		{Name: "sockets.txt", Do: eachRun([]string{"ss", "-tulpn"}, []string{"ss", "-s"})},
		{Name: "sysctls.txt", Do: func(ctx context.Context) ([]byte, error) { return sysctlsPart(ctx, "/proc/sys/net") }},
		{Name: "conntrack.txt", Do: filesPart("/proc/sys/net/netfilter/nf_conntrack_count", "/proc/sys/net/netfilter/nf_conntrack_max", "/proc/net/stat/nf_conntrack")},
		{Name: "machine.txt", Do: filesPart("/etc/os-release", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/net/snmp", "/proc/net/netstat", "/proc/net/softnet_stat")},
		{Name: "logs.txt", Do: eachRun([]string{"journalctl", "-u", "netctl-*", "-n", "5000", "--no-pager", "-o", "short-iso-precise"})},
		{Name: "kernel-log.txt", Do: eachRun([]string{"journalctl", "-k", "-n", "500", "--no-pager", "-o", "short-iso-precise"})},
		{Name: "files.txt", Do: func(ctx context.Context) ([]byte, error) { return fileList(ctx, s.StateDir, s.RunDir) }},
	}
	for _, role := range telemetry.Roles() {
		for _, what := range []string{"healthz", "readyz", "metrics", "goroutines"} {
			parts = append(parts, diags.Part{Name: "roles/" + role + "." + what, Limit: statusTime, Do: func(ctx context.Context) ([]byte, error) {
				text, err := telemetry.Ask(ctx, s.RunDir, role, what)
				switch {
				case errors.Is(err, fs.ErrNotExist) && !expected(s, role):
					return nil, diags.ErrAbsent
				case len(text) > 0 && strings.HasSuffix(what, "z"): // that it is not well is an answer
					return text, nil
				}
				return text, err
			}})
		}
	}
	// What roles keep and what is no secret: nothing else is taken.
	for _, name := range []string{"cluster.json", "host", "boot", "speaker.json", "members.json", "understood.json", "filter", "etcd-joins.json", "etcd-joined.json"} {
		parts = append(parts, diags.Part{Name: "state/" + name, Do: keptFile(filepath.Join(s.StateDir, name))})
	}
	for _, pattern := range []string{"endpoints/*.json", "pending/*", "docker/*.json"} {
		parts = append(parts, diags.Part{Name: "run/" + strings.Split(pattern, "/")[0], Do: func(context.Context) ([]byte, error) {
			found, _ := filepath.Glob(filepath.Join(s.RunDir, pattern)) // the pattern is right
			if len(found) == 0 {
				return nil, diags.ErrAbsent
			}
			return filesPart(found...)(context.Background())
		}})
	}
	return parts
}

// expected says whether a role is to run on this host: by its settings, or, where those
// name none, because it has run.
func expected(s *settings, role string) bool {
	if len(s.Roles) > 0 {
		return role == "node" || slices.Contains(s.Roles, role)
	}
	_, err := os.Stat(filepath.Join(s.StateDir, role+".lock"))
	return err == nil
}

// keptPasswords are where the passwords of peers are, as the speaker last knew them.
func keptPasswords(path string) (list []datastore.PeerPassword) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var tree any
	if json.Unmarshal(text, &tree) != nil {
		return nil
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			if where, is := v["password"].(map[string]any); is {
				file, _ := where["file"].(string)
				credential, _ := where["credential"].(string)
				list = append(list, datastore.PeerPassword{File: file, Credential: credential})
			}
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(tree)
	return list
}

func versionText(s *settings) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "netctl %s (%s, %s)\nnode %s\nconfiguration %s\ntime %s\n", version, runtime.Version(), runtime.GOARCH, s.Node, s.File, time.Now().Format(time.RFC3339Nano))
	b.Write(diags.Machine(s.StateDir, s.RunDir))
	return b.Bytes()
}

// printed is what a copy of this command line prints: parts are made side by side.
func (a *app) printed(print func(*app) error) ([]byte, error) {
	var out, errs bytes.Buffer
	b := &app{in: strings.NewReader(""), out: &out, err: &errs, cmd: a.cmd, loaded: a.loaded}
	defer func() {
		if b.opened != nil {
			_ = b.opened.Close()
		}
	}()
	err := print(b)
	if errors.Is(err, errNo) {
		err = nil // that something is wrong is what it tells
	}
	return append(errs.Bytes(), out.Bytes()...), err
}

func (a *app) statusPart(ctx context.Context, f format) ([]byte, error) {
	return a.printed(func(b *app) error {
		reports, err := b.reports(ctx, "", false)
		if err != nil {
			return err
		}
		return b.showReports(f, reports, false)
	})
}

func (a *app) doctorPart(ctx context.Context, s *settings) ([]byte, error) {
	return a.printed(func(b *app) error {
		r, err := b.examine(ctx, s, nil, false)
		if err != nil {
			return err
		}
		err = b.showExamination(formatWide, r)
		if r.Count(doctor.Unknown) > 0 {
			fmt.Fprintf(b.out, "%v\n", err)
			return nil // what it tells is whole
		}
		return err
	})
}

func eventsPart(s *settings) ([]byte, error) {
	list, err := telemetry.Events(s.StateDir)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil, diags.ErrAbsent
	}
	var b bytes.Buffer
	for _, e := range list {
		b.WriteString(eventLine(e, true))
	}
	return b.Bytes(), err
}

// datastorePart is how the datastore is, and what it holds of each kind.
func (a *app) datastorePart(ctx context.Context) ([]byte, error) {
	return a.printed(func(b *app) error {
		ctx, cancel := context.WithTimeout(ctx, statusTime)
		defer cancel()
		store, err := b.store(ctx)
		if err != nil {
			return err
		}
		out := b.out
		fmt.Fprintf(out, "%s\n", storeLine(ctx, store, "").line)
		for _, h := range store.Health(ctx) {
			fmt.Fprintf(out, "%+v\n", h)
		}
		members, err := store.Members(ctx)
		for _, m := range members {
			fmt.Fprintf(out, "%+v\n", m)
		}
		if err != nil {
			fmt.Fprintf(out, "members: %v\n", err)
		}
		view, err := b.view(ctx, datastore.KindNode, datastore.KindPool, datastore.KindPeer, datastore.KindBGPFilter, datastore.KindBGPConfig, datastore.KindConfig)
		if err != nil {
			return fmt.Errorf("the datastore's objects: %w", err)
		}
		fmt.Fprintf(out, "revision %d\n", view.Revision())
		for _, kind := range datastore.Kinds() {
			if objects := view.Objects(kind); len(objects) > 0 {
				if err := b.show(formatYAML, objects, nil); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// asked is a part that a role's socket answers.
func asked(ask func(context.Context) (any, error)) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, statusTime)
		defer cancel()
		v, err := ask(ctx)
		if err != nil {
			return nil, err
		}
		return json.MarshalIndent(v, "", "  ")
	}
}

// eachRun is a part of what programs print. One that is not installed, or fails, is told
// where its output would be.
func eachRun(commands ...[]string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		var b bytes.Buffer
		if _, err := exec.LookPath(commands[0][0]); err != nil {
			return nil, diags.ErrAbsent
		}
		for _, c := range commands {
			fmt.Fprintf(&b, "# %s\n", strings.Join(c, " "))
			cmd := exec.CommandContext(ctx, c[0], c[1:]...)
			cmd.WaitDelay = time.Second
			w := &bounded{buf: &b, room: mostOutput}
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Run(); err != nil {
				fmt.Fprintf(&b, "# %v\n", err)
			}
		}
		return b.Bytes(), ctx.Err()
	}
}

// bounded takes so much and lets the rest go.
type bounded struct {
	buf  *bytes.Buffer
	room int
}

func (w *bounded) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	w.buf.Write(p[:n])
	return len(p), nil
}

// readSome reads the beginning of a file.
func readSome(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// keptFile is a file as a part.
func keptFile(path string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		text, err := readSome(path, mostOutput)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, diags.ErrAbsent
		}
		return text, err
	}
}

// filesPart is files one after the other; those that are not there are left out.
func filesPart(paths ...string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) {
		var b bytes.Buffer
		for _, path := range paths {
			text, err := readSome(path, 1<<20)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			fmt.Fprintf(&b, "# %s\n%s\n", path, bytes.TrimSpace(text))
			if err != nil {
				fmt.Fprintf(&b, "# %v\n", err)
			}
			if b.Len() > mostOutput {
				break
			}
		}
		return b.Bytes(), nil
	}
}

// sysctlsPart is every setting below a folder that can be read, but for keys.
func sysctlsPart(ctx context.Context, root string) ([]byte, error) {
	var b bytes.Buffer
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case b.Len() > mostOutput:
			return fs.SkipAll
		case err != nil || d.IsDir() || strings.Contains(d.Name(), "key") || strings.Contains(d.Name(), "secret"):
			return nil //nolint:nilerr // an interface may go while it is looked at
		}
		if text, err := readSome(path, 4<<10); err == nil {
			name, _ := filepath.Rel("/proc/sys", path)
			fmt.Fprintf(&b, "%s = %s\n", name, strings.Join(strings.Fields(string(text)), " "))
		}
		return nil
	})
	return b.Bytes(), err
}

// fileList is what files are in folders, and not what is in them.
func fileList(ctx context.Context, roots ...string) ([]byte, error) {
	var b bytes.Buffer
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case b.Len() > mostOutput:
				return fs.SkipAll
			case err != nil:
				return nil //nolint:nilerr // it went while it was looked at
			}
			if st, err := d.Info(); err == nil {
				fmt.Fprintf(&b, "%s %9d %s %s\n", st.Mode(), st.Size(), st.ModTime().UTC().Format(time.RFC3339), path)
			}
			return nil
		})
		if err != nil {
			return b.Bytes(), err
		}
	}
	return b.Bytes(), nil
}
