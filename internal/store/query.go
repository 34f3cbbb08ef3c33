package store

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Query asks for rows: those that every part of it lets pass.
type Query struct {
	// Local, Remote and Either are ports: one of each list that has any is a row's.
	Local, Remote, Either []uint16
	// Kinds are those wanted; none: all.
	Kinds []Kind
	// Since and Until are the time that a row has some of; zero: whenever.
	Since, Until time.Time
	// PortsOnly leaves out what is kept among connections.
	PortsOnly bool
	// Match tells whether a row passes; nil: each does. The row is the caller's until it returns.
	Match func(*Row) bool
	// After is the Cursor of the row to go on after; "": from the latest on.
	After string
}

// Note is what an answer lacks.
type Note struct {
	Damaged int  // stretches that cannot be read: a bit flipped, or a disk that failed
	Newer   int  // segments of a newer version of porthole
	Unseen  bool // at no moment that is asked about an agent is known to have looked
	Errors  []error
}

// Any tells whether anything is lacking.
func (n *Note) Any() bool { return n.Damaged+n.Newer+len(n.Errors) > 0 || n.Unseen }

// String says what is lacking, "" where nothing is.
func (n *Note) String() string {
	var parts []string
	if n.Damaged > 0 {
		parts = append(parts, fmt.Sprintf("%d parts of the history are damaged and left out", n.Damaged))
	}
	if n.Newer > 0 {
		parts = append(parts, fmt.Sprintf("%d segments of the history are of a newer version of porthole and left out", n.Newer))
	}
	if n.Unseen {
		parts = append(parts, "no agent was running then, as far as the history reaches")
	}
	for _, err := range n.Errors {
		parts = append(parts, err.Error())
	}
	return strings.Join(parts, "; ")
}

// maxOpen bounds how many sockets that are open are told, the latest.
const maxOpen = 10_000

// place is how far an answer has got: in each class before a record, and among the open ones before a
// time.
type place struct {
	seq  [classes]uint64
	next [classes]uint32 // records of that segment that are still to come; all: they all are
	open uint64          // CLOCK_BOOTTIME, as of openRow.at; all of the same are told
}

const all = ^uint32(0)

func (p *place) String() string {
	return fmt.Sprintf("%x.%x-%x.%x-%x", p.seq[0], p.next[0], p.seq[1], p.next[1], p.open)
}

// ErrCursor tells that a cursor is none.
var ErrCursor = errors.New("want a cursor as an answer has them")

func parseCursor(s string) (p place, err error) {
	if s == "" {
		return place{seq: [classes]uint64{^uint64(0), ^uint64(0)}, next: [classes]uint32{all, all}, open: ^uint64(0)}, nil
	}
	n, err := fmt.Sscanf(s, "%x.%x-%x.%x-%x", &p.seq[0], &p.next[0], &p.seq[1], &p.next[1], &p.open)
	if err != nil || n != 5 || p.String() != s {
		return p, fmt.Errorf("%q: %w", s, ErrCursor)
	}
	return p, nil
}

// openRow is a socket that is open, or was at the end of a run that nobody closed.
type openRow struct {
	at  uint64 // CLOCK_BOOTTIME of the last that happened to it
	row Row
}

// openHeap has the earliest first.
type openHeap []openRow

func (h openHeap) Len() int           { return len(h) }
func (h openHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h openHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *openHeap) Push(x any)        { *h = append(*h, x.(openRow)) }
func (h *openHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

// add keeps the latest.
func (h *openHeap) add(at uint64, row *Row) {
	if len(*h) >= maxOpen {
		if at <= (*h)[0].at {
			return
		}
		(*h)[0] = openRow{at, *row}
		heap.Fix(h, 0)
		return
	}
	heap.Push(h, openRow{at, *row})
}

// source is what an answer is made from.
type source struct {
	indexes *indexes // nil: none are kept
	dir     string
	pending map[uint64]pending                            // by number of the segment
	boot    [16]byte                                      // of open
	alive   uint64                                        // number of the segment of ports that another process writes; 0: none
	open    func(q *Query, add func(at uint64, row *Row)) // nil: none
}

// pending is what of a segment is not on disk.
type pending struct {
	head  header
	size  int64 // of the file, as far as it is whole
	tails [][]byte
}

// rows ranges over the rows that are asked for, the latest first. Once it ends note is what is lacking.
func (s *source) rows(q *Query, note *Note) iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		at, err := parseCursor(q.After)
		if err != nil {
			yield(nil, err)
			return
		}
		files, err := s.files()
		if err != nil {
			yield(nil, err)
			return
		}
		if !q.Since.IsZero() && !q.Until.IsZero() {
			note.Unseen = !s.watched(files, q.Since.UnixNano(), q.Until.UnixNano())
		}
		var open openHeap
		if s.open != nil {
			s.open(q, open.add)
		}
		slices.SortFunc(open, func(a, b openRow) int { return cmp.Compare(b.at, a.at) })
		for len(open) > 0 && open[0].at >= at.open {
			open = open[1:]
		}
		var scans [classes]*scan
		for c := range classes {
			scans[c] = &scan{from: s, q: q, note: note, want: q.wants(), class: c, seq: at.seq[c], next: at.next[c]}
			for _, f := range files {
				if f.class == c && !(q.PortsOnly && c == ofConnections) && (f.seq < at.seq[c] || f.seq == at.seq[c] && at.next[c] > 0) {
					scans[c].files = append(scans[c].files, f)
				}
			}
			scans[c].advance()
		}
		for {
			latest := -1
			for c, sc := range scans {
				if sc.has && (latest < 0 || sc.after(scans[latest])) {
					latest = c
				}
			}
			if len(open) > 0 && (latest < 0 || scans[latest].before(open[0].at)) {
				at.open = open[0].at
				row := &open[0].row
				open = open[1:]
				row.Cursor = at.String()
				if !yield(row, nil) {
					return
				}
				continue
			}
			if latest < 0 {
				return
			}
			sc := scans[latest]
			at.seq[latest], at.next[latest] = sc.seq, sc.next
			sc.row.Cursor = at.String()
			if !yield(&sc.row, nil) {
				return
			}
			sc.advance()
		}
	}
}

