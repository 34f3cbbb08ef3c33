package store

import (
	"math"
	"net/netip"
	"syscall"
	"time"

	"github.com/porthole-dev/porthole/tracer"
)

const (
	// BudgetConnections is how many connections a second are kept one by one for as long as one likes.
	// Others are folded.
	BudgetConnections = 1000
	// BudgetBurst is how many of them are kept at once.
	BudgetBurst = 20_000
	// A cgroup may have so many records among those of listeners; others are among connections.
	budgetPorts      = 1
	budgetPortsBurst = 2000
	// maxPortBuckets is how many cgroups have a budget of their own at once.
	maxPortBuckets = 1024
	// maxFolds is how many counters a minute has. What does not fit is counted by its process, then without
	// a name.
	maxFolds = 1024
)

// bucket has tokens: so many a second, and never more than a burst.
type bucket struct {
	tokens float64
	last   uint64 // CLOCK_BOOTTIME, nanoseconds
}

func (b *bucket) take(at uint64, rate, burst float64) bool {
	if at > b.last {
		b.tokens = min(burst, b.tokens+rate*float64(at-b.last)/float64(time.Second))
		b.last = at
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// budget bounds how much a flood gets written.
type budget struct {
	connections bucket
	ports       map[uint64]*bucket // by cgroup
}

func newBudget() budget {
	return budget{connections: bucket{tokens: BudgetBurst}, ports: make(map[uint64]*bucket)}
}

func (b *budget) connection(at uint64) bool {
	return b.connections.take(at, BudgetConnections, BudgetBurst)
}

func (b *budget) port(cgroup, at uint64) bool {
	own, ok := b.ports[cgroup]
	if !ok {
		if len(b.ports) >= maxPortBuckets {
			clear(b.ports)
		}
		own = &bucket{tokens: budgetPortsBurst, last: at}
		b.ports[cgroup] = own
	}
	return own.take(at, budgetPorts, budgetPortsBurst)
}

// foldKey is what is counted together within a minute.
type foldKey struct {
	kind          Kind
	proto         tracer.Proto
	role          tracer.Role
	event         tracer.EventType
	errno         syscall.Errno
	local, remote netip.AddrPort // of a connection that was made the destination alone, of one that was accepted where
	inode         uint32
	cookie        uint64
	owner         tracer.Process
}

type fold struct {
	count       uint32
	first, last uint64 // CLOCK_BOOTTIME, nanoseconds
}

// fold counts what is not kept. Hold mu.
func (s *Store) fold(kind Kind, e *Entry) {
	s.stats.Folded++
	k := foldKey{kind: kind, proto: e.Proto, role: e.Role, errno: e.Errno, local: e.Local, inode: e.NetNS, cookie: e.NetNSCookie, owner: e.Owner}
	anyPort := netip.AddrPortFrom(e.Local.Addr(), 0)
	switch {
	case kind == Refused:
		k.event, k.remote = e.Event, e.Remote
	case e.Role == tracer.RoleClient:
		k.local, k.remote = anyPort, e.Remote
	case e.Role != tracer.RoleServer:
		k.local = anyPort
	}
	keys := [...]foldKey{
		k,
		{kind: kind, proto: e.Proto, role: e.Role, local: anyPort, inode: e.NetNS, cookie: e.NetNSCookie, owner: e.Owner},
		{kind: kind, proto: e.Proto, local: netip.AddrPortFrom(netip.IPv4Unspecified(), 0)},
	}
	room := [...]int{maxFolds * 3 / 4, maxFolds, math.MaxInt}
	var f *fold
	for i := range keys {
		if f = s.folds[keys[i]]; f == nil && len(s.folds) < room[i] {
			f = &fold{first: uint64(e.At)}
			s.folds[keys[i]] = f
		}
		if f != nil {
			break
		}
	}
	f.count++
	f.first, f.last = min(f.first, uint64(e.At)), max(f.last, uint64(e.At))
}

// unfold makes records of what was counted. Hold mu.
func (s *Store) unfold() {
	for k, f := range s.folds {
		e := Entry{
			Proto: k.proto, Role: k.role, Local: k.local, Remote: k.remote, NetNS: k.inode, NetNSCookie: k.cookie, Owner: k.owner,
			Errno: k.errno, Event: k.event, At: time.Duration(f.last),
		}
		flags := flag(0)
		if k.kind == Refused {
			flags = flagOfRefused
		}
		s.put(ofConnections, Folded, &e, flags, f.first, f.count)
	}
	clear(s.folds)
}
