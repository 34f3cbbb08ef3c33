package tracer

import (
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Tenancy is the time a socket held a local port, now over.
type Tenancy struct {
	Proto  Proto
	Local  netip.AddrPort
	Remote netip.AddrPort // not valid where there was no peer
	NetNS  uint32         // inode number of its network namespace
	// NetNSCookie and Device are as in Socket.
	NetNSCookie uint64
	Device      uint32
	MPTCP       bool          // the TCP subflow of an MPTCP socket
	TimeWait    bool          // the port stayed taken in TIME_WAIT afterwards
	Errno       syscall.Errno // what ended the connection, 0: nothing did
	Owner       Process       // who bound, connected or accepted the socket, else who held it; PID 0: not known
	Since       time.Time     // zero: before porthole looked
	Until       time.Time     // when it gave the port back
}

// History keeps the last tenancies that ended, a bounded number of them. It is
// safe for concurrent use.
type History struct {
	mu   sync.Mutex
	ring slab[tenancy]
	max  int
	next int // index of the oldest, once the ring is full
}

// tenancy is a Tenancy as it is kept: 120 bytes, and no pointer.
type tenancy struct {
	since, until int64 // wall clock, nanoseconds; since 0: not known
	flow         bpfFlow
	owner        bpfProcess
	errno        uint16
	proto        Proto
	mptcp        bool
	timeWait     bool
}

func newHistory(max int) *History { return &History{max: max} }

// add remembers what a close event tells.
func (h *History) add(ev *Event) {
	if h.max == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var t *tenancy
	if h.ring.len < h.max {
		t = h.ring.at(h.ring.grow())
	} else {
		t = h.ring.at(uint32(h.next))
		h.next = (h.next + 1) % h.max
	}
	*t = tenancy{
		until: ev.Time.UnixNano(), flow: ev.flow(), owner: packProcess(&ev.Process),
		errno: uint16(ev.Errno), proto: ev.Proto, mptcp: ev.MPTCP, timeWait: ev.TimeWait,
	}
	if ev.Duration > 0 {
		t.since = t.until - int64(ev.Duration)
	}
}

// Port returns the tenancies of a local port, the latest first; port 0 means all.
func (h *History) Port(port uint16) []Tenancy {
	h.mu.Lock()
	defer h.mu.Unlock()
	dec := newDecoder()
	var out []Tenancy
	if port == 0 {
		out = slices.Grow(out, h.ring.len)
	}
	for i := range h.ring.len {
		t := h.ring.at(uint32((h.next + h.ring.len - 1 - i) % h.ring.len))
		if port == 0 || t.flow.LocalPort == port {
			out = append(out, t.unpack(dec))
		}
	}
	return out
}

func (t *tenancy) unpack(dec *decoder) Tenancy {
	return Tenancy{
		Proto: t.proto, Local: addrPort(t.flow.LocalIp, t.flow.LocalPort), Remote: peer(t.flow.RemoteIp, t.flow.RemotePort),
		NetNS: t.flow.Netns, NetNSCookie: t.flow.NetnsCookie, Device: t.flow.Dev, MPTCP: t.mptcp, TimeWait: t.timeWait, Errno: syscall.Errno(t.errno),
		Owner: dec.process(&t.owner), Since: wallTime(t.since), Until: wallTime(t.until),
	}
}

// Len is the number of tenancies kept.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ring.len
}
