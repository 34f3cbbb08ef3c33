package store

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// A disk that fills up again and again, for as long as PORTHOLE_SOAK says: all that is added is in the
// history, folded, lost and counted, or was deleted for its age; memory does not grow. Without it three
// rounds are enough.
func TestSoakDiskFills(t *testing.T) {
	end := time.Now()
	if text := os.Getenv("PORTHOLE_SOAK"); text != "" {
		long, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		end = end.Add(long)
	}
	dir := tmpfs(t, "24M")
	tr := newTrouble(t, dir)
	tr.s.cfg.MaxSize = 16 << 20 // segments are as large as before: old ones are deleted soon
	ballast := filepath.Join(dir, "ballast")
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	added, first := uint64(1), uint64(0)
	for round := 0; round < 3 || time.Now().Before(end); round++ {
		fill(t, ballast)
		for range 10 {
			tr.add(3000)
			added += 3000
			if err := tr.s.Flush(); !errors.Is(err, syscall.ENOSPC) && err != nil {
				t.Fatal(err)
			}
		}
		os.Remove(ballast)
		if err := tr.s.Flush(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		tr.add(10_000)
		added += 10_000
		if err := errors.Join(tr.s.Flush(), tr.s.retain()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if st := tr.s.Stats(); st.Records+st.Lost[LostFull] != added || st.Lost[LostFull] == 0 || st.Folded != 0 {
			t.Fatalf("round %d: %d added, %+v", round, added, st)
		}
		switch now := heap(); {
		case round == 2:
			first = now
		case round > 2 && now > first+8<<20:
			t.Fatalf("round %d: %d kB of memory, %d after the third", round, now>>10, first>>10)
		}
	}
	if err := tr.s.Close(nil); err != nil {
		t.Fatal(err)
	}
}
