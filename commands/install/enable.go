package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// wants is where links to the units that start with the machine are.
const wants = ownUnits + "/multi-user.target.wants"

// Enabled are the roles, or "node", whose units start with the machine.
func Enabled(root string) (roles []string, err error) {
	for _, role := range append(Roles(), "node") {
		at, err := place(root, path.Join(wants, UnitName(role)))
		if err != nil {
			return nil, err
		}
		if _, err := os.Lstat(at); err == nil {
			roles = append(roles, role)
		}
	}
	return roles, nil
}

// Enable has the units of roles start with the machine, and those of no others. The
// links are what `systemctl enable` makes. It returns what it changed, in words.
func Enable(root, unitFolder string, roles ...string) (changed []string, err error) {
	others := slices.DeleteFunc(append(Roles(), "node"), func(role string) bool { return slices.Contains(roles, role) })
	if changed, err = DisableRoles(root, others...); err != nil {
		return changed, err
	}
	for _, role := range append(Roles(), "node") {
		name := UnitName(role)
		at, err := place(root, path.Join(wants, name))
		if err != nil {
			return changed, err
		}
		_, err = os.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist) && slices.Contains(roles, role):
			err := os.MkdirAll(filepath.Dir(at), 0o755)
			if err == nil {
				err = os.Symlink(path.Join(unitFolder, name), at)
			}
			if err != nil {
				return changed, fmt.Errorf("enable %s: %w", name, err)
			}
			changed = append(changed, "enabled "+name)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return changed, err
		}
	}
	return changed, nil
}

// DisableRoles has the units of roles start with the machine no more. It returns what it
// changed, in words.
func DisableRoles(root string, roles ...string) (changed []string, err error) {
	for _, role := range roles {
		name := UnitName(role)
		at, err := place(root, path.Join(wants, name))
		if err == nil {
			err = os.Remove(at)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return changed, fmt.Errorf("disable %s: %w", name, err)
		}
		changed = append(changed, "disabled "+name)
	}
	return changed, nil
}

// Disable removes every link that has a unit of netctl's start, whichever target it is
// for; an empty folder of them goes too.
func Disable(root string) error {
	at, err := place(root, ownUnits+"/any")
	if err != nil {
		return err
	}
	var errs []error
	for _, kind := range []string{"wants", "requires"} {
		links, _ := filepath.Glob(filepath.Join(filepath.Dir(at), "*."+kind, "netctl-*.service")) // the pattern is right
		for _, link := range links {
			role := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(link), "netctl-"), ".service")
			if !slices.Contains(append(Roles(), "node"), role) {
				continue // no unit of an install's
			}
			errs = append(errs, os.Remove(link))
			_ = os.Remove(filepath.Dir(link)) // if that was the last
		}
	}
	return errors.Join(errs...)
}
