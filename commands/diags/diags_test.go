package diags

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"netctl/datastore"
	"netctl/datastore/pki"
)

// read is an archive by the names of its files.
func read(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(unzipped); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil || h.Mode != 0o600 {
			t.Fatalf("%s: %v, mode %o", h.Name, err, h.Mode)
		}
		files[h.Name] = string(text)
	}
}

func text(s string, err error) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return []byte(s), err }
}

// TestWrite: a part that fails, hangs, or is too large keeps no other one out.
func TestWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		parts := []Part{
			{Name: "whole", Do: text("all", nil)},
			{Name: "none", Do: text("", errors.New("agent\nis dead"))},
			{Name: "half", Do: text("so far", errors.New("then it ended"))},
			{Name: "absent", Do: text("", ErrAbsent)},
			{Name: "hangs", Limit: time.Second, Do: func(context.Context) ([]byte, error) { <-hang; return nil, nil }},
			{Name: "slow", Do: func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return []byte("heeds its time"), ctx.Err() }},
			{Name: "large", Do: text(strings.Repeat("x", mostSize+1), nil)},
		}
		var out bytes.Buffer
		began := time.Now()
		sum, err := Write(t.Context(), &out, "folder", parts, NewSecrets())
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 2*mostTime {
			t.Errorf("took %s", took)
		}
		if want := []string{"none", "half", "hangs", "slow", "large"}; !slices.Equal(sum.Missing, want) || sum.Parts != 4 {
			t.Errorf("%+v, want %q", sum, want)
		}
		files := read(t, out.Bytes())
		for name, want := range map[string]string{"whole": "all", "half": "so far", "slow": "heeds its time"} {
			if got := files["folder/"+name]; got != want {
				t.Errorf("%s: %q", name, got)
			}
		}
		if large := files["folder/large"]; len(large) > mostSize+100 || !strings.HasSuffix(large, "[cut off here]\n") {
			t.Errorf("large: %d bytes", len(large))
		}
		list := strings.Join(strings.Fields(files["folder/CONTENTS"]), " ")
		for _, want := range []string{"whole 3 bytes", "none agent is dead", "half 6 bytes; then it ended", "absent not on this host", "hangs not done within 1s", "large", "cut off after 8 MiB"} {
			if !strings.Contains(list, want) {
				t.Errorf("CONTENTS has no %q:\n%s", want, files["folder/CONTENTS"])
			}
		}
		close(hang)
	})
}

// TestInterrupted: a person who stops it gets no archive.
func TestInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var out bytes.Buffer
	_, err := Write(ctx, &out, "folder", []Part{{Name: "a", Do: func(context.Context) ([]byte, error) { stop(); return nil, nil }}}, NewSecrets())
	if !errors.Is(err, context.Canceled) || out.Len() > 0 {
		t.Errorf("%v, %d bytes", err, out.Len())
	}
}

// TestSecrets: each kind of secret, as its file has it and as programs write it.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(dir, pki.Node{Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(files.Key)
	if err != nil {
		t.Fatal(err)
	}
	const md5, wireguard = "bgp-passw0rd", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s := NewSecrets()
	for _, path := range []string{files.Key, write("md5", md5+"\n"), write("wg", wireguard+"\n"), write("short", "abc"), filepath.Join(dir, "none")} {
		if err := s.Read(path); err != nil {
			t.Fatal(err)
		}
	}
	token := datastore.NewToken([32]byte{7}, true, time.Now(), []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:2378")}).String()
	said := strings.Join([]string{
		string(key), "a line of it: " + strings.Split(string(key), "\n")[1], strings.ReplaceAll(string(key), "\n", `\n`),
		"md5 " + md5, "wg " + wireguard, "netctl join " + token, `{"password": "hunter22"}`, "passwd=hunter23;", "--token hunter24 token: hunter24x",
		"https://user:hunter25@etcd.example:2379/", "Authorization: Bearer hunter26", "-----BEGIN PRIVATE KEY-----\nhunter27", "PrivateKey = hunter28",
	}, "\n")
	got := string(s.Remove([]byte(said)))
	for _, secret := range []string{md5, wireguard, token, strings.Split(string(key), "\n")[1], "hunter22", "hunter23", "hunter24x", "hunter25", "hunter26", "hunter27", "hunter28"} {
		if strings.Contains(got, secret) {
			t.Errorf("%q is still there:\n%s", secret, got)
		}
	}
	// What is none stays.
	cert, err := os.ReadFile(files.Cert)
	if err != nil {
		t.Fatal(err)
	}
	plain := string(cert) + "datastore:\n  key: /etc/n1.key\n  passwordFile: \"/etc/password\"\n" + `"password": {"file": "/etc/bgp"} abc https://192.0.2.1:2379 token 5f3a2b`
	if got := string(s.Remove([]byte(plain))); got != plain {
		t.Errorf("%s\nwant\n%s", got, plain)
	}
}
