//go:build !bundled

package install

// Plugin is the program that is laid down for container runtimes; nil: this build carries
// none, and is linked there itself.
func Plugin() ([]byte, error) { return nil, nil }
