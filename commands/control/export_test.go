package control

import (
	"context"
	"log/slog"
	"net"
)

// Outcomes are the sentinels that go over the sockets.
func Outcomes() (list []error) {
	for _, s := range sentinels() {
		list = append(list, s.err)
	}
	return list
}

// Exchange is exchange.
func Exchange(conn net.Conn, req []byte) ([]byte, int, error) { return exchange(conn, req) }

// LookRegularly is lookRegularly.
func LookRegularly(ctx context.Context, log *slog.Logger, cause error, folders []Folder) error {
	return lookRegularly(ctx, log, cause, folders)
}

// Path is the file that is locked.
func (h *Held) Path() string { return h.path }
