package render

import (
	"encoding/json"
	"fmt"
	"io"
)

// WriteJSON writes an object as a line of JSON that a terminal may be shown: every
// control character in it is escaped.
func WriteJSON(w io.Writer, object any) error {
	b, err := json.Marshal(object)
	if err != nil {
		return err
	}
	_, err = w.Write(append(escapeControls(b), '\n'))
	return err
}

// escapeControls escapes DEL and U+0080 to U+009F, which JSON need not: some terminals
// take U+009B for the beginning of an escape sequence. They occur in strings alone.
func escapeControls(b []byte) []byte {
	clean := true
	for i, c := range b {
		clean = clean && c != 0x7f && !(c == 0xc2 && i+1 < len(b) && b[i+1] < 0xa0)
	}
	if clean {
		return b
	}
	var out []byte
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == 0x7f:
			out = append(out, `\u007f`...)
		case c == 0xc2 && i+1 < len(b) && b[i+1] < 0xa0: // always the first byte of two
			i++
			out = fmt.Appendf(out, `\u%04x`, b[i])
		default:
			out = append(out, c)
		}
	}
	return out
}
