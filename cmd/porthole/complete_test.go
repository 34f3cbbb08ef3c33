package main

import (
	"os"
	"strings"
	"testing"
)

// The kubelet's URL is that of this node, by the name that is in its certificate.
func TestCompleteKubelet(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if out, _, _ := invoke(t, "__complete", "agent", "--kubelet", ""); !strings.HasPrefix(out, "https://"+host+":10250\n:4\n") {
		t.Errorf("completed: %s", out)
	}
}

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
