package tracer

import (
	"context"
	"io"
	"slices"
	"sync"
	"unsafe"
)

// Subscription is a queue of events, bounded by the memory it takes. A subscriber that does
// not keep up loses events (Lost); it never makes the tracer wait.
type Subscription struct {
	out   *fanout
	max   int               // bytes
	wants func(*Event) bool // nil: every event

	mu    sync.Mutex
	queue []queued
	first [1]queued // memory of queue where one part is enough
	bytes int       // of what is queued
	spare []Event   // memory of a part that was read
	lost  uint64
	done  bool
	ready chan struct{} // holds a token while there may be something to read
}

// queued is some events of a queue, which are read together: a part of it.
type queued struct {
	events []Event
	bytes  int
	held   *Socket // the list of the last that tells what was in its way
}

const (
	eventBytes = int(unsafe.Sizeof(Event{}))
	// partOf is how many events a part has room for. Parts are neither moved nor grown:
	// a backlog takes its own size and is free once read.
	partOf = 256
	// partBytes ends a part before: few enough to be read at once, and several times
	// what a part has room for takes by itself.
	partBytes = 256 << 10
)

// sizeOf is the memory that an event takes: what is in the way of a refused bind takes a
// hundred times as much as the event itself.
func sizeOf(ev *Event) int {
	n := eventBytes
	for i := range ev.HeldBy {
		n += int(unsafe.Sizeof(Socket{})) + cap(ev.HeldBy[i].Holders)*int(unsafe.Sizeof(Holder{}))
	}
	return n
}

// fanout hands every event to every subscription.
type fanout struct {
	mu   sync.Mutex
	subs []*Subscription
	done bool
}

func newSubscription(out *fanout, bytes int) *Subscription {
	return &Subscription{out: out, max: bytes, ready: make(chan struct{}, 1)}
}

func (f *fanout) subscribe(max int) *Subscription { return f.subscribeTo(max, nil) }

func (f *fanout) subscribeTo(max int, wants func(*Event) bool) *Subscription {
	s := newSubscription(f, max*eventBytes)
	s.wants = wants
	f.mu.Lock()
	defer f.mu.Unlock()
	s.done = f.done
	f.subs = append(f.subs, s)
	return s
}

// publish copies events into every queue. It does not block on a reader.
func (f *fanout) publish(events []Event) {
	if len(events) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.subs {
		s.push(events)
	}
}

// close ends every subscription: what is queued can still be read.
func (f *fanout) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = true
	for _, s := range f.subs {
		s.finish()
	}
}

// push queues events, and returns how much memory all take that wait.
func (s *Subscription) push(events []Event) (waiting int) {
	s.mu.Lock()
	some := s.wants == nil
	for i := range events {
		if s.wants != nil && !s.wants(&events[i]) {
			continue
		}
		some = true
		if size := s.sizeOf(&events[i]); s.bytes+size <= s.max {
			s.add(&events[i], size)
		} else {
			s.lost++
		}
	}
	waiting = s.bytes
	s.mu.Unlock()
	if some {
		s.wake()
	}
	return waiting
}

// sizeOf is the memory that one more event takes. Those that follow each other may have
// the same list of what is in their way.
func (s *Subscription) sizeOf(ev *Event) int {
	if last := len(s.queue) - 1; last >= 0 && len(ev.HeldBy) > 0 && s.queue[last].held == &ev.HeldBy[0] {
		return eventBytes
	}
	return sizeOf(ev)
}

// add queues an event: in the last part, unless that is full.
func (s *Subscription) add(ev *Event, size int) {
	last := len(s.queue) - 1
	if last < 0 || len(s.queue[last].events) == partOf || s.queue[last].bytes >= partBytes {
		memory := s.spare
		if s.spare = nil; memory == nil {
			memory = make([]Event, 0, partOf)
		}
		s.queue = append(s.queue, queued{events: memory})
		last++
	}
	p := &s.queue[last]
	p.events = append(p.events, *ev)
	if len(ev.HeldBy) > 0 {
		p.held = &ev.HeldBy[0]
	}
	p.bytes += size
	s.bytes += size
}

func (s *Subscription) finish() {
	s.mu.Lock()
	s.done = true
	s.mu.Unlock()
	s.wake()
}

func (s *Subscription) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Next waits for events and returns the first of those that are queued. buf, if not nil,
// is memory from an earlier call that the caller has done with, also where an error is returned:
// it must not be given twice. The error is io.EOF after
// the last event of a tracer that ended, or that of ctx.
func (s *Subscription) Next(ctx context.Context, buf []Event) ([]Event, error) {
	for {
		events, done := s.take(buf)
		switch {
		case len(events) > 0:
			return events, nil
		case done:
			return nil, io.EOF
		}
		buf = nil
		select {
		case <-s.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Drain calls f with every event that is queued, and does not wait for others. An event is f's until f returns.
func (s *Subscription) Drain(f func(*Event)) {
	events, _ := s.take(nil)
	for len(events) > 0 {
		for i := range events {
			f(&events[i])
		}
		events, _ = s.take(events)
	}
}

// Ready has something to receive when there may be events that Next or Drain has at once, or none will come
// any more.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }

// take returns the first of the events that are queued, if there are any, and whether there
// will be no others. buf is as for Next.
func (s *Subscription) take(buf []Event) (events []Event, done bool) {
	for i := range buf {
		buf[i].HeldBy = nil // the memory is kept, not what it refers to
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cap(buf) == partOf {
		s.spare = buf[:0]
	}
	if len(s.queue) == 0 {
		return nil, s.done
	}
	out := s.queue[0]
	s.bytes -= out.bytes
	s.queue[0] = queued{}
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = s.first[:0]
	}
	return out.events, false
}

// Lost is the number of events this subscription had no room for.
func (s *Subscription) Lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	s.out.subs = slices.DeleteFunc(s.out.subs, func(o *Subscription) bool { return o == s })
	s.finish()
}
