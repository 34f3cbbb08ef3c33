package tracer

import (
	"fmt"
	"maps"
	"math"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
)

// Stats are the counters of a Tracer since Open. They add up:
// every event a hook saw is Submitted or LostRing, and every submitted one is,
// once read, Decoded or Bad.
type Stats struct {
	Submitted uint64 // handed to the ring buffer
	LostRing  uint64 // lost: the ring buffer was full
	LostState uint64 // lost: the kernel had no memory to remember a socket's state
	// LostNested: a hook fired while its program ran on the same processor, and the
	// kernel skipped it. Not every such call would have been an event.
	LostNested uint64
	Decoded    uint64 // read and understood
	Bad        uint64 // read and not understood
	Resyncs    uint64 // times the table was rebuilt after a loss
	Reconciles uint64 // times it was compared with the kernel's, at Config.Reconcile
	// ResyncErrors is how often neither could be done, which is tried again every
	// second; ResyncError why not, the last time.
	ResyncErrors uint64
	ResyncError  error
}

// Lost is the number of events the kernel could not hand over.
func (s Stats) Lost() uint64 { return s.LostRing + s.LostState + s.LostNested }

// Counts counts the published events by kind.
type Counts struct {
	Events   map[EventKey]uint64
	Failures map[Failure]uint64 // calls that got no port: there was none, or another socket was in the way
	// Searches is how long the kernel looked for the port of a connect(), in the
	// buckets of a Prometheus native histogram of schema 2 (index: count), in
	// seconds. Only where hooks of TierFentry see connects.
	Searches  map[int]int64
	SearchSum time.Duration
	// ListenersAdded and ListenersRemoved are how often a socket became a listener, as Socket.Listens has
	// it, and was one no more, as far as events told.
	ListenersAdded, ListenersRemoved uint64
}

// EventKey is a kind of event.
type EventKey struct {
	Type  EventType
	Proto Proto
}

// Failure is a kind of call that got no port.
type Failure struct {
	Op    PortOp
	Proto Proto
	Errno syscall.Errno
}

// ErrnoName returns the symbol of Errno ("EADDRINUSE").
func (f Failure) ErrnoName() string { return errnoName(f.Errno) }

// ProgramStats is what one attached BPF program has cost.
type ProgramStats struct {
	Hook string // as in HookStatus
	Runs uint64
	Time time.Duration
}

// tally is Counts as they are added up: events come by the ten thousand a second.
type tally struct {
	events    [len(eventNames)][protos]uint64
	failures  map[Failure]uint64
	searches  [searchBuckets]int64 // from bucket -searchBuckets/2 up
	searchSum time.Duration
	added     uint64 // listeners
	removed   uint64
}

const (
	protos = UDP + 1
	// searchBuckets is twice the buckets from a second to the longest time.Duration.
	searchBuckets = 2 * 136
)

// add counts a published event.
func (t *tally) add(ev *Event) {
	t.events[ev.Type][ev.Proto]++
	if ev.Errno != 0 {
		if op := opOf(ev); op != 0 {
			t.failures[Failure{op, ev.Proto, ev.Errno}]++
		}
	}
	switch {
	case ev.change > 0:
		t.added++
	case ev.change < 0:
		t.removed++
	}
	if ev.Search > 0 {
		t.searches[searchBucket(ev.Search)+searchBuckets/2]++
		t.searchSum += ev.Search
	}
}

func (t *tally) counts() Counts {
	c := Counts{
		Events: make(map[EventKey]uint64), Failures: maps.Clone(t.failures), Searches: make(map[int]int64), SearchSum: t.searchSum,
		ListenersAdded: t.added, ListenersRemoved: t.removed,
	}
	for typ := range t.events {
		for proto, n := range t.events[typ] {
			if n > 0 {
				c.Events[EventKey{EventType(typ), Proto(proto)}] = n
			}
		}
	}
	for i, n := range t.searches {
		if n > 0 {
			c.Searches[i-searchBuckets/2] = n
		}
	}
	return c
}

// opOf is the call that failed; 0 of a close, whose error ended the connection.
func opOf(ev *Event) PortOp {
	switch {
	case ev.Type == EventBind && ev.Implicit:
		return OpImplicitBind
	case ev.Type == EventBind:
		return OpBind
	case ev.Type == EventListen:
		return OpListen
	case ev.pairTaken():
		return OpConnectBound
	case ev.Type == EventConnect:
		return OpConnect
	}
	return 0
}

// searchBucket is the native histogram's: (2^((i-1)/4), 2^(i/4)] seconds.
func searchBucket(d time.Duration) int { return int(math.Ceil(4 * math.Log2(d.Seconds()))) }

// readStats puts the kernel's counters into s. progs are the programs that are attached.
func readStats(m *ebpf.Map, progs []attached, s *Stats) error {
	for _, c := range []struct {
		stat bpfStat
		to   *uint64
	}{
		{bpfStatSTAT_SUBMITTED, &s.Submitted},
		{bpfStatSTAT_LOST_RING, &s.LostRing},
		{bpfStatSTAT_LOST_STATE, &s.LostState},
	} {
		var perCPU []uint64
		if err := m.Lookup(uint32(c.stat), &perCPU); err != nil {
			return fmt.Errorf("read counters: %w", err)
		}
		*c.to = 0
		for _, n := range perCPU {
			*c.to += n
		}
	}
	s.LostNested = 0
	for _, a := range progs {
		if a.prog.Type() != ebpf.Tracing {
			continue // these the kernel does not skip when they are running already
		}
		stats, err := a.prog.Stats()
		if err != nil {
			return fmt.Errorf("read counters of %s: %w", a.hook, err)
		}
		s.LostNested += stats.RecursionMisses
	}
	return nil
}
