package commands

import (
	"context"

	"github.com/spf13/cobra"

	"netctl/commands/agent"
	"netctl/commands/speaker"
)

func newAgentCommand(a *app) *cobra.Command {
	return roleCommand(a, "agent", "Run this node's agent: it wires, routes and protects endpoints",
		"  netctl agent --config /etc/netctl.yaml\n  netctl agent --config /etc/netctl.yaml --log-level debug",
		[]string{"agent", "routes"},
		func(ctx context.Context, s *settings) error {
			return agent.Run(ctx, s.agentConfig(), newLogger(a.err, "agent", s))
		})
}

func newSpeakerCommand(a *app) *cobra.Command {
	return roleCommand(a, "speaker", "Run this node's BGP speaker: it announces and learns blocks",
		"  netctl speaker --config /etc/netctl.yaml\n  netctl speaker --config /etc/netctl.yaml --speaker-port 1179",
		[]string{"agent", "speaker", "routes"},
		func(ctx context.Context, s *settings) error {
			return speaker.Run(ctx, s.speakerConfig(), newLogger(a.err, "speaker", s))
		})
}
