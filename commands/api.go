package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/api"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
)

// apiLife is how long a certificate for the API holds unless it is said.
const apiLife = 90 * 24 * time.Hour

func newAPICommand(a *app) *cobra.Command {
	cmd := roleCommand(a, "api", "Run the HTTP API, or say who may use it",
		"  netctl api --config /etc/netctl.yaml\n  netctl api grant grafana --role read",
		[]string{"metrics", "api"},
		func(ctx context.Context, s *settings) error { return runAPI(ctx, a, s) })
	cmd.AddCommand(newAPIGrantCommand(a), newAPIListCommand(a), newAPIRevokeCommand(a))
	return cmd
}

func runAPI(ctx context.Context, a *app, s *settings) error {
	log := newLogger(a.err, "api", s)
	options := s.storeOptions()
	options.Log = log
	store, err := etcd.Open(ctx, options)
	if err != nil {
		return err
	}
	defer store.Close()
	files := s.apiFiles()
	if len(s.API.Listen) > 0 && (files.CA == "" || files.Cert == "" || files.Key == "") {
		return usage("api: %s needs api.ca, api.cert and api.key (docs/api.md)", s.API.Listen[0])
	}
	shown := s.telemetry("api")
	if len(s.API.Listen) > 0 {
		shown.Certificates = map[string]string{"api": files.Cert}
	}
	own := *s
	own.Client.Server = "" // what this machine's command line asks, maybe this very role
	return api.Run(ctx, api.Config{
		Node: s.Node, Version: version, StateDir: s.StateDir, RunDir: s.RunDir,
		Listen: s.API.Listen, CA: files.CA, Cert: files.Cert, Key: files.Key, Granted: s.API.CA == "",
		Store: store, Backend: &backend{settings: &own, store: store}, Actions: actions(), Telemetry: shown, Log: log,
	})
}

// apiFiles are the API's certificate and the authority of its clients: on a member of the
// datastore that one's.
func (s *settings) apiFiles() pki.Files {
	return pki.Files{CA: cmp.Or(s.API.CA, s.Etcd.TLS.CA), Cert: cmp.Or(s.API.Cert, s.Etcd.TLS.Cert), Key: cmp.Or(s.API.Key, s.Etcd.TLS.Key)}
}

func newAPIGrantCommand(a *app) *cobra.Command {
	var role, dir string
	var life time.Duration
	var force bool
	cmd := &cobra.Command{
		Use:   "grant NAME --role (read|operate|admin)",
		Short: "Make a certificate with which somebody may use the API",
		Long: "Make a key and a certificate with which NAME may use the API over the network: NAME.key, NAME.crt and ca.crt, in this folder or that of\n" +
			"--dir. An earlier certificate of NAME is good for nothing from then on. read looks at everything that is no secret; operate changes\n" +
			"endpoints, profiles and networks, and drains nodes, too; admin does everything. It is made on a member of the datastore, where the\n" +
			"authority's key is, and refused while a node runs an older netctl, whose etcd may take such a certificate for everything.",
		Example: "  netctl api grant grafana --role read\n  netctl api grant alice --role admin --expires 24h --dir /root/alice",
		Args:    cobra.ExactArgs(1),

		DisableFlagsInUseLine: true,
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&role, "role", "", "what it may do: read, operate or admin")
	cmd.Flags().DurationVar(&life, "expires", apiLife, "how `long` the certificate is good")
	cmd.Flags().StringVar(&dir, "dir", ".", "`folder` of the files")
	cmd.Flags().BoolVar(&force, "force", false, "write over files of these names, and whatever version other nodes run")
	_ = cmd.MarkFlagRequired("role")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"read", "operate", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := datastore.ParseAPIRole(role)
		if err != nil {
			return usageError{fmt.Errorf("--role %q: must be read, operate or admin", role)}
		}
		if _, err := datastore.APIUserKey(args[0]); err != nil || args[0] == "ca" {
			return usage("name %q: is none for a user of the API", args[0])
		}
		if life < time.Minute {
			return usage("--expires %s: must be a minute at least", life)
		}
		if err := a.grantAPI(cmd.Context(), args[0], r, life, dir, force); err != nil {
			return fmt.Errorf("api grant: %w", err)
		}
		return nil
	}
	return cmd
}

