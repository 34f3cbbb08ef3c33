package top

import "strconv"

// look is how text looks on this terminal: with 16 colours, which the user has chosen to suit a light
// or a dark background, or with none. Nothing is written in black or in white.
type look struct {
	color bool
	ascii bool // the terminal does not show UTF-8
}

func sgr(code, text string) string {
	if text == "" {
		return ""
	}
	return "\x1b[" + code + "m" + text + "\x1b[m"
}

func (l look) bold(text string) string    { return sgr("1", text) }
func (l look) reverse(text string) string { return sgr("7", text) }

func (l look) paint(code, text string) string {
	if !l.color {
		return text
	}
	return sgr(code, text)
}

func (l look) red(text string) string    { return l.paint("31", text) }
func (l look) yellow(text string) string { return l.paint("33", text) }
func (l look) faint(text string) string  { return l.paint("2", text) }

// tinted is a line of a row.
func (l look) tinted(t tint, line string) string {
	switch t {
	case dim:
		return l.faint(line)
	case alarm:
		return l.red(line)
	case warn:
		return l.yellow(line)
	}
	return line
}

func (l look) ellipsis() string {
	if l.ascii {
		return "~"
	}
	return "…"
}

func (l look) sortMark(down bool) string {
	switch {
	case l.ascii && down:
		return "v"
	case l.ascii:
		return "^"
	case down:
		return "▼"
	}
	return "▲"
}

// bar is a share from 0 to 1 as a bar of so many columns.
func (l look) bar(share float64, width int) string {
	share = min(max(share, 0), 1)
	b := make([]rune, width)
	eighths := int(share * float64(width) * 8)
	for i := range b {
		switch rest := eighths - 8*i; {
		case rest >= 8 && l.ascii, rest >= 4 && l.ascii:
			b[i] = '#'
		case l.ascii:
			b[i] = '.'
		case rest >= 8:
			b[i] = '█'
		case rest > 0:
			b[i] = rune(0x2590 - rest) // left blocks of 1 to 7 eighths
		default:
			b[i] = '·'
		}
	}
	return string(b)
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func isNumber(word string) bool {
	for i := range len(word) {
		if word[i] < '0' || word[i] > '9' {
			return false
		}
	}
	return word != ""
}
