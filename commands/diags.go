package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/diags"
)

// diagsTime bounds the collection as a whole.
const diagsTime = 2 * time.Minute

func newDiagsCommand(a *app) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "diags",
		Short: "Write all that tells how this node is into one archive, without secrets",
		Long: "Write all that tells how this node is into one archive: status, doctor, settings, the packet filter, routes, links,\n" +
			"neighbours, sysctls, the last logs, events, metrics and goroutines of the roles, kept state, and how the datastore is.\n" +
			"Keys, passwords and tokens are taken out, wherever they are met. It works with the datastore away and the roles dead,\n" +
			"and says what is missing; CONTENTS in the archive lists the parts.",
		Example: "  netctl diags\n  netctl diags --output /tmp/node1.tar.gz",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&output, "output", "", "`file` to write, which must not exist (default: netctl-diags-NODE-TIME.tar.gz here)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.settings()
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("diags: must run as root")
		}
		folder := "netctl-diags-" + s.Node + "-" + time.Now().UTC().Format("20060102T150405Z")
		if output == "" {
			output = folder + ".tar.gz"
		}
		sum, size, err := a.writeDiags(cmd.Context(), s, folder, output)
		if err != nil {
			return fmt.Errorf("diags: %w", err)
		}
		missing := ""
		if len(sum.Missing) > 0 {
			missing = "; not whole: " + strings.Join(inShort(sum.Missing), ", ") + " (CONTENTS in it says why)"
		}
		return a.print(fmt.Sprintf("Wrote %s, %d KiB with %s%s\n", output, (size+1023)>>10, count(sum.Parts, "part"), missing))
	}
	return cmd
}

// inShort names what a role does not say once for all of it.
func inShort(parts []string) (names []string) {
	for _, p := range parts {
		if role, _, is := strings.Cut(p, "."); is && strings.HasPrefix(p, "roles/") {
			p = role + ".*"
		}
		if !slices.Contains(names, p) {
			names = append(names, p)
		}
	}
	return names
}

// writeDiags makes the archive; what fails leaves nothing behind.
func (a *app) writeDiags(ctx context.Context, s *settings, folder, output string) (sum diags.Summary, size int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, diagsTime)
	defer cancel()
	// Not in its place at once: an archive that is there is whole.
	f, err := os.CreateTemp(filepath.Dir(output), "."+filepath.Base(output)+"-*") // 0600
	if err != nil {
		return sum, 0, err
	}
	defer func() {
		if err := os.Remove(f.Name()); err != nil {
			a.warn("diags: %v", err)
		}
	}()
	if _, err := os.Lstat(output); err == nil {
		return sum, 0, fmt.Errorf("%s exists: name another file by --output", output)
	}
	done := a.waiting("the parts of the archive")
	sum, err = diags.Write(ctx, f, folder, a.diagsParts(s), secretsHere(s))
	done()
	if err == nil {
		err = f.Sync()
	}
	if st, e := f.Stat(); e == nil {
		size = st.Size()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return sum, 0, err
	}
	return sum, size, os.Link(f.Name(), output)
}

// secretsHere are the secrets that this host holds, where they can be found.
func secretsHere(s *settings) *diags.Secrets {
	secrets := diags.NewSecrets()
	files := []string{s.Datastore.Key, s.Datastore.PasswordFile, s.Etcd.TLS.Key}
	for _, dir := range []string{s.StateDir, filepath.Dir(s.Datastore.Key), filepath.Dir(s.Etcd.TLS.Key)} {
		files = append(files, keyFiles(dir)...)
	}
	for _, p := range keptPasswords(filepath.Join(s.StateDir, "speaker.json")) {
		files = append(files, p.File)
		if p.Credential != "" { // systemd.exec(5), of this and of older versions
			for _, unit := range []string{"node", "speaker", "reflector"} {
				files = append(files, filepath.Join("/run/credentials", "netctl-"+unit+".service", p.Credential))
			}
		}
	}
	for _, file := range files {
		if file != "" {
			_ = secrets.Read(file) // what this process cannot read is in no part either
		}
	}
	return secrets
}

// keyFiles are the files of keys below a folder, and two folders deep at most.
func keyFiles(dir string) (files []string) {
	if dir == "." || dir == "/" {
		return nil
	}
	for _, pattern := range []string{"*.key", "*/*.key", "*/*/*.key"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is right
		files = append(files, found...)
	}
	return files
}
