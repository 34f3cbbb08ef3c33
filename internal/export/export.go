package export

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	// queueOf is how many events wait to be encoded: 4 MB.
	queueOf = 1 << 14
	// takeEach is how often they are taken while they come: it need not be woken more often.
	takeEach = 100 * time.Millisecond
	// sealEach is how long a record waits for others to be sent with.
	sealEach = time.Second
	// queueBytes is how much waits to be sent, compressed: some 100,000 events.
	queueBytes = 4 << 20
	// retryLeast and retryMost are how long is waited between attempts, twice as long each time.
	retryLeast, retryMost = time.Second, 30 * time.Second
	// maxRetryAfter is the longest that an endpoint may have itself spared.
	maxRetryAfter = 10 * time.Minute
	// fewTries is how often a batch is sent that the endpoint says is wrong.
	fewTries = 5
	// settleFor is how late an event, or its record in the history, may be.
	settleFor = 2500 * time.Millisecond
	// slack is by how much events of one batch may be later than some of the next.
	slack = time.Second
	// saveEach is how often it is kept how far the export has got.
	saveEach = 5 * time.Second
	// endWithin is how long the last batches may take.
	endWithin = 2 * time.Second
	// never is later than any event.
	never = time.Duration(math.MaxInt64)
)

// Reason says why events are lost. It is a label of a metric.
type Reason uint8

// The reasons.
const (
	LostQueue      Reason = iota // the queue was full, and the history does not have them
	LostRefused                  // the endpoint said several times that the request is wrong
	LostRejected                 // the endpoint took the others of the request
	LostEvents                   // the export had too little time for the events there were
	LostHistory                  // the history could not keep them, or had to delete them before they were sent
	LostKernel                   // the kernel could not hand them over
	LostStopped                  // the agent ended before they were sent, and there is no history
	LostNotRunning               // what happened while no agent ran, which nobody counted
	lostReasons
)

var reasons = [lostReasons]struct{ name, what string }{
	{"queue", "the queue was full"},
	{"refused", "the endpoint refused them"},
	{"rejected", "the endpoint rejected them, and took others"},
	{"events", "the agent had too little time for them"},
	{"history", "the history on disk did not keep them until they could be sent"},
	{"kernel", "the kernel could not hand them over"},
	{"stopped", "the agent ended before they were sent"},
	{"not_running", "no agent ran"},
}

func (r Reason) String() string { return reasons[r].name }

// Reasons returns every reason that is counted.
func Reasons() []Reason {
	return []Reason{LostQueue, LostRefused, LostRejected, LostEvents, LostHistory, LostKernel, LostStopped}
}

// Stats are counters of records since New.
type Stats struct {
	Sent       uint64 // taken by the endpoint
	Lost       map[Reason]uint64
	Retried    map[Retry]uint64 // sent once more
	QueueBytes int
	Behind     time.Duration // the age of the oldest event that was not sent
}

// Exporter sends events. It is safe for concurrent use.
type Exporter struct {
	cfg    *Config
	tracer *tracer.Tracer
	names  *identity.Names
	past   *store.Feed // nil: there is no history on disk
	boot   [16]byte
	sub    *tracer.Subscription
	client *client
	wake   chan struct{} // holds a token while there may be something to send

	// Of the goroutine that gathers.
	build  *builder
	told   uint64 // of sub.Lost
	kernel uint64

	// Of the goroutine that sends.
	again   *builder // of what the history has
	trouble string   // that was logged; "": none

	mu       sync.Mutex
	queue    []*batch
	bytes    int
	liveFrom time.Duration // CLOCK_BOOTTIME: what was before is read from the history
	gap      *store.Mark   // from when on the history is to be read; nil: it need not be
	catching bool          // it is being read, or was when ctx ended
	acked    store.Mark    // everything up to here was sent
	waiting  [lostReasons]loss
	sent     uint64
	lost     [lostReasons]uint64
	retried  [retries]uint64
	unread   uint64 // of the history, counted
	keptLost uint64 // by the history, counted
}

