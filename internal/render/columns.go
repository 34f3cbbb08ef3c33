package render

import (
	"io"
	"runtime"
	"slices"
	"sync"
)

// grid is lines of cells, kept as one text until it is known how wide the columns are.
type grid struct {
	text   []byte
	ends   []int // of each cell in text, line after line
	widths []int // of each column
}

func newGrid(columns int) *grid { return &grid{widths: make([]int, columns)} }

// cell ends a cell, which has been appended to text.
func (g *grid) cell() {
	start := 0
	if n := len(g.ends); n > 0 {
		start = g.ends[n-1]
	}
	column := len(g.ends) % len(g.widths)
	g.widths[column] = max(g.widths[column], columnsOf(g.text[start:]))
	g.ends = append(g.ends, len(g.text))
}

// add appends a cell.
func (g *grid) add(cell string) {
	g.text = append(g.text, cell...)
	g.cell()
}

// Column is a column of a table.
type Column struct {
	Name    string
	Right   bool // aligned to the right
	Address bool // has addresses with ports, of which the port is kept when they are cut
}

// layout is how the columns of all grids of a table are written.
type layout struct {
	columns []Column
	widths  []int
	hidden  []bool // left out
}

func newLayout(columns []Column) *layout {
	return &layout{columns, make([]int, len(columns)), make([]bool, len(columns))}
}

// head is the line of the names.
func (l *layout) head() *grid {
	g := newGrid(len(l.columns))
	for i := range l.columns {
		g.add(l.columns[i].Name)
	}
	return g
}

// Squeeze is one thing to do about a table that is too wide: leave out columns (To is 0), or make
// them narrower, the widest first, but none narrower than To.
type Squeeze struct {
	To      int
	Columns []int
}

// squeeze makes the table fit into a width, if that is possible, by the first steps that it takes;
// width 0: whatever it is. Columns that are left out give their room back to those that were made
// narrower before.
func (l *layout) squeeze(width int, steps ...Squeeze) {
	whole := slices.Clone(l.widths)
	for i, step := range steps {
		switch {
		case width == 0 || l.width() <= width:
			return
		case step.To > 0:
			l.narrow(width, step)
			continue
		}
		l.hide(step.Columns...)
		copy(l.widths, whole)
		for _, before := range steps[:i] {
			l.narrow(width, before)
		}
	}
}

// narrow makes columns narrower, the widest first, until the table fits or none may be narrower.
func (l *layout) narrow(width int, step Squeeze) {
	if step.To == 0 {
		return
	}
	for over := l.width() - width; over > 0; over-- {
		i := l.widest(step)
		if i < 0 {
			return
		}
		l.widths[i]--
	}
}

func (l *layout) hide(columns ...int) {
	for _, i := range columns {
		l.hidden[i] = true
	}
}

// widest is the widest column that a step can make narrower, -1: none.
func (l *layout) widest(step Squeeze) int {
	widest := -1
	for _, i := range step.Columns {
		if !l.hidden[i] && l.widths[i] > step.To && (widest < 0 || l.widths[i] > l.widths[widest]) {
			widest = i
		}
	}
	return widest
}

// width is how wide a line can be.
func (l *layout) width() int {
	n := -1
	for i, w := range l.widths {
		if !l.hidden[i] {
			n += w + 1
		}
	}
	return n
}

// fit makes the columns wide enough for a grid.
func (l *layout) fit(g *grid) {
	for i, w := range g.widths {
		l.widths[i] = max(l.widths[i], w)
	}
}

// appendLines appends the lines of a grid, without spaces at their ends.
func (l *layout) appendLines(b []byte, g *grid) []byte {
	start := 0
	for i, end := range g.ends {
		column, cell := i%len(l.widths), g.text[start:end]
		start = end
		if !l.hidden[column] {
			b = l.appendCell(b, column, cell)
		}
		if column == len(l.widths)-1 {
			for len(b) > 0 && b[len(b)-1] == ' ' {
				b = b[:len(b)-1]
			}
			b = append(b, '\n')
		}
	}
	return b
}

// appendCell appends a cell as wide as its column, and a space.
func (l *layout) appendCell(b []byte, column int, cell []byte) []byte {
	width := l.widths[column]
	pad := width - columnsOf(cell)
	if pad < 0 {
		if l.columns[column].Address {
			cell = cutAddress(cell, width, ellipsis)
		} else {
			cell = cutMiddle(cell, width, ellipsis)
		}
		pad = width - columnsOf(cell) // 1 where half a wide character did not fit
	}
	if l.columns[column].Right {
		b = append(appendSpaces(b, pad), cell...)
		return append(b, ' ')
	}
	return appendSpaces(append(b, cell...), pad+1)
}

func appendSpaces(b []byte, n int) []byte {
	for ; n > 0; n-- {
		b = append(b, ' ')
	}
	return b
}

// writeTable writes a heading, then grids, of which the processors each lay out one.
func writeTable(w io.Writer, style Style, l *layout, head *grid, grids []*grid) error {
	line := l.appendLines(nil, head)
	if _, err := io.WriteString(w, style.Bold(string(line[:len(line)-1]))+"\n"); err != nil {
		return err
	}
	out := make([][]byte, len(grids))
	share(len(grids), func(i int) { out[i] = l.appendLines(make([]byte, 0, 2*len(grids[i].text)), grids[i]) })
	for _, b := range out {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// partRows is how many rows are worth a processor of their own.
const partRows = 1024

// parts is in how many parts to make n rows: one for each processor, where that is worth
// it.
func parts(n int) int { return min(runtime.GOMAXPROCS(0), n/partRows+1) }

// share does n parts of some work at once.
func share(n int, do func(int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { do(i) })
	}
	wg.Wait()
}

// shareRows makes n rows in parts(n) parts at once, each from a row up to another.
func shareRows(n int, do func(part, from, to int)) {
	k := parts(n)
	share(k, func(part int) { do(part, n*part/k, n*(part+1)/k) })
}

// Table writes lines of cells below the names of their columns, each as wide as its widest cell. On
// a terminal that is too narrow the steps are taken, the first one first.
func Table(w io.Writer, style Style, columns []Column, lines [][]string, steps ...Squeeze) error {
	l := newLayout(columns)
	head, rest := l.head(), newGrid(len(columns))
	for _, line := range lines {
		for _, cell := range line {
			rest.add(cell)
		}
	}
	l.fit(head)
	l.fit(rest)
	for i, w := range l.widths {
		l.hidden[i] = w == 0
	}
	l.squeeze(style.Width, steps...)
	return writeTable(w, style, l, head, []*grid{rest})
}
