package commands

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
)

func newBGPRoutesCommand(a *app) *cobra.Command {
	var q control.BGPQuery
	var received, advertised, rejected bool
	cmd := &cobra.Command{
		Use:   "routes [PREFIX|ADDRESS]",
		Short: "Show what this node's speaker knows of prefixes, and why each path won or lost",
		Long: "Show the paths that this node's speaker knows: of every prefix, of one, or of those that hold an address. The best path comes first,\n" +
			"with the reason; each other one says in which step of the decision it lost, or why it was refused.",
		Example:           "  netctl bgp routes 10.65.0.0/26\n  netctl bgp routes --peer 192.168.99.1 --advertised",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(cmd)
	cmd.Flags().StringVar(&q.Peer, "peer", "", "`address`, interface or name of the only peer of interest")
	cmd.Flags().BoolVar(&received, "received", false, "what the peer announced")
	cmd.Flags().BoolVar(&advertised, "advertised", false, "what the peer was told")
	cmd.Flags().BoolVar(&rejected, "rejected", false, "what was refused")
	cmd.MarkFlagsMutuallyExclusive("received", "advertised", "rejected")
	_ = cmd.RegisterFlagCompletionFunc("peer", a.complete(datastore.KindPeer, peerNames))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		for view, on := range map[string]bool{"received": received, "advertised": advertised, "rejected": rejected} {
			if on {
				q.View = view
			}
		}
		if q.Peer == "" && (received || advertised) {
			return usage("--%s needs --peer", q.View)
		}
		if len(args) > 0 {
			if prefix, err := netip.ParsePrefix(args[0]); err == nil {
				q.Prefix = prefix
			} else if q.Covers, err = netip.ParseAddr(args[0]); err != nil {
				return usage("%q is neither a prefix, like 10.0.0.0/26, nor an address", args[0])
			}
		}
		s, err := a.settings()
		if err != nil {
			return err
		}
		answer, err := control.NewSpeakerClient(s.Speaker.Socket).Waiting(rolePatience).BGPRoutes(cmd.Context(), q)
		if err != nil {
			return err
		}
		if f.manifests() {
			return a.showPlain(*f, answer)
		}
		return a.print(pathTable(answer, *f == formatWide))
	}
	return cmd
}

// pathTable marks the best path with * and others that are used with =.
func pathTable(answer control.BGPPaths, wide bool) string {
	if len(answer.Paths) == 0 {
		return "No paths.\n"
	}
	header := []string{"", "Prefix", "Next hop", "Peer", "AS path", "Why"}
	if wide {
		header = append(header, "Origin", "Local pref", "MED", "Communities")
	}
	var rows [][]string
	for _, p := range answer.Paths {
		mark := map[bool]string{true: "*", false: map[bool]string{true: "=", false: ""}[p.Used]}[p.Best]
		row := []string{mark, p.Prefix.String(), addressOr(p.NextHop, "own"), pathPeer(p), p.ASPath, p.Why}
		if wide {
			med := ""
			if p.MED != nil {
				med = strconv.FormatUint(uint64(*p.MED), 10)
			}
			row = append(row, p.Origin, strconv.FormatUint(uint64(p.LocalPref), 10), med, strings.Join(p.Communities, ","))
		}
		rows = append(rows, row)
	}
	text := table(header, rows)
	if answer.More > 0 {
		text += fmt.Sprintf("and %d more; name a prefix or a peer\n", answer.More)
	}
	return text
}

// pathPeer is whose a path is, and which of several: "10.9.0.1 #2".
func pathPeer(p control.BGPPath) string {
	peer := cmp.Or(p.Interface, addressOr(p.Peer, "own"))
	if p.ID == 0 {
		return peer
	}
	return fmt.Sprintf("%s #%d", peer, p.ID)
}

func addressOr(a netip.Addr, other string) string {
	if a.IsValid() {
		return a.String()
	}
	return other
}

func newBGPSessionCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "session PEER",
		Short:             "Show all about one BGP session of this node",
		Long:              "Show all about one BGP session of this node; PEER is the peer's address or interface, or the name of the node or Peer.",
		Example:           "  netctl bgp session 192.168.99.1\n  netctl bgp session slave2 -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindPeer, peerNames),
	}
	f := addFormat(cmd)
	var refresh bool
	cmd.Flags().BoolVar(&refresh, "refresh", false, "ask the peer to tell all its routes again")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := a.settings()
		if err != nil {
			return err
		}
		session, err := control.NewSpeakerClient(s.Speaker.Socket).Waiting(rolePatience).BGPSession(cmd.Context(), args[0], refresh)
		if err != nil {
			return err
		}
		if f.manifests() {
			return a.showPlain(*f, session)
		}
		return a.print(sessionText(session, time.Now()))
	}
	return cmd
}

func sessionText(s control.BGPSession, now time.Time) string {
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "%-19s%s\n", what+":", fmt.Sprintf(format, args...))
	}
	list := func(what string, words []string) {
		if len(words) > 0 {
			line(what, "%s", strings.Join(words, "; "))
		}
	}
	at := func(what, text string, t time.Time) {
		if text != "" {
			line(what, "%s (%s)", text, clock(t, now))
		}
	}
	line("Peer", "%s, %s, %s", s.Session.Name(), s.Description, s.Type)
	if s.Interface != "" {
		line("Peer address", "%s", addressOr(s.Peer, "not known"))
	}
	if s.AS != 0 {
		line("AS", "%d", s.AS)
	} else {
		line("AS", "any external one")
	}
	line("State", "%s", strings.TrimSuffix(sessionInfo(s.Session)+" since "+clock(s.Since, now), " since "))
	line("Established", "%s", count(s.Established, "time"))
	if s.Local.IsValid() {
		line("Local address", "%s", s.Local)
	}
	if s.RouterID.IsValid() {
		line("Router ID", "%s", s.RouterID)
		line("Hold time", "%d s", s.HoldTime)
	}
	list("Families", s.Families)
	list("Offered", s.Offered)
	list("Heard", s.Heard)
	if d := s.BFDSession; d != nil {
		line("BFD", "%s since %s", s.BFD, clock(d.Since, now))
		line("BFD timers", "a packet every %g ms, dead after %g ms; came up %s", d.Interval, d.Detection, count(d.Ups, "time"))
		line("BFD packets", "%d in, %d out", d.In, d.Out)
		at("BFD diagnostic", d.LastDiagnostic, d.LastDiagnosticAt)
	}
	line("Prefixes", "%d received, %d accepted, %d sent, %d stale", s.Received, s.Accepted, s.Sent, s.Stale)
	if s.Limit > 0 {
		line("Prefix limit", "%d", s.Limit)
	}
	if s.Budget > 0 {
		line("Route budget", "%d of %d, by all nodes that have the peer", s.Burden, s.Budget)
	}
	line("Messages", "%d in, %d out; %d and %d of them UPDATEs", s.MessagesIn, s.MessagesOut, s.UpdatesIn, s.UpdatesOut)
	at("Last error", s.LastError, s.LastErrorAt)
	at("Last notification", s.Notice, s.NoticeAt)
	return b.String()
}

// sessionInfo is a session in one line.
func sessionInfo(s control.Session) string {
	info := s.State
	if s.State != established && s.Reason != "" {
		info += ": " + s.Reason
	}
	if s.State == established && s.Local.IsValid() && s.Local.Is4() != s.Peer.Is4() {
		info += " over " + s.Local.String() // the peer's address does not answer
	}
	if s.BFD != "" {
		info += ", BFD " + s.BFD
	}
	if s.Stale > 0 {
		info += fmt.Sprintf(", %d stale", s.Stale)
	}
	return info
}
