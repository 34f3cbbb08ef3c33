package top

import (
	"cmp"
	"slices"
	"strings"

	"github.com/porthole-dev/porthole/internal/render"
)

// wide is how wide a table is that has room for more than it takes to know a row.
const wide = 100

// column is one of a table's.
type column[T any] struct {
	title   string
	width   int // in columns of the terminal; 0: it shares what the others leave
	weight  int // of the share
	right   bool
	least   int                                                // the table is at least so wide, else the column is left out; 0: never
	cut     func(text string, columns int, mark string) string // what is too long; nil: in its middle
	cell    func(*T) string
	compare func(a, b *T) int
	down    bool // sorted by it, the largest comes first
}

// table keeps rows, and shows those that a screen has room for: what a screen costs does not depend
// on how many there are.
type table[T any, K comparable] struct {
	columns []column[T]
	key     func(*T) K        // of a row, over all refreshes
	words   func(*T) []string // that a search looks at
	numbers func(*T) []uint32 // that it looks at, too
	tint    func(*T) tint     // of the row
	natural bool              // rows come in the order of the first column

	rows     []T
	shown    []int32 // of rows: those that a search lets pass, sorted
	search   []string
	sorted   int // by this column
	reversed bool
	cursor   int  // in shown
	first    int  // in shown: the top line
	follow   bool // the cursor stays on the last row
}

// tint is how a row looks.
type tint uint8

const (
	plain tint = iota
	dim        // it is gone
	alarm      // refused, or full
	warn       // past half
)

// set replaces the rows. The cursor stays on the row it is on.
func (t *table[T, K]) set(rows []T) {
	var key K
	row, was := t.selected(), t.cursor
	if row != nil {
		key = t.key(row)
	}
	t.rows = rows
	t.arrange()
	t.cursor = min(was, max(0, len(t.shown)-1))
	switch {
	case t.follow:
		t.cursor = max(0, len(t.shown)-1)
	case row != nil:
		t.find(key)
	}
}

// find puts the cursor on the row with a key, if it is there. Where it is likely is looked at first.
func (t *table[T, K]) find(key K) {
	if row := t.selected(); row != nil && t.key(row) == key {
		return
	}
	for i, n := range t.shown {
		if t.key(&t.rows[n]) == key {
			t.cursor = i
			return
		}
	}
}

// arrange picks the rows that pass the search, and sorts them.
func (t *table[T, K]) arrange() {
	t.shown = t.shown[:0]
	for i := range t.rows {
		if t.passes(&t.rows[i]) {
			t.shown = append(t.shown, int32(i))
		}
	}
	c := &t.columns[t.sorted]
	down := c.down != t.reversed
	if t.natural && t.sorted == 0 {
		if down {
			slices.Reverse(t.shown)
		}
		return
	}
	slices.SortFunc(t.shown, func(a, b int32) int {
		order := c.compare(&t.rows[a], &t.rows[b])
		if down {
			order = -order
		}
		return cmp.Or(order, cmp.Compare(a, b))
	})
}

// rearrange is arrange, with the cursor on the row it was on.
func (t *table[T, K]) rearrange() { t.set(t.rows) }

// passes tells whether a row has every word that is searched for: in a name, or as the beginning of a
// number.
func (t *table[T, K]) passes(row *T) bool {
	if len(t.search) == 0 {
		return true
	}
	words, numbers := t.words(row), t.numbers(row)
	for _, word := range t.search {
		has := slices.ContainsFunc(words, func(s string) bool { return strings.Contains(strings.ToLower(s), word) }) ||
			isNumber(word) && slices.ContainsFunc(numbers, func(n uint32) bool { return strings.HasPrefix(number(n), word) })
		if !has {
			return false
		}
	}
	return true
}

// setSearch searches for words, in whatever case.
func (t *table[T, K]) setSearch(words []string) {
	search := make([]string, len(words))
	for i, word := range words {
		search[i] = strings.ToLower(word)
	}
	if slices.Equal(search, t.search) {
		return
	}
	t.search = search
	t.rearrange()
}

// selected is the row that the cursor is on; nil: there is none.
func (t *table[T, K]) selected() *T {
	if t.cursor < 0 || t.cursor >= len(t.shown) {
		return nil
	}
	return &t.rows[t.shown[t.cursor]]
}

// counts are how many rows pass the search, of how many.
func (t *table[T, K]) counts() (shown, all int) { return len(t.shown), len(t.rows) }

