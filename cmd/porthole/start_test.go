package main

import (
	"context"
	"io"
	"os"
	"strconv"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// Every start is like every other: what is loaded side by side does not come in each other's
// way. PORTHOLE_STARTS says how many there are of each command.
func TestKernelStarts(t *testing.T) {
	testutil.NewNetNS(t)
	starts := 3
	if text := os.Getenv("PORTHOLE_STARTS"); text != "" {
		var err error
		if starts, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for range starts {
		if _, errs, code := command(t, "ls"); code != exitDone || errs != "" {
			t.Fatalf("ls: exit code %d, stderr %q", code, errs)
		}
		startTail(t)
		if _, stop := startAgent(t); stop() != exitDone {
			t.Fatal("the agent did not end well")
		}
	}
}

// startTail runs a tail until it is attached.
func startTail(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	errs := make(lineWriter, 64)
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, &env{unasked: true, stdout: io.Discard, stderr: errs}, []string{"tail", "--tier", testTier()})
	}()
	waitLine(t, errs, "attached: ")
	cancel()
	if got := <-code; got != exitDone {
		t.Fatalf("tail: exit code %d", got)
	}
}
