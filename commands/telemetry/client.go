package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
)

// Roles are those that can be asked on their own machine.
func Roles() []string {
	return []string{"agent", "speaker", "reflector", "docker", "datastore", "api", "node"}
}

// Ask asks a role of this machine for metrics, healthz, readyz or goroutines. That the
// role does not run here is fs.ErrNotExist; one that is not well is answered for in
// the error, with its words.
func Ask(ctx context.Context, runDir, role, what string) ([]byte, error) {
	socket := Socket(runDir, role)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+role+"/"+what, nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Transport{DialContext: dial, DisableKeepAlives: true}).RoundTrip(q)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s does not run here: %w", role, fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("%s does not answer: %w", role, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return text, err
}
