package agent

import (
	"log/slog"

	"netctl/commands/retry"
	"netctl/commands/telemetry"
	"netctl/datastore"
)

// problems is what is wrong with this node, each with its words and, if it can be
// tried again, its own due time. Its owner is the loop.
type problems struct {
	log   *slog.Logger
	text  map[string]string // by what is wrong
	told  map[string]string // what was said of it, until its end is
	again *retry.Schedule
}

// newProblems calls wake when something is to be tried again.
func newProblems(log *slog.Logger, wake func()) *problems {
	return &problems{log: log, text: map[string]string{}, told: map[string]string{}, again: retry.New(retryMin, retryMax, wake)}
}

// failed books a write or read of the kernel that failed; it is tried again when
// due says so.
func (p *problems) failed(what string, err error) {
	if p.told[what] != err.Error() {
		p.log.Error("kernel not up to date", "what", what, "error", err, datastore.EventProblem.Mark())
	}
	p.text[what], p.told[what] = err.Error(), err.Error()
	p.again.Failed(what)
}

// solved removes what failed.
func (p *problems) solved(what string) {
	if _, ok := p.text[what]; ok {
		p.log.Info("kernel up to date again", "what", what, datastore.EventProblem.Mark())
		delete(p.told, what)
		p.drop(what)
	}
}

// note books or, with an empty text, removes a problem that nobody tries again.
func (p *problems) note(what, text string) {
	if text == "" {
		p.drop(what)
		return
	}
	if p.told[what] != text {
		p.log.Warn("problem", "what", what, "cause", text, datastore.EventProblem.Mark())
	}
	p.text[what], p.told[what] = text, text
}

// settle tells of those that are over, which nobody did yet.
func (p *problems) settle() {
	for what, text := range p.told {
		if _, is := p.text[what]; !is {
			telemetry.Over(p.log, telemetry.Problem{What: what, Text: text})
			delete(p.told, what)
		}
	}
}

// drop removes a problem; settle says so, unless it is noted again before.
func (p *problems) drop(what string) {
	delete(p.text, what)
	p.again.Solved(what)
}

// due says whether something may be tried.
func (p *problems) due(what string) bool { return p.again.Due(what) }
