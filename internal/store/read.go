package store

import (
	"fmt"
	"iter"
	"time"
)

// Rows ranges over the rows that are asked for, the latest first. open tells of the sockets that are open
// now; nil: none are. note is what is lacking, once it has ended.
func (s *Store) Rows(q *Query, open func(add func(*Entry)), note *Note) iter.Seq2[*Row, error] {
	from := source{indexes: &s.indexes, dir: s.cfg.Dir, boot: s.head.boot, pending: s.pending()}
	if open != nil {
		from.open = func(q *Query, add func(uint64, *Row)) { s.openNow(q, open, add) }
	}
	return from.rows(q, note)
}

// pending is what is not on disk yet.
func (s *Store) pending() map[uint64]pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[uint64]pending)
	of := func(o *outFile, h header) pending {
		p, ok := out[o.seq]
		if !ok {
			p = pending{head: h, size: max(o.done, headerSize)}
		}
		return p
	}
	for _, w := range s.out {
		if w.old != nil {
			out[w.old.file.seq] = of(w.old.file, w.old.head())
		}
		out[w.file.seq] = of(w.file, w.head)
	}
	for _, j := range s.queue {
		if h, err := parseHeader(j.file.head); err == nil && j.ends == nil {
			p := of(j.file, h)
			p.tails = append(p.tails, j.b)
			out[j.file.seq] = p
		}
	}
	for _, w := range s.out {
		if len(w.records) > 0 {
			p := out[w.file.seq]
			p.tails = append(p.tails, appendBlock(nil, blockMagic, w.entries, w.records, s.cfg.clock(), w.first))
			out[w.file.seq] = p
		}
	}
	return out
}

func (f *finished) head() header {
	h, _ := parseHeader(f.file.head) // its own
	return h
}

// openNow makes rows of the sockets that are open.
func (s *Store) openNow(q *Query, open func(add func(*Entry)), add func(uint64, *Row)) {
	w := q.wants()
	if !w.kinds[Holding] {
		return
	}
	at := s.cfg.clock()
	offset := at.offset()
	var row Row
	procs := make(map[*described]*Process)
	open(func(e *Entry) {
		since := uint64(e.Taken)
		if since == 0 {
			since = s.head.began
		}
		if !w.ports(e.Local.Port(), e.Remote.Port()) || !w.during(int64(since)+offset, at.wall) {
			return
		}
		row = Row{
			Kind: Holding, Proto: e.Proto, Role: e.Role, Local: e.Local, Remote: e.Remote, NetNS: e.NetNS, NetNSCookie: e.NetNSCookie, Device: e.Device,
			MPTCP: e.MPTCP, V6Only: e.V6Only, Asked: e.Asked, Since: time.Unix(0, int64(since)+offset), SinceUnknown: e.Taken == 0,
			Listener: isListener(e.Role, e.Asked, e.Taken == 0),
		}
		if s.cfg.Space != nil {
			row.Space = s.cfg.Space(e.NetNS, e.NetNSCookie)
		}
		if e.Owner.PID != 0 {
			s.mu.Lock()
			d := s.describe(&e.Owner)
			s.mu.Unlock()
			p := procs[d]
			if p == nil {
				one := d.Process
				if s.cfg.Place != nil {
					one.Place = s.cfg.Place(&e.Owner)
				}
				p = &one
				procs[d] = p
			}
			row.Owner = p
		}
		if q.Match == nil || q.Match(&row) {
			add(since, &row)
		}
	})
}

// Read ranges over the rows of a history that no agent is asked for, as Store.Rows. Where one writes it
// now, what is of the last second may be missing.
func Read(dir string, q *Query, note *Note) iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		files, err := list(dir)
		if err != nil {
			yield(nil, err)
			return
		}
		runs, err := runsLeft(files)
		if err != nil {
			yield(nil, err)
			return
		}
		from := source{dir: dir}
		alive := inUse(dir)
		if len(runs) > 0 {
			from.boot = runs[len(runs)-1].newest.boot
		}
		for _, f := range files {
			if alive && f.class == ofPorts {
				from.alive = f.seq
			}
		}
		from.open = func(q *Query, add func(uint64, *Row)) {
			want := q.wants()
			for i := range runs {
				last := i == len(runs)-1
				if runs[i].newest.boot != from.boot {
					note.Errors = append(note.Errors, fmt.Errorf("the history of an earlier boot was not ended: what was open then is left out"))
					continue
				}
				left := leftBy(&runs[i], want, note)
				for _, o := range left.open {
					row, at := o.row, left.last
					row.Kind, row.Cursor = Holding, ""
					key := o.taken
					if !alive || !last {
						row.Kind, row.UntilUnknown = Held, true
						row.Until = time.Unix(0, at.wall)
						row.Took = row.Until.Sub(row.Since)
						key = at.boot
					}
					if !want.kinds[row.Kind] || !want.during(row.Since.UnixNano(), at.wall) || q.Match != nil && !q.Match(&row) {
						continue
					}
					for range o.count {
						add(key, &row)
					}
				}
			}
		}
		for row, err := range from.rows(q, note) {
			if !yield(row, err) {
				return
			}
		}
	}
}
