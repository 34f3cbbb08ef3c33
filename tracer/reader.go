package tracer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"
)

const (
	// readerIdle is how long the reader waits for unannounced events before it
	// sleeps until the kernel wakes it; see emit.h.
	readerIdle = 50 * time.Millisecond
	// idleRound is how long Run sleeps at most where nothing happens, to prove that it lives.
	idleRound = 5 * time.Second
	// maxBatch bounds how many events are handed on at once.
	maxBatch = 512
	// checkEvery is how often the loss counters are read while events come.
	checkEvery = 100 * time.Millisecond
)

// Run reads events until ctx ends. First it puts the sockets there are into the table: an event
// older than that is not published. Once they are there it calls ready, if not nil, with them, to
// keep; who does not want them (100,000 take 40 MB) waits for Ready. When ctx ends Run hands on
// what the kernel has collected, ends every subscription and returns nil.
func (t *Tracer) Run(ctx context.Context, ready func(*Snapshot)) error {
	defer t.out.close()
	err := t.load(ready)
	if err != nil {
		return err
	}
	close(t.ready)
	defer t.complete()()
	t.reader.SetDeadline(t.quiet())
	var last atomic.Uint64 // CLOCK_BOOTTIME when ctx ended: events go on, maybe as fast as they are read
	stop := context.AfterFunc(ctx, func() {
		last.Store(boottime())
		_ = t.reader.Flush() // fails only on a closed reader
	})
	defer stop()
	var rec ringbuf.Record
	var idleFrom time.Time // when the last event was handed on
	for {
		err = t.reader.ReadInto(&rec)
		if err != nil {
			t.handOn()
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				if err := t.check(); err != nil {
					return err
				}
				if time.Since(idleFrom) >= readerIdle {
					t.reader.SetDeadline(t.quiet())
				} else { // an event came as the time ran out; those after it are unannounced
					t.reader.SetDeadline(idleFrom.Add(readerIdle))
				}
				continue
			case errors.Is(err, ringbuf.ErrFlushed), errors.Is(err, ringbuf.ErrClosed):
				return nil
			}
			return fmt.Errorf("read ring buffer: %w", err)
		}
		t.take(rec.RawSample)
		if len(t.batch) < maxBatch && rec.Remaining > 0 {
			continue
		}
		t.handOn()
		if end := last.Load(); end != 0 && t.newest > end {
			return nil
		}
		idleFrom = time.Now()
		t.reader.SetDeadline(idleFrom.Add(readerIdle))
		if idleFrom.Sub(t.checked) > checkEvery {
			if err := t.check(); err != nil {
				return err
			}
		}
	}
}

// load puts the sockets there are into the table.
func (t *Tracer) load(ready func(*Snapshot)) error {
	if ready == nil {
		t.readClock()
		if err := t.resync(); err != nil {
			return err
		}
	} else {
		snap, err := t.snap.Take(0)
		if err != nil {
			return err
		}
		t.readClock()
		t.table.reconcile(snap)
		t.settleSoon()
		defer ready(snap)
	}
	if t.every > 0 {
		t.next = time.Now().Add(t.every)
	}
	t.round.Store(boottime())
	return nil
}

// Ready is closed once the table has the sockets that there were when Run began.
func (t *Tracer) Ready() <-chan struct{} { return t.ready }

// quiet is until when to sleep, unless an event wakes the reader.
func (t *Tracer) quiet() time.Time {
	until := t.next
	sooner := func(at time.Time) {
		if until.IsZero() || at.Before(until) {
			until = at
		}
	}
	if t.owed {
		sooner(t.retry)
	} else if !until.IsZero() && until.Before(t.retry) {
		until = t.retry
	}
	if t.settle != 0 {
		sooner(time.Now().Add(time.Duration(t.settle-min(t.settle, boottime())) + time.Millisecond))
	}
	sooner(time.Now().Add(idleRound))
	return until
}

