package commands

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	role "netctl/commands/datastore"
	"netctl/datastore"
	"netctl/datastore/pki"
)

func newCACommand(a *app) *cobra.Command {
	return group("ca", "Show and replace the authority of the cluster's certificates",
		"  netctl datastore ca show\n  netctl datastore ca rotate", newCAShowCommand(a), newCARotateCommand(a))
}

// shownAuthority is an authority as programs see it.
type shownAuthority struct {
	Of         string    `json:"of"` // clients or members
	SHA256     string    `json:"sha256"`
	Since      time.Time `json:"since"`
	Expires    time.Time `json:"expires"`
	ReplacedBy bool      `json:"replacedBy,omitempty"` // the one that follows in the list
}

// shownAuthorities is all that ca show tells.
type shownAuthorities struct {
	Authorities []shownAuthority `json:"authorities"`
	Phase       datastore.Phase  `json:"phase,omitempty"`
	Began       time.Time        `json:"began,omitzero"`
	Awaited     []string         `json:"awaited,omitempty"`
	Without     []string         `json:"without,omitempty"`
}

func newCAShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the authorities, until when they are good, and how far a replacement is",
		Example: "  netctl datastore ca show\n  netctl datastore ca show -o json",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		shown, err := a.authorities(cmd.Context())
		if err != nil {
			return fmt.Errorf("datastore ca show: %w", err)
		}
		if f.manifests() {
			return a.showPlain(*f, shown)
		}
		var rows [][]string
		for _, x := range shown.Authorities {
			state := "trusted"
			if x.ReplacedBy {
				state = "being replaced"
			}
			rows = append(rows, []string{x.Of, x.SHA256[:16], x.Since.Format(time.DateOnly), x.Expires.Format(time.DateOnly), state})
		}
		text := table([]string{"Authority of", "SHA-256", "From", "Until", "State"}, rows)
		if shown.Phase != "" && shown.Phase != datastore.PhaseDone {
			text += sentence(shown.Phase, shown.Awaited) + "\n"
		}
		return a.print(text)
	}
	return cmd
}

// authorities are those that this node trusts, and how their replacement stands.
func (a *app) authorities(ctx context.Context) (*shownAuthorities, error) {
	cfg, err := a.settings()
	if err != nil {
		return nil, err
	}
	shown := &shownAuthorities{Authorities: []shownAuthority{}}
	add := func(of, file string) error {
		list, err := pki.ReadCertificates(file)
		if err != nil {
			return err
		}
		for i, c := range list {
			shown.Authorities = append(shown.Authorities, shownAuthority{
				Of: of, SHA256: pki.Hash(c), Since: c.NotBefore.UTC(), Expires: c.NotAfter.UTC(), ReplacedBy: i < len(list)-1,
			})
		}
		return nil
	}
	file := cfg.authorityFile()
	if file == "" {
		return nil, fmt.Errorf("this node names no authority (datastore.ca, etcd.tls.ca): %w", datastore.ErrNotFound)
	}
	if err := add("clients", file); err != nil {
		return nil, err
	}
	if err := add("members", pki.In(role.PeerFolder(cfg.StateDir), "ca").Cert); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	defer a.waiting("the datastore")()
	r, _, err := rotation(ctx, s)
	if err != nil || r.Phase == "" {
		return shown, err
	}
	shown.Phase, shown.Began, shown.Without = r.Phase, r.Began, r.Without
	shown.Awaited, err = awaited(ctx, s, r)
	if errors.Is(err, datastore.ErrDenied) { // only members know
		err = nil
	}
	return shown, err
}

// authorityFile holds the authorities that this node trusts; "": there is none.
func (s *settings) authorityFile() string { return cmp.Or(s.Etcd.TLS.CA, s.Datastore.CA) }

func rotation(ctx context.Context, s datastore.Store) (datastore.Rotation, int64, error) {
	var r datastore.Rotation
	revision, err := datastore.Record(ctx, s, datastore.AuthorityKey, &r)
	return r, revision, err
}

// awaited are those without whom the next phase does not begin.
func awaited(ctx context.Context, s clusterStore, r datastore.Rotation) ([]string, error) {
	list, err := s.Members(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range list {
		names = append(names, m.Label())
	}
	return r.Awaited(ctx, s, names)
}

// sentence says what happens in a phase, and for whom it waits.
func sentence(p datastore.Phase, awaited []string) string {
	what := map[datastore.Phase]string{
		datastore.PhaseMembers: "members learn the new authority",
		datastore.PhaseNodes:   "nodes take certificates of the new authority",
		datastore.PhaseServers: "members show certificates of the new authority",
		datastore.PhaseDone:    "the old authority is good for nothing any more",
	}[p]
	if len(awaited) > 0 {
		what += "; waits for " + strings.Join(awaited, ", ")
	}
	return what
}

func newCARotateCommand(a *app) *cobra.Command {
	var wait time.Duration
	var without []string
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the authorities of the cluster's certificates, while everything runs",
		Long: "Replace the authorities that sign the certificates of nodes and of members, on a member: new ones are made and trusted beside the\n" +
			"old, every node takes a certificate of the new one, and then the old ones are good for nothing. Connections and sessions stay. The\n" +
			"old ones are kept for as long as a node that is away has not followed; --without gives one up, which must join again then. The\n" +
			"cluster goes on by itself whatever becomes of this command; run again, it goes on waiting. It puts out nobody who has an old key:\n" +
			"that takes a new cluster (docs/datastore.md).",
		Example: "  netctl datastore ca rotate\n  netctl datastore ca rotate --without n7",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().DurationVar(&wait, "wait", 2*time.Minute, "how `long` to wait until it is done")
	cmd.Flags().StringArrayVar(&without, "without", nil, "`node` that is not waited for, and must join again; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("without", a.complete(datastore.KindNode, nodeNames))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if wait < 0 {
			return usage("--wait %s: want a time of 0 or more", wait)
		}
		if err := a.rotate(cmd.Context(), without, wait); err != nil {
			return fmt.Errorf("datastore ca rotate: %w", err)
		}
		return nil
	}
	return cmd
}

