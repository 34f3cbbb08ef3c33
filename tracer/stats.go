package tracer

import (
	"fmt"

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
