package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// gate is a writer that waits, and fails, as it is told.
type gate struct {
	open    chan error // one for each write
	written chan string
}

func (g *gate) Write(b []byte) (int, error) {
	if err := <-g.open; err != nil {
		return 0, err
	}
	g.written <- string(b)
	return len(b), nil
}

// Who logs does not wait for a writer that is stuck, and how much was lost is told
// once it goes on.
func TestLogWriterStuck(t *testing.T) {
	g := &gate{make(chan error), make(chan string, 4*maxLogLines)}
	w := NewLogWriter(g)
	const lines = 2 * maxLogLines
	for i := range lines { // the writer is stuck: this would not end if it had to wait
		fmt.Fprintf(w, "line %d\n", i)
	}
	close(g.open)
	w.Close()
	close(g.written)
	var n, lost int
	for line := range g.written {
		var more int // it may be told more than once
		if _, err := fmt.Sscanf(line, "porthole: %d lines of the log were lost", &more); err != nil {
			n++
		}
		lost += more
	}
	if lost == 0 || n+lost != lines {
		t.Errorf("%d lines written and %d told as lost, want %d together", n, lost, lines)
	}
}

// A full disk loses lines, which are counted until one can be written.
func TestLogWriterFails(t *testing.T) {
	g := &gate{make(chan error, 8), make(chan string, 8)}
	w := NewLogWriter(g)
	full := errors.New("no space left on device")
	for _, err := range []error{full, full, full, nil, nil} { // one, the note, two; the note, three
		g.open <- err
	}
	for _, line := range []string{"one\n", "two\n", "three\n"} {
		w.Write([]byte(line))
	}
	w.Close()
	close(g.written)
	var got strings.Builder
	for line := range g.written {
		got.WriteString(line)
	}
	if want := "porthole: 2 lines of the log were lost: they could not be written\nthree\n"; got.String() != want {
		t.Errorf("written %q, want %q", got.String(), want)
	}
}

// One that stays stuck does not keep the agent from ending.
func TestLogWriterClose(t *testing.T) {
	w := NewLogWriter(&gate{make(chan error), nil})
	w.Write([]byte("never written\n"))
	start := time.Now()
	w.Close()
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("Close took %v", took)
	}
}
