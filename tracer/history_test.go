package tracer

import (
	"net/netip"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
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
