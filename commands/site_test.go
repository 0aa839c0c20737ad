package commands

import (
	"bytes"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/russross/blackfriday/v2"
)

// docsFolder is that of the pages, seen from here.
const docsFolder = "../docs"

// pagesInOrder are the pages that docs/README.md lists, as it does.
func pagesInOrder(t *testing.T) (names []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^- \[([a-z-]+\.md)\]`).FindAllStringSubmatch(readPage(t, "README.md"), -1) {
		names = append(names, m[1])
	}
	return names
}

func readPage(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(docsFolder, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// footer is how a page ends: the one before, all, the next.
func footer(t *testing.T, name string) string {
	t.Helper()
	order := pagesInOrder(t)
	i := slices.Index(order, name)
	parts := []string{"[All pages](README.md)"}
	if i > 0 {
		parts = slices.Insert(parts, 0, fmt.Sprintf("Before: [%s](%s)", order[i-1], order[i-1]))
	}
	if i+1 < len(order) {
		parts = append(parts, fmt.Sprintf("Next: [%s](%s)", order[i+1], order[i+1]))
	}
	return "\n---\n\n" + strings.Join(parts, " · ") + "\n"
}

// TestPagesInOrder holds that every page has a place in docs/README.md, and ends with the
// links that follow from it; NETCTL_WRITE_DOCS=1 (make docs) writes these.
func TestPagesInOrder(t *testing.T) {
	order := pagesInOrder(t)
	files, err := filepath.Glob(docsFolder + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(order)+1 {
		t.Errorf("%d pages are in docs/README.md, and %d beside it", len(order), len(files)-1)
	}
	for _, name := range order {
		page, want := readPage(t, name), footer(t, name)
		body, _, _ := strings.Cut(page, "\n---\n\nBefore: ")
		body, _, _ = strings.Cut(body, "\n---\n\n[All pages]")
		switch whole := strings.TrimRight(body, "\n") + "\n" + want; {
		case page == whole:
		case os.Getenv("NETCTL_WRITE_DOCS") == "":
			t.Errorf("docs/%s does not end with its links: run make docs", name)
		default:
			if err := os.WriteFile(filepath.Join(docsFolder, name), []byte(whole), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// anchor is what a forge makes of a heading's text.
func anchor(text string) string {
	text = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(text), "")
	return strings.ReplaceAll(text, " ", "-")
}

// parsePage is a page of Markdown, its headings with the anchors that a forge gives them.
func parsePage(text string) (root *blackfriday.Node, anchors []string) {
	root = blackfriday.New(blackfriday.WithExtensions(blackfriday.CommonExtensions &^ blackfriday.Autolink)).Parse([]byte(text))
	root.Walk(func(n *blackfriday.Node, entering bool) blackfriday.WalkStatus {
		if n.Type == blackfriday.Heading && entering {
			var b strings.Builder
			n.Walk(func(c *blackfriday.Node, _ bool) blackfriday.WalkStatus {
				if c.IsLeaf() {
					b.Write(c.Literal)
				}
				return blackfriday.GoToNext
			})
			n.HeadingID = anchor(b.String())
			anchors = append(anchors, n.HeadingID)
		}
		return blackfriday.GoToNext
	})
	return root, anchors
}

// TestSite renders README, CHANGELOG and docs/ as HTML; each link within them leads
// somewhere. NETCTL_WRITE_SITE=DIR (make site) writes the pages there.
func TestSite(t *testing.T) {
	var names []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/cli/*.md"} {
		list, err := filepath.Glob(filepath.Join("..", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			names = append(names, strings.TrimPrefix(f, "../"))
		}
	}
	roots, anchors := map[string]*blackfriday.Node{}, map[string][]string{}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		roots[name], anchors[name] = parsePage(string(text))
	}
	out := os.Getenv("NETCTL_WRITE_SITE")
	for _, name := range names {
		files := followLinks(t, name, roots[name], anchors)
		if out == "" {
			continue
		}
		text := []byte(sitePage(t, name, roots[name]))
		place(t, filepath.Join(out, strings.TrimSuffix(name, ".md")+".html"), text)
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join("..", f))
			if err != nil {
				t.Fatal(err)
			}
			place(t, filepath.Join(out, f), b)
		}
	}
}

func place(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// followLinks checks the links of a page and has them lead to the HTML of pages; files are
// what is linked beside these.
func followLinks(t *testing.T, name string, root *blackfriday.Node, anchors map[string][]string) (files []string) {
	t.Helper()
	root.Walk(func(n *blackfriday.Node, entering bool) blackfriday.WalkStatus {
		to := string(n.Destination)
		if !entering || n.Type != blackfriday.Link && n.Type != blackfriday.Image || strings.Contains(to, "://") {
			return blackfriday.GoToNext
		}
		path, at, _ := strings.Cut(to, "#")
		target := name
		if path != "" {
			target = filepath.Join(filepath.Dir(name), path)
		}
		known, isPage := anchors[target]
		switch {
		case isPage && (at == "" || slices.Contains(known, at)):
			n.Destination = []byte(strings.Replace(to, ".md", ".html", 1))
		case isPage:
			t.Errorf("%s: %s: that page has no heading %q", name, to, at)
		default:
			if _, err := os.Stat(filepath.Join("..", target)); err != nil {
				t.Errorf("%s: %s: %v", name, to, err)
			}
			files = append(files, target)
		}
		return blackfriday.GoToNext
	})
	return files
}

// sitePage is a page as HTML, with a list of all beside it.
func sitePage(t *testing.T, name string, root *blackfriday.Node) string {
	t.Helper()
	up := strings.Repeat("../", strings.Count(name, "/"))
	var list strings.Builder
	for _, p := range append([]string{"README.md"}, pagesInOrder(t)...) {
		here := ""
		if name == "docs/"+p {
			here = ` aria-current="page"`
		}
		title, _, _ := strings.Cut(strings.TrimPrefix(readPage(t, p), "# "), "\n")
		fmt.Fprintf(&list, "<li><a%s href=\"%sdocs/%s.html\">%s</a></li>\n", here, up, strings.TrimSuffix(p, ".md"), html.EscapeString(title))
	}
	var body bytes.Buffer
	renderer := blackfriday.NewHTMLRenderer(blackfriday.HTMLRendererParameters{})
	root.Walk(func(n *blackfriday.Node, entering bool) blackfriday.WalkStatus {
		return renderer.RenderNode(&body, n, entering)
	})
	return fmt.Sprintf(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>netctl: %s</title><style>
body{font:16px/1.5 system-ui,sans-serif;margin:0;display:flex;flex-wrap:wrap;color:#1b1f23;background:#fff}
nav{flex:0 0 16em;padding:1em}nav ul{list-style:none;padding:0;margin:0}nav a[aria-current]{font-weight:bold}
main{flex:1 1 40em;min-width:0;max-width:64em;padding:1em}pre{overflow:auto;background:#f3f4f6;padding:.8em}table{border-collapse:collapse;display:block;overflow:auto}
td,th{border:1px solid #c8ccd0;padding:.2em .6em;text-align:left;vertical-align:top}img{max-width:100%%}
@media(prefers-color-scheme:dark){body{color:#dde1e5;background:#15181b}pre{background:#22262a}a{color:#7cb7ff}td,th{border-color:#444}}
</style></head><body><nav><ul>
%s</ul></nav><main>
%s</main></body></html>
`, html.EscapeString(name), list.String(), body.String())
}
