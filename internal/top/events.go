package top

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	// keptEvents is how many events can be scrolled through, at least.
	keptEvents = 2000
	// batchEvents is how many of them come at once at most: others are only counted. Nobody reads so
	// many, and to make the rows of all would cost more than it does to see them happen.
	batchEvents = 100
	// batchEvery is how often events come at most.
	batchEvery = 100 * time.Millisecond
)

// eventRow is an event.
type eventRow struct {
	render.Event
	seq           uint64
	local, remote string
	words, where  string
}

// newEventRow makes the row of an event.
func newEventRow(n render.Renderer, ev *render.Event, seq uint64) eventRow {
	r := eventRow{Event: *ev, seq: seq, words: n.Words(ev)}
	r.Comm = identity.Safe(ev.Comm)
	r.local, r.remote = ev.Ends()
	r.where = n.Where(identity.NetNS{Inode: ev.NetNS, Cookie: ev.Cookie}, &ev.Place)
	return r
}

func (r *eventRow) name() string {
	if r.Event.Event == tracer.EventEstablished.String() {
		return "estab"
	}
	return r.Event.Event
}

// what is the process, and what else there is to tell: where there is little room, in one.
func (r *eventRow) what() string {
	if r.words == "" {
		return orDash(r.Comm)
	}
	return orDash(r.Comm) + " " + r.words
}

func (r *eventRow) text() []string {
	return []string{r.Event.Event, r.Comm, r.local, r.remote, r.where, r.words, identity.Safe(r.Unit)}
}

func (r *eventRow) numbers() []uint32 {
	return []uint32{r.PID, uint32(r.LocalPort), uint32(r.RemotePort)}
}

func (r *eventRow) tint() tint {
	switch {
	case r.Error != "":
		return alarm
	case r.Event.Event == tracer.EventClose.String():
		return dim
	}
	return plain
}

func orDash(s string) string { return cmp.Or(s, "-") }

// eventColumns are those of the table of events. Where there is little room, a time has no fraction, and
// what else there is to tell stands beside the process.
func eventColumns(roomy bool) []column[eventRow] {
	by := func(f func(*eventRow) string) func(a, b *eventRow) int {
		return func(a, b *eventRow) int { return cmp.Or(cmp.Compare(f(a), f(b)), cmp.Compare(a.seq, b.seq)) }
	}
	clock := column[eventRow]{title: "TIME", width: 8, cell: func(r *eventRow) string { return r.Time.Local().Format(time.TimeOnly) }, compare: func(a, b *eventRow) int { return cmp.Compare(a.seq, b.seq) }}
	comm := column[eventRow]{title: "COMM", weight: 3, cut: render.CutEnd, cell: (*eventRow).what, compare: by(func(r *eventRow) string { return r.Comm })}
	if roomy {
		clock.width, clock.cell = 12, func(r *eventRow) string { return r.Time.Local().Format("15:04:05.000") }
		comm.width, comm.weight, comm.cell = 15, 0, func(r *eventRow) string { return orDash(r.Comm) }
	}
	return []column[eventRow]{
		clock,
		{title: "EVENT", width: 7, cell: (*eventRow).name, compare: by((*eventRow).name)},
		{title: "PRO", width: 4, least: wide, cell: func(r *eventRow) string { return r.Proto }, compare: by(func(r *eventRow) string { return r.Proto })},
		{title: "LOCAL", weight: 4, cut: render.CutAddress, cell: func(r *eventRow) string { return orDash(r.local) }, compare: by(func(r *eventRow) string { return r.local })},
		{title: "REMOTE", weight: 4, cut: render.CutAddress, cell: func(r *eventRow) string { return orDash(r.remote) }, compare: by(func(r *eventRow) string { return r.remote })},
		{title: "PID", width: 7, right: true, cell: func(r *eventRow) string { return dash(r.PID) }, compare: func(a, b *eventRow) int { return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.seq, b.seq)) }},
		comm,
		{title: "WHERE", weight: 3, least: 140, cell: func(r *eventRow) string { return r.where }, compare: by(func(r *eventRow) string { return r.where })},
		{title: "", weight: 5, least: wide, cut: render.CutEnd, cell: func(r *eventRow) string { return r.words }},
	}
}