// move moves the cursor by lines.
func (t *table[T, K]) move(lines int) {
	last := max(0, len(t.shown)-1)
	t.cursor = min(max(0, t.cursor+lines), last)
	t.follow = t.follow && t.cursor == last
}

// goTo puts the cursor on a line of those shown. Of a table that follows, on the last it follows on.
func (t *table[T, K]) goTo(line int) {
	t.cursor = 0
	t.move(line)
}

// nextSort sorts by the next column that can be sorted by, of those on a screen.
func (t *table[T, K]) nextSort(width int) {
	widths := t.widths(width)
	for range t.columns {
		t.sorted = (t.sorted + 1) % len(t.columns)
		if t.columns[t.sorted].compare != nil && widths[t.sorted] > 0 {
			break
		}
	}
	t.reversed = false
	t.rearrange()
}

// reverse sorts the other way round.
func (t *table[T, K]) reverse() {
	t.reversed = !t.reversed
	t.rearrange()
}

// widths are those of the columns on a screen; -1: it is left out.
func (t *table[T, K]) widths(width int) []int {
	out := make([]int, len(t.columns))
	left, weights := width, 0
	for i, c := range t.columns {
		if c.least > width {
			out[i] = -1
			continue
		}
		out[i] = c.width
		left -= c.width + 1
		weights += c.weight
	}
	left++ // nothing comes after the last
	for i, c := range t.columns {
		if out[i] < 0 || c.weight == 0 {
			continue
		}
		share := 0
		if weights > 0 {
			share = left * c.weight / weights
		}
		left, weights = left-share, weights-c.weight
		out[i] = max(1, share)
	}
	return out
}

// head is the line above the rows, in which the column that they are sorted by is marked.
func (t *table[T, K]) head(look look, width int) string {
	widths := t.widths(width)
	var b strings.Builder
	for i, c := range t.columns {
		if widths[i] < 0 {
			continue
		}
		title := c.title
		if i == t.sorted {
			title += look.sortMark(c.down != t.reversed)
		}
		appendCell(&b, look, title, widths[i], c.right, nil, i > 0)
	}
	return pad(b.String(), width)
}

// columnAt is the column at x of a screen, -1: there is none.
func (t *table[T, K]) columnAt(width, x int) int {
	from := 0
	for i, w := range t.widths(width) {
		if w < 0 {
			continue
		}
		if x < from+w+1 {
			return i
		}
		from += w + 1
	}
	return -1
}

// sortBy sorts by a column, or the other way round if they are sorted by it.
func (t *table[T, K]) sortBy(i int) {
	switch {
	case i < 0 || i >= len(t.columns) || t.columns[i].compare == nil:
	case i == t.sorted:
		t.reverse()
	default:
		t.sorted, t.reversed = i, false
		t.rearrange()
	}
}

// lines are those of the rows that a screen has room for.
func (t *table[T, K]) lines(look look, width, height int) []string {
	t.first = min(t.first, t.cursor, max(0, len(t.shown)-height))
	t.first = max(t.first, t.cursor-height+1, 0)
	widths := t.widths(width)
	out := make([]string, 0, height)
	for i := t.first; i < len(t.shown) && len(out) < height; i++ {
		row := &t.rows[t.shown[i]]
		var b strings.Builder
		for j, c := range t.columns {
			if widths[j] >= 0 {
				appendCell(&b, look, c.cell(row), widths[j], c.right, c.cut, j > 0)
			}
		}
		line := pad(b.String(), width)
		if i == t.cursor {
			line = look.reverse(line)
		} else {
			line = look.tinted(t.tint(row), line)
		}
		out = append(out, line)
	}
	return out
}

// appendCell appends a cell, cut where it is too long.
func appendCell(b *strings.Builder, look look, text string, width int, right bool, cut func(string, int, string) string, space bool) {
	if space {
		b.WriteByte(' ')
	}
	if cut == nil {
		cut = render.CutMiddle
	}
	text = cut(text, width, look.ellipsis())
	gap := strings.Repeat(" ", max(0, width-render.Columns(text)))
	if right {
		b.WriteString(gap + text)
	} else {
		b.WriteString(text + gap)
	}
}

// pad is a text with spaces after it, so that it is as wide as the screen.
func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(0, width-render.Columns(text)))
}

// list is a table, whatever its rows.
type list interface {
	counts() (shown, all int)
	move(lines int)
	goTo(line int)
	nextSort(width int)
	reverse()
	sortBy(column int)
	columnAt(width, x int) int
	setSearch(words []string)
	head(look look, width int) string
	lines(look look, width, height int) []string
	firstLine() int
}

func (t *table[T, K]) firstLine() int { return t.first }
