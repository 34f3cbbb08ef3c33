package render

import (
	"bytes"
	"io"
	"strings"
)

// Wrap is a line for a terminal: broken at spaces where it is too long, and the lines after the
// first indented. A word that is too long by itself, such as a command to be copied, stays whole.
func (s Style) Wrap(indent int, line string) string {
	if s.Width == 0 || columnsOf([]byte(line)) <= s.Width {
		return line
	}
	var b strings.Builder
	at, empty := 0, true // columns of the present line, and whether it has no word
	for i, word := range strings.Split(line, " ") {
		n := columnsOf([]byte(word))
		switch {
		case i == 0:
		case empty || at+1+n <= s.Width:
			b.WriteByte(' ')
			at++
		default:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at, empty = indent, true
		}
		b.WriteString(word)
		at, empty = at+n, empty && n == 0
	}
	return b.String()
}

// Wrapper returns a writer that wraps the lines of text that are written to it, and indents those
// after the first of each by two spaces more than the first. A write ends with the end of a line.
func (s Style) Wrapper(to io.Writer) io.Writer {
	if s.Width == 0 {
		return to
	}
	return wrapper{s, to}
}

type wrapper struct {
	style Style
	to    io.Writer
}

// Write implements io.Writer.
func (w wrapper) Write(text []byte) (int, error) {
	out := make([]byte, 0, len(text))
	for line := range bytes.Lines(text) {
		body := bytes.TrimSuffix(line, []byte("\n"))
		indent := len(body) - len(bytes.TrimLeft(body, " ")) + 2
		out = append(append(out, w.style.Wrap(indent, string(body))...), line[len(body):]...)
	}
	if _, err := w.to.Write(out); err != nil {
		return 0, err
	}
	return len(text), nil
}
