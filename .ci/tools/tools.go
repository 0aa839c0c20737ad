//go:build tools

// Package tools pins the programs that work on the source; they never enter the
// product's go.mod.
package tools

import _ "github.com/golangci/golangci-lint/v2/cmd/golangci-lint"
