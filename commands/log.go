package commands

import (
	"io"
	"log/slog"
)

// newLogger is the logger of a role: one line a record on w.
func newLogger(w io.Writer, role string, s *settings) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(s.Log.Level)) // checked by settings.finish
	opt := &slog.HandlerOptions{Level: level}
	if s.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opt)).With("role", role)
	}
	return slog.New(slog.NewTextHandler(w, opt)).With("role", role)
}