// New returns an Exporter that has every event from now on. past is the history on disk; nil: there is none.
// The error tells of a network namespace that a filter names, or of what cannot be read of the history.
func New(cfg *Config, t *tracer.Tracer, names *identity.Names, past *store.Feed) (*Exporter, error) {
	if err := cfg.selected.locate(names); err != nil {
		return nil, err
	}
	boot, err := store.Boot()
	if err != nil {
		return nil, err
	}
	x := &Exporter{cfg: cfg, tracer: t, names: names, past: past, boot: boot, client: newClient(cfg), wake: make(chan struct{}, 1)}
	if x.build, err = newBuilder(cfg, boot); err != nil {
		return nil, err
	}
	if x.again, err = newBuilder(cfg, boot); err != nil {
		return nil, err
	}
	x.acked = store.Now(boot)
	x.sub = t.Subscribe(queueOf)
	if past != nil {
		x.keptLost = x.historyLost()
		x.resume()
		past.Store.SetRead(x.acked)
	}
	if stats, err := t.Stats(); err == nil {
		x.kernel = stats.Lost() + stats.Bad
	}
	return x, nil
}

// Run sends events until ctx ends, then what is left, for as long as that takes two seconds. Call it once; the
// tracer ends at the same time.
func (x *Exporter) Run(ctx context.Context) {
	ended, end := context.WithCancel(context.Background())
	defer end()
	var gathering sync.WaitGroup
	gathering.Go(func() { x.gather(ctx) })
	x.send(ctx)
	gathering.Wait()
	last, cancel := context.WithTimeout(ended, endWithin)
	defer cancel()
	for b := x.head(); b != nil && x.try(last, b) == nil; b = x.head() {
		x.pop(b)
	}
	x.end()
	x.client.http.CloseIdleConnections()
}

// end keeps how far the export has got, or says what is lost.
func (x *Exporter) end() {
	x.mu.Lock()
	left := 0
	for _, b := range x.queue {
		left += b.records
	}
	if x.past == nil {
		x.lost[LostStopped] += uint64(left)
	}
	x.mu.Unlock()
	if x.past != nil {
		x.save()
	} else if left > 0 {
		x.cfg.Log.Warn("events were not exported, for the agent ended", "lost", left)
	}
}

// Stats returns the counters as they are now.
func (x *Exporter) Stats() Stats {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := Stats{Sent: x.sent, Lost: make(map[Reason]uint64), Retried: make(map[Retry]uint64), QueueBytes: x.bytes}
	for _, r := range Reasons() {
		st.Lost[r] = x.lost[r]
	}
	for _, r := range Retries() {
		st.Retried[r] = x.retried[r]
	}
	switch {
	case len(x.queue) > 0 && (x.gap == nil || !x.gapFirst(x.queue[0])):
		st.Behind = tracer.Boottime() - x.queue[0].from
	case x.gap != nil:
		st.Behind = time.Since(x.gap.Wall)
	}
	return st
}

// lose counts events that are lost, and has that told upstream. Hold mu.
func (x *Exporter) lose(why Reason, n uint64) {
	if n == 0 {
		return
	}
	x.lost[why] += n
	x.waiting[why].count += n
}

// gather makes batches of what happens until ctx ends.
func (x *Exporter) gather(ctx context.Context) {
	second := time.NewTicker(sealEach)
	defer second.Stop()
	for {
		select {
		case <-x.sub.Ready():
			x.take()
			select { // a part of what comes next is taken with the rest
			case <-time.After(takeEach):
			case <-ctx.Done():
			}
		case <-second.C:
			x.take()
			x.tellLosses()
			x.seal()
			x.idle()
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.Background(), endWithin/2)
			defer cancel()
			for { // until the tracer has ended
				events, err := x.sub.Next(last, nil)
				if err != nil {
					break
				}
				for i := range events {
					x.event(&events[i])
				}
			}
			x.take() // what is left, and what was lost
			x.tellLosses()
			x.seal()
			x.sub.Close()
			return
		}
	}
}

