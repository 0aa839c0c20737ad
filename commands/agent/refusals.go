package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"netctl/acl/nft"
)

// refusalPause lets a burst of other programs' changes pass.
const refusalPause = 300 * time.Millisecond

// problemRefused is what a chain of another program is that refuses everything.
const problemRefused = "packet filter of another program"

// lookForRefusals says which chains of other programs refuse what no rule in them accepts:
// netctl cannot overrule that. firewalld's end so by nature, and are doctor's to judge, as
// are iptables' policies, which the agent opens.
func (a *agent) lookForRefusals(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.foreign:
		}
		if !pause(ctx, refusalPause) {
			return nil
		}
		chains, err := nft.BaseChains(a.cfg.LinkPrefix)
		if err != nil {
			a.log.Warn("other programs' packet filters not read", "error", err)
			continue
		}
		var all, sure []string
		for _, c := range chains {
			text, surely := refusal(c, a.cfg.LinkPrefix)
			if text != "" {
				all = append(all, text)
			}
			if surely {
				sure = append(sure, text)
			}
		}
		a.loop.post(func() { a.loop.refused(all, sure) })
	}
}

// refusal says of a chain that it refuses what we allow, and whether it does so surely; "":
// it does not.
func refusal(c nft.BaseChain, prefix string) (text string, surely bool) {
	switch {
	case c.Refuses == "" || c.In && c.Out || c.Table == "firewalld" || c.Hook != "forward":
		return "", false
	case c.Family != "inet" && c.Family != "ip" && c.Family != "ip6":
		return "", false
	case c.Drop && c.Refuses == "drop" && c.Name == "FORWARD": // see keepForward
		return "", false
	}
	text = fmt.Sprintf("chain %s (forward, priority %d) ends with %s", c, c.Priority, c.Refuses)
	if c.Surely {
		return text + fmt.Sprintf(", and no rule in it accepts what begins: what netctl allows does not pass; add a rule there that accepts %s*", prefix), true
	}
	return text + fmt.Sprintf(": what netctl allows passes only where a rule there accepts it, such as one for %s*", prefix), false
}

// refused takes what others refuse.
func (l *loop) refused(all, sure []string) {
	l.problems.note(problemRefused, strings.Join(sure, "; "))
	if !slices.Equal(l.refusing, all) {
		l.refusing = all
		l.report()
	}
}
