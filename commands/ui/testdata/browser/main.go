// Browser opens Chromium without a screen and does what it is told on stdin, one JSON value
// a line, answering each with one: {"go": URL}, {"eval": JS} (a promise is awaited),
// {"key": NAME}, {"size": [W, H]}, {"dark": BOOL}, {"shot": FILE}, {"log": true} (what the
// page wrote to its console, and requests to elsewhere).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

type order struct {
	Go   string   `json:"go"`
	Eval string   `json:"eval"`
	Key  string   `json:"key"`
	Size [2]int64 `json:"size"`
	Dark *bool    `json:"dark"`
	Shot string   `json:"shot"`
	Log  bool     `json:"log"`
}

type result struct {
	Value json.RawMessage `json:"value,omitempty"`
	Error string          `json:"error,omitempty"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(os.Args[1]), chromedp.NoSandbox, chromedp.Flag("headless", "new"))
	base, stop := chromedp.NewExecAllocator(context.Background(), options...)
	defer stop()
	ctx, end := chromedp.NewContext(base)
	defer end()
	b := &browser{}
	chromedp.ListenTarget(ctx, b.heard)
	if err := chromedp.Run(ctx, log.Enable(), network.Enable()); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var o order
		var r result
		err := json.Unmarshal(lines.Bytes(), &o)
		if err == nil {
			r.Value, err = b.do(ctx, o)
		}
		if err != nil {
			r.Error = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

type browser struct {
	mu   sync.Mutex
	said []string
	home string // what requests may go to
}

// heard keeps what is wrong with a page.
func (b *browser) heard(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.said = append(b.said, e.ExceptionDetails.Error())
	case *log.EventEntryAdded:
		if e.Entry.Source != log.SourceNetwork { // an API that is away is told of on the page
			b.said = append(b.said, e.Entry.Text)
		}
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(e.Request.URL, b.home) {
			b.said = append(b.said, "request to "+e.Request.URL)
		}
	}
}

func (b *browser) do(ctx context.Context, o order) (json.RawMessage, error) {
	switch {
	case o.Go != "":
		b.mu.Lock()
		b.home, _, _ = strings.Cut(o.Go, "#")
		b.mu.Unlock()
		return nil, chromedp.Run(ctx, chromedp.Navigate(o.Go))
	case o.Eval != "":
		var out []byte
		err := chromedp.Run(ctx, chromedp.Evaluate(o.Eval, &out, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
		return out, err
	case o.Key != "":
		keys := map[string]string{"Tab": kb.Tab, "Enter": kb.Enter, "ArrowRight": kb.ArrowRight, "ArrowDown": kb.ArrowDown}
		return nil, chromedp.Run(ctx, chromedp.KeyEvent(keys[o.Key]))
	case o.Size[0] > 0:
		return nil, chromedp.Run(ctx, chromedp.EmulateViewport(o.Size[0], o.Size[1]))
	case o.Dark != nil:
		scheme := map[bool]string{false: "light", true: "dark"}[*o.Dark]
		return nil, chromedp.Run(ctx, emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}))
	case o.Shot != "":
		return nil, chromedp.Run(ctx, chromedp.ActionFunc(func(ctx context.Context) error {
			picture, err := page.CaptureScreenshot().WithFormat(page.CaptureScreenshotFormatPng).WithCaptureBeyondViewport(true).Do(ctx)
			if err != nil {
				return err
			}
			return os.WriteFile(o.Shot, picture, 0o644)
		}))
	case o.Log:
		b.mu.Lock()
		defer b.mu.Unlock()
		return json.Marshal(b.said)
	}
	return nil, fmt.Errorf("an empty order")
}