func (a *app) rotate(ctx context.Context, without []string, wait time.Duration) error {
	cfg, err := a.settings()
	if err != nil {
		return err
	}
	if cfg.external() {
		return fmt.Errorf("the datastore is an external etcd, whose authority is not netctl's to replace: %w", datastore.ErrInvalid)
	}
	if cfg.Etcd.JoinPort == 0 {
		return fmt.Errorf("this node is no member of a datastore that `netctl init` made: run it on one (certificates that were made by hand are replaced by hand): %w", datastore.ErrNotFound)
	}
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	r, revision, err := rotation(ctx, s)
	if err != nil {
		return err
	}
	for _, n := range without {
		if err := known(ctx, s, n); err != nil {
			return err
		}
	}
	if !r.Underway() {
		if err := a.replaceable(ctx, s); err != nil {
			return err
		}
		err = begin(ctx, s, cfg, &r, revision, without)
	} else if len(without) > 0 {
		err = giveUp(ctx, s, without)
	}
	if err != nil {
		return err
	}
	return a.follow(ctx, s, wait)
}

// known refuses a name that is no node's and nobody's who joined.
func known(ctx context.Context, s datastore.Store, name string) error {
	at, err := datastore.JoinedKey(name)
	if err != nil {
		return usage("--without %w", err)
	}
	for _, key := range []string{at, datastore.KindPrefix(datastore.KindNode) + name} {
		if _, err = s.Get(ctx, key); !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
	}
	return fmt.Errorf("--without: node %s: %w", name, datastore.ErrNotFound)
}

// replaceable refuses to begin where a node or a member could not follow.
func (a *app) replaceable(ctx context.Context, s clusterStore) error {
	view, err := a.view(ctx, datastore.KindNode)
	if err != nil {
		return err
	}
	for _, n := range view.Nodes() {
		if v := n.Status.Version; v != "" && older(v, version) {
			return fmt.Errorf("node %s runs netctl %s, which cannot follow: `netctl upgrade FILE --all` first", n.Metadata.Name, v)
		}
	}
	list, err := s.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.Learner || m.Name == "" {
			return fmt.Errorf("%s is becoming a member: wait until it is one, or remove it (`netctl datastore member remove %s`)", m.Label(), m.Label())
		}
	}
	return nil
}

// begin makes the new authorities and tells the cluster. Those that an interrupted
// replacement left here, with a datastore that was lost since, are taken up again: nodes
// may have certificates of them.
func begin(ctx context.Context, s datastore.Store, cfg *settings, r *datastore.Rotation, revision int64, without []string) error {
	var sealed datastore.SealedKeys
	clients, id, err := successor(filepath.Dir(cfg.Etcd.TLS.CA), &sealed.Clients)
	if err != nil {
		return err
	}
	peers, _, err := successor(role.PeerFolder(cfg.StateDir), &sealed.Peers)
	if err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Second)
	*r = datastore.Rotation{ID: id, Phase: datastore.PhaseMembers, Clients: clients, Peers: peers, Began: now, Since: now, Without: without}
	public, err := datastore.RecordOp(datastore.AuthorityKey, r)
	if err != nil {
		return err
	}
	secret, err := datastore.RecordOp(datastore.SealedKey, sealed)
	if err != nil {
		return err
	}
	_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: datastore.AuthorityKey, Revision: revision}}, Then: []datastore.Op{public, secret}})
	if errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists) {
		return errors.New("somebody else began it at the same time: run it again to follow")
	}
	return err
}

// successor makes the authority that replaces the one in dir, its key sealed by that one's.
func successor(dir string, sealed *[]byte) (s datastore.Succession, hash string, err error) {
	old, err := pki.Open(dir)
	if err != nil {
		return s, "", fmt.Errorf("the authority's key has to be here, as on a member: %w", err)
	}
	next, err := pki.OpenNext(dir)
	if errors.Is(err, datastore.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		next, err = pki.New("netctl")
	}
	if err != nil {
		return s, "", err
	}
	key, err := next.KeyPEM()
	if err == nil {
		*sealed, err = old.Seal(key)
	}
	return datastore.Succession{Old: old.CertPEM(), New: next.CertPEM()}, next.Hash(), err
}

