package tracer

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// numbered is n events that tell where they are in the stream by their port.
func numbered(from, n int) []Event {
	out := make([]Event, n)
	for i := range out {
		out[i].RequestedPort = uint16(from + i)
	}
	return out
}

// take returns the numbers of the events that Next returns.
func take(t *testing.T, s *Subscription) []int {
	t.Helper()
	events, err := s.Next(t.Context(), nil)
	if err != nil {
		t.Fatalf("next: %v", err)
	}
	var out []int
	for i := range events {
		out = append(out, int(events[i].RequestedPort))
	}
	return out
}

func ended(t *testing.T, s *Subscription) {
	t.Helper()
	if events, err := s.Next(t.Context(), nil); err != io.EOF {
		t.Fatalf("next: %d events, error %v, want io.EOF", len(events), err)
	}
}

func TestFanoutBounded(t *testing.T) {
	var f fanout
	s := f.subscribe(5)
	f.publish(numbered(0, 3))
	f.publish(numbered(3, 3)) // one too many
	f.publish(numbered(6, 2)) // both too many
	if s.Lost() != 3 {
		t.Errorf("lost %d, want 3", s.Lost())
	}
	equal(t, "the oldest are kept", []int{0, 1, 2, 3, 4}, take(t, s))
	f.publish(numbered(8, 5))
	equal(t, "there is room again", []int{8, 9, 10, 11, 12}, take(t, s))
	if s.Lost() != 3 {
		t.Errorf("lost %d after there was room, want still 3", s.Lost())
	}
}

func TestFanoutSlowSubscriberIsAlone(t *testing.T) {
	var f fanout
	slow, fast := f.subscribe(2), f.subscribe(2)
	for i := range 10 {
		f.publish(numbered(2*i, 2)) // returns though slow never reads
		equal(t, "the fast one gets all", []int{2 * i, 2*i + 1}, take(t, fast))
	}
	if slow.Lost() != 18 || fast.Lost() != 0 {
		t.Errorf("slow lost %d and fast %d, want 18 and 0", slow.Lost(), fast.Lost())
	}
	equal(t, "the slow one", []int{0, 1}, take(t, slow))
}

// What a subscriber does not want takes no room of his, and does not wake him.
func TestFanoutWants(t *testing.T) {
	var f fanout
	s := f.subscribeTo(2, func(ev *Event) bool { return ev.RequestedPort%10 == 0 })
	f.publish(numbered(1, 9))
	select {
	case <-s.Ready():
		t.Error("woken for events that are not wanted")
	default:
	}
	f.publish(numbered(10, 11))
	equal(t, "those wanted", []int{10, 20}, take(t, s))
	if s.Lost() != 0 {
		t.Errorf("lost %d of those that are not wanted", s.Lost())
	}
}

