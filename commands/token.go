package commands

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/pki"
)

// keepTokens is how long tokens that are of no use any more are listed.
const keepTokens = 7 * 24 * time.Hour

func newTokenCommand(a *app) *cobra.Command {
	return group("token", "Make, show and revoke the tokens with which machines join",
		"  netctl token create\n  netctl token list",
		newTokenCreateCommand(a), newTokenListCommand(a), newTokenRevokeCommand(a))
}

func newTokenCreateCommand(a *app) *cobra.Command {
	var member bool
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token that lets in one node, and print what to run there",
		Long: "Make a token that lets in one node, and print the line to run there. The cluster keeps a hash of it: a token that was lost is made\n" +
			"anew. It is made on a member of the datastore, or with the rights of one.",
		Example: "  netctl token create\n  netctl token create --datastore --expires 1h",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&member, "datastore", false, "it may become a member of the datastore too, which is trusted with everything")
	cmd.Flags().DurationVar(&life, "expires", tokenLife, "how `long` the token is good")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkTokenLife(life); err != nil {
			return err
		}
		t, err := a.newToken(cmd.Context(), member, life)
		if err != nil {
			return fmt.Errorf("token create: %w", err)
		}
		return a.print(joinLine(t))
	}
	return cmd
}

func (a *app) newToken(ctx context.Context, member bool, life time.Duration) (datastore.Token, error) {
	var t datastore.Token
	cfg, err := a.settings()
	if err != nil {
		return t, err
	}
	s, err := a.store(ctx)
	if err != nil {
		return t, err
	}
	defer a.waiting("the datastore")()
	var members datastore.Members
	if _, err := datastore.Record(ctx, s, datastore.MembersKey, &members); err != nil {
		return t, err
	}
	where := join.Endpoints(members.Endpoints, members.JoinPort)
	switch {
	case cfg.external() && cfg.Etcd.JoinPort != 0: // this node lets them in, and etcd knows it by no certificate
		if member {
			return t, fmt.Errorf("the datastore is an external etcd, of which no node becomes a member: leave --datastore out: %w", datastore.ErrInvalid)
		}
		where = join.Endpoints(cfg.Etcd.Listen, cfg.Etcd.JoinPort)
	case cfg.external():
		return t, fmt.Errorf("the datastore is an external etcd, and this node lets nobody in there: run it on the cluster's first node, or set nodes up by hand (docs/datastore.md): %w", datastore.ErrNotFound)
	case members.JoinPort == 0:
		return t, fmt.Errorf("no member of this datastore lets nodes in: it was not made by `netctl init` (docs/datastore.md, by hand): %w", datastore.ErrNotFound)
	}
	ca, err := pki.ReadCertificate(cmp.Or(cfg.Etcd.TLS.CA, cfg.Datastore.CA))
	if err != nil {
		return t, fmt.Errorf("the cluster's authority (etcd.tls.ca or datastore.ca): %w", err)
	}
	now := time.Now()
	t = datastore.NewToken(sha256.Sum256(ca.Raw), member, now.Add(life), where)
	txn, err := forgetTokens(ctx, s, now)
	if err != nil {
		return t, err
	}
	at, err := datastore.TokenKey(t.Name())
	if err != nil {
		return t, err
	}
	op, err := datastore.RecordOp(at, t.Record(now))
	if err != nil {
		return t, err
	}
	txn.If, txn.Then = append(txn.If, datastore.Condition{Key: at}), append(txn.Then, op)
	_, err = s.Commit(ctx, txn)
	return t, err
}

// forgetTokens removes what nobody looks at any more.
func forgetTokens(ctx context.Context, s datastore.Store, now time.Time) (datastore.Txn, error) {
	var txn datastore.Txn
	list, err := datastore.ListTokens(ctx, s)
	if err != nil {
		return txn, err
	}
	for _, t := range list {
		at, err := datastore.TokenKey(t.ID)
		if err == nil && now.Sub(t.Expires) > keepTokens && len(txn.Then) < datastore.MaxTxnOps/2 {
			txn.Then = append(txn.Then, datastore.Op{Key: at})
		}
	}
	return txn, nil
}

func newTokenListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Show the tokens: for what, until when, and who used them",
		Example: "  netctl token list\n  netctl token list -o json",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.store(cmd.Context())
		if err != nil {
			return err
		}
		defer a.waiting("the datastore")()
		list, err := datastore.ListTokens(cmd.Context(), s)
		if err != nil {
			return fmt.Errorf("token list: %w", err)
		}
		slices.SortFunc(list, func(x, y datastore.JoinToken) int { return x.Created.Compare(y.Created) })
		if f.manifests() {
			shown := []shownToken{}
			for _, t := range list {
				shown = append(shown, shownToken{t.ID, t.Member, t.Created, t.Expires, t.UsedBy, t.Used})
			}
			return a.showPlain(*f, shown)
		}
		return a.print(tokenTable(list, time.Now()))
	}
	return cmd
}

// shownToken is a token as programs see it.
type shownToken struct {
	ID      string    `json:"id"`
	Member  bool      `json:"member"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	UsedBy  string    `json:"usedBy,omitempty"`
	Used    time.Time `json:"used,omitzero"`
}

func tokenTable(list []datastore.JoinToken, now time.Time) string {
	if len(list) == 0 {
		return "No tokens.\n"
	}
	at := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
	var rows [][]string
	for _, t := range list {
		lets, state := "node", "unused"
		if t.Member {
			lets = "node, datastore"
		}
		switch {
		case t.UsedBy != "":
			state = "used by " + t.UsedBy + " at " + at(t.Used)
		case !now.Before(t.Expires):
			state = "expired"
		}
		rows = append(rows, []string{t.ID, lets, at(t.Created), at(t.Expires), state})
	}
	return table([]string{"Token", "Lets in", "Created", "Expires", "State"}, rows)
}

func newTokenRevokeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "revoke TOKEN…",
		Short:             "Make tokens good for nothing; nodes that came in with them stay",
		Long:              "Make tokens good for nothing, by the names that `netctl token list` shows or as they were printed. Nodes that came in with them stay.",
		Example:           "  netctl token revoke 1f0c93aa\n  netctl token revoke 1f0c93aa 8b1e0d22",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			var keys []string
			for _, text := range args {
				if t, err := datastore.ParseToken(text); err == nil {
					text = t.Name()
				}
				at, err := datastore.TokenKey(text)
				if err != nil {
					return usageError{fmt.Errorf("token %w", err)}
				}
				keys = append(keys, at)
			}
			s, err := a.store(cmd.Context())
			if err != nil {
				return err
			}
			defer a.waiting("the datastore")()
			for i, at := range keys {
				e, err := s.Get(cmd.Context(), at)
				if err == nil {
					_, err = s.Commit(cmd.Context(), datastore.Txn{If: []datastore.Condition{{Key: at, Revision: e.Revision}}, Then: []datastore.Op{{Key: at}}})
				}
				if errors.Is(err, datastore.ErrNotFound) {
					return fmt.Errorf("token %s: %w", args[i], datastore.ErrNotFound)
				}
				if err != nil {
					return fmt.Errorf("token revoke: %w", err)
				}
			}
			return nil
		},
	}
}
