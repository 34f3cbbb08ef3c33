package tracer

import (
	"context"
	"io"
	"slices"
	"sync"
)

// Subscription is a bounded queue of events. A subscriber that does not read
// loses events, and is told how many; it never makes the tracer wait.
type Subscription struct {
	out *fanout
	max int

	mu    sync.Mutex
	queue []Event
	lost  uint64
	done  bool
	ready chan struct{} // holds a token while there may be something to read
}

// maxKept is how many events a queue keeps memory for, once they were read: more
// than come before the reader wakes up, some 6 MB.
const maxKept = 1 << 14

// fanout hands every event to every subscription.
type fanout struct {
	mu   sync.Mutex
	subs []*Subscription
	done bool
}

func (f *fanout) subscribe(max int) *Subscription {
	s := &Subscription{out: f, max: max, ready: make(chan struct{}, 1)}
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

func (s *Subscription) push(events []Event) {
	s.mu.Lock()
	room := min(s.max-len(s.queue), len(events))
	s.queue = append(s.queue, events[:room]...)
	s.lost += uint64(len(events) - room)
	s.mu.Unlock()
	s.wake()
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

// Next waits for events and returns all that are queued. buf, if not nil, is
// memory from an earlier call that the caller has done with. The error is
// io.EOF after the last event of a tracer that ended, or that of ctx.
func (s *Subscription) Next(ctx context.Context, buf []Event) ([]Event, error) {
	for {
		s.mu.Lock()
		if len(s.queue) > 0 {
			out := s.queue
			if cap(buf) > maxKept {
				buf = nil // of a backlog
			}
			s.queue = buf[:0]
			s.mu.Unlock()
			return out, nil
		}
		done := s.done
		s.mu.Unlock()
		if done {
			return nil, io.EOF
		}
		select {
		case <-s.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
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
