// Package diags owns the archive that a person sends to whoever is to find out what is
// wrong with a node: it collects parts side by side, each within a bound of time and size,
// and takes secrets out of them.
//
// It knows nothing of what the parts are, and no part that fails keeps another one out:
// what is missing is said in the archive, and by Write.
package diags

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// The bounds of one part, and how many are collected at once.
const (
	mostTime = 15 * time.Second
	mostSize = 8 << 20 // bytes, before compression
	atOnce   = 4
)

// Part is one file of the archive.
type Part struct {
	Name string
	// Do returns the contents; with an error too, as far as they go. ErrAbsent: this host
	// has no such thing, which is nothing to be told.
	Do func(ctx context.Context) ([]byte, error)
	// Limit is how long it may take; 0: a quarter of a minute.
	Limit time.Duration
}

// ErrAbsent is a part that there is nothing of on this host.
var ErrAbsent = errors.New("not on this host")

// Summary says what became of the parts.
type Summary struct {
	Parts   int      // that are in the archive
	Missing []string // names of those that are not whole; CONTENTS says why
}

type result struct {
	text []byte
	err  error
}

// Write collects the parts and writes them to w as a compressed tar archive, in a folder
// of the given name. That a part is missing is no error.
func Write(ctx context.Context, w io.Writer, folder string, parts []Part, s *Secrets) (Summary, error) {
	results := collect(ctx, parts)
	if err := ctx.Err(); err != nil {
		return Summary{}, err
	}
	var sum Summary
	zipped := gzip.NewWriter(w)
	out := tar.NewWriter(zipped)
	add := func(name string, text []byte) error {
		head := &tar.Header{Name: folder + "/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: time.Now(), Format: tar.FormatPAX}
		if err := out.WriteHeader(head); err != nil {
			return err
		}
		_, err := out.Write(text)
		return err
	}
	var list bytes.Buffer
	for i, p := range parts {
		text, err := s.Remove(results[i].text), results[i].err
		if len(text) > mostSize {
			text, err = append(text[:mostSize:mostSize], "\n[cut off here]\n"...), errors.Join(err, fmt.Errorf("cut off after %d MiB", mostSize>>20))
		}
		words := fmt.Sprintf("%d bytes", len(text))
		if err != nil {
			why := strings.Join(strings.Fields(string(s.Remove([]byte(err.Error())))), " ")
			words = strings.TrimPrefix(words+"; ", "0 bytes; ") + why
			if !errors.Is(err, ErrAbsent) {
				sum.Missing = append(sum.Missing, p.Name)
			}
		}
		fmt.Fprintf(&list, "%-32s %s\n", p.Name, words)
		if len(text) == 0 && err != nil {
			continue
		}
		sum.Parts++
		if err := add(p.Name, text); err != nil {
			return sum, err
		}
	}
	return sum, errors.Join(add("CONTENTS", list.Bytes()), out.Close(), zipped.Close())
}

// collect runs the parts, some at once.
func collect(ctx context.Context, parts []Part) []result {
	results, turns := make([]result, len(parts)), make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i, p := range parts {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			results[i] = one(ctx, p)
		})
	}
	all.Wait()
	return results
}

// one runs a part; one that does not heed its time is left behind.
func one(ctx context.Context, p Part) result {
	limit := cmp.Or(p.Limit, mostTime)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan result, 1)
	go func() {
		text, err := p.Do(ctx)
		done <- result{text, err}
	}()
	select {
	case r := <-done:
		return r
	case <-ctx.Done():
		select {
		case r := <-done: // it did, and knows more
			return r
		case <-time.After(time.Second):
			return result{err: fmt.Errorf("not done within %s", limit)}
		}
	}
}
