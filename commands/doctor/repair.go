package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// sysctlFile keeps the settings that --fix changed, for the next boot (sysctl.d(5)); its
// name has them read behind those of the distribution and of hardening guides.
const sysctlFile = "/etc/sysctl.d/99-zz-netctl.conf"

// repair is one change that --fix makes. It says what it changed; "": it was so already.
type repair func(ctx context.Context, h Host) (change string, err error)

// repairAll makes the repairs of all findings, also behind one that fails.
func repairAll(ctx context.Context, h Host, found []Finding) (changes []string, err error) {
	var errs []error
	for _, f := range found {
		for _, r := range f.repairs {
			change, err := r(ctx, h)
			if change != "" {
				changes = append(changes, change)
			}
			errs = append(errs, err)
		}
	}
	return changes, errors.Join(errs...)
}

// procFile is the file of a setting; levels are parted by slashes, since interfaces'
// names may have dots.
func procFile(key string) string { return "/proc/sys/" + key }

// sysctlName is a setting as sysctl(8) takes it.
func sysctlName(key string) string {
	if strings.Contains(key, ".") {
		return key // with slashes it takes every name
	}
	return strings.ReplaceAll(key, "/", ".")
}

// setting is a finding about a setting of the kernel that --fix sets, now and for the
// next boot.
func setting(key, value, what string) Finding {
	name := sysctlName(key)
	return Finding{
		What:    what,
		Fix:     []string{fmt.Sprintf("sysctl -w %s=%s", name, value), fmt.Sprintf("echo '%s = %s' >> %s", name, value, sysctlFile)},
		repairs: []repair{setSysctl(key, value), keepSysctl(name, value)},
	}
}

// setSysctl sets it in the running kernel.
func setSysctl(key, value string) repair {
	return func(_ context.Context, h Host) (string, error) {
		old, err := h.Read(procFile(key))
		if err != nil {
			return "", fmt.Errorf("read %s: %w", sysctlName(key), err)
		}
		if old = strings.TrimSpace(old); old == value {
			return "", nil
		}
		if err := h.Write(procFile(key), value); err != nil {
			return "", fmt.Errorf("set %s=%s: %w", sysctlName(key), value, err)
		}
		return fmt.Sprintf("%s: %s, was %s", sysctlName(key), value, old), nil
	}
}

// keepSysctl has the next boot set it.
func keepSysctl(name, value string) repair {
	return func(_ context.Context, h Host) (string, error) {
		text, err := h.Read(sysctlFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read %s: %w", sysctlFile, err)
		}
		var b strings.Builder
		old := "not there"
		for line := range strings.Lines(text) {
			k, v, _ := strings.Cut(line, "=")
			if strings.TrimSpace(k) != name {
				b.WriteString(line)
				continue
			}
			if old = strings.TrimSpace(v); old == value {
				return "", nil
			}
		}
		if text == "" {
			b.WriteString("# Settings that netctl needs, written by `netctl doctor --fix`.\n")
		}
		fmt.Fprintf(&b, "%s = %s\n", name, value)
		if err := h.Write(sysctlFile, b.String()); err != nil {
			return "", fmt.Errorf("write %s: %w", sysctlFile, err)
		}
		return fmt.Sprintf("%s: %s = %s, was %s", sysctlFile, name, value, old), nil
	}
}

// writeFile writes a file of netctl's own.
func writeFile(name, text string) repair {
	return func(_ context.Context, h Host) (string, error) {
		old, err := h.Read(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read %s: %w", name, err)
		}
		if err == nil && old == text {
			return "", nil
		}
		if err := h.Write(name, text); err != nil {
			return "", fmt.Errorf("write %s: %w", name, err)
		}
		was := "was not there"
		if err == nil && old != "" {
			was = "was " + fmt.Sprintf("%q", old)
		}
		return fmt.Sprintf("%s: written, %s", name, was), nil
	}
}

// runs has a program of the machine take notice of a change. That is no change itself.
func runs(program string, args ...string) repair {
	return func(ctx context.Context, h Host) (string, error) {
		if _, err := h.Run(ctx, program, args...); err != nil {
			return "", fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
		}
		return "", nil
	}
}

// paste is a command that writes a file, as a person would type it.
func paste(name, text string) string {
	quoted := strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", `\n`)
	return fmt.Sprintf(`mkdir -p "$(dirname %s)" && printf '%s\n' > %s`, name, quoted, name)
}
