package api

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	// maxStreams bounds how many clients read events at once: a bit of line.wanted each.
	maxStreams = 32
	// queueOf is how many events wait to be encoded: 4 MB, of whatever kind they are.
	queueOf = 1 << 14
	// keptBytes is how much memory waits to be read, by all clients together.
	keptBytes = 8 << 20
	// pageBytes is how much is encoded before it can be read.
	pageBytes = 32 << 10
	// maxSpare is how many pages are kept to be used again.
	maxSpare = 16
)

// feed is the stream of events that clients read, each at its own speed. An event is
// encoded once, whoever wants it. What is kept is bounded for all of them together:
// who falls behind too far loses what is oldest, and is told how much that was.
type feed struct {
	tracer *tracer.Tracer
	names  *identity.Names

	mu      sync.Mutex
	readers [maxStreams]*reader
	count   int
	sub     *tracer.Subscription // nil: nobody reads
	pages   []*page              // those that somebody has still to read, the oldest first
	first   uint64               // number of pages[0]
	bytes   int                  // that all pages take
	spare   []*page              // that everybody has read, to be used again
}

// reader is a place in the feed.
type reader struct {
	wants func(*tracer.Event) bool
	bit   uint32
	next  uint64 // number of the page to be read next
	lost  uint64 // not told of yet
	ended bool
	more  chan struct{} // holds a token while there may be something to read
}

// page is some events, encoded.
type page struct {
	json  []byte
	lines []line
}

// size is the memory that a page takes.
func (p *page) size() int { return cap(p.json) + cap(p.lines)*int(unsafe.Sizeof(line{})) }

// line is an event of a page.
type line struct {
	end    int    // in page.json
	wanted uint32 // bits of readers
}

// join adds a reader of what happens from now on; nil: there are too many.
func (f *feed) join(wants func(*tracer.Event) bool) *reader {
	f.mu.Lock()
	defer f.mu.Unlock()
	slot := slices.Index(f.readers[:], nil)
	if slot < 0 {
		return nil
	}
	r := &reader{wants: wants, bit: 1 << slot, next: f.first + uint64(len(f.pages)), more: make(chan struct{}, 1)}
	f.readers[slot] = r
	if f.count++; f.count == 1 {
		f.sub = f.tracer.Subscribe(queueOf)
		go f.run(f.sub)
	}
	return r
}

// leave ends a reader.
func (f *feed) leave(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readers[slices.Index(f.readers[:], r)] = nil
	if f.count--; f.count == 0 {
		f.sub.Close()
		f.sub = nil
	}
	f.trim()
}

// len is how many read.
func (f *feed) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// run encodes events until the subscription ends.
func (f *feed) run(sub *tracer.Subscription) {
	var events []tracer.Event
	var late uint64
	var scratch page
	var enc render.Encoder
	for {
		var err error
		if events, err = sub.Next(context.Background(), events); err != nil {
			break // io.EOF: the last reader has gone, or the tracer has ended
		}
		for rest := events; len(rest) > 0; {
			rest = f.add(sub, &enc, &scratch, rest)
		}
		if now := sub.Lost(); now > late {
			f.each(sub, func(r *reader) { r.lost += now - late })
			late = now
		}
	}
	f.each(sub, func(r *reader) { r.ended = true })
}

// each calls do for every reader, and wakes it, unless they read another subscription.
func (f *feed) each(sub *tracer.Subscription, do func(*reader)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sub != sub {
		return
	}
	for _, r := range f.readers {
		if r != nil {
			do(r)
			r.wake()
		}
	}
}

