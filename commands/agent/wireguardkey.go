package agent

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

func publicKey(private kernel.WireGuardKey) string {
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil { // only of another length
		return ""
	}
	return base64.StdEncoding.EncodeToString(k.PublicKey().Bytes())
}

func parseKey(text string) (key kernel.WireGuardKey, err error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil || len(b) != len(key) {
		return key, fmt.Errorf("not a key in base64 of 32 bytes: %w", datastore.ErrInvalid)
	}
	return kernel.WireGuardKey(b), nil
}

// readKey reads this node's private key, or makes one.
func readKey(dir string) (key kernel.WireGuardKey, err error) {
	path := filepath.Join(dir, keyFile)
	text, err := os.ReadFile(path)
	if err == nil {
		if key, err = parseKey(string(text)); err != nil {
			err = fmt.Errorf("%s: %w: remove it for a new one", path, err)
		}
		return key, err
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	return makeKey(dir)
}

// makeKey puts a new private key in place of the one that is there.
func makeKey(dir string) (key kernel.WireGuardKey, err error) {
	_, _ = rand.Read(key[:]) // never fails (crypto/rand)
	key[0] &= 248            // RFC 7748, section 5
	key[31] = key[31]&127 | 64
	return key, datastore.WriteFile(filepath.Join(dir, keyFile), []byte(base64.StdEncoding.EncodeToString(key[:])+"\n"), datastore.FileOptions{})
}