// files are the segments there are, the oldest first, with those that are not on disk yet.
func (s *source) files() ([]file, error) {
	files, err := list(s.dir)
	if err != nil && !(isGone(err) && len(s.pending) > 0) {
		return nil, err
	}
	for seq, p := range s.pending {
		if !slices.ContainsFunc(files, func(f file) bool { return f.seq == seq }) {
			files = append(files, file{class: p.head.class, seq: seq})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.seq, b.seq) })
	return files, nil
}

// indexes are those of segments that were read before: they do not change.
type indexes struct {
	mu   sync.Mutex
	kept map[uint64]*index // by number of the segment
}

// maxIndexes is how many are kept: those of a history of the usual size, 2 MB.
const maxIndexes = DefaultMaxSize / maxSegment

// of returns the index of a segment; nil: it is not kept.
func (x *indexes) of(seq uint64) *index {
	if x == nil {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.kept[seq]
}

// keep keeps an index, instead of the oldest where there are too many.
func (x *indexes) keep(seq uint64, one *index) {
	if x == nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.kept == nil {
		x.kept = make(map[uint64]*index)
	}
	if len(x.kept) >= maxIndexes {
		delete(x.kept, slices.Min(slices.Collect(maps.Keys(x.kept))))
	}
	x.kept[seq] = one
}

// watched tells whether an agent looked at some moment of a time, as far as the segments of ports tell.
func (s *source) watched(files []file, since, until int64) bool {
	type span struct{ from, to int64 }
	runs := make(map[[16]byte]*span)
	var buf []byte
	for _, f := range files {
		p, writing := s.pending[f.seq]
		h, err := p.head, error(nil)
		if !writing {
			h, err = readHead(f.path)
		}
		if err != nil || h.class != ofPorts {
			continue
		}
		end := h.created.wall
		var x index
		switch {
		case writing || f.seq == s.alive:
			end = time.Now().UnixNano()
		default:
			var ended bool
			if buf, ended = readIndex(f.path, &x, buf); ended {
				blk, _ := cutBlock(buf, indexMagic)
				end = blk.at.wall
			} else if data, err := readFile(f.path, nil, -1); err == nil {
				var seg segment
				if seg.parse(data) == nil && len(seg.blocks) > 0 {
					end = seg.blocks[len(seg.blocks)-1].at.wall
				}
			}
		}
		r := runs[h.run]
		if r == nil {
			r = &span{h.created.wall, end}
			runs[h.run] = r
		}
		r.from, r.to = min(r.from, h.created.wall), max(r.to, end)
	}
	for _, r := range runs {
		if r.from <= until && since <= r.to {
			return true
		}
	}
	return false
}

// wanted is a Query as records are compared with it.
type wanted struct {
	kinds        [Folded + 1]bool
	since, until int64 // wall clock, nanoseconds
	local        []uint16
	remote       []uint16
	either       []uint16
}

func (q *Query) wants() *wanted {
	w := &wanted{since: -1 << 62, until: 1 << 62, local: q.Local, remote: q.Remote, either: q.Either}
	for _, k := range q.Kinds {
		w.kinds[k] = true
	}
	if len(q.Kinds) == 0 {
		w.kinds = [Folded + 1]bool{Held: true, Holding: true, Refused: true, Folded: true}
	}
	if !q.Since.IsZero() {
		w.since = q.Since.UnixNano()
	}
	if !q.Until.IsZero() {
		w.until = q.Until.UnixNano()
	}
	return w
}

// maybePort tells whether a finished segment may have a record of the ports that pass.
func (w *wanted) maybePort(x *index) bool {
	own := *w
	own.since, own.until = -1<<62, 1<<62
	return own.maybe(x)
}

// among tells whether a port is in a list, which lets all pass where it has none.
func among(list []uint16, port uint16) bool {
	switch len(list) {
	case 0:
		return true
	case 1:
		return list[0] == port
	}
	return slices.Contains(list, port)
}

// ports tells whether the ports of a row pass.
func (w *wanted) ports(local, remote uint16) bool {
	return among(w.local, local) && among(w.remote, remote) && (among(w.either, local) || among(w.either, remote))
}

// during tells whether a time passes.
func (w *wanted) during(since, until int64) bool { return until >= w.since && since <= w.until }

// maybe tells whether a finished segment may have a row that passes.
func (w *wanted) maybe(x *index) bool {
	anyOf := func(list []uint16, maps ...*portMap) bool {
		if len(list) == 0 {
			return true
		}
		for _, port := range list {
			for _, m := range maps {
				if m.has(port) {
					return true
				}
			}
		}
		return false
	}
	return x.records > 0 && w.during(x.firstWall, x.lastWall) && anyOf(w.local, &x.local) && anyOf(w.remote, &x.remote) &&
		anyOf(w.either, &x.local, &x.remote)
}

// scan goes backwards through the segments of a class.
type scan struct {
	from  *source
	q     *Query
	want  *wanted
	note  *Note
	class class
	files []file // still to be read; the last is the next

	seg  segment
	buf  []byte
	tail []byte
	blk  int // of seg.blocks
	rec  int // of the block: the next one to look at is before it
	on   bool

	has  bool
	row  Row
	at   uint64
	seq  uint64 // of the row's segment
	next uint32 // records before the row
}

// after tells whether the row of a scan is later than that of another: by the boot, then by the clock
// that nobody sets.
func (s *scan) after(o *scan) bool {
	if s.seg.head.boot != o.seg.head.boot {
		return s.seq > o.seq
	}
	return s.at >= o.at
}

// before tells whether the row is earlier than something of this boot, or of the last run.
func (s *scan) before(at uint64) bool {
	return s.seg.head.boot != s.from.boot || s.at <= at
}

// advance finds the next row that passes.
func (s *scan) advance() {
	s.has = false
	var r record
	for {
		for !s.on {
			if len(s.files) == 0 {
				return
			}
			f := s.files[len(s.files)-1]
			s.files = s.files[:len(s.files)-1]
			s.on = s.open(f)
		}
		blk := &s.seg.blocks[s.blk]
		if s.rec == 0 {
			if s.blk--; s.blk < 0 {
				s.on = false
			} else {
				s.rec = len(s.seg.blocks[s.blk].records) / recordSize
			}
			continue
		}
		s.rec--
		number := blk.first + uint32(s.rec)
		if s.seq == s.seg.head.seq && number >= s.next && s.next != all {
			continue // told already
		}
		raw := blk.records[s.rec*recordSize:]
		if kind := Kind(raw[0]); kind == Holding || kind > Folded || !s.want.kinds[kind] ||
			!s.want.ports(le.Uint16(raw[4:]), le.Uint16(raw[6:])) {
			continue
		}
		r.read(raw)
		offset := blk.at.offset()
		if !s.want.during(int64(r.since)+offset, int64(r.until)+offset) {
			continue
		}
		if !s.seg.row(&r, offset, &s.row) || s.q.Match != nil && !s.q.Match(&s.row) {
			continue
		}
		s.has, s.at, s.seq, s.next = true, r.until, s.seg.head.seq, number
		return
	}
}

// open reads a segment, unless it has nothing that passes.
func (s *scan) open(f file) bool {
	p, isPending := s.from.pending[f.seq]
	if !isPending {
		x := s.from.indexes.of(f.seq)
		sealed := x != nil
		if !sealed {
			x = new(index)
			if s.tail, sealed = readIndex(f.path, x, s.tail); sealed {
				s.from.indexes.keep(f.seq, x)
			}
		}
		if sealed && !s.want.maybe(x) {
			return false
		}
	}
	upTo := int64(-1)
	if isPending {
		upTo = p.size
	}
	var err error
	s.buf = s.buf[:0]
	if f.path != "" {
		s.buf, err = readFile(f.path, s.buf, upTo)
	}
	if isPending && (len(s.buf) == 0 || isGone(err)) {
		s.buf, err = p.head.append(s.buf[:0]), nil
	}
	if err == nil && len(s.buf) < headerSize {
		return false // it was being made when the agent was killed, or is now: nothing is in it
	}
	if err == nil {
		err = s.seg.parse(s.buf, p.tails...)
	}
	switch {
	case isGone(err):
		return false // it was too old
	case errors.Is(err, errNewer):
		s.note.Newer++
		return false
	case errors.Is(err, errNotSegment):
		s.note.Damaged++
		return false
	case err != nil:
		s.note.Errors = append(s.note.Errors, err)
		return false
	}
	s.note.Damaged += s.seg.damaged
	if s.blk = len(s.seg.blocks) - 1; s.blk < 0 {
		return false
	}
	s.rec = len(s.seg.blocks[s.blk].records) / recordSize
	return true
}
