package tracer

import (
	"iter"
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
	About       bool          // that was not seen: Until is when it was at the latest
}

// ErrnoName returns the symbol of Errno ("ECONNRESET"), "" if nothing ended the connection.
func (t *Tenancy) ErrnoName() string { return errnoName(t.Errno) }

// History keeps the last tenancies that ended, a bounded number of them. It is
// safe for concurrent use.
type History struct {
	mu    sync.Mutex
	ring  slab[tenancy]
	max   int
	added uint64 // tenancies so far: the first is at index 0 of the ring, and again every max
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
	about        bool
}

func newHistory(max int) *History { return &History{max: max} }

// add remembers what a close event tells.
func (h *History) add(ev *Event) {
	if h.max == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ring.len < h.max {
		h.ring.grow()
	}
	t := h.at(h.added)
	h.added++
	*t = tenancy{
		until: ev.Time.UnixNano(), flow: ev.flow(), owner: packProcess(&ev.Process),
		errno: uint16(ev.Errno), proto: ev.Proto, mptcp: ev.MPTCP, timeWait: ev.TimeWait, about: ev.About,
	}
	if ev.Duration > 0 {
		t.since = t.until - int64(ev.Duration)
	}
}

// at is the place of a tenancy, by how many there were before it.
func (h *History) at(i uint64) *tenancy { return h.ring.at(uint32(i % uint64(h.max))) }

// Port returns what Latest ranges over.
func (h *History) Port(port uint16) []Tenancy { return slices.Collect(h.Latest(port)) }

// historyBatch is how many tenancies are looked at before the reader of events, which
// adds to them, gets its turn.
const historyBatch = 1024

// Latest ranges over the tenancies of a local port, the latest first; port 0 means all. Those
// that are forgotten meanwhile are left out. It does not hold up the tracer.
func (h *History) Latest(port uint16) iter.Seq[Tenancy] {
	return func(yield func(Tenancy) bool) {
		h.mu.Lock()
		next := h.added
		h.mu.Unlock()
		dec := newDecoder()
		var some []tenancy
		for more := true; more; {
			some, next, more = h.before(some[:0], next, port)
			for i := range some {
				if !yield(some[i].unpack(dec)) {
					return
				}
			}
		}
	}
}

// before appends some of the tenancies before a place, the latest first, and returns the
// place to go on from.
func (h *History) before(some []tenancy, place uint64, port uint16) (got []tenancy, from uint64, more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	oldest := h.added - uint64(h.ring.len)
	for n := 0; place > oldest && n < historyBatch; n++ {
		place--
		if t := h.at(place); port == 0 || t.flow.LocalPort == port {
			some = append(some, *t)
		}
	}
	return some, place, place > oldest
}

func (t *tenancy) unpack(dec *decoder) Tenancy {
	return Tenancy{
		Proto: t.proto, Local: addrPort(t.flow.LocalIp, t.flow.LocalPort), Remote: peer(t.flow.RemoteIp, t.flow.RemotePort),
		NetNS: t.flow.Netns, NetNSCookie: t.flow.NetnsCookie, Device: t.flow.Dev, MPTCP: t.mptcp, TimeWait: t.timeWait, Errno: syscall.Errno(t.errno),
		Owner: dec.process(&t.owner), Since: wallTime(t.since), Until: wallTime(t.until), About: t.about,
	}
}

// Len is the number of tenancies kept.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ring.len
}