func (r *reader) wake() {
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// add makes a page of the first of the events, and returns the rest.
func (f *feed) add(sub *tracer.Subscription, enc *render.Encoder, p *page, events []tracer.Event) (rest []tracer.Event) {
	f.mu.Lock()
	readers := f.readers
	f.mu.Unlock()
	p.json, p.lines = p.json[:0], p.lines[:0]
	for len(events) > 0 && len(p.json) < pageBytes {
		var wanted uint32
		for _, r := range &readers {
			if r != nil && r.wants(&events[0]) {
				wanted |= r.bit
			}
		}
		if wanted != 0 {
			row := render.New(f.names).Event(&events[0])
			p.json = append(enc.AppendEvent(p.json, &row), '\n')
			p.lines = append(p.lines, line{len(p.json), wanted})
		}
		events = events[1:]
	}
	if len(p.lines) > 0 {
		f.publish(sub, &readers, p)
	}
	return events
}

// publish lets those read a copy of a page who have been readers since it was begun.
func (f *feed) publish(sub *tracer.Subscription, since *[maxStreams]*reader, made *page) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sub != sub {
		return
	}
	p := &page{}
	if n := len(f.spare); n > 0 && len(made.json) >= pageBytes/2 { // a small one would waste it
		p, f.spare = f.spare[n-1], f.spare[:n-1]
	}
	p.json, p.lines = append(p.json[:0], made.json...), append(p.lines[:0], made.lines...)
	f.pages = append(f.pages, p)
	f.bytes += p.size()
	for i, r := range &f.readers {
		switch {
		case r != since[i]:
			for j := range p.lines {
				p.lines[j].wanted &^= 1 << i
			}
		case r != nil:
			r.wake()
		}
	}
	f.trim()
}

// trim drops the pages that everybody has read, and while too much is kept the oldest,
// which is then lost to those who have not.
func (f *feed) trim() {
	read := f.first + uint64(len(f.pages)) // by everybody, up to here
	for _, r := range f.readers {
		if r != nil {
			read = min(read, r.next)
		}
	}
	n := 0
	for ; n < len(f.pages) && (f.first < read || f.bytes > keptBytes); n++ {
		p := f.pages[n]
		f.first++
		f.bytes -= p.size()
		if len(f.spare) < maxSpare && len(p.json) >= pageBytes/2 {
			f.spare = append(f.spare, p)
		}
		for _, r := range f.readers {
			if r != nil && r.next < f.first {
				r.lost += p.count(r.bit)
				r.next = f.first
			}
		}
	}
	clear(f.pages[:n])
	f.pages = f.pages[n:]
}

// count is how many of the lines a reader wants.
func (p *page) count(bit uint32) (n uint64) {
	for _, l := range p.lines {
		if l.wanted&bit != 0 {
			n++
		}
	}
	return n
}

// next waits, then appends what a reader has not read to buf: some pages, the end of a
// loss, or nothing when it ticks. lost is how many lines it will never read. The error is
// io.EOF after the last line, or that of ctx.
func (f *feed) next(ctx context.Context, tick <-chan time.Time, r *reader, buf []byte) (lost uint64, lines []byte, err error) {
	for {
		ended := false
		for more := true; more && len(buf) < pageBytes; {
			var late uint64
			buf, late, more, ended = f.take(r, buf)
			lost += late
		}
		switch {
		case len(buf) > 0 || lost > 0:
			return lost, buf, nil
		case ended:
			return 0, buf, io.EOF
		}
		select {
		case <-r.more:
		case <-tick:
			return 0, buf, nil
		case <-ctx.Done():
			return 0, buf, ctx.Err()
		}
	}
}

// take appends the next page of a reader to buf; more is false when there is none yet.
func (f *feed) take(r *reader, buf []byte) (lines []byte, lost uint64, more, ended bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost, r.lost = r.lost, 0
	i := r.next - f.first
	if i >= uint64(len(f.pages)) {
		return buf, lost, false, r.ended
	}
	p, start := f.pages[i], 0
	for _, l := range p.lines {
		if l.wanted&r.bit != 0 {
			buf = append(buf, p.json[start:l.end]...)
		}
		start = l.end
	}
	r.next++
	f.trim()
	return buf, lost, true, r.ended
}
