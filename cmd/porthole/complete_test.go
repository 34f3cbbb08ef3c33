package main

import (
	"strings"
	"testing"
)

// Where a port is wanted no file names are offered; where a file or a command is, they are.
func TestCompleteArguments(t *testing.T) {
	for command, files := range map[string]bool{"check": false, "wait": false, "free": false, "diff": true, "run": true} {
		out, _, _ := invoke(t, "__complete", command, "")
		const noFiles = ":4\n"
		if strings.Contains(out, noFiles) == files {
			t.Errorf("%s: file names are offered: want %t\n%s", command, files, out)
		}
	}
}
