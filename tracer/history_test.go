package tracer

import (
	"net/netip"
	"syscall"
	"testing"
	"time"
	"unsafe"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/testutil"
)

func closeOf(port uint16, at int) *Event {
	return &Event{
		Time: wallAt(at), Type: EventClose, Proto: TCP, NetNS: testNS, Process: proc(10), Duration: 5 * time.Millisecond,
		Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port),
	}
}

func TestHistory(t *testing.T) {
	h := newHistory(3)
	if got := h.Port(0); got != nil || h.Len() != 0 {
		t.Fatalf("an empty history has %v", got)
	}
	for i := range 5 {
		h.add(closeOf(uint16(80+i%2), 10*i))
	}
	ports := func(port uint16) (out []int64) {
		for _, tenancy := range h.Port(port) {
			out = append(out, tenancy.Until.Sub(wallAt(0)).Milliseconds())
		}
		return out
	}
	for port, want := range map[uint16][]int64{0: {40, 30, 20}, 80: {40, 20}, 81: {30}, 82: nil} {
		if d := gocmp.Diff(want, ports(port)); d != "" {
			t.Errorf("ends on port %d, latest first (-want +got):\n%s", port, d)
		}
	}
	if h.Len() != 3 {
		t.Errorf("keeps %d, want 3", h.Len())
	}
}

// Who reads a history that goes on meanwhile gets no tenancy twice, none that came later,
// and the latest first; the memory it takes is not that of the history.
func TestHistoryLatestMeanwhile(t *testing.T) {
	const kept = 3 * historyBatch
	h := newHistory(kept)
	for i := range kept {
		h.add(closeOf(80, i))
	}
	read, last := 0, time.Time{}
	for tenancy := range h.Latest(80) {
		if read++; read == 1 && !tenancy.Until.Equal(wallAt(kept-1)) || read > 1 && !tenancy.Until.Before(last) {
			t.Fatalf("tenancy %d ended at %v, the one before at %v", read, tenancy.Until, last)
		}
		last = tenancy.Until
		if read <= 2*historyBatch {
			h.add(closeOf(80, kept+read))
		}
	}
	// Of the oldest as many were forgotten as were added, before their turn came.
	if want := 2 * historyBatch; read < want-historyBatch || read > want {
		t.Errorf("%d tenancies were read, want some %d", read, want)
	}
	read = 0
	for range h.Latest(0) {
		if read++; read == 5 {
			break
		}
	}
	if read != 5 {
		t.Errorf("%d tenancies were read, want 5", read)
	}
}

func TestHistoryTenancy(t *testing.T) {
	h := newHistory(1)
	ev := closeOf(80, 10)
	h.add(ev)
	got := h.Port(80)[0]
	if got.Owner != proc(10) || !got.Since.Equal(wallAt(5)) || !got.Until.Equal(wallAt(10)) || got.Local != ev.Local || got.NetNS != testNS {
		t.Errorf("tenancy %+v of %+v", got, ev)
	}
	ev.Duration = 0
	h.add(ev)
	if got := h.Port(80)[0]; !got.Since.IsZero() {
		t.Errorf("since %v, want not known", got.Since)
	}
	none := newHistory(0)
	none.add(ev)
	if none.Len() != 0 {
		t.Error("a history of nothing keeps something")
	}
}

// What comes back is what the event told, and the ring goes on beyond one part of its
// memory.
func TestHistoryKeepsAll(t *testing.T) {
	h := newHistory(slabChunk + 1)
	ev := closeOf(80, 10)
	for range slabChunk + 2 {
		h.add(ev)
	}
	*ev = Event{
		Time: wallAt(20), Type: EventClose, Proto: UDP, Local: endpoint("[2001:db8::1]:81"), Remote: endpoint("10.0.0.1:1"),
		NetNS: testNS, MPTCP: true, TimeWait: true, Errno: syscall.ECONNRESET, Duration: time.Second,
		Process: Process{PID: 1, UID: 2, Start: 3, Comm: "fifteen bytes..", Cgroup: 5},
	}
	h.add(ev)
	want := Tenancy{
		Proto: ev.Proto, Local: ev.Local, Remote: ev.Remote, NetNS: ev.NetNS, MPTCP: true, TimeWait: true, Errno: ev.Errno,
		Owner: ev.Process, Since: wallAt(20).Add(-time.Second), Until: ev.Time,
	}
	equal(t, "tenancies of port 81", []Tenancy{want}, h.Port(81))
	if got := h.Port(0); len(got) != slabChunk+1 || got[0] != h.Port(81)[0] || h.Len() != len(got) {
		t.Errorf("keeps %d, the latest %+v", len(got), got[0])
	}
	if size := unsafe.Sizeof(tenancy{}); size > 120 {
		t.Errorf("a tenancy takes %d bytes", size)
	}
	if allocs := testutil.Allocs(100, func() { h.add(ev) }); allocs != 0 {
		t.Errorf("%v allocations for an event", allocs)
	}
}
