package store

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// run is the segments of one agent.
type run struct {
	files  []file
	heads  []header
	ended  []bool
	newest header
}

// runsLeft returns the runs that have a segment which is not finished, the oldest first, with all their
// segments.
func runsLeft(files []file) ([]run, error) {
	var x index
	var buf []byte
	runs := make(map[[16]byte]*run)
	open := false
	ended := make([]bool, len(files))
	for i, f := range files {
		buf, ended[i] = readIndex(f.path, &x, buf)
		open = open || !ended[i]
	}
	if !open {
		return nil, nil
	}
	left := make(map[[16]byte]bool)
	for i, f := range files {
		h, err := readHead(f.path)
		if errors.Is(err, errNewer) || errors.Is(err, errNotSegment) || isGone(err) || errors.Is(err, unix.EIO) {
			continue // it stays as it is, and who reads it is told
		}
		if err != nil {
			return nil, fmt.Errorf("read history: %w", err)
		}
		r := runs[h.run]
		if r == nil {
			r = &run{}
			runs[h.run] = r
		}
		r.files, r.heads, r.ended = append(r.files, f), append(r.heads, h), append(r.ended, ended[i])
		r.newest = h
		left[h.run] = left[h.run] || !ended[i]
	}
	var out []run
	for id, r := range runs {
		if left[id] {
			out = append(out, *r)
		}
	}
	slices.SortFunc(out, func(a, b run) int { return cmp.Compare(a.newest.seq, b.newest.seq) })
	return out, nil
}

// leftOpen is what a run had open when it ended.
type leftOpen struct {
	open map[key]*openCount
	last stamp // the last moment of which anything is known
	// ended are connections whose end is among the ports, for they failed: that may be read before their beginning.
	ended map[key]bool
}

// openCount is some sockets of one key: where the beginning was not seen there may be several.
type openCount struct {
	count int
	row   Row
	taken uint64 // 0: not known
}

// leftBy reads what a run had open. want, if not nil, tells whether the rows of a record are wanted.
func leftBy(r *run, want *wanted, note *Note) leftOpen {
	left := leftOpen{open: make(map[key]*openCount), ended: make(map[key]bool)}
	var seg segment
	var buf []byte
	for i := range r.files {
		var x index
		if want != nil && r.ended[i] {
			var ok bool
			if buf, ok = readIndex(r.files[i].path, &x, buf); ok && !want.maybePort(&x) {
				continue
			}
		}
		var err error
		buf, err = readFile(r.files[i].path, buf, -1)
		if err == nil {
			err = seg.parse(buf)
		}
		if err != nil {
			if !isGone(err) {
				note.Errors = append(note.Errors, err)
			}
			continue
		}
		left.take(&seg, want)
	}
	return left
}

// take goes through the records of a segment.
func (l *leftOpen) take(seg *segment, want *wanted) {
	// A segment of listeners begins with those that are open: they are the ones of the segments before.
	var rec record
	again := make(map[key]int)
	for i := range seg.blocks {
		blk := &seg.blocks[i]
		if blk.at.boot > l.last.boot {
			l.last = blk.at
		}
		for raw := blk.records; len(raw) >= recordSize; raw = raw[recordSize:] {
			kind := Kind(raw[0])
			if kind != Holding && kind != Held || want != nil && !want.ports(le.Uint16(raw[4:]), le.Uint16(raw[6:])) {
				continue
			}
			rec.read(raw)
			k := seg.key(&rec)
			o := l.open[k]
			switch {
			case kind == Held && o == nil:
				if rec.has(flagSinceKnown) && rec.errno != 0 && seg.head.class == ofPorts {
					l.ended[k] = true
				}
			case kind == Held:
				if o.count--; o.count <= 0 {
					delete(l.open, k)
				}
			case l.ended[k]:
			default:
				var row Row
				if !seg.row(&rec, blk.at.offset(), &row) {
					continue
				}
				taken := uint64(0)
				if rec.has(flagSinceKnown) {
					taken = rec.since
				}
				again[k]++
				if o == nil {
					o = &openCount{taken: taken}
					l.open[k] = o
				}
				o.row = row
				o.count = max(o.count, again[k])
				if taken != 0 {
					o.count = 1
				}
			}
		}
	}
}

// entry is what is left of a socket, at the last moment that is known.
func (l *leftOpen) entry(o *openCount) Entry {
	row := &o.row
	e := Entry{
		Proto: row.Proto, Role: row.Role, Local: row.Local, Remote: row.Remote, NetNS: row.NetNS, NetNSCookie: row.NetNSCookie, Device: row.Device,
		Taken: time.Duration(o.taken), At: time.Duration(max(l.last.boot, o.taken)), MPTCP: row.MPTCP, V6Only: row.V6Only, Asked: row.Asked,
	}
	if row.Owner != nil {
		e.Owner = row.Owner.Process
	}
	return e
}

