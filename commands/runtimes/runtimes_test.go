package runtimes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"netctl/datastore"
)

// fakePlace has networks by name, as Docker would.
type fakePlace struct {
	who   []string
	have  map[string]found
	fails error // of put, remove and look
	calls []string

	watched int
	ends    chan struct{} // ends a watch
}

func (p *fakePlace) serves() []string { return p.who }

func (p *fakePlace) look(context.Context) (map[string]found, error) {
	return maps.Clone(p.have), p.fails
}

func (p *fakePlace) put(_ context.Context, n Network, have *found) error {
	p.calls = append(p.calls, fmt.Sprintf("put %s %t", n.Name, have != nil))
	p.have[n.Name] = found{at: n.Name, ours: true, same: func(o Network) bool { return o.IPv6 == n.IPv6 }}
	return nil
}

func (p *fakePlace) remove(_ context.Context, have found) error {
	p.calls = append(p.calls, "remove "+have.at)
	delete(p.have, have.at)
	return nil
}

func (p *fakePlace) watch(ctx context.Context, changed func()) error {
	p.watched++
	changed()
	select {
	case <-ctx.Done():
		return nil
	case <-p.ends:
		return errors.New("it ended")
	}
}

// rig is a keeper of a fake place with a cluster that says what a test says.
type rig struct {
	*keeper
	place *fakePlace
	wish  Wish
	mute  bool
	used  map[string]int
	told  [][]datastore.RuntimeStatus
}

func newRig() *rig {
	r := &rig{place: &fakePlace{who: []string{"docker"}, have: map[string]found{}}, used: map[string]int{}}
	r.keeper = &keeper{cluster: r, log: silent(), name: "docker", orchestrator: "docker", place: r.place, wake: make(chan struct{}, 1)}
	return r
}

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Wish implements Cluster.
func (r *rig) Wish(context.Context) (Wish, bool) { return r.wish, !r.mute }

// Used implements Cluster.
func (r *rig) Used(_ context.Context, _, network string) (int, error) { return r.used[network], nil }

// Tell implements Cluster.
func (r *rig) Tell(_ string, list []datastore.RuntimeStatus) { r.told = append(r.told, list) }

// want has the cluster want networks in Docker.
func (r *rig) want(names ...string) {
	r.wish = Wish{Revision: r.wish.Revision + 1}
	for _, name := range names {
		r.wish.Networks = append(r.wish.Networks, Network{Name: name, Runtimes: []string{"docker"}})
	}
}

// say is the last status in words.
func (r *rig) say() string {
	if len(r.told) == 0 {
		return "nothing"
	}
	var words []string
	for _, s := range r.told[len(r.told)-1] {
		words = append(words, fmt.Sprintf("%s %d", s.Runtime, s.Networks))
		for _, w := range s.Wrong {
			words = append(words, w.Network+" "+w.State)
		}
		if s.Error != "" {
			words = append(words, s.Error)
		}
	}
	return strings.Join(words, ", ")
}

// TestPass: what a pass makes of what a place has, and what it says of it.
func TestPass(t *testing.T) {
	byHand := found{at: "by hand"}
	for name, c := range map[string]struct {
		have  map[string]found
		used  map[string]int
		want  []string
		calls string
		say   string
		again bool
	}{
		"made":                    {want: []string{"b", "a"}, calls: "put a false; put b false", say: "docker 2"},
		"there already":           {have: map[string]found{"a": {at: "a", ours: true, same: func(Network) bool { return true }}}, want: []string{"a"}, say: "docker 1"},
		"as it was before":        {have: map[string]found{"a": {at: "a", ours: true, same: func(Network) bool { return false }}}, want: []string{"a"}, calls: "put a true", say: "docker 1"},
		"made by hand":            {have: map[string]found{"a": byHand}, want: []string{"a"}, say: "docker 0, a differs"},
		"changed by hand":         {have: map[string]found{"a": {at: "a", ours: true, changed: true}}, want: []string{"a"}, say: "docker 0, a differs"},
		"twice":                   {have: map[string]found{"a": {at: "a", ours: true, also: "x"}}, want: []string{"a"}, say: "docker 0, a differs"},
		"not wanted":              {have: map[string]found{"a": {at: "a", ours: true}}, calls: "remove a", say: "docker 0"},
		"not wanted, in use":      {have: map[string]found{"a": {at: "a", ours: true}}, used: map[string]int{"a": 2}, say: "docker 0, a left", again: true},
		"not wanted, changed":     {have: map[string]found{"a": {at: "a", ours: true, changed: true}}, say: "docker 0, a left"},
		"not wanted, and no ours": {have: map[string]found{"a": byHand, "b": byHand}, say: "docker 0"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig()
			if c.have != nil {
				r.place.have = c.have
			}
			if r.want(c.want...); c.used != nil {
				r.used = c.used
			}
			again := r.pass(t.Context())
			if calls := strings.Join(r.place.calls, "; "); calls != c.calls || r.say() != c.say || again != c.again {
				t.Errorf("calls %q, says %q, again %t; want %q, %q, %t", calls, r.say(), again, c.calls, c.say, c.again)
			}
		})
	}
}