func newEvents() *table[eventRow, uint64] {
	return &table[eventRow, uint64]{
		columns: eventColumns(false),
		key:     func(r *eventRow) uint64 { return r.seq }, words: (*eventRow).text, numbers: (*eventRow).numbers, tint: (*eventRow).tint,
		natural: true, follow: true,
	}
}

// batch is what happened since the last.
type batch struct {
	rows []eventRow
	seen uint64 // events, of which rows are the first
	lost uint64
	err  error // the stream has ended
}

// follower reads a stream of events, however slowly its batches are taken.
type follower struct {
	events source.Events
	names  render.Renderer
	cancel context.CancelFunc
	ended  chan struct{} // closed once nothing is read any more

	mu    sync.Mutex
	batch batch
	seq   uint64
	wake  chan struct{} // has room for one

	last time.Time // of a batch, of next alone
}

// newFollower begins to read; cancel ends the stream.
func newFollower(events source.Events, names render.Renderer, cancel context.CancelFunc) *follower {
	f := &follower{events: events, names: names, cancel: cancel, ended: make(chan struct{}), wake: make(chan struct{}, 1)}
	go f.run()
	return f
}

func (f *follower) run() {
	defer close(f.ended)
	for {
		happened, err := f.events.Next()
		f.mu.Lock()
		switch {
		case errors.Is(err, io.EOF):
			f.batch.err = io.EOF
		case err != nil:
			f.batch.err = err
		case happened == source.Loss:
			f.batch.lost += f.events.Lost().Lost
		case happened == source.Event:
			f.add()
		}
		ended := f.batch.err != nil
		f.mu.Unlock()
		if ended || happened == source.Pause || happened == source.Loss {
			f.signal()
		}
		if ended {
			break
		}
	}
	f.cancel()
	_, _ = f.events.End() // what was lost has been told
	_ = f.events.Close()
}

// add adds the event that just happened.
func (f *follower) add() {
	f.batch.seen++
	if len(f.batch.rows) >= batchEvents {
		if f.batch.seen%batchEvents == 0 {
			f.signal()
		}
		return
	}
	var row render.Event
	if err := f.events.Row(&row); err != nil {
		f.batch.err = err
		return
	}
	f.seq++
	f.batch.rows = append(f.batch.rows, newEventRow(f.names, &row, f.seq))
}

func (f *follower) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// next waits for a batch, which comes batchEvery after the last at the earliest. It is called by one
// goroutine at a time.
func (f *follower) next(ctx context.Context) batch {
	for {
		select {
		case <-ctx.Done():
			return batch{err: io.EOF}
		case <-f.wake:
		}
		timer := time.NewTimer(time.Until(f.last.Add(batchEvery)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return batch{err: io.EOF}
		case <-timer.C:
		}
		if b := f.take(); b.seen > 0 || b.lost > 0 || b.err != nil {
			f.last = time.Now()
			return b
		}
	}
}

func (f *follower) take() batch {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.batch
	f.batch = batch{err: b.err}
	return b
}

// keep is the latest of some events and of those that came after. What was returned before does not
// change: it may still be shown.
func keep(rows, more []eventRow) []eventRow {
	if len(rows)+len(more) > cap(rows) {
		latest := rows[max(0, len(rows)-keptEvents):]
		rows = append(make([]eventRow, 0, 2*keptEvents+len(more)), latest...)
	}
	return append(rows, more...)
}

// rate is a number of events a second.
func rate(events uint64, in time.Duration) string {
	if in <= 0 {
		return "0/s"
	}
	return strconv.FormatUint(uint64(float64(events)/in.Seconds()), 10) + "/s"
}
