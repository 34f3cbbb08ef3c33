package tracer

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"testing"
	"time"
)

const (
	// soakEnv is how long TestGrowth goes on; make soak sets it.
	soakEnv    = "PORTHOLE_SOAK"
	growthFor  = 20 * time.Second
	maxHistory = 1000
	// growthSlack is by how much the heap may differ: the queue of the test's own
	// subscription, and sockets in TIME_WAIT whose owner is remembered come and go. A million
	// events that left 32 bytes each would be more.
	growthSlack = 32 << 20
)

// soakTime is how long the long tests go on.
func soakTime(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv(soakEnv)
	if text == "" {
		return short
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", soakEnv, err)
	}
	return d
}

// figures are what must not grow.
type figures struct {
	heap                                            uint64
	goroutines, files, table, left, history, pended int
}

func (f figures) String() string {
	return fmt.Sprintf("heap %.1f MB, %d goroutines, %d descriptors, %d rows, %d left in TIME_WAIT, %d tenancies, %d pending calls",
		float64(f.heap)/(1<<20), f.goroutines, f.files, f.table, f.left, f.history, f.pended)
}

// measure reads them.
func (p *play) measure() figures {
	p.Helper()
	heap := uint64(math.MaxUint64)
	for range 3 { // the events that wait for the test are no growth of the tracer, and on a busy machine come meanwhile
		p.fence(p.Context())
		p.seen = nil
		runtime.GC()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		heap = min(heap, mem.HeapAlloc)
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		p.Fatal(err)
	}
	f := figures{heap: heap, goroutines: runtime.NumGoroutine(), files: len(files), history: p.tracer.History().Len()}
	table := p.tracer.Table()
	table.mu.Lock()
	f.left = len(table.timeWaits)
	table.mu.Unlock()
	for _, s := range table.All() {
		if s.NetNS == p.netns || p.ours(&s) {
			f.table++
		}
	}
	var key, value []byte
	for it := p.tracer.maps[bpfMapPendings].Iterate(); it.Next(&key, &value); {
		f.pended++
	}
	return f
}

// Whatever happens, for however long, nothing grows, and the model and the tracer
// agree all the time: 20 s here, an hour in make soak.
func TestGrowth(t *testing.T) {
	p := newPlay(t, Config{History: maxHistory, Reconcile: time.Second, Established: true}, modelSeed(t))
	p.child("churn")
	begin, long := time.Now(), soakTime(t, growthFor)
	// The first third is for what takes its size once.
	var first figures
	for next := begin.Add(long / 3); time.Since(begin) < long; {
		p.burst()
		if time.Now().Before(next) {
			continue
		}
		now := p.measure()
		t.Logf("%v: %d requests; %v; %d events", time.Since(begin).Round(time.Second), p.requests, now, stats(t, p.tracer).Decoded)
		if first == (figures{}) {
			first = now
		}
		first.check(t, now)
		next = time.Now().Add(min(time.Minute, long/6))
	}
	if s := stats(t, p.tracer); s.Reconciles < 3 || s.Decoded < 1000 || first == (figures{}) {
		t.Errorf("%+v: nothing went on", s)
	}
}

// check compares later figures.
func (f figures) check(t *testing.T, now figures) {
	t.Helper()
	for _, c := range []struct {
		what     string
		now, max int
	}{
		{"heap", int(now.heap), int(f.heap) + growthSlack},
		{"goroutines", now.goroutines, f.goroutines + 4}, // waiting for children
		{"descriptors", now.files, f.files + 2*maxWorkers},
		{"rows of the table", now.table, 2*maxSockets + 200},
		{"left in TIME_WAIT", now.left, maxTimeWaits},
		{"tenancies", now.history, maxHistory},
		{"pending calls", now.pended, 4096},
	} {
		if c.now > c.max {
			t.Errorf("%s: %d, want %d at most", c.what, c.now, c.max)
		}
	}
}
