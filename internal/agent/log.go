package agent

import (
	"bytes"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// LogWriter hands lines on to a writer that may be slow, stuck or full: who writes
// never waits. Lines that are lost are counted, and told before the next that is not.
type LogWriter struct {
	to    io.Writer
	lines chan []byte
	lost  atomic.Int64
	stop  chan struct{}
	done  chan struct{}
}

// maxLogLines is how many lines wait for a slow writer.
const maxLogLines = 256

// NewLogWriter returns a LogWriter; the caller closes it.
func NewLogWriter(to io.Writer) *LogWriter {
	w := &LogWriter{to: to, lines: make(chan []byte, maxLogLines), stop: make(chan struct{}), done: make(chan struct{})}
	go w.run()
	return w
}

// Write takes one line. It does not fail.
func (w *LogWriter) Write(line []byte) (int, error) {
	select {
	case w.lines <- bytes.Clone(line):
	default:
		w.lost.Add(1)
	}
	return len(line), nil
}

func (w *LogWriter) run() {
	defer close(w.done)
	for {
		select {
		case line := <-w.lines:
			w.write(line)
		case <-w.stop:
			for len(w.lines) > 0 {
				w.write(<-w.lines)
			}
			return
		}
	}
}

func (w *LogWriter) write(line []byte) {
	if n := w.lost.Swap(0); n > 0 {
		if _, err := fmt.Fprintf(w.to, "porthole: %d lines of the log were lost: they could not be written\n", n); err != nil {
			w.lost.Add(n)
		}
	}
	if _, err := w.to.Write(line); err != nil {
		w.lost.Add(1)
	}
}

// Close waits until every line is written, but not long. Lines written later are
// lost.
func (w *LogWriter) Close() error {
	close(w.stop)
	select {
	case <-w.done:
	case <-time.After(time.Second):
	}
	return nil
}
