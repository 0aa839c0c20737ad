package speaker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"netctl/datastore"
)

// maxPassword is the longest that TCP MD5 takes, in bytes (RFC 2385 leaves it open;
// linux/tcp.h).
const maxPassword = 80

// passwords reads those of peers. The zero value has read none.
type passwords struct {
	credentials string // systemd's folder of this service's credentials; "": it has none
	last        map[datastore.PeerPassword]string
}

// read returns a peer's password. Where it cannot be read any more it is the one that
// was read last, beside the error.
func (p *passwords) read(of datastore.PeerPassword) (string, error) {
	text, err := p.load(of)
	if err != nil {
		return p.last[of], fmt.Errorf("password: %w", err)
	}
	if p.last == nil {
		p.last = map[datastore.PeerPassword]string{}
	}
	p.last[of] = text
	return text, nil
}

// changed says whether any that was read is another one now.
func (p *passwords) changed() bool {
	for of, was := range p.last {
		if now, err := p.load(of); err != nil || now != was {
			return true
		}
	}
	return false
}

func (p *passwords) load(of datastore.PeerPassword) (string, error) {
	path := of.File
	if of.Credential != "" {
		if p.credentials == "" {
			return "", fmt.Errorf("credential %s: this service has none: set LoadCredential= in its unit", of.Credential)
		}
		path = filepath.Join(p.credentials, of.Credential)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, fmt.Errorf("%s is no file", path))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPassword+3)) // and an end of line
	if err != nil {
		return "", err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if text == "" || len(text) > maxPassword || strings.ContainsAny(text, "\n\x00") {
		return "", fmt.Errorf("%s must hold one line of 1 to %d bytes", path, maxPassword)
	}
	return text, nil
}