// TestPassHoldsStill: nothing is touched while nobody can say what is wanted, and what was
// known stays while a runtime does not answer.
func TestPassHoldsStill(t *testing.T) {
	r := newRig()
	r.want("a")
	r.pass(t.Context())
	r.mute = true
	r.wish = Wish{}
	r.pass(t.Context())
	r.mute = false
	r.want("a")
	r.place.fails = errors.New("no answer")
	if !r.pass(t.Context()) || r.say() != "docker 1, no answer" {
		t.Errorf("says %q", r.say())
	}
	if calls := strings.Join(r.place.calls, "; "); calls != "put a false" {
		t.Errorf("calls %q", calls)
	}
	r.place.who = nil // it was deinstalled
	if r.pass(t.Context()); r.say() != "" {
		t.Errorf("says %q", r.say())
	}
}

// TestStatusIsBounded: of many networks that are wrong so many are named, and who looks one
// up that is not does not take it for present.
func TestStatusIsBounded(t *testing.T) {
	r := newRig()
	var names []string
	for i := range 2 * mostWrong {
		name := fmt.Sprintf("n%03d", i)
		names = append(names, name)
		r.place.have[name] = found{at: strings.Repeat("long ", 1000)}
	}
	r.want(names...)
	r.pass(t.Context())
	s := r.told[0][0]
	if len(s.Wrong) != mostWrong || s.More != mostWrong || s.Networks != 0 || len(s.Wrong[0].Reason) > mostReason+10 {
		t.Errorf("%d named, %d more, %d there, reason of %d bytes", len(s.Wrong), s.More, s.Networks, len(s.Wrong[0].Reason))
	}
	for name, want := range map[string]string{names[0]: datastore.NetworkDiffers, names[2*mostWrong-1]: datastore.NetworkUnknown} {
		if state, _ := s.Of(&datastore.Network{Metadata: datastore.Metadata{Name: name, Revision: 1}}); state != want {
			t.Errorf("%s is %s, want %s", name, state, want)
		}
	}
	if state, _ := s.Of(&datastore.Network{Metadata: datastore.Metadata{Name: "later", Revision: 2}}); state != datastore.NetworkMissing {
		t.Errorf("a network of later is %s", state)
	}
}

