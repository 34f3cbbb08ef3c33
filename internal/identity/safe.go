package identity

import (
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Safe returns s so that it can be shown on a terminal: a name with control
// characters, escape sequences or invalid UTF-8 is quoted.
func Safe(s string) string {
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}