func TestFanoutMemory(t *testing.T) {
	var f fanout
	s := f.subscribe(8)
	batch := numbered(0, 4)
	f.publish(batch)
	clear(batch) // the tracer uses it again
	first, err := s.Next(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.publish(numbered(10, 4))
	if first[0].RequestedPort != 0 || first[3].RequestedPort != 3 {
		t.Errorf("events a reader has were overwritten: %+v", first)
	}
	allocs := testutil.Allocs(100, func() {
		f.publish(batch)
		if first, err = s.Next(t.Context(), first); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a batch though the reader gives its memory back, want 0", allocs)
	}
}

// Drain reads all there is, with what comes meanwhile, and returns where there is nothing. Memory is given back once:
// what is queued later keeps what was in its way.
func TestFanoutDrain(t *testing.T) {
	var f fanout
	s := f.subscribe(4 * partOf)
	for range 3 {
		var got []Event
		s.Drain(func(ev *Event) { got = append(got, *ev) })
		if len(got) != 0 {
			t.Fatalf("%d events of an empty queue", len(got))
		}
		f.publish(refusedBinds(2, 1, 1))
		s.Drain(func(ev *Event) {
			if got = append(got, *ev); len(got) == 1 {
				f.publish(refusedBinds(partOf, 1, 1)) // more than the part that is being read has room for
			}
		})
		if len(got) != 2+partOf || s.Lost() != 0 || s.bytes != 0 {
			t.Fatalf("%d events, %d lost, %d bytes left, want %d", len(got), s.Lost(), s.bytes, 2+partOf)
		}
		for i := range got {
			if len(got[i].HeldBy) != 1 {
				t.Fatalf("event %d has %d sockets in its way, want 1", i, len(got[i].HeldBy))
			}
		}
	}
	f.close()
	s.Drain(func(*Event) { t.Error("an event after the end") })
}

// What a backlog took is not kept for good.
func TestFanoutBacklogMemory(t *testing.T) {
	var f fanout
	s := f.subscribe(64 * partOf)
	f.publish(numbered(0, 64*partOf))
	var events []Event
	for read := 0; read < 64*partOf; read += len(events) {
		var err error
		if events, err = s.Next(t.Context(), events); err != nil {
			t.Fatal(err)
		}
	}
	if kept := cap(events) + cap(s.spare) + len(s.queue)*partOf; kept > 2*partOf || s.bytes != 0 {
		t.Errorf("memory for %d events is kept and %d bytes counted, want %d at most and none", kept, s.bytes, 2*partOf)
	}
}

// refusedBinds are binds with so many sockets in their way, of so many holders each.
func refusedBinds(n, sockets, holders int) []Event {
	out := numbered(0, n)
	for i := range out {
		out[i].HeldBy = make([]Socket, sockets)
		for j := range out[i].HeldBy {
			out[i].HeldBy[j].Holders = make([]Holder, holders)
		}
	}
	return out
}

// A queue for a number of events has room for the memory of that many, whatever is in
// the way of binds; those it has no room for are lost, and no other.
func TestFanoutBoundedByMemory(t *testing.T) {
	var f fanout
	const room = 4000
	s := f.subscribe(room)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const batches, size = 100, 200
	for range batches {
		f.publish(refusedBinds(size, 16, 16))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int(after.HeapAlloc) - int(before.HeapAlloc); grown > room*eventBytes*3/2 {
		t.Errorf("%d bytes are kept, want %d and half of that at most", grown, room*eventBytes)
	}
	f.publish(numbered(1, room)) // some small ones fit still
	read, most := 0, 0
	var events []Event
	for s.bytes > 0 {
		var err error
		if events, err = s.Next(t.Context(), events); err != nil {
			t.Fatal(err)
		}
		bytes := 0
		for i := range events {
			bytes += sizeOf(&events[i])
		}
		read, most = read+len(events), max(most, bytes)
	}
	if lost := int(s.Lost()); read+lost != batches*size+room || read == 0 {
		t.Errorf("%d were read and %d lost, want %d together", read, lost, batches*size+room)
	}
	if one := sizeOf(&refusedBinds(1, 16, 16)[0]); most > partBytes+one {
		t.Errorf("%d bytes were read at once, want %d at most", most, partBytes+one)
	}
	one := refusedBinds(1, 16, 16)
	for range room { // what they have in common is there once a part
		f.publish(one)
	}
	read = 0
	for s.bytes > 0 {
		var err error
		if events, err = s.Next(t.Context(), events); err != nil {
			t.Fatal(err)
		}
		read += len(events)
	}
	if read < room*9/10 {
		t.Errorf("of %d events that have one list there was room for %d", room, read)
	}
	f.publish(refusedBinds(1, 1, 1))
	if events, _ = s.Next(t.Context(), events); len(events) != 1 || len(events[0].HeldBy) != 1 {
		t.Fatalf("%d events were read, want the one with a socket in its way", len(events))
	}
	f.publish(numbered(0, 1))
	if _, err := s.Next(t.Context(), events); err != nil || events[0].HeldBy != nil {
		t.Errorf("error %v; the memory that was given back keeps %d sockets", err, len(events[0].HeldBy))
	}
}

func TestFanoutEnd(t *testing.T) {
	var f fanout
	s, other := f.subscribe(8), f.subscribe(8)
	f.publish(numbered(0, 2))
	f.close()
	for _, s := range []*Subscription{s, other} {
		equal(t, "what was queued", []int{0, 1}, take(t, s))
		ended(t, s)
		ended(t, s) // and again
	}
	ended(t, f.subscribe(8)) // after the end
}

func TestFanoutSubscriptionClose(t *testing.T) {
	var f fanout
	s, other := f.subscribe(8), f.subscribe(8)
	f.publish(numbered(0, 1))
	s.Close()
	f.publish(numbered(1, 1))
	equal(t, "what was queued before", []int{0}, take(t, s))
	ended(t, s)
	if s.Lost() != 0 {
		t.Errorf("lost %d: a closed subscription loses nothing", s.Lost())
	}
	equal(t, "the other gets all", []int{0, 1}, take(t, other))
	s.Close() // twice does no harm
	f.close()
	s.Close()
}

// A reader that waits is woken by whatever comes first.
func TestFanoutNextWaits(t *testing.T) {
	for _, test := range []struct {
		name   string
		wake   func(f *fanout, s *Subscription, cancel func())
		events int
		err    error
	}{
		{"events", func(f *fanout, _ *Subscription, _ func()) { f.publish(numbered(0, 3)) }, 3, nil},
		{"end", func(f *fanout, _ *Subscription, _ func()) { f.close() }, 0, io.EOF},
		{"close", func(_ *fanout, s *Subscription, _ func()) { s.Close() }, 0, io.EOF},
		{"cancel", func(_ *fanout, _ *Subscription, cancel func()) { cancel() }, 0, context.Canceled},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var f fanout
				s := f.subscribe(8)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				returned := false
				var events []Event
				var err error
				go func() {
					events, err = s.Next(ctx, nil)
					returned = true
				}()
				synctest.Wait()
				if returned {
					t.Fatalf("next returned %d events, %v with nothing to return", len(events), err)
				}
				f.publish(nil) // no event is no news
				test.wake(&f, s, cancel)
				synctest.Wait()
				if !returned || len(events) != test.events || !errors.Is(err, test.err) {
					t.Errorf("returned %t: %d events, error %v; want %d, %v", returned, len(events), err, test.events, test.err)
				}
			})
		})
	}
}