// SinceRound is how long ago Run last handed on events, or found that there are none. It is
// five seconds at most, unless Run is stuck or has not begun.
func (t *Tracer) SinceRound() time.Duration { return time.Duration(boottime() - t.round.Load()) }

// take decodes one record, puts it into the table and keeps it for handOn.
func (t *Tracer) take(record []byte) {
	if t.takeCgroup(record) {
		return
	}
	t.batch = t.batch[:len(t.batch)+1]
	ev := &t.batch[len(t.batch)-1]
	if err := t.dec.event(record, t.clock.zero, ev); err != nil {
		t.batch = t.batch[:len(t.batch)-1]
		t.count(&t.stats.Bad, 1)
		return
	}
	t.newest = ev.boot
	news := t.table.apply(ev)
	if len(t.table.unseen) > 0 { // before what it was noticed by
		last := *ev
		t.batch = t.batch[:len(t.batch)-1]
		t.handOnUnseen()
		t.batch = append(t.batch, last)
		ev = &t.batch[len(t.batch)-1]
	}
	if !news {
		t.batch = t.batch[:len(t.batch)-1]
	} else if ev.contested() {
		t.knownInTheWay(ev)
		t.asks = true
	}
	t.decoded++
}

// handOnUnseen hands on the closes that were not seen.
func (t *Tracer) handOnUnseen() {
	unseen := t.table.unseen
	if !t.table.loaded {
		unseen = nil // two sockets of one address were read: of the first nobody has heard
	}
	for i := range unseen {
		if t.batch = append(t.batch, unseen[i]); len(t.batch) == maxBatch {
			t.handOn()
		}
	}
	if t.table.unseen = unseen[:0]; cap(unseen) > maxBatch {
		t.table.unseen = nil
	}
}

// handOn publishes what take has collected: last, so that who gets a close finds it in
// the history.
func (t *Tracer) handOn() {
	t.mu.Lock()
	for i := range t.batch {
		t.tally.add(&t.batch[i])
	}
	t.stats.Decoded += t.decoded
	t.mu.Unlock()
	for i := range t.batch {
		if t.batch[i].Type == EventClose {
			t.history.add(&t.batch[i])
		}
	}
	t.completer.publish(t.batch, t.asks)
	t.asks = false
	clear(t.batch) // who was in the way of a bind is the subscribers'
	t.batch = t.batch[:0]
	t.decoded = 0
	t.readClock()
	t.round.Store(boottime())
}

// readClock looks whether the clock was set.
func (t *Tracer) readClock() {
	t.clock.read()
	if zero := t.clock.zero.UnixNano(); zero != t.table.zero {
		t.table.setZero(zero)
	}
}

func (t *Tracer) count(to *uint64, n uint64) {
	t.mu.Lock()
	*to += n
	t.mu.Unlock()
}

// catchUp reads what the kernel has collected, up to a time of CLOCK_BOOTTIME; but nothing
// before the table has its first sockets, for what they tell is not told again.
func (t *Tracer) catchUp(until uint64) error {
	if !t.table.loaded {
		return nil
	}
	start := time.Now()
	defer func() {
		t.caughtUp = time.Now()
		t.reading += t.caughtUp.Sub(start)
	}()
	var rec ringbuf.Record
	t.reader.SetDeadline(time.Now()) // what is there is read all the same
	for t.reader.AvailableBytes() > 0 {
		err := t.reader.ReadInto(&rec)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if errors.Is(err, ringbuf.ErrFlushed) {
			return t.reader.Flush() // for Run to see
		}
		if err != nil {
			return fmt.Errorf("read ring buffer: %w", err)
		}
		t.take(rec.RawSample)
		if len(t.batch) == maxBatch {
			t.handOn()
		}
		if t.newest > until+uint64(readerIdle) { // processors need not agree on the order of times
			break
		}
	}
	t.handOn()
	return nil
}