func (a *app) grantAPI(ctx context.Context, name string, role datastore.APIRole, life time.Duration, dir string, force bool) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	file := s.apiFiles().CA
	if file == "" {
		return fmt.Errorf("the authority of the API's clients is not known here (api.ca, etcd.tls.ca): run this on a member of the datastore: %w", datastore.ErrNotFound)
	}
	ca, err := pki.Open(filepath.Dir(file))
	if err != nil {
		return fmt.Errorf("the authority's key has to be beside %s, as on a member of the datastore: %w", file, err)
	}
	if !force {
		if err := a.upgraded(ctx); err != nil {
			return err
		}
	}
	files := pki.In(dir, name)
	if err := placeable(files, ca, force); err != nil {
		return err
	}
	now := time.Now()
	key, private, err := pki.NewKey()
	if err != nil {
		return err
	}
	public, err := ca.Sign(&key.PublicKey, pki.Node{
		Name: name, Use: pki.UseClient, Role: role.Organisation(), NotBefore: pki.NotBeforeNow(now, life), NotAfter: now.Add(life),
	})
	if err != nil {
		return err
	}
	cert, err := pki.ParseCertificate(public)
	if err != nil {
		return err
	}
	u := datastore.APIUser{Name: name, Role: role.String(), Serial: cert.SerialNumber.Text(16), Since: now.UTC().Truncate(time.Second), Expires: cert.NotAfter}
	if err := a.putAPIUser(ctx, name, func(have *datastore.APIUser) { *have = u }); err != nil {
		return err
	}
	err = datastore.WriteFile(files.Key, private, datastore.FileOptions{})
	if err == nil {
		err = datastore.WriteFile(files.Cert, public, datastore.FileOptions{Mode: 0o644})
	}
	if err == nil {
		err = datastore.WriteFile(files.CA, ca.CertPEM(), datastore.FileOptions{Mode: 0o644})
	}
	if err != nil {
		return fmt.Errorf("%w: do it again", err)
	}
	return a.print(fmt.Sprintf("%s, %s and %s: role %s, until %s\n", files.Cert, files.Key, filepath.Base(files.CA), role, cert.NotAfter.UTC().Format("2006-01-02 15:04 MST")))
}

// upgraded refuses while a node runs an older netctl than this: etcd of one that knows no
// certificates for the API takes them for everything.
func (a *app) upgraded(ctx context.Context) error {
	view, err := a.view(ctx, datastore.KindNode)
	if err != nil {
		return err
	}
	for _, o := range objectsOf(view, datastore.KindNode) {
		if v := o.(*datastore.Node).Status.Version; v != "" && older(v, version) {
			return fmt.Errorf("node %s runs netctl %s, and this is %s: etcd of an older member may take the certificate for everything: `netctl upgrade FILE --all` first, or --force", o.Meta().Name, v, version)
		}
	}
	return nil
}

// older says whether a version may come before another: of two that neither numbers nor
// commits since a tag (`git describe`) put in order, either may.
func older(v, than string) bool {
	v, than = strings.TrimPrefix(v, "v"), strings.TrimPrefix(than, "v")
	a, b := versionNumbers(v), versionNumbers(than)
	return v != than && (a == nil || b == nil || slices.Compare(a[:3], b[:3]) < 0 || slices.Equal(a[:3], b[:3]) && (len(a) < 4 || len(b) < 4 || a[3] < b[3]))
}

// versionNumbers are the three numbers of a version, and how many commits it is after its
// tag if it says that; nil: it has none.
func versionNumbers(v string) []int {
	n, rest := make([]int, 4), ""
	if got, _ := fmt.Sscanf(v+"-", "%d.%d.%d%s", &n[0], &n[1], &n[2], &rest); got < 4 {
		return nil
	}
	if rest == "-" || rest == "-dirty-" {
		return n
	}
	if got, _ := fmt.Sscanf(rest, "-%d-g", &n[3]); got < 1 || !strings.Contains(rest, "-g") {
		return n[:3]
	}
	return n
}