func TestFanoutCanceledStillHandsOn(t *testing.T) {
	var f fanout
	s := f.subscribe(8)
	f.publish(numbered(0, 2))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if events, err := s.Next(ctx, nil); err != nil || len(events) != 2 {
		t.Errorf("%d events, error %v, want the 2 that were queued", len(events), err)
	}
	if _, err := s.Next(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

// Every event is either read, in order, or counted as lost.
func TestFanoutBalance(t *testing.T) {
	const batches, size, readers = 2000, 7, 3
	var f fanout
	var wait sync.WaitGroup
	for i := range readers {
		s := f.subscribe(10 * (i + 1))
		wait.Go(func() {
			var buf []Event
			read, last := 0, -1
			for {
				var err error
				if buf, err = s.Next(t.Context(), buf); err != nil {
					break
				}
				for i := range buf {
					if at := int(buf[i].RequestedPort); at <= last {
						t.Errorf("event %d after %d", at, last)
						return
					} else {
						last = at
					}
				}
				read += len(buf)
			}
			if lost := int(s.Lost()); read+lost != batches*size {
				t.Errorf("read %d + lost %d, want together %d", read, lost, batches*size)
			}
		})
	}
	for i := range batches {
		f.publish(numbered(size*i, size))
	}
	f.close()
	wait.Wait()
}