// TestRunTriesAgain: what failed is tried again at growing intervals, and at once when
// somebody says that something changed.
func TestRunTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		r.want("a")
		r.place.fails = errors.New("no answer")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		r.place.fails = nil
		r.poke()
		time.Sleep(2 * burst)
		synctest.Wait()
		if r.say() != "docker 1" {
			t.Errorf("says %q", r.say())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestFollow: a watch that ends, as Docker does, has the place looked at and is begun again.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig()
		r.place.ends = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.follow(ctx) }()
		for want := 1; want <= 3; want++ {
			time.Sleep(2 * retryMax)
			synctest.Wait()
			select {
			case <-r.wake:
			default:
				t.Errorf("watch %d: nobody was told", want)
			}
			if r.place.watched != want {
				t.Errorf("watched %d times, want %d", r.place.watched, want)
			}
			r.place.ends <- struct{}{}
			synctest.Wait()
			<-r.wake
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// onDisk is a keeper of the places of files below a folder.
func onDisk(t *testing.T) (root string, cfg Config) {
	t.Helper()
	root = t.TempDir()
	return root, Config{Root: root, Runtimes: datastore.Runtimes()}
}

func lay(t *testing.T, root string, texts map[string]string) {
	t.Helper()
	for path, text := range texts {
		if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWhichRuntimes: what a node has, by what is installed there and how Podman is set.
func TestWhichRuntimes(t *testing.T) {
	const cni, program, nv = "/etc/cni/net.d/10-x.conflist", "/usr/bin/podman", "/usr/lib/podman/netavark"
	for name, c := range map[string]struct {
		files         map[string]string
		cni, netavark string
	}{
		"nothing":              {nil, "", ""},
		"a CNI runtime":        {map[string]string{cni: ""}, "cni", ""},
		"Podman 5":             {map[string]string{program: "", nv: ""}, "", "podman"},
		"Podman 4, CNI alone":  {map[string]string{program: ""}, "podman", ""},
		"Podman 4, by choice":  {map[string]string{cni: "", program: "", nv: "", "/etc/containers/containers.conf.d/cni.conf": "[network]\nnetwork_backend = \"cni\"\n"}, "cni podman", ""},
		"Podman 4, by itself":  {map[string]string{program: "", nv: "", "/var/lib/containers/storage/defaultNetworkBackend": "cni"}, "podman", ""},
		"a setting that is no": {map[string]string{program: "", nv: "", "/etc/containers/containers.conf": "# network_backend = \"cni\"\n"}, "", "podman"},
	} {
		t.Run(name, func(t *testing.T) {
			root, cfg := onDisk(t)
			lay(t, root, c.files)
			if is := strings.Join(newConflists(cfg, silent()).serves(), " "); is != c.cni {
				t.Errorf("conflists are of %q, want %q", is, c.cni)
			}
			if is := strings.Join(newNetavark(cfg, silent()).serves(), " "); is != c.netavark {
				t.Errorf("netavark's are of %q, want %q", is, c.netavark)
			}
		})
	}
}

// TestFiles: a file that netctl wrote is known as such, also one of before; what a person
// wrote, changed, copied or broke is not touched.
func TestFiles(t *testing.T) {
	_, cfg := onDisk(t)
	for _, p := range []*files{newConflists(cfg, silent()), newNetavark(cfg, silent())} {
		t.Run(filepath.Base(p.dir), func(t *testing.T) {
			web := Network{Name: "web"}
			path := filepath.Join(p.dir, p.name("web"))
			if err := p.put(t.Context(), web, nil); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			state := func(want string) {
				t.Helper()
				have, err := p.look(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				f := have["web"]
				is := fmt.Sprintf("ours %t changed %t also %q", f.ours, f.changed, strings.TrimPrefix(f.also, p.dir+"/"))
				if f.ours && !f.changed {
					is += fmt.Sprintf(" same %t", f.same(web))
				}
				if is != want {
					t.Errorf("%s, want %s", is, want)
				}
			}
			write := func(name, text string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			state(`ours true changed false also "" same true`)
			if err := p.put(t.Context(), web, nil); !errors.Is(err, datastore.ErrExists) {
				t.Errorf("a file that came meanwhile: %v", err)
			}
			_, sum, _ := strings.Cut(string(text), sealKey+`": "`)
			of := strings.Replace(string(text), sum[:64], "", 1)
			write(p.name("web"), string(sealed(strings.Replace(of, `"netctl"`, `"netctl" `, 1)))) // an older netctl's
			state(`ours true changed false also "" same false`)
			write(p.name("web"), strings.Replace(string(text), `"netctl"`, `"netctl" `, 1))
			state(`ours true changed true also ""`)
			write(p.name("web"), string(text[:len(text)/2]))
			state(fmt.Sprintf(`ours %t changed true also ""`, strings.Contains(string(text[:len(text)/2]), sealKey)))
			write(p.name("web"), `{"name":"web"}`)
			state(`ours false changed true also ""`)
			write(p.name("web"), string(p.text(Network{Name: "db"}))) // a copy of another's
			state(`ours true changed true also ""`)
			write(p.name("web"), string(text))
			if err := syscall.Mkfifo(filepath.Join(p.dir, "00-pipe"+p.ends[0]), 0o600); err != nil {
				t.Fatal(err)
			}
			write("00-x"+p.ends[0], `{"name":"web"}`)
			state(`ours true changed false also "00-x` + p.ends[0] + `" same true`)
		})
	}
}

// TestDockerNames: our driver is called as its socket, and without Docker there is none.
func TestDockerNames(t *testing.T) {
	d := newDocker(Config{DockerAPI: "/none", DockerDriver: "/run/docker/plugins/calico.sock"})
	if d.driver() != "calico" || d.serves() != nil {
		t.Errorf("driver %s, serves %v", d.driver(), d.serves())
	}
	if _, err := d.look(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "the API of Docker at /none: ") {
		t.Errorf("look: %v", err)
	}
}

// TestDocker has the API of Docker, whose answers a fake gives, say what is there.
func TestDocker(t *testing.T) {
	f := newFakeDocker(t)
	d := newDocker(Config{DockerAPI: f.socket, DockerDriver: "/run/docker/plugins/netctl.sock"})
	web := Network{Name: "web", Subnets: []netip.Prefix{netip.MustParsePrefix("10.65.0.0/16")}}
	if err := d.put(t.Context(), web, nil); err != nil {
		t.Fatal(err)
	}
	look := func() found {
		t.Helper()
		have, err := d.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return have["web"]
	}
	is := look()
	if !is.ours || is.changed || !is.same(web) || is.same(Network{Name: "web"}) || is.same(Network{Name: "web", IPv6: true, Subnets: web.Subnets}) {
		t.Errorf("the network that was made: %+v", is)
	}
	f.use = true
	if err := d.put(t.Context(), Network{Name: "web", IPv6: true}, &is); err == nil || !strings.Contains(err.Error(), "active endpoints") {
		t.Errorf("one in use is made anew: %v", err)
	}
	if is := look(); !is.same(web) {
		t.Error("what could not be made anew is not as it was")
	}
	f.use = false
	if err := d.put(t.Context(), Network{Name: "web", IPv6: true}, &is); err != nil || !look().same(Network{Name: "web", IPv6: true}) {
		t.Errorf("made anew: %v", err)
	}
	f.add("web", "bridge")
	if is = look(); !is.ours || is.also == "" {
		t.Errorf("two of one name: %+v", is)
	}
}

func TestTasksOfNone(t *testing.T) {
	if list := New(Config{}, nil, nil).Tasks(); len(list) != 0 {
		t.Errorf("%v", list)
	}
	names := []string{}
	for _, task := range New(Config{Runtimes: datastore.Runtimes()}, nil, nil).Tasks() {
		names = append(names, task.Name)
	}
	if !slices.Contains(names, "keep the networks of netavark") || len(names) != 6 {
		t.Errorf("%v", names)
	}
}