// take adds what has happened so far.
func (x *Exporter) take() {
	x.sub.Drain(x.event)
	if lost := x.sub.Lost(); lost > x.told {
		x.mu.Lock()
		x.lose(LostEvents, lost-x.told)
		x.mu.Unlock()
		x.told = lost
	}
}

// event adds one event, unless nobody wants it or it is to be read from the history.
func (x *Exporter) event(ev *tracer.Event) {
	f := fact{ev: *ev, boot: ev.Boottime(), taken: ev.Taken(), role: ev.Role(), asked: ev.Asked()}
	if ev.Process.PID != 0 {
		f.where = x.names.Cgroups.Of(&ev.Process)
	}
	if !x.cfg.selected.wants(&f) {
		return
	}
	x.mu.Lock()
	deferred := f.boot < x.liveFrom
	if deferred && !x.stores(&f) {
		x.lose(LostQueue, 1)
	}
	if deferred && x.gap != nil && x.gap.Boot == x.boot && f.boot <= x.gap.At {
		x.gap.At = f.boot - 1
	}
	x.mu.Unlock()
	if deferred {
		return
	}
	f.space = x.names.NetNS.Name(identity.NetNS{Inode: ev.NetNS, Cookie: ev.NetNSCookie}, ev.Time)
	if ev.Device != 0 {
		f.device, f.index = x.names.DeviceOrIndex(ev.DeviceID())
	}
	x.add(&f)
}

// add adds a record to the batch that is being made.
func (x *Exporter) add(f *fact) {
	if err := x.build.add(f); err != nil {
		x.cfg.Log.Error("an event cannot be exported", "error", err)
		x.mu.Lock()
		x.lose(LostEvents, 1)
		x.mu.Unlock()
		return
	}
	if x.build.full() {
		x.seal()
	}
}

// tellLosses adds records of what is lost and was not told upstream.
func (x *Exporter) tellLosses() {
	if stats, err := x.tracer.Stats(); err == nil {
		if now := stats.Lost() + stats.Bad; now > x.kernel {
			x.mu.Lock()
			x.lose(LostKernel, now-x.kernel)
			x.mu.Unlock()
			x.kernel = now
		}
	}
	x.mu.Lock()
	x.countHistory()
	var tell []fact
	for r := range x.waiting {
		if l := x.waiting[r]; (l.count > 0 || !l.since.IsZero()) && x.liveFrom != never {
			l.reason = Reason(r)
			tell = append(tell, fact{ev: tracer.Event{Time: time.Now()}, boot: tracer.Boottime(), lost: &l})
			x.waiting[r] = loss{}
		}
	}
	x.mu.Unlock()
	for i := range tell {
		x.add(&tell[i])
	}
}

// seal queues the batch that is being made. One that does not fit is left to the history, with all that follows.
func (x *Exporter) seal() {
	b := x.build.build()
	if b == nil {
		return
	}
	b.live = true
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.bytes+len(b.body) <= cmp.Or(x.cfg.room, queueBytes) {
		x.queue = append(x.queue, b)
		x.bytes += len(b.body)
		x.ready()
		return
	}
	x.keepLosses(b)
	if x.past == nil {
		x.lose(LostQueue, uint64(b.records-len(b.losses)))
		return
	}
	if x.gap == nil {
		m := x.mark(b.from)
		m.At-- // what happened then is to be read
		x.gap = &m
	}
	x.liveFrom = never
}

// keepLosses has what a batch tells of losses told by another. Hold mu.
func (x *Exporter) keepLosses(b *batch) {
	for _, l := range b.losses {
		w := &x.waiting[l.reason]
		w.count += l.count
		if w.since.IsZero() {
			w.since = l.since
		}
	}
}

func (x *Exporter) ready() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// idle notes that everything was sent, where it was.
func (x *Exporter) idle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.queue) == 0 && x.gap == nil && !x.catching && x.build.count == 0 {
		x.acked = store.Now(x.boot)
		x.acked.At -= settleFor
	}
}

// head is the batch to be sent next; nil: none is.
func (x *Exporter) head() *batch {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.queue) == 0 {
		return nil
	}
	return x.queue[0]
}

