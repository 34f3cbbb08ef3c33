package render

import (
	"bytes"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// columnsOf is how many columns of a terminal a text takes: two of each wide character (Chinese,
// Japanese, Korean, most emoji), none of one that is put on the one before, and none of what
// Style.paint adds. Safe lets nothing pass that would do other things to a terminal.
func columnsOf(text []byte) int {
	for i, b := range text {
		if b >= utf8.RuneSelf || b == escape {
			return i + wideColumns(text[i:])
		}
	}
	return len(text)
}

func wideColumns(text []byte) int {
	n := 0
	for len(text) > 0 {
		size, columns := unit(text)
		text, n = text[size:], n+columns
	}
	return n
}

const escape = 0x1b

// unit is the first of what cannot be cut apart in a text that is not empty: a character, or an
// escape sequence of Style.paint.
func unit(text []byte) (size, columns int) {
	if text[0] == escape {
		if end := bytes.IndexByte(text, 'm'); end > 0 {
			return end + 1, 0
		}
	}
	r, size := utf8.DecodeRune(text)
	return size, columnsOfRune(r)
}

func isWide(r rune) bool {
	kind := width.LookupRune(r).Kind()
	return kind == width.EastAsianWide || kind == width.EastAsianFullwidth
}

// ellipsis stands for what was cut out.
const ellipsis = "…"

// cutMiddle makes a text fit into so many columns, at least 1: mark, of one column, stands for its
// middle.
func cutMiddle(text []byte, columns int, mark string) []byte {
	all := columnsOf(text)
	if all <= columns {
		return text
	}
	head, tail := columns/2, (columns-1)/2
	out := make([]byte, 0, len(text))
	at, cut := 0, false // the columns that were read
	for len(text) > 0 {
		size, n := unit(text)
		switch {
		case text[0] == escape, !cut && at+n <= head, at >= all-tail && n > 0, at > all-tail:
			out = append(out, text[:size]...)
		case !cut:
			out, cut = append(out, mark...), true
		}
		text, at = text[size:], at+n
	}
	return out
}

// cutAddress is cutMiddle of an address with a port, of which the port is kept.
func cutAddress(text []byte, columns int, mark string) []byte {
	port := bytes.LastIndexByte(text, ':')
	if port < 0 {
		return cutMiddle(text, columns, mark)
	}
	if port > 0 && text[port-1] == ']' {
		port--
	} else if text[0] == '[' || bytes.IndexByte(text[:port], ':') >= 0 {
		return cutMiddle(text, columns, mark) // an address without one
	}
	const least = 4 // of the address, else the port says nothing either
	if room := columns - columnsOf(text[port:]); room >= least && columnsOf(text) > columns {
		return append(cutMiddle(text[:port], room, mark), text[port:]...)
	}
	return cutMiddle(text, columns, mark)
}
