package tracer

import (
	"fmt"
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
}

// Lost is the number of events the kernel could not hand over.
func (s Stats) Lost() uint64 { return s.LostRing + s.LostState + s.LostNested }

// Counts are what the events told, added up.
type Counts struct {
	Events   map[EventKey]uint64
	Failures map[Failure]uint64 // refused for want of a port or for another's sake
	// Searches is how long the kernel looked for the port of a connect(), in the
	// buckets of a Prometheus native histogram of schema 2 (index: count), in
	// seconds. Only where hooks of TierFentry see connects.
	Searches    map[int]int64
	SearchCount uint64
	SearchSum   time.Duration
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

// Error returns the name of the errno ("EADDRINUSE").
func (f Failure) Error() string { return errnoName(f.Errno) }

// ProgramStats is what one attached BPF program has cost.
type ProgramStats struct {
	Hook string // as in HookStatus
	Runs uint64
	Time time.Duration
}

// readStats puts the kernel's counters into s. tracing are the programs that the
// kernel skips when they are running already.
func readStats(m *ebpf.Map, tracing []*ebpf.Program, s *Stats) error {
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
	for _, prog := range tracing {
		stats, err := prog.Stats()
		if err != nil {
			return fmt.Errorf("read counters of %s: %w", prog, err)
		}
		s.LostNested += stats.RecursionMisses
	}
	return nil
}
