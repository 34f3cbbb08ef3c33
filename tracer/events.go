package tracer

import (
	"context"
	"fmt"
	"iter"
)

// eventsQueue is how many events wait for a loop over Events.
const eventsQueue = 1 << 16

// LostError reports that a loop over Events does not get every event. The loop may go on:
// what it gets after that is complete again.
type LostError struct {
	Kernel uint64 // events that the kernel could not hand over (Stats.Lost); the table is rebuilt after that
	Queue  uint64 // events that had no room in the loop's queue: it takes too long for each
}

// Error says how many events were lost, and where.
func (e *LostError) Error() string {
	return fmt.Sprintf("events lost: %d in the kernel, %d in the queue of a loop that is too slow", e.Kernel, e.Queue)
}

// Events returns every event from now on, for one loop, while Run runs in another goroutine.
// Up to 65,536 events wait for the loop. A *LostError reports that there were more, or that
// the kernel lost some; it comes with an Event that is zero, and the loop may go on. The loop
// ends after the last event of a tracer that ended, or when ctx does: then the error of ctx
// comes last. Events that wait are freed with the loop, or with ctx where there is none.
func (t *Tracer) Events(ctx context.Context) iter.Seq2[Event, error] {
	sub, lost := t.Subscribe(eventsQueue), LostError{Kernel: t.lost.Load()}
	unused := context.AfterFunc(ctx, sub.Close)
	return func(yield func(Event, error) bool) {
		defer sub.Close()
		defer unused()
		var events []Event
		for {
			var err error
			if events, err = sub.Next(ctx, events); ctx.Err() != nil {
				yield(Event{}, ctx.Err())
				return
			} else if err != nil {
				return
			}
			all := LostError{Kernel: t.lost.Load(), Queue: sub.Lost()}
			if more := (LostError{all.Kernel - lost.Kernel, all.Queue - lost.Queue}); more != (LostError{}) {
				if lost = all; !yield(Event{}, &more) {
					return
				}
			}
			for i := range events {
				if !yield(events[i], nil) {
					return
				}
			}
		}
	}
}
