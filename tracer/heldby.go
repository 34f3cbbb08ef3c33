package tracer

import (
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A call that was refused because of other sockets is told with those (Event.HeldBy). The
// reader takes from the table which they were at that moment. Only the kernel knows which
// of them are in TIME-WAIT, and who holds them; to ask it takes a millisecond, and
// seconds where processes have very many descriptors. So a goroutine beside the reader
// does that. Events stay in order: those that come later wait for one that waits.

const (
	// maxHeldBy bounds how many sockets in its way an event tells of, and how many holders of
	// each: any user can have very many on one port, and be refused very often.
	maxHeldBy = 16
	fewHeldBy = 4 // of one who is refused again within fewWithin
	fewWithin = time.Millisecond
	// answerWithin is how old an event may get because of its answer.
	answerWithin = 200 * time.Millisecond
	// askRest is how long the kernel is not asked, as a multiple of what it took last time.
	askRest = 2
	// maxWaiting is how much memory events may take that wait for answers, but for those that
	// the reader hands on at once; all that would take more is published as it is.
	maxWaiting = 2 << 20
	// maxPorts is how many ports the kernel is asked about at once.
	maxPorts = 16
	// maxAnswers is how many answers are kept for others who ask the same.
	maxAnswers = 64
)

// refusal is what makes the sockets in the way of two calls the same.
type refusal struct {
	typ    EventType
	proto  Proto
	flags  uint8
	local  netip.AddrPort
	remote netip.AddrPort
	netns  uint32
	cookie uint64
	device uint32
	uid    uint32
}

func refusalOf(ev *Event) refusal {
	return refusal{
		typ: ev.Type, proto: ev.Proto, flags: ev.flags, local: ev.Local, remote: ev.Remote,
		netns: ev.NetNS, cookie: ev.NetNSCookie, device: ev.Device, uid: ev.Process.UID,
	}
}

// knownInWay is what the table knows of a refusal: those that follow share the list.
type knownInWay struct {
	refusal refusal
	version uint64 // Table.changes
	at      time.Time
	sockets []Socket
	more    int
}

// knownInTheWay puts the sockets that the table knows into an event. Who holds them the
// table knows of the last comparison alone: it is not told.
func (t *Tracer) knownInTheWay(ev *Event) {
	k, q, version := &t.inWay, refusalOf(ev), t.table.changes
	if k.refusal != q || k.version != version {
		now, max := time.Now(), maxHeldBy
		if now.Sub(k.at) < fewWithin {
			max = fewHeldBy
		}
		*k = knownInWay{refusal: q, version: version, at: now}
		k.sockets, k.more = t.table.inTheWay(ev, max)
	}
	ev.HeldBy, ev.HeldByMore, ev.asks = k.sockets, k.more, true
}

// completer publishes events in order, and asks the kernel what some of them lack.
type completer struct {
	out   *fanout
	table *Table
	rows  func(ports ...uint16) (*Rows, error)

	running atomic.Bool   // run is; until then, and afterwards, nothing is asked
	busy    atomic.Bool   // something waits
	hurry   chan struct{} // what waited was flushed

	mu      sync.Mutex
	waiting *Subscription // of run
	part    []Event       // of waiting, that run has taken
	from    int           // events of part that are published
	flushed uint64        // times that all was published as it is
	ports   []uint16      // to be asked about

	// Used by run alone.
	answers map[refusal]answer
	latest  inKernel      // the last that came, while something waits
	asked   chan inKernel // one is on its way
	cost    time.Duration // of the last
	rest    time.Time     // not to ask before
}

// inKernel is what the kernel says of some ports.
type inKernel struct {
	rows  *Rows // nil: it could not be asked
	ports []uint16
	took  time.Duration
}

// covers tells whether a reply is about what was in the way of an event.
func (r *inKernel) covers(ev *Event) bool {
	return r.rows != nil && ev.boot <= r.rows.start && slices.Contains(r.ports, ev.Local.Port())
}

// answer is what a reply means for a refusal.
type answer struct {
	start          uint64   // of the reply: it is about what was refused before
	known, sockets []Socket // known to the table, and all
	more           int
}

func newCompleter(out *fanout, table *Table, rows func(...uint16) (*Rows, error)) *completer {
	return &completer{
		out: out, table: table, rows: rows, hurry: make(chan struct{}, 1),
		waiting: newSubscription(nil, math.MaxInt), answers: make(map[refusal]answer),
	}
}

// publish takes events from the reader. asks tells whether any lacks something. It does not
// block, and copies what has to wait.
func (c *completer) publish(events []Event, asks bool) {
	if !c.running.Load() || !asks && !c.busy.Load() {
		c.out.publish(events)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy.Store(true)
	for i := range events {
		if port := events[i].Local.Port(); events[i].asks && len(c.ports) < maxPorts && !slices.Contains(c.ports, port) {
			c.ports = append(c.ports, port)
		}
	}
	if c.waiting.push(events) > maxWaiting {
		c.flush()
	}
}

// flush publishes all that waits as it is. The caller has locked the completer.
func (c *completer) flush() {
	c.out.publish(c.part[c.from:])
	c.part, c.from = nil, 0
	c.flushed++
	for events, _ := c.waiting.take(nil); len(events) > 0; events, _ = c.waiting.take(events) {
		c.out.publish(events)
	}
	signal(c.hurry) // what run waits for is of no use any more
}

// signal leaves a token, if there is none.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run completes and publishes events until end, and then those that wait as they are.
func (c *completer) run(end <-chan struct{}) {
	for ended := false; !ended; {
		select {
		case <-c.waiting.ready:
		case <-end:
			ended = true
		}
		var events []Event
		for some := true; some; {
			events, some = c.round(events, end)
		}
	}
	if c.asked != nil {
		<-c.asked // it uses what will be closed
	}
}

// round publishes some of what waits; false: nothing did. events is memory of the round before.
func (c *completer) round(events []Event, end <-chan struct{}) ([]Event, bool) {
	c.mu.Lock()
	events, _ = c.waiting.take(events)
	c.part, c.from = events, 0
	flushed := c.flushed
	if len(events) == 0 {
		c.busy.Store(false)
		c.mu.Unlock()
		clear(c.answers)
		c.latest = inKernel{}
		return nil, false
	}
	c.mu.Unlock()
	for i := range events {
		if !events[i].asks {
			continue
		}
		if !c.publishTo(i, flushed) {
			return events, true
		}
		ev := events[i]
		c.complete(&ev, end)
		ev.asks = false
		c.mu.Lock()
		if c.flushed == flushed {
			events[i] = ev
		}
		c.mu.Unlock()
	}
	c.publishTo(len(events), flushed)
	return events, true
}

// publishTo publishes the part that run has taken up to an event. False: that was flushed
// meanwhile.
func (c *completer) publishTo(to int, flushed uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flushed != flushed {
		return false
	}
	c.out.publish(c.part[c.from:to])
	if c.from = to; to == len(c.part) {
		c.part, c.from = nil, 0
	}
	return true
}

// complete adds what the kernel knows, if that can be told in time.
func (c *completer) complete(ev *Event, end <-chan struct{}) {
	q := refusalOf(ev)
	a, ok := c.answers[q]
	if !ok || ev.boot > a.start {
		if !c.latest.covers(ev) && !c.await(ev, end) {
			return
		}
		a = answer{start: c.latest.rows.start, known: ev.HeldBy}
		a.sockets, a.more = c.inTheWay(ev, c.latest.rows)
		if len(c.answers) >= maxAnswers {
			clear(c.answers)
		}
		c.answers[q] = a
	}
	if len(a.known) == len(ev.HeldBy) && (len(a.known) == 0 || &a.known[0] == &ev.HeldBy[0]) {
		ev.HeldBy, ev.HeldByMore = a.sockets, a.more
	} else {
		ev.HeldBy, ev.HeldByMore = join(a.sockets, a.more, ev.HeldBy)
	}
}

// await asks the kernel about the port of an event, and those of others that wait, at once
// or when it may be asked again. False: the reply would come too late, or did.
func (c *completer) await(ev *Event, end <-chan struct{}) bool {
	within := answerWithin - time.Duration(boottime()-min(boottime(), ev.boot))
	timer := time.NewTimer(within)
	defer timer.Stop()
	if c.asked != nil { // by an event that could not wait for it
		select {
		case r := <-c.asked:
			c.learn(r)
		default:
			return false
		}
	}
	if rest := time.Until(c.rest); rest > 0 {
		if rest+c.cost > within {
			return false
		}
		select {
		case <-time.After(rest):
		case <-c.hurry:
			return false
		case <-end:
			return false
		}
	}
	c.ask(ev.Local.Port())
	select {
	case r := <-c.asked:
		c.learn(r)
		return c.latest.covers(ev)
	case <-timer.C:
	case <-c.hurry:
	case <-end:
	}
	return false
}

// ask asks about a port, and those of events that wait.
func (c *completer) ask(port uint16) {
	c.mu.Lock()
	ports := c.ports
	c.ports = nil
	c.mu.Unlock()
	if !slices.Contains(ports, port) {
		ports = append(ports, port)
	}
	asked := make(chan inKernel, 1)
	c.asked = asked
	go func() {
		start := time.Now()
		rows, err := c.rows(ports...)
		if err != nil {
			rows = nil // what the table knows is told
		}
		asked <- inKernel{rows, ports, time.Since(start)}
	}()
}

// learn takes a reply.
func (c *completer) learn(r inKernel) {
	c.asked, c.latest, c.cost = nil, r, r.took
	c.rest = time.Now().Add(askRest * r.took)
}

// inTheWay returns the sockets that the kernel has in the way of an event, and those that
// only the table knew, which were closed since.
func (c *completer) inTheWay(ev *Event, rows *Rows) (by []Socket, more int) {
	var so Socket
	for i := range rows.Len() {
		rows.Read(i, &so)
		if !conflict(ev, &so) || so.Role == RoleTimeWait && slices.ContainsFunc(ev.HeldBy, so.sameEnds) {
			continue // of which the table knew what it was then
		}
		if len(by) == maxHeldBy {
			more++
			continue
		}
		in := so
		in.Holders = slices.Clone(so.Holders[:min(len(so.Holders), maxHeldBy)])
		by = append(by, in)
	}
	c.table.completeAll(&Snapshot{Sockets: by})
	by = slices.DeleteFunc(by, func(s Socket) bool { return s.Since.After(ev.Time) })
	return join(by, more, ev.HeldBy)
}

// join adds sockets that were in the way and have been closed since.
func join(by []Socket, more int, known []Socket) ([]Socket, int) {
	var closed []Socket
	for i := range known {
		if !slices.ContainsFunc(by, func(s Socket) bool { return s.id == known[i].id }) {
			closed = append(closed, known[i])
		}
	}
	if len(closed) == 0 || more > 0 { // of more it is not known which they are
		return by, more
	}
	all := slices.Concat(by, closed)
	SortSockets(all)
	n := min(len(all), maxHeldBy)
	return slices.Clip(all[:n]), len(all) - n
}

// sameEnds tells whether two sockets are the ends of one connection on the same side.
func (s *Socket) sameEnds(o Socket) bool {
	return s.Proto == o.Proto && s.NetNS == o.NetNS && s.Local == o.Local && s.Remote == o.Remote
}

// complete starts the completer, and returns what ends it.
func (t *Tracer) complete() (end func()) {
	ending, ended := make(chan struct{}), make(chan struct{})
	t.completer.running.Store(true)
	go func() {
		defer close(ended)
		t.completer.run(ending)
	}()
	return func() {
		close(ending)
		<-ended
		t.completer.running.Store(false)
	}
}
