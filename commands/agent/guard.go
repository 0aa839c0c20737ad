package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/acl/nft"
	"netctl/commands/workload"
)

// guardGrace is how long an agent that runs has to close its packet filter itself, of
// which it knows more.
const guardGrace = 3 * time.Millisecond

// Guard closes the packet filter when somebody takes it away while no agent looks: one that
// is killed at that moment takes the kernel some time to end, and the next one some to
// start. It runs beside the agent, in another process, until ctx ends. What is not
// nftables' it leaves to the agent, as it does what is there but is wrong.
func Guard(ctx context.Context, cfg Config, log *slog.Logger) {
	runtime.LockOSThread() // which is preferred from now on, and goes with this goroutine
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
	for last := ""; ; {
		err := guard(ctx, &cfg, log)
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); text != last {
			last = text
			log.Warn("packet filter is not guarded while the agent is away", "error", err)
		}
		if !pause(ctx, retryMax) {
			return
		}
	}
}

func guard(ctx context.Context, cfg *Config, log *slog.Logger) error {
	t, err := nft.Open(log)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.WatchGone(ctx, func() {
		if !pause(ctx, guardGrace) || !cfg.guarded() {
			return
		}
		wrote, err := t.Block(ctx, cfg.static())
		switch {
		case err != nil:
			log.Warn("packet filter is gone, and cannot be closed", "error", err)
		case wrote:
			log.Warn("packet filter is gone, closed until the agent puts it back")
		}
	})
}

// static is the packet filter that knows of endpoints no more than which links of others are
// theirs.
func (c *Config) static() *acl.Ruleset {
	r := acl.Static(c.FilterOptions())
	if len(c.Adopt) == 0 {
		return r
	}
	records, _ := workload.NewRecords(c.recordsDir()).All() // as far as they can be read
	for _, rec := range records {
		if rec.Adopted() {
			r.Adopt(rec.Endpoint.Spec.Link)
		}
	}
	return r
}

// guarded tells whether nftables is what keeps endpoints here from others.
func (c *Config) guarded() bool {
	name, err := os.ReadFile(c.backendFile())
	return err == nil && string(name) == backendNFT && workload.NewRecords(c.recordsDir()).Any()
}
