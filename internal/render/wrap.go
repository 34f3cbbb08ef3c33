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
	at, gap, empty := 0, 0, true // columns of the present line, spaces before the next word, and whether there is a word yet
	for i, word := range strings.Split(line, " ") {
		if i > 0 {
			gap++
		}
		if word == "" {
			continue
		}
		n := columnsOf([]byte(word))
		if !empty && at+gap+n > s.Width {
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at = indent
		} else {
			b.WriteString(strings.Repeat(" ", gap))
			at += gap
		}
		b.WriteString(word)
		at, gap, empty = at+n, 0, false
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
