package render

import (
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// columnsOf is how many columns of a terminal a text takes that Safe lets pass: two of each wide
// character (Chinese, Japanese, Korean, most emoji), none of one that is put on the one before.
func columnsOf(text []byte) int {
	for i, b := range text {
		if b >= utf8.RuneSelf {
			return i + wideColumns(text[i:])
		}
	}
	return len(text)
}

func wideColumns(text []byte) int {
	n := 0
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		text = text[size:]
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me):
		case isWide(r):
			n += 2
		default:
			n++
		}
	}
	return n
}

func isWide(r rune) bool {
	kind := width.LookupRune(r).Kind()
	return kind == width.EastAsianWide || kind == width.EastAsianFullwidth
}
