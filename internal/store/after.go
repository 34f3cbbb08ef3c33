package store

import (
	"iter"
	"time"

	"github.com/porthole-dev/porthole/tracer"
)

// Mark is a moment: of a boot of the kernel, by CLOCK_BOOTTIME. Wall is what the clock said then.
type Mark struct {
	Boot [16]byte
	At   time.Duration
	Wall time.Time
}

// Passed is a Row of what has happened after a Mark.
type Passed struct {
	Row
	Boot  [16]byte
	At    time.Duration // CLOCK_BOOTTIME of the end, of a refused call, or of when what is open was told of
	When  time.Time     // the same, by the wall clock
	Taken time.Duration // CLOCK_BOOTTIME when the socket took its port; 0: not known
}

// Boot is the kernel's boot id.
func (s *Store) Boot() [16]byte { return s.head.boot }

// SetRead says up to when somebody has read what is kept: Unread counts what is deleted after that.
func (s *Store) SetRead(m Mark) {
	s.mu.Lock()
	s.read = m
	s.mu.Unlock()
}

// Unread is how many records were deleted, for they were too old or there were too many, after the Mark of SetRead.
func (s *Store) Unread() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unread
}

// countUnread notes that a segment is to be deleted.
func (s *Store) countUnread(path string, x *index) {
	h, err := readHead(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.read == (Mark{}) {
		return
	}
	if h.boot == s.read.Boot && x.lastBoot > uint64(s.read.At) || h.boot != s.read.Boot && h.created.wall > s.read.Wall.UnixNano() {
		s.unread += x.records
	}
}

// After ranges over what has happened after a moment, the earliest first but for differences of a second, up to now:
// rows of what is added later are not among them. Rows of what is open are there as well, each time that it was
// told of. Once it ends note is what is lacking.
func (s *Store) After(m Mark, note *Note) iter.Seq2[*Passed, error] {
	from := source{indexes: &s.indexes, dir: s.cfg.Dir, boot: s.head.boot, pending: s.pending()}
	return func(yield func(*Passed, error) bool) {
		files, err := from.files()
		if err != nil {
			yield(nil, err)
			return
		}
		files, same := from.after(files, m)
		var streams [classes]*stream
		for c := range classes {
			streams[c] = &stream{scan: scan{from: &from, q: &Query{}, note: note, want: (&Query{}).wants(), class: c}, after: m, same: same}
			for _, f := range files {
				if f.class == c {
					streams[c].files = append(streams[c].files, f)
				}
			}
			streams[c].advance()
		}
		for {
			var next *stream
			for _, one := range streams {
				if one.has && (next == nil || one.precedes(next)) {
					next = one
				}
			}
			if next == nil {
				return
			}
			if !yield(&next.passed, nil) {
				return
			}
			next.advance()
		}
	}
}

// after leaves out the segments that were ended before a moment. same are the numbers of those of its boot.
func (s *source) after(files []file, m Mark) (rest []file, same map[uint64]bool) {
	same = make(map[uint64]bool)
	heads := make(map[uint64]header)
	for _, f := range files {
		h, err := s.pending[f.seq].head, error(nil)
		if _, writing := s.pending[f.seq]; !writing {
			h, err = readHead(f.path)
		}
		if err != nil {
			rest = append(rest, f) // who opens it says why
			continue
		}
		heads[f.seq] = h
		same[f.seq] = h.boot == m.Boot
	}
	first := ^uint64(0) // segment of that boot
	for seq, is := range same {
		if is {
			first = min(first, seq)
		}
	}
	for _, f := range files {
		h, ok := heads[f.seq]
		switch {
		case !ok:
		case same[f.seq], first != ^uint64(0) && f.seq > first, first == ^uint64(0) && h.created.wall > m.Wall.UnixNano():
			rest = append(rest, f)
		}
	}
	return rest, same
}

// stream goes forwards through the segments of a class.
type stream struct {
	scan
	after  Mark
	same   map[uint64]bool // segments of the boot of after
	passed Passed
}

// precedes tells whether the row of a stream is earlier than that of another.
func (s *stream) precedes(o *stream) bool {
	if s.passed.Boot != o.passed.Boot {
		return s.seg.head.seq < o.seg.head.seq
	}
	return s.passed.At < o.passed.At
}

// advance finds the next row.
func (s *stream) advance() {
	s.has = false
	var r record
	for {
		for !s.on {
			if len(s.files) == 0 {
				return
			}
			f := s.files[0]
			s.files = s.files[1:]
			if s.same[f.seq] && s.over(f) {
				continue
			}
			s.on = s.open(f)
			s.blk, s.rec = 0, 0
		}
		if s.blk == len(s.seg.blocks) {
			s.on = false
			continue
		}
		blk := &s.seg.blocks[s.blk]
		if s.rec*recordSize >= len(blk.records) {
			s.blk, s.rec = s.blk+1, 0
			continue
		}
		raw := blk.records[s.rec*recordSize:]
		s.rec++
		if r.read(raw); r.kind == 0 || r.kind > Folded || s.same[s.seg.head.seq] && r.until <= uint64(s.after.At) {
			continue
		}
		offset := blk.at.offset()
		if !s.seg.row(&r, offset, &s.passed.Row) {
			continue
		}
		s.passed.Boot, s.passed.At, s.passed.When, s.passed.Taken = s.seg.head.boot, time.Duration(r.until), time.Unix(0, int64(r.until)+offset), 0
		if r.has(flagSinceKnown) {
			s.passed.Taken = time.Duration(r.since)
		}
		s.has = true
		return
	}
}

// over tells whether all of a segment was before the moment.
func (s *stream) over(f file) bool {
	if _, writing := s.from.pending[f.seq]; writing {
		return false
	}
	var x index
	var ended bool
	s.tail, ended = readIndex(f.path, &x, s.tail)
	return ended && x.lastBoot <= uint64(s.after.At)
}

// After is Store.After, of everything that has happened so far.
func (f *Feed) After(m Mark, note *Note) iter.Seq2[*Passed, error] {
	f.take()
	return f.Store.After(m, note)
}

// Which are the connections that are kept.
func (f *Feed) Which() Which { return f.which }

// Open calls add with every socket that has its port now.
func (f *Feed) Open(add func(*Entry)) { f.open(add) }

// Boot is the boot id of the kernel that runs.
func Boot() ([16]byte, error) { return bootID() }

// Now is this moment.
func Now(boot [16]byte) Mark {
	return Mark{Boot: boot, At: tracer.Boottime(), Wall: time.Now()}
}