// recover finishes the segments of agents that ended uncleanly: what they had open is closed at the last
// moment that is known, and what was being written is cut off. last is the greatest number that a segment
// has.
func (s *Store) recover() (last uint64, err error) {
	files, err := list(s.cfg.Dir)
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		last = max(last, f.seq)
		if f.size < headerSize { // nothing is in it
			if err := os.Remove(f.path); err != nil && !isGone(err) {
				return 0, fmt.Errorf("remove an empty segment: %w", err)
			}
		}
	}
	runs, err := runsLeft(files)
	if err != nil {
		return 0, err
	}
	var note Note
	for i := range runs {
		if runs[i].newest.run == s.head.run { // the directory went and came back: what is open is so still
			continue
		}
		if err := finishRun(&runs[i], &note); err != nil {
			return 0, err
		}
	}
	return last, nil
}

// renumber has the segments that are not made yet come after all that are in the directory: it could not be
// read when they began. Hold mu.
func (s *Store) renumber(last uint64) {
	files := make(map[*outFile]bool)
	for _, j := range s.queue {
		files[j.file] = true
	}
	first := s.seq + 1
	for _, w := range s.out {
		files[w.file] = true
		if w.old != nil {
			files[w.old.file] = true
		}
	}
	for f := range files {
		if f.f == nil {
			first = min(first, f.seq)
		}
	}
	if first > last {
		return
	}
	by := last - first + 1
	s.seq += by
	for f := range files {
		if f.f != nil {
			continue
		}
		h, err := parseHeader(f.head)
		if err != nil {
			continue // never: it is ours
		}
		f.seq += by
		h.seq = f.seq
		f.path, f.head = pathOf(s.cfg.Dir, f.class, f.seq), h.append(nil)
	}
	for _, w := range s.out {
		w.head.seq = w.file.seq
	}
}

// finishRun closes what a run has left open.
func finishRun(r *run, note *Note) error {
	left := leftBy(r, nil, note)
	target := -1 // the segment that has the ends
	for i := range r.files {
		if !r.ended[i] && (target < 0 || r.heads[i].class == ofPorts || r.heads[target].class != ofPorts) {
			target = i
		}
	}
	for i := range r.files {
		if r.ended[i] {
			continue
		}
		var closes *leftOpen
		if i == target {
			closes = &left
		}
		if err := finishSegment(r.files[i].path, closes); err != nil {
			return err
		}
	}
	return nil
}

// finishSegment cuts off what is not whole, adds what is left open, and ends the segment.
func finishSegment(path string, left *leftOpen) error {
	buf, err := readFile(path, nil, -1)
	if errors.Is(err, unix.EIO) {
		return nil // a part of the disk is broken: the rest is not
	}
	if err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	var seg segment
	if err := seg.parse(buf); err != nil {
		return fmt.Errorf("read history: %w", err)
	}
	w := &writer{head: seg.head, dict: newDict(), size: int64(seg.end)}
	w.dict.next = uint32(len(seg.entries))
	var rec record
	for i := range seg.blocks {
		blk := &seg.blocks[i]
		w.first = max(w.first, blk.first+uint32(len(blk.records)/recordSize))
		from, to := uint64(0), uint64(0)
		for raw := blk.records; len(raw) >= recordSize; raw = raw[recordSize:] {
			rec.read(raw)
			w.x.add(&rec)
			if to == 0 {
				from = rec.since
			}
			from, to = min(from, rec.since), max(to, rec.until)
		}
		if to != 0 {
			w.x.during(from, to, blk.at.offset())
		}
	}
	w.x.records = uint64(w.first) // those that are damaged have numbers too
	out := &Store{head: seg.head, kick: make(chan struct{}, 1), procs: make(map[tracer.Process]*described), segAt: 1 << 60}
	at := seg.head.created
	if left != nil {
		at = left.last
	}
	out.cfg.clock = func() stamp { return at }
	out.out[seg.head.class] = w
	w.file = &outFile{path: path}
	if left != nil {
		out.closeAll(seg.head.class, left)
	}
	out.seal(seg.head.class)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("finish history: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(int64(seg.end)); err != nil {
		return fmt.Errorf("finish history: %w", err)
	}
	for _, j := range out.queue {
		if _, err := f.WriteAt(j.b, j.at); err != nil {
			return fmt.Errorf("finish history: %w", err)
		}
	}
	if _, err := f.WriteAt(w.x.append(nil, at), w.size); err != nil {
		return fmt.Errorf("finish history: %w", err)
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("finish history: %w", err)
	}
	return nil
}

// closeAll adds an end for everything that was left open.
func (s *Store) closeAll(c class, left *leftOpen) {
	places := make(map[tracer.Process]identity.Cgroup)
	s.cfg.Place = func(p *tracer.Process) identity.Cgroup { return places[*p] }
	names := make(map[spaceKey]string)
	s.cfg.Space = func(inode uint32, cookie uint64) string { return names[spaceKey{inode, cookie}] }
	for _, o := range slices.Collect(maps.Values(left.open)) {
		if own := o.row.Owner; own != nil {
			places[own.Process] = own.Place
			s.procs[own.Process] = &described{*own}
		}
		names[spaceKey{o.row.NetNS, o.row.NetNSCookie}] = o.row.Space
		e := left.entry(o)
		for range o.count {
			s.put(c, Held, &e, flagUntilUnknown, 0, 0)
		}
	}
}
