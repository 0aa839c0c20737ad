package tap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// retry is how long a TAP rests that could not be listened on.
const retry = time.Second

// A machine is answered burst times at once, and then once in a pause: with more it
// would keep its host busy.
const (
	burst = 16
	pause = 50 * time.Millisecond
)

// Server answers machines. Its methods are safe for concurrent use.
type Server struct {
	log  *slog.Logger
	wake chan struct{}

	mu     sync.Mutex
	guests map[string]Guest // by link
}

// New is a Server that answers nobody yet.
func New(log *slog.Logger) *Server { return &Server{log: log, wake: make(chan struct{}, 1)} }

// Serve says whom to answer, instead of those before.
func (s *Server) Serve(guests map[string]Guest) {
	s.mu.Lock()
	s.guests = maps.Clone(guests)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run answers until ctx ends, in the network namespace of the process.
func (s *Server) Run(ctx context.Context) error {
	type served struct {
		Guest
		stop context.CancelFunc
	}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	now := map[string]served{}
	defer func() {
		for _, g := range now {
			g.stop()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		s.mu.Lock()
		want := s.guests
		s.mu.Unlock()
		for link, g := range now {
			if w, ok := want[link]; !ok || !w.equal(g.Guest) {
				g.stop()
				delete(now, link)
			}
		}
		for link, g := range want {
			if _, is := now[link]; is {
				continue
			}
			inner, stop := context.WithCancel(ctx)
			now[link] = served{g, stop}
			for _, kind := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
				if g.address(kind == unix.ETH_P_IP).IsValid() {
					tasks.Go(func() { s.attend(inner, g, kind) })
				}
			}
		}
	}
}

// attend answers one machine in one family until ctx ends.
func (s *Server) attend(ctx context.Context, g Guest, kind uint16) {
	for said := ""; ; {
		err := g.listen(ctx, kind)
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said && !errors.Is(err, unix.ENETDOWN) {
			s.log.Warn("a virtual machine is not told its address for the moment", "link", g.Link, "error", text)
			said = text
		}
		wait := time.NewTimer(retry)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
	}
}

// listen answers until ctx ends or the TAP cannot be read.
func (g Guest) listen(ctx context.Context, kind uint16) error {
	f, err := openPacket(g.Index, kind)
	if err != nil {
		return err
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.Close() })()
	if kind == unix.ETH_P_IPV6 {
		var teller sync.WaitGroup
		defer teller.Wait()
		telling, stop := context.WithCancel(ctx)
		defer stop()
		teller.Go(func() { g.tell(telling, f) })
	}
	buf := make([]byte, 1<<16)
	for spent, since := 0, time.Now(); ; {
		n, err := f.Read(buf)
		if err != nil {
			return err
		}
		answer := g.answer(buf[:n])
		if answer == nil {
			continue
		}
		if _, err := f.Write(answer); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		if now := time.Now(); now.Sub(since) > burst*pause {
			spent, since = 0, now
		}
		if spent++; spent > burst {
			time.Sleep(pause)
		}
	}
}

// tell sends advertisements that nobody asked for: machines that were told before hear of
// changes, and that their router is there.
func (g Guest) tell(ctx context.Context, f *os.File) {
	tick := time.NewTicker(advertiseEvery)
	defer tick.Stop()
	for {
		_, _ = f.Write(g.advertise()) // with nobody there it is lost
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// openPacket opens a socket that gets what one kind of packets on one link has for a
// server of the three protocols, as the link has it (packet(7)).
func openPacket(index int, kind uint16) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	program := wanted(kind)
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err == nil { // from now on it gets packets
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: kind<<8 | kind>>8, Ifindex: index})
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up a packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

// wanted is the filter in the kernel of what is worth a look; answer looks closely.
func wanted(kind uint16) []unix.SockFilter {
	const (
		byteAt   = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		halfAt   = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
		halfFrom = unix.BPF_LD | unix.BPF_H | unix.BPF_IND
		equal    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		header   = unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH
		end      = unix.BPF_RET | unix.BPF_K
	)
	if kind == unix.ETH_P_IP {
		return []unix.SockFilter{
			{Code: byteAt, K: ethernetLen + 9},
			{Code: equal, K: unix.IPPROTO_UDP, Jf: 4},
			{Code: header, K: ethernetLen},
			{Code: halfFrom, K: ethernetLen + 2},
			{Code: equal, K: server4, Jf: 1},
			{Code: end, K: 1 << 16},
			{Code: end, K: 0},
		}
	}
	return []unix.SockFilter{
		{Code: byteAt, K: ethernetLen + 6},
		{Code: equal, K: unix.IPPROTO_UDP, Jf: 2},
		{Code: halfAt, K: ethernetLen + ipv6Len + 2},
		{Code: equal, K: server6, Jt: 3, Jf: 4},
		{Code: equal, K: unix.IPPROTO_ICMPV6, Jf: 3},
		{Code: byteAt, K: ethernetLen + ipv6Len},
		{Code: equal, K: routerSolicitation, Jf: 1},
		{Code: end, K: 1 << 16},
		{Code: end, K: 0},
	}
}
