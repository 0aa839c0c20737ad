//go:build bundled

package install

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"fmt"
	"io"
)

// packed is commands/plugin, built and compressed by make build.
//
//go:embed plugin.gz
var packed []byte

// Plugin is the program that is laid down for container runtimes.
func Plugin() ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("unpack the plugin: %w", err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("unpack the plugin: %w", err)
	}
	return text, nil
}
