package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
	"netctl/datastore/etcd"
)

func newMemberCommand(a *app) *cobra.Command {
	return group("member", "Show and remove the members of the datastore",
		"  netctl datastore member list\n  netctl datastore member remove n3",
		newMemberListCommand(a), newMemberRemoveCommand(a))
}

// shownMember is a member as it is listed.
type shownMember struct {
	Name    string   `json:"name"`
	ID      string   `json:"id"`
	Peers   []string `json:"peerURLs"`
	Clients []string `json:"clientURLs"`
	State   string   `json:"state"` // leader, voter, learner, not started, or why it is not well
}

func newMemberListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Show the members of the datastore, who leads and who is not well",
		Example: "  netctl datastore member list\n  netctl datastore member list -o json",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := a.members(cmd.Context())
		if err != nil {
			return fmt.Errorf("datastore member list: %w", err)
		}
		if f.manifests() {
			return a.showPlain(*f, list)
		}
		var rows [][]string
		for _, m := range list {
			rows = append(rows, []string{m.Name, strings.Join(m.Clients, ","), strings.Join(m.Peers, ","), m.State})
		}
		return a.print(table([]string{"Member", "Clients", "Peers", "State"}, rows))
	}
	return cmd
}

// members asks who is a member, and each how it is.
func (a *app) members(ctx context.Context) ([]shownMember, error) {
	s, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	defer a.waiting("the datastore")()
	list, err := s.Members(ctx)
	if err != nil {
		return nil, err
	}
	health := map[string]etcd.EndpointHealth{}
	for _, h := range s.Health(ctx) {
		health[h.Endpoint] = h
	}
	shown := []shownMember{}
	for _, m := range list {
		one := shownMember{Name: m.Label(), ID: strconv.FormatUint(m.ID, 16), Peers: m.PeerURLs, Clients: m.ClientURLs, State: "voter"}
		var how *etcd.EndpointHealth
		for _, u := range m.ClientURLs {
			if h, ok := health[u]; ok {
				how = &h
			}
		}
		switch {
		case m.Learner && m.Name == "":
			one.State = "not started"
		case m.Learner:
			one.State = "learner"
		case how != nil && how.Err != nil:
			one.State = strings.TrimPrefix(how.Err.Error(), how.Endpoint+": ")
		case how != nil && how.Leader:
			one.State = "leader"
		}
		shown = append(shown, one)
	}
	slices.SortFunc(shown, func(x, y shownMember) int { return cmp.Compare(x.Name, y.Name) })
	return shown, nil
}

func newMemberRemoveCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a member out of the datastore; its node stays a node",
		Long: "Take a member out of the datastore: one that is gone for good, or is to be no member any more. Its node stays a node of the cluster\n" +
			"with the rights of one; its datastore role ends, and its data is good for nothing. A majority of the others must be well.",
		Example:           "  netctl datastore member remove n3\n  netctl datastore member remove unstarted-8e9e05c52164694d",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.removeMember(cmd.Context(), args[0])
		},
	}
	return cmd
}

func (a *app) removeMember(ctx context.Context, name string) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	list, err := s.Members(ctx)
	if err != nil {
		return fmt.Errorf("datastore member remove: %w", err)
	}
	at := slices.IndexFunc(list, func(m etcd.Member) bool { return m.Label() == name || strconv.FormatUint(m.ID, 16) == name })
	if at < 0 {
		var names []string
		for _, m := range list {
			names = append(names, m.Label())
		}
		return fmt.Errorf("member %s: %w: there are %s", name, datastore.ErrNotFound, strings.Join(names, ", "))
	}
	voters := 0
	for i, m := range list {
		if i != at && !m.Learner {
			voters++
		}
	}
	if voters == 0 {
		return fmt.Errorf("member %s is the last one, and everything would be lost with it: %w", name, datastore.ErrInUse)
	}
	if err := s.RemoveMember(ctx, list[at]); err != nil {
		return fmt.Errorf("datastore member remove: %w", err)
	}
	// The connection may have been to the member that went.
	err = demote(ctx, s, list[at].Name)
	for tries := 0; errors.Is(err, datastore.ErrUnavailable) && tries < 10; tries++ {
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
		err = demote(ctx, s, list[at].Name)
	}
	if err != nil {
		return fmt.Errorf("%s is no member any more, but keeps the rights of one: %w", name, err)
	}
	if err := forgetEvents(ctx, s, list[at].Name); err != nil {
		a.warn("its events stay in the datastore: %v", err)
	}
	if voters%2 == 0 {
		a.warn("the datastore has %d members now, and an even number bears the loss of no more than one less does: add another", voters)
	}
	return a.print(fmt.Sprintf("%s is no member of the datastore any more; take datastore out of the roles in its configuration, and its etcd: section\n", list[at].Label()))
}

// forgetEvents removes what a machine shared that was a member and no node.
func forgetEvents(ctx context.Context, s datastore.Store, name string) error {
	if name == "" {
		return nil // it never started
	}
	if _, err := datastore.Get[*datastore.Node](ctx, s, name); !errors.Is(err, datastore.ErrNotFound) {
		return err
	}
	key, err := datastore.EventsKey(name)
	if err == nil {
		_, err = s.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: key}}})
	}
	return err
}

// demote makes a member's node one like others: it keeps what every node may do.
func demote(ctx context.Context, s datastore.Store, name string) error {
	if name == "" {
		return nil
	}
	_, err := changeJoined(ctx, s, name, func(n *datastore.JoinedNode) ([]datastore.Op, bool, error) {
		was := n.Member
		n.Member = false
		return nil, was, nil
	})
	return err
}

// changeJoined changes what is kept of a node that joined, in one transaction with what
// else change returns, unless that says that there is nothing to do. Whether something
// was done is what it returns; it is no error if the node did not join.
func changeJoined(ctx context.Context, s datastore.Store, name string, change func(*datastore.JoinedNode) (also []datastore.Op, do bool, err error)) (bool, error) {
	at, err := datastore.JoinedKey(name)
	if err != nil {
		return false, err
	}
	for races := 0; ; races++ {
		var n datastore.JoinedNode
		revision, err := datastore.Record(ctx, s, at, &n)
		if err != nil || revision == 0 {
			return false, err
		}
		also, do, err := change(&n)
		if err != nil || !do {
			return false, err
		}
		op, err := datastore.RecordOp(at, n)
		if err != nil {
			return false, err
		}
		_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: at, Revision: revision}}, Then: append(also, op)})
		if err == nil || !errors.Is(err, datastore.ErrConflict) || races == maxRaces {
			return err == nil, err
		}
	}
}
