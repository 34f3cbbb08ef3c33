package tracer

import (
	"math"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil"
)

func TestCounts(t *testing.T) {
	count := tally{failures: make(map[Failure]uint64)}
	refused := failed(syscall.EADDRINUSE, tcp(1, EventBind, sockA, "10.0.0.1:80", ""))
	for _, search := range []time.Duration{0, 1, time.Second, math.MaxInt64 - time.Second - 1} {
		ev := tcp(1, EventConnect, sockA, "10.0.0.1:40000", "10.0.0.2:80")
		ev.Search = search
		count.add(&ev)
	}
	count.add(&refused)
	closed := udp(2, EventClose, sockB, "10.0.0.1:1", "")
	count.add(&closed)
	equal(t, "counts", Counts{
		Events:    map[EventKey]uint64{{EventConnect, TCP}: 4, {EventBind, TCP}: 1, {EventClose, UDP}: 1},
		Failures:  map[Failure]uint64{{OpBind, TCP, syscall.EADDRINUSE}: 1},
		Searches:  map[int]int64{-119: 1, 0: 1, 133: 1}, // of a nanosecond, a second and 292 years
		SearchSum: math.MaxInt64,
	}, count.counts())
	if allocs := testutil.Allocs(100, func() { count.add(&refused) }); allocs != 0 {
		t.Errorf("%v allocations for an event", allocs)
	}
}
