package commands

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// readInput reads a file that the command line names, or stdin. Where an API runs the
// command it is one that came with the request: the server's own are nobody's.
func (a *app) readInput(ctx context.Context, file string, limit int) ([]byte, error) {
	if a.caller == nil || file == "-" {
		return readInput(ctx, a.in, file, limit)
	}
	text, ok := a.caller.files[file]
	if !ok {
		return nil, usage("the file %s did not come with the request: put its text into files, or say - and put it into stdin", file)
	}
	return readInput(ctx, strings.NewReader(text), "-", limit)
}

// errFolder is what is said of a folder where a file is to be read.
var errFolder = errors.New("is a folder: name a file")

// readInput reads a file to its end, stdin if it is "-" and stdin is not nil. It gives up when ctx
// ends, which a read from a terminal or a FIFO does not notice, and at more than
// limit bytes.
func readInput(ctx context.Context, stdin io.Reader, file string, limit int) ([]byte, error) {
	type outcome struct {
		raw []byte
		err error
	}
	read := make(chan outcome, 1)
	go func() {
		in := stdin
		if file != "-" || stdin == nil {
			f, err := os.Open(file)
			if err != nil {
				read <- outcome{nil, err}
				return
			}
			defer f.Close()
			in = f
			if st, err := f.Stat(); err == nil && st.IsDir() {
				read <- outcome{nil, &fs.PathError{Op: "read", Path: file, Err: errFolder}}
				return
			}
		}
		var b bytes.Buffer
		_, err := b.ReadFrom(io.LimitReader(in, int64(limit)+1))
		read <- outcome{b.Bytes(), err}
	}()
	select {
	case r := <-read:
		if r.err == nil && len(r.raw) > limit {
			r.err = fmt.Errorf("%s: larger than %d bytes", inputName(file), limit)
		}
		return r.raw, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", inputName(file), ctx.Err())
	}
}

// inputName is what messages call a file.
func inputName(file string) string {
	if file == "-" {
		return "stdin"
	}
	return file
}
