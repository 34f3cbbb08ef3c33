package agent

import (
	"runtime/metrics"
	"testing"

	"github.com/prometheus/procfs"
)

// resident is how many bytes of files the process has in memory: its program, above all.
func resident(t *testing.T) uint64 {
	t.Helper()
	self, err := procfs.Self()
	if err != nil {
		t.Fatal(err)
	}
	status, err := self.NewStatus()
	if err != nil {
		t.Fatal(err)
	}
	return status.RssFile
}

// Of the program less stays in memory than the start has read, and it goes on.
func TestReleaseProgram(t *testing.T) {
	before := resident(t)
	if err := releaseProgram(); err != nil {
		t.Fatal(err)
	}
	if after := resident(t); before == 0 || after >= before {
		t.Errorf("%d bytes of the program are in memory, before it was %d", after, before)
	}
}

// used keeps an allocation from being optimized away.
var used []byte

// What nobody needs any more goes back to the kernel at once, but not for a trifle.
func TestHeapRelease(t *testing.T) {
	var h heap
	h.release()
	released := func() uint64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	const much = 64 << 20
	used = make([]byte, much)
	before := released()
	used = nil
	h.release()
	if after := released(); after < before+much*3/4 {
		t.Errorf("%d bytes were given back, want some %d", after-before, much)
	}
	at := h.allocated
	used = make([]byte, worthReleasing/8)
	if h.release(); h.allocated != at {
		t.Error("garbage is collected for a trifle")
	}
}
