package embed

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// silent is above every level: while etcd stops it reports each listener that
// was closed as an error.
const silent = slog.LevelError + 1

// bridge is a zap logger that hands what etcd says to log: from least on as it
// is, everything else as debug.
func bridge(log *slog.Logger, least *slog.LevelVar) *zap.Logger {
	return zap.New(core{log: log, least: least})
}

type core struct {
	log    *slog.Logger
	least  *slog.LevelVar
	fields []zapcore.Field
}

func (c core) level(l zapcore.Level) slog.Level {
	level := slog.LevelDebug
	switch {
	case l >= zapcore.ErrorLevel:
		level = slog.LevelError
	case l == zapcore.WarnLevel:
		level = slog.LevelWarn
	}
	if level < c.least.Level() {
		return slog.LevelDebug
	}
	return level
}

func (c core) Enabled(l zapcore.Level) bool {
	return l > zapcore.DebugLevel && c.log.Enabled(context.Background(), c.level(l))
}

func (c core) With(fields []zapcore.Field) zapcore.Core {
	c.fields = append(c.fields[:len(c.fields):len(c.fields)], fields...)
	return c
}

func (c core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields)+1)
	attrs = append(attrs, slog.String("etcd", e.Message))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.LogAttrs(context.Background(), c.level(e.Level), "etcd says", attrs...)
	return nil
}

func (c core) Sync() error { return nil }
