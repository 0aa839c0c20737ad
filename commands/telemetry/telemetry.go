// Package telemetry owns what a role shows of itself to those who watch it: metrics and
// health by HTTP, its goroutines, and the events that people look for, which outlive it.
//
// It never changes anything but its own files and sockets, and no role fails or waits
// because of it. Metrics are in Prometheus' text format; client_golang would make every
// start of the program, CNI calls included, half as long again.
//
// Invariants: each metric is in Metrics, with a bounded number of series; each event has a
// log record with the same words.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/datastore/pki"
)

// Config says whose telemetry it is and where it is shown.
type Config struct {
	Role, Node, Version string
	// StateDir keeps events, RunDir has the sockets; each role has one of its own.
	StateDir, RunDir string
	// Listen is where the role is asked by TCP; zero: nowhere.
	Listen netip.AddrPort
	// Certificates are files by the use that Metrics names.
	Certificates map[string]string
}

// Port is how far the port of a role is from that of the settings, the agent's.
func Port(role string) int {
	return map[string]int{"agent": 0, "speaker": 1, "reflector": 1, "docker": 2, "datastore": 3, "api": 4}[role]
}

// Ports is how many there are.
const Ports = 5

// Socket is where a role is asked on its own machine, by root alone.
func Socket(runDir, role string) string { return filepath.Join(runDir, "watch", role+".sock") }

// Role is the telemetry of one role; the zero value shows nothing. What is nil of its functions stands for yes, and for
// nothing.
type Role struct {
	// Alive says whether the role works; it may wait until ctx ends.
	Alive func(ctx context.Context) error
	// Ready says why the role is not what it should be.
	Ready func(ctx context.Context) error
	// Collect puts the metrics of the role on a page.
	Collect func(ctx context.Context, p *Page) error
	// More writes metrics of others behind those.
	More func() ([]byte, error)

	cfg      Config
	log      *slog.Logger
	events   *recorder
	asking   chan struct{} // holds one: Alive is asked
	listener *control.Listener
}

// New makes the socket; that it cannot be made is said and no more.
func New(cfg Config, log *slog.Logger) *Role {
	r := &Role{cfg: cfg, log: log, asking: make(chan struct{}, 1), events: newRecorder(cfg.StateDir, cfg.Node, cfg.Role, log)}
	var err error
	if r.listener, err = control.Listen(Socket(cfg.RunDir, cfg.Role), log); err != nil {
		log.Warn("no telemetry", "error", err)
	}
	return r
}

// Logger is like the one given to New; events are kept.
func (r *Role) Logger() *slog.Logger { return r.events.logger(r.log) }

// Close writes down the last events.
func (r *Role) Close() error {
	r.events.flush()
	if r.listener == nil {
		return nil
	}
	return r.listener.Close()
}

// Folders are what is to be watched, so that the socket comes back when it goes.
func (r *Role) Folders() []control.Folder {
	if r.listener == nil {
		return nil
	}
	return []control.Folder{r.listener.Folder()}
}

// Tasks run until the role ends.
func (r *Role) Tasks() []control.Task {
	if r.events == nil {
		return nil
	}
	list := []control.Task{{Name: "keep events", Do: r.events.run}}
	if r.listener != nil {
		list = append(list, control.Task{Name: "show telemetry", Do: func(ctx context.Context) error { return serve.Serve(ctx, r.listener, r.handler(true)) }})
	}
	if r.cfg.Listen.IsValid() {
		list = append(list, control.Task{Name: "show metrics", Do: r.listen})
	}
	return list
}

// The bounds of those who ask by TCP, who may be slow, and many.
const (
	askTime       = 10 * time.Second
	mostAsked     = 8 // at once
	mostConnected = 64
	againTCP      = 5 * time.Second
)

