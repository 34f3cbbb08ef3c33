package render

import (
	"io"
	"runtime"
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

// layout is how the columns of all grids of a table are written.
type layout struct {
	widths []int
	right  []bool // aligned to the right
	hidden []bool // left out
}

func newLayout(columns int, right ...int) *layout {
	l := &layout{make([]int, columns), make([]bool, columns), make([]bool, columns)}
	for _, i := range right {
		l.right[i] = true
	}
	return l
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
		pad := l.widths[column] - columnsOf(cell)
		switch {
		case l.hidden[column]:
		case l.right[column]:
			b = append(appendSpaces(b, pad), cell...)
			b = append(b, ' ')
		default:
			b = appendSpaces(append(b, cell...), pad+1)
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

// Table writes lines of cells as columns, each as wide as its widest cell; the
// first line is the heading. right tells which columns are aligned to the right.
func Table(w io.Writer, style Style, lines [][]string, right ...int) error {
	l := newLayout(len(lines[0]), right...)
	head, rest := newGrid(len(lines[0])), newGrid(len(lines[0]))
	for i, line := range lines {
		g := rest
		if i == 0 {
			g = head
		}
		for _, cell := range line {
			g.add(cell)
		}
	}
	l.fit(head)
	l.fit(rest)
	return writeTable(w, style, l, head, []*grid{rest})
}