// giveUp adds nodes that are not waited for.
func giveUp(ctx context.Context, s datastore.Store, without []string) error {
	for races := 0; ; races++ {
		r, revision, err := rotation(ctx, s)
		if err != nil {
			return err
		}
		for _, n := range without {
			if !slices.Contains(r.Without, n) {
				r.Without = append(r.Without, n)
			}
		}
		op, err := datastore.RecordOp(datastore.AuthorityKey, r)
		if err != nil {
			return err
		}
		_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: datastore.AuthorityKey, Revision: revision}}, Then: []datastore.Op{op}})
		if !errors.Is(err, datastore.ErrConflict) || races == maxRaces {
			return err
		}
	}
}

// rotateLook is how often the command looks how far it is.
const rotateLook = 250 * time.Millisecond

// follow tells how far it is until it is done, or time is up.
func (a *app) follow(ctx context.Context, s clusterStore, wait time.Duration) error {
	limit, said := time.Now().Add(wait), datastore.Phase("")
	for {
		r, _, err := rotation(ctx, s)
		var names []string
		if err == nil {
			names, err = awaited(ctx, s, r)
		}
		switch {
		case err == nil && r.Phase == datastore.PhaseDone && len(names) == 0:
			return a.rotated(ctx, s, r)
		case err == nil && r.Phase != said:
			said = r.Phase
			if a.caller == nil { // who asks by the API hears how it ends
				fmt.Fprintln(a.err, sentence(r.Phase, nil))
			}
		case err != nil && !errors.Is(err, datastore.ErrUnavailable):
			return err
		}
		if time.Now().After(limit) {
			if err != nil {
				return err
			}
			return fmt.Errorf("not done after %s, and goes on by itself: %s (nodes that are gone for good: `netctl node remove`, or --without)", wait, sentence(r.Phase, names))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not done, and goes on by itself: %s", sentence(r.Phase, names))
		case <-time.After(rotateLook):
		}
	}
}

// rotated says what does not work any more.
func (a *app) rotated(ctx context.Context, s datastore.Store, r datastore.Rotation) error {
	text := fmt.Sprintf("The authority is %s… now, and the one before is good for nothing.\n", r.ID[:16])
	now := time.Now()
	tokens, err := datastore.ListTokens(ctx, s)
	if err != nil {
		return err
	}
	var open, users []string
	for _, t := range tokens {
		if t.UsedBy == "" && now.Before(t.Expires) && t.Created.Before(r.Since) {
			open = append(open, t.ID)
		}
	}
	list, err := datastore.ListAPIUsers(ctx, s)
	if err != nil {
		return err
	}
	for _, u := range list {
		if u.Serial != "" && now.Before(u.Expires) {
			users = append(users, u.Name)
		}
	}
	if len(open) > 0 {
		text += fmt.Sprintf("Tokens of before let nobody in any more (%s): `netctl token create` makes others.\n", strings.Join(open, ", "))
	}
	if len(users) > 0 {
		text += fmt.Sprintf("Certificates for the API of before are good for nothing (%s): `netctl api grant` makes others.\n", strings.Join(users, ", "))
	}
	return a.print(text)
}

// authoritySoon is before which end an authority should be replaced.
const authoritySoon = 180 * 24 * time.Hour

// authorityState is what status says of the authority: a line while it is replaced, and
// what is wrong with the certificates that this node has.
func (s *settings) authorityState(ctx context.Context, store clusterStore) (line string, problems []string) {
	file := s.authorityFile()
	if file == "" || s.Datastore.User != "" {
		return "", nil
	}
	trusted, err := pki.ReadCertificates(file)
	if err != nil {
		return "", nil // who cannot reach the datastore for it says so
	}
	now := time.Now()
	ends := func(what string, c *x509.Certificate, soon time.Duration, do string) {
		if now.Add(soon).After(c.NotAfter) {
			problems = append(problems, fmt.Sprintf("%s ends %s: %s", what, c.NotAfter.UTC().Format("2006-01-02 15:04 MST"), do))
		}
	}
	if len(trusted) == 1 {
		ends("the cluster's authority "+file, trusted[0], authoritySoon, "`netctl datastore ca rotate` on a member replaces it")
	}
	if c, err := pki.ReadCertificate(s.Datastore.Cert); err == nil {
		soon := min(7*24*time.Hour, c.NotAfter.Sub(c.NotBefore)/6) // it is renewed with two fifths left
		ends("this node's certificate "+s.Datastore.Cert, c, soon, "the logs of its roles say why it was not renewed, if the clock here is right ("+now.UTC().Format("2006-01-02 15:04 MST")+"; `netctl doctor` says, too)")
	}
	if len(trusted) == 1 {
		return "", problems
	}
	r, _, err := rotation(ctx, store)
	if err != nil || !r.Underway() {
		return "", problems
	}
	names, _ := awaited(ctx, store, r) // only members know
	return fmt.Sprintf("the cluster's authority is being replaced since %s: %s", r.Began.Format("2006-01-02 15:04 MST"), sentence(r.Phase, names)), problems
}