// listen answers by TCP. A port that is taken, or an address that the host does not have
// yet, is tried again.
func (r *Role) listen(ctx context.Context) error {
	said := ""
	for ctx.Err() == nil {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", r.cfg.Listen.String())
		if err == nil {
			r.log.Info("metrics are shown", "address", r.cfg.Listen)
			err = r.serve(ctx, l)
		}
		if err == nil {
			return nil
		}
		if said != err.Error() && ctx.Err() == nil {
			said = err.Error()
			r.log.Warn("metrics are not shown", "address", r.cfg.Listen, "error", err, "again", againTCP)
		}
		select {
		case <-ctx.Done():
		case <-time.After(againTCP):
		}
	}
	return nil
}

// serve answers on l until ctx ends.
func (r *Role) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: r.handler(false), ReadTimeout: askTime, WriteTimeout: 2 * askTime, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(control.Bound(l, mostConnected)); ctx.Err() == nil {
		return err
	}
	return nil
}

// handler answers; local: to root of this machine.
func (r *Role) handler(local bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(r.metrics(q.Context()))
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, q *http.Request) { say(w, r.healthy(q.Context())) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, q *http.Request) { say(w, r.ready(q.Context())) })
	if local {
		mux.HandleFunc("GET /goroutines", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(goroutines()) })
	}
	asked := make(chan struct{}, mostAsked)
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		select {
		case asked <- struct{}{}:
			defer func() { <-asked }()
			mux.ServeHTTP(w, q)
		default:
			http.Error(w, "too many ask at once", http.StatusServiceUnavailable)
		}
	})
}

func say(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, control.ErrorOf(err).Message, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// answerTime is how long a role may take to say how it is.
const answerTime = 5 * time.Second

func (r *Role) healthy(ctx context.Context) error {
	if r.Alive == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	select {
	case r.asking <- struct{}{}:
	case <-ctx.Done(): // somebody waits for an answer already
		return fmt.Errorf("%s hangs: it has not answered for %s", r.cfg.Role, answerTime)
	}
	answer := make(chan error, 1)
	go func() {
		defer func() { <-r.asking }()
		answer <- r.Alive(ctx)
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%s hangs: it has not answered for %s", r.cfg.Role, answerTime)
	}
}

func (r *Role) ready(ctx context.Context) error {
	if err := r.healthy(ctx); err != nil || r.Ready == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return r.Ready(ctx)
}

// metrics is the page: what the role could not say in time is missing.
func (r *Role) metrics(ctx context.Context) []byte {
	p := NewPage()
	p.Put("netctl_build_info", 1, r.cfg.Role, r.cfg.Version)
	healthy := r.healthy(ctx)
	p.Flag("netctl_healthy", healthy == nil)
	p.Flag("netctl_ready", healthy == nil && r.ready(ctx) == nil)
	p.Counts("netctl_events_total", &r.events.counts)
	p.Counts("netctl_repairs_total", &r.events.repairs)
	for use, file := range r.cfg.Certificates {
		if cert, err := pki.ReadCertificate(file); err == nil {
			p.Put("netctl_certificate_expiry_timestamp_seconds", float64(cert.NotAfter.Unix()), use)
		}
	}
	var wrong error
	if r.Collect != nil && healthy == nil {
		limited, cancel := context.WithTimeout(ctx, answerTime)
		wrong = r.Collect(limited, p)
		cancel()
	}
	var more []byte
	if r.More != nil {
		var err error
		more, err = r.More()
		wrong = errors.Join(wrong, err)
	} else {
		process(p)
	}
	text, err := p.Text()
	if err := errors.Join(wrong, err); err != nil {
		r.log.Debug("metrics are not whole", "error", err)
	}
	return append(text, more...)
}

// mostStacks bounds a dump of goroutines, in bytes.
const mostStacks = 4 << 20

func goroutines() []byte {
	for size := 256 << 10; ; size *= 2 {
		b := make([]byte, size)
		if n := runtime.Stack(b, true); n < size || size >= mostStacks {
			return b[:n]
		}
	}
}

// process puts the metrics that every process has.
func process(p *Page) {
	p.Put("go_goroutines", float64(runtime.NumGoroutine()))
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.Put("process_open_fds", float64(len(files)))
	}
	procfs(p)
}
