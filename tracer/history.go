package tracer

import (
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Tenancy is the time a socket held a local port, now over.
type Tenancy struct {
	Proto    Proto
	Local    netip.AddrPort
	Remote   netip.AddrPort // not valid where there was no peer
	NetNS    uint32         // inode number of its network namespace
	MPTCP    bool           // the TCP subflow of an MPTCP socket
	TimeWait bool           // the port stayed taken in TIME_WAIT afterwards
	Errno    syscall.Errno  // what ended the connection, 0: nothing did
	Owner    Process        // who bound, connected or accepted the socket, else who held it; PID 0: not known
	Since    time.Time      // zero: before porthole looked
	Until    time.Time      // when it gave the port back
}

// History keeps the last tenancies that ended, a bounded number of them. It is
// safe for concurrent use.
type History struct {
	mu   sync.RWMutex
	ring []Tenancy
	max  int
	next int // index of the oldest, once the ring is full
}

func newHistory(max int) *History { return &History{max: max} }

// add remembers what a close event tells.
func (h *History) add(ev *Event) {
	if h.max == 0 {
		return
	}
	t := Tenancy{
		Proto: ev.Proto, Local: ev.Local, Remote: ev.Remote, NetNS: ev.NetNS, MPTCP: ev.MPTCP,
		TimeWait: ev.TimeWait, Errno: ev.Errno, Owner: ev.Process, Until: ev.Time,
	}
	if ev.Duration > 0 {
		t.Since = ev.Time.Add(-ev.Duration)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) < h.max {
		h.ring = append(h.ring, t)
		return
	}
	h.ring[h.next] = t
	h.next = (h.next + 1) % h.max
}

// Port returns the tenancies of a local port, the latest first; port 0 means all.
func (h *History) Port(port uint16) []Tenancy {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var out []Tenancy
	for i := range h.ring {
		t := &h.ring[(h.next+len(h.ring)-1-i)%len(h.ring)]
		if port == 0 || t.Local.Port() == port {
			out = append(out, *t)
		}
	}
	return out
}

// Len is the number of tenancies kept.
func (h *History) Len() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.ring)
}
