package tracer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// subscriptions is how many there are.
func (f *fanout) subscriptions() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.subs)
}

func TestEventsFromTheCallOn(t *testing.T) {
	var tr Tracer
	events := tr.Events(t.Context())
	for i := range 1000 {
		tr.out.publish(numbered(i, 1))
	}
	tr.out.close()
	n := 0
	for ev, err := range events {
		if err != nil || int(ev.RequestedPort) != n {
			t.Fatalf("event %d, error %v; want event %d", ev.RequestedPort, err, n)
		}
		n++
	}
	if n != 1000 {
		t.Errorf("%d events, want 1000", n)
	}
}

func TestEventsLoopLeft(t *testing.T) {
	var tr Tracer
	events := tr.Events(t.Context())
	tr.out.publish(numbered(0, 10))
	for ev := range events {
		if ev.RequestedPort == 3 {
			break
		}
	}
	if n := tr.out.subscriptions(); n != 0 {
		t.Errorf("%d subscriptions after the loop, want none", n)
	}
}

func TestEventsContext(t *testing.T) {
	var tr Tracer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events := tr.Events(ctx)
	tr.out.publish(numbered(0, 2))
	n, last := 0, error(nil)
	for _, err := range events {
		if last != nil {
			t.Fatalf("the loop goes on after %v", last)
		}
		if last = err; err != nil {
			continue
		}
		if n++; n == 2 {
			cancel()
		}
	}
	if n != 2 || !errors.Is(last, context.Canceled) {
		t.Errorf("%d events, then %v; want 2, then %v", n, last, context.Canceled)
	}
}

// What nobody loops over is not kept for ever.
func TestEventsWithoutLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr Tracer
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tr.Events(ctx)
		cancel()
		synctest.Wait()
		if n := tr.out.subscriptions(); n != 0 {
			t.Errorf("%d subscriptions after the context's end, want none", n)
		}
	})
}

func TestEventsLost(t *testing.T) {
	var tr Tracer
	tr.lost.Store(100) // before: not the loop's
	events := tr.Events(t.Context())
	tr.lost.Store(103)
	for range eventsQueue + 5 {
		tr.out.publish(numbered(0, 1))
	}
	tr.out.close()
	n := 0
	var lost *LostError
	for _, err := range events {
		switch {
		case err == nil:
			n++
		case lost != nil || !errors.As(err, &lost):
			t.Fatalf("error %v, want one *LostError", err)
		}
	}
	if n != eventsQueue || lost == nil || *lost != (LostError{Kernel: 3, Queue: 5}) {
		t.Errorf("%d events and %+v, want %d, 3 lost in the kernel and 5 in the queue", n, lost, eventsQueue)
	}
}