// pop takes off the queue what was sent, or is lost.
func (x *Exporter) pop(b *batch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.queue[0] = nil
	x.queue = x.queue[1:]
	x.bytes -= len(b.body)
	if !b.live || x.catching || x.gap != nil && x.gapFirst(b) {
		return
	}
	if m := x.mark(b.to - slack); x.acked.Boot != x.boot || m.At > x.acked.At {
		x.acked = m
	}
}

// mark is a moment of this boot, by CLOCK_BOOTTIME.
func (x *Exporter) mark(at time.Duration) store.Mark {
	m := store.Now(x.boot)
	m.Wall, m.At = m.Wall.Add(at-m.At), at
	return m
}

// gapFirst tells whether what is to be read from the history was before a batch. Hold mu.
func (x *Exporter) gapFirst(b *batch) bool { return x.gap.Boot != x.boot || x.gap.At < b.from }

// send sends what there is until ctx ends.
func (x *Exporter) send(ctx context.Context) {
	save := time.NewTicker(saveEach)
	defer save.Stop()
	for ctx.Err() == nil {
		select {
		case <-save.C:
			x.save()
		default:
		}
		b := x.head()
		switch {
		case x.behind(b):
			x.catchUp(ctx)
			continue
		case b != nil:
			if !x.deliver(ctx, b) {
				return
			}
			x.pop(b)
			continue
		}
		select {
		case <-x.wake:
		case <-save.C:
			x.save()
		case <-ctx.Done():
		}
	}
}

// deliver sends a batch until it is taken, or lost; false: ctx has ended.
func (x *Exporter) deliver(ctx context.Context, b *batch) bool {
	wait, most := cmp.Or(x.cfg.retryLeast, retryLeast), cmp.Or(x.cfg.retryMost, retryMost)
	for {
		err := x.try(ctx, b)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		var e *sendError
		if !errors.As(err, &e) {
			e = &sendError{why: RetryOther, err: err}
		}
		if e.large {
			if parts, err := x.again.split(b); err == nil && parts != nil {
				return x.deliver(ctx, parts[0]) && x.deliver(ctx, parts[1])
			}
		}
		x.log(e)
		if b.tries++; e.few && b.tries >= fewTries {
			x.mu.Lock()
			x.keepLosses(b)
			x.lose(LostRefused, uint64(b.records-len(b.losses)))
			x.mu.Unlock()
			x.cfg.Log.Error("events were not exported, for the endpoint refuses them", "lost", b.records, "error", err)
			return true
		}
		pause := wait/2 + rand.N(wait) // agents that lost their collector at once do not come back at once
		if e.after > 0 {
			pause = min(e.after, maxRetryAfter)
		}
		if wait = min(2*wait, most); !x.pause(ctx, pause) {
			return false
		}
		x.mu.Lock()
		x.retried[e.why] += uint64(b.records)
		x.mu.Unlock()
	}
}

// pause waits; false: ctx has ended.
func (x *Exporter) pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// try sends a batch once.
func (x *Exporter) try(ctx context.Context, b *batch) error {
	rejected, why, err := x.client.post(ctx, b)
	if err != nil {
		return err
	}
	x.mu.Lock()
	x.sent += uint64(b.records - rejected)
	x.lose(LostRejected, uint64(rejected))
	x.mu.Unlock()
	switch {
	case rejected > 0:
		x.note(fmt.Sprintf("rejected: %s", why), "some events were rejected by the endpoint", "lost", rejected, "why", printable(why))
	case why != "":
		x.note("warned: "+why, "the endpoint says", "what", printable(why))
	case x.trouble != "":
		x.trouble = ""
		x.cfg.Log.Warn("events are exported again", "endpoint", x.cfg.Endpoint())
	}
	return nil
}

// log says once what keeps events from being sent.
func (x *Exporter) log(e *sendError) {
	x.note(e.why.String(), "events cannot be exported; it is tried again", "error", e.err)
}

// note logs what is not what was logged last.
func (x *Exporter) note(key, msg string, args ...any) {
	if x.trouble != key {
		x.trouble = key
		x.cfg.Log.Warn(msg, args...)
	}
}
