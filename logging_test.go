package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// TestLogging: messages begin lower-case and say nothing that varies, and docs/logging.md
// has every key.
func TestLogging(t *testing.T) {
	text, err := os.ReadFile("docs/logging.md")
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(string(text), -1) {
		keys[m[1]] = true
	}
	calls := 0
	err = fs.WalkDir(os.DirFS("."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "testdata/") {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !logs(call.Fun) || len(call.Args) == 0 {
				return true
			}
			calls++
			at := files.Position(call.Pos())
			if bin, ok := call.Args[0].(*ast.BinaryExpr); ok {
				t.Errorf("%s: the message is put together: %T", at, bin)
			}
			if msg, ok := literal(call.Args[0]); ok && (msg == "" || unicode.IsUpper([]rune(msg)[0])) {
				t.Errorf("%s: message %q begins upper-case", at, msg)
			}
			for i := 1; i < len(call.Args); i += 2 {
				if key, ok := literal(call.Args[i]); ok && !keys[key] {
					t.Errorf("%s: docs/logging.md lacks the key %q", at, key)
				}
			}
			return true
		})
		return nil
	})
	if err != nil || calls < 100 {
		t.Errorf("%d calls, %v", calls, err)
	}
}

// logs says whether a function is a method of a logger: of what is called log or Log.
func logs(fun ast.Expr) bool {
	method, ok := fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, method.Sel.Name) {
		return false
	}
	switch of := method.X.(type) {
	case *ast.Ident:
		return strings.EqualFold(of.Name, "log")
	case *ast.SelectorExpr:
		return strings.EqualFold(of.Sel.Name, "log")
	}
	return false
}

func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(l.Value)
	return s, err == nil
}