// placeable refuses to write over what somebody else put there.
func placeable(f pki.Files, ca *pki.Authority, force bool) error {
	dir := filepath.Dir(f.Cert)
	if st, err := os.Stat(dir); err != nil {
		return err
	} else if !st.IsDir() {
		return fmt.Errorf("%s is no folder: %w", dir, datastore.ErrInvalid)
	}
	for _, file := range []string{f.Cert, f.Key} {
		if _, err := os.Lstat(file); err == nil && !force {
			return fmt.Errorf("%s is there: --force writes over it: %w", file, datastore.ErrExists)
		}
	}
	have, err := os.ReadFile(f.CA)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil && string(have) != string(ca.CertPEM()):
		return fmt.Errorf("%s is another authority's: name another folder: %w", f.CA, datastore.ErrExists)
	}
	return err
}

// putAPIUser changes the record of a name, which need not be there.
func (a *app) putAPIUser(ctx context.Context, name string, change func(*datastore.APIUser)) error {
	at, err := datastore.APIUserKey(name)
	if err != nil {
		return err
	}
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	for races := 0; ; races++ {
		u := datastore.APIUser{Name: name}
		revision, err := datastore.Record(ctx, s, at, &u)
		if err != nil {
			return err
		}
		change(&u)
		op, err := datastore.RecordOp(at, u)
		if err != nil {
			return err
		}
		_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: at, Revision: revision}}, Then: []datastore.Op{op}})
		if err == nil || !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) || races == maxRaces {
			return err
		}
	}
}

func newAPIListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Show who was given a certificate for the API, what it may do and until when",
		Example: "  netctl api list\n  netctl api list -o json",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.store(cmd.Context())
		if err != nil {
			return err
		}
		defer a.waiting("the datastore")()
		list, err := datastore.ListAPIUsers(cmd.Context(), s)
		if err != nil {
			return fmt.Errorf("api list: %w", err)
		}
		if f.manifests() {
			return a.showPlain(*f, list)
		}
		if len(list) == 0 {
			return a.print("Nobody.\n")
		}
		var rows [][]string
		for _, u := range list {
			rows = append(rows, []string{u.Name, u.Role, apiTime(u.Since), apiTime(u.Expires), apiState(u, time.Now())})
		}
		return a.print(table([]string{"Name", "Role", "Since", "Expires", "State"}, rows))
	}
	return cmd
}

func apiTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04 MST")
}

func apiState(u datastore.APIUser, now time.Time) string {
	switch {
	case !u.Revoked.IsZero():
		return "revoked " + apiTime(u.Revoked)
	case !now.Before(u.Expires):
		return "expired"
	}
	return "good"
}

func newAPIRevokeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME…",
		Short: "Make certificates for the API good for nothing",
		Long: "Make every certificate of these names good for nothing at the API. Who watches is let go within a quarter of a minute. `api grant` lets\n" +
			"the name in again, with another certificate.",
		Example:           "  netctl api revoke grafana\n  netctl api revoke alice bob",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if _, err := datastore.APIUserKey(name); err != nil {
					return usageError{fmt.Errorf("name %w", err)}
				}
			}
			var strangers []string
			for i, name := range args {
				err := a.putAPIUser(cmd.Context(), name, func(u *datastore.APIUser) {
					if u.Role == "" {
						strangers = append(strangers, name)
					}
					u.Serial, u.Revoked = "", time.Now().UTC().Truncate(time.Second)
				})
				if err != nil {
					return farther(i, len(args), fmt.Errorf("api revoke %s: %w", name, err))
				}
			}
			if slices.Sort(strangers); len(strangers) > 0 {
				a.warn("no certificate was made here for %s: those of the name are refused from now on", strings.Join(slices.Compact(strangers), ", "))
			}
			return nil
		},
	}
}
