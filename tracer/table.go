package tracer

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// Table is the live port-to-process map. One goroutine writes it (Apply,
// Reconcile); any number may read, and get copies. It knows no kernel and no
// clock.
type Table struct {
	mu     sync.RWMutex
	rows   map[uint64]*row // by address of the kernel's struct sock
	byPort map[uint16]*row // first row of each local port, linked by next
	free   *row            // rows to use again, linked by next
	loaded bool            // a snapshot has been merged
	left   map[uint64]left // by address of the timewait sock; nil: not kept
	// closed tells when sockets were closed, since Expect; nil: no snapshot is expected.
	closed map[uint64]uint64
	// doubt: a snapshot and the events before it contradict each other.
	doubt bool
}

// left is who left a socket in TIME_WAIT.
type left struct {
	Process
	local netip.AddrPort
	stamp uint64 // CLOCK_BOOTTIME of the event, nanoseconds
}

// maxLeft bounds how many sockets in TIME_WAIT are remembered.
const maxLeft = 1 << 16

type row struct {
	Socket
	next, prev *row          // rows of the same local port
	ended      syscall.Errno // why the connection ended, while the socket keeps its port
	timeWait   bool          // as ended: a TIME_WAIT was left
	initial    bool          // from the first snapshot, no event since
	missing    bool          // the last snapshot did not have it, and no event since
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{rows: make(map[uint64]*row), byPort: make(map[uint16]*row)}
}

// Apply takes one event, in kernel order, and completes it with what the table
// knows: the owner of a closed socket, how long it held its port. It reports
// whether the event is news; if not it is a repetition, or about a socket no
// process ever had, and must not be published. It allocates only for sockets
// beyond the most there ever were.
func (t *Table) Apply(ev *Event) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rows[ev.sock]
	if t.closed != nil && ev.Type == EventClose {
		t.closed[ev.sock] = ev.boot
	}
	if r != nil && r.initial && ev.boot <= r.stamp {
		switch {
		case ev.Type == EventClose || ev.Type == eventDown:
			t.doubt = true // of a socket before, or the snapshot came between the word and the deed
		case !r.reused(ev.Local, ev.Remote):
			r.adopt(ev)
		}
		return false // the snapshot has told it already
	}
	switch ev.Type {
	case EventClose:
		return t.applyClose(r, ev)
	case eventDown:
		if r != nil {
			t.leave(r, ev)
			r.ended, r.timeWait = ev.Errno, ev.TimeWait
			r.State, r.Role, r.Remote, r.stamp = StateUnconn, RoleBound, netip.AddrPort{}, ev.boot
		}
		return false
	case eventUnpeer:
		if r != nil {
			r.State, r.Role, r.Remote, r.stamp = StateUnconn, RoleBound, netip.AddrPort{}, ev.boot
		}
		return false
	case EventEstablished:
		return applyEstablished(r, ev)
	}
	if ev.Errno != 0 {
		// A handshake that failed is told by the close of its socket.
		return ev.flags&uint8(bpfEventFlagEVENT_MAYBE) == 0 || r == nil || !(r.Role == RoleClient || r.ended != 0)
	}
	return t.applyTaken(r, ev)
}

// applyTaken: bind, listen, connect or accept gave the socket a port or a role.
func (t *Table) applyTaken(r *row, ev *Event) bool {
	if r != nil && r.reused(ev.Local, ev.Remote) {
		t.remove(r) // its close was lost
		r = nil
	}
	if r != nil && ev.Type == EventAccept && r.Remote == ev.Remote && (r.Owner.PID != 0 || len(r.Holders) > 0 && r.stamp < ev.boot) {
		return false // accepted once already; not if a snapshot overtook this event
	}
	if r != nil && ev.Type == EventBind && ev.Proto == UDP && ev.Implicit {
		return false // the first datagram after connect() or the start of porthole
	}
	if r != nil && r.stamp > ev.boot {
		r.adopt(ev) // a later snapshot knows its state better
		return true
	}
	if r == nil {
		r = t.add(ev.sock, ev.Local.Port())
		r.Origin, r.UID = OriginObserved, ev.Process.UID
	}
	r.adopt(ev)
	r.Proto, r.NetNS, r.MPTCP, r.stamp = ev.Proto, ev.NetNS, ev.MPTCP, ev.boot
	r.Local, r.Remote = ev.Local, ev.Remote
	r.initial, r.missing = false, false
	r.ended, r.timeWait = 0, false // of an earlier connection
	// Only these two tell the options.
	if ev.Type == EventBind || ev.Type == EventListen {
		r.V6Only = ev.flags&uint8(bpfEventFlagEVENT_V6ONLY) != 0
		r.ReuseAddr = ev.flags&uint8(bpfEventFlagEVENT_REUSEADDR) != 0
		r.ReusePort = ev.flags&uint8(bpfEventFlagEVENT_REUSEPORT) != 0
	}
	switch {
	case ev.Type == EventBind:
		r.State, r.Role = StateUnconn, RoleBound
	case ev.Type == EventListen:
		r.State, r.Role = StateListen, RoleListener
	case ev.Type == EventAccept:
		r.State, r.Role = StateEstablished, RoleServer
	case ev.Proto == UDP:
		r.State, r.Role = StateEstablished, RoleClient
	default:
		r.State, r.Role = StateSynSent, RoleClient
	}
	return true
}

// reused tells whether word of these ends is about another socket, that has the
// row's address now. An accepted connection never changes its peer.
func (r *row) reused(local, remote netip.AddrPort) bool {
	return r.Local.Port() != local.Port() || r.Role == RoleServer && remote.IsValid() && r.Remote != remote
}

// reusedBy is reused of a socket of a snapshot, which may have the same ends: a service
// that was started again while events were lost.
func (r *row) reusedBy(s *Socket) bool {
	return r.reused(s.Local, s.Remote) || r.Inode != 0 && s.Inode != 0 && r.Inode != s.Inode
}

// adopt keeps who acted, and since when.
func (r *row) adopt(ev *Event) {
	if ev.Process.PID == 0 || ev.Errno != 0 {
		return
	}
	r.Owner = ev.Process
	if r.Since.IsZero() {
		r.Since = ev.Time
	}
}

func applyEstablished(r *row, ev *Event) bool {
	if r == nil {
		return true // a connection no process has accepted yet
	}
	ev.Process = r.owner()
	if r.Role == RoleClient && !r.Since.IsZero() && r.State == StateSynSent {
		ev.Duration = ev.Time.Sub(r.Since)
	}
	if r.stamp <= ev.boot {
		r.State, r.stamp, r.missing = StateEstablished, ev.boot, false
	}
	return true
}

func (t *Table) applyClose(r *row, ev *Event) bool {
	if r == nil || r.stamp > ev.boot {
		return false // never accepted, reported already, or the address is a newer socket's
	}
	ev.Process = r.owner()
	ev.Local, ev.MPTCP, ev.NetNS = r.Local, r.MPTCP, r.NetNS
	if r.Remote.IsValid() {
		ev.Remote = r.Remote
	}
	if r.Role == RoleBound || r.Role == RoleListener {
		ev.Remote = netip.AddrPort{}
	}
	if ev.Errno == 0 {
		ev.Errno = r.ended
	}
	ev.TimeWait = ev.TimeWait || r.timeWait
	if !r.Since.IsZero() {
		ev.Duration = ev.Time.Sub(r.Since)
	}
	t.leave(r, ev)
	t.remove(r)
	return true
}

// leave remembers who left a timewait sock, while there is room.
func (t *Table) leave(r *row, ev *Event) {
	if t.left != nil && ev.tw != 0 && len(t.left) < maxLeft {
		t.left[ev.tw] = left{r.owner(), r.Local, ev.boot}
	}
}

// owner is the process that acted on the socket, or else its first holder.
func (s *Socket) owner() Process {
	if s.Owner.PID != 0 || len(s.Holders) == 0 {
		return s.Owner
	}
	return s.Holders[0].Process
}

// Expect tells that a snapshot is about to be taken. Every event older than it is to be
// applied before it is given to Reconcile.
func (t *Table) Expect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = make(map[uint64]uint64)
}

// Reconcile takes what a snapshot tells. Rows with newer events keep their state.
// A socket that the snapshot lacks stays until Settle, for its close may still be on
// its way.
func (t *Table) Reconcile(snap *Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := !t.loaded
	t.loaded = true
	for _, r := range t.rows {
		r.missing = r.stamp < snap.start
	}
	waiting := make(map[uint64]netip.AddrPort)
	for i := range snap.Sockets {
		s := &snap.Sockets[i]
		if s.Role == RoleTimeWait {
			waiting[s.id] = s.Local
		}
		if s.Role == RoleTimeWait || s.State == StateSynRecv && !s.attached {
			continue // no event tells its end: only snapshots do
		}
		t.merge(s, first)
	}
	t.closed = nil
	for tw, l := range t.left {
		if waiting[tw] != l.local && l.stamp < snap.start {
			delete(t.left, tw)
		}
	}
}

// Settle removes what the last snapshot lacked. Call it when every event older than
// that has been applied. False: the snapshot and those events contradict each other, so
// that only another snapshot can tell. It may have come between what a hook told and
// what the kernel then did.
func (t *Table) Settle() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.rows {
		if r.missing {
			t.remove(r)
		}
	}
	sure := !t.doubt
	t.doubt = false
	return sure
}

// Complete adds to the sockets of a snapshot what events told: Owner, Since, Origin;
// of TIME_WAIT who left it.
func (t *Table) Complete(snap *Snapshot) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for i := range snap.Sockets {
		s := &snap.Sockets[i]
		if s.Role == RoleTimeWait {
			s.Owner = t.knownOwner(s.id, s.Local)
		} else if r := t.rows[s.id]; r != nil && !r.reusedBy(s) {
			s.Owner, s.Since, s.Origin = r.Owner, r.Since, r.Origin
			s.late = r.stamp > s.stamp
		}
	}
}

// knownOwner is who bound, connected, accepted or left in TIME_WAIT the socket of
// this address; PID 0: not known.
func (t *Table) knownOwner(id uint64, local netip.AddrPort) Process {
	if r := t.rows[id]; r != nil && r.Local == local {
		return r.owner()
	}
	if l, ok := t.left[id]; ok && l.local == local {
		return l.Process
	}
	return Process{}
}

// merge takes one socket of a snapshot.
func (t *Table) merge(s *Socket, first bool) {
	r := t.rows[s.id]
	if r != nil && r.stamp > s.stamp { // keep what the event said, take only who holds it
		if !r.reused(s.Local, s.Remote) {
			r.Holders, r.Inode, r.UID = s.Holders, s.Inode, s.UID
		}
		return
	}
	if r != nil && r.reusedBy(s) {
		t.remove(r)
		r = nil
	}
	if r == nil {
		// Nobody is known to have the address since it was closed. Then either the open of
		// the next was lost, or the snapshot came before the socket was gone.
		if at, ok := t.closed[s.id]; ok {
			if at >= s.stamp || !s.attached {
				return
			}
			t.doubt = true
		}
		r = t.add(s.id, s.Local.Port())
		r.Socket, r.initial = *s, first
		return
	}
	t.doubt = t.doubt || r.State == StateUnconn && s.State != StateUnconn
	r.missing = false
	owner, since, origin := r.Owner, r.Since, r.Origin
	r.Socket = *s
	r.Owner, r.Since, r.Origin = owner, since, origin
}

func (t *Table) add(id uint64, port uint16) *row {
	r := t.free
	if r == nil {
		r = new(row)
	} else {
		t.free = r.next
		*r = row{}
	}
	r.id = id
	if r.next = t.byPort[port]; r.next != nil {
		r.next.prev = r
	}
	t.byPort[port] = r
	t.rows[id] = r
	return r
}

func (t *Table) remove(r *row) {
	delete(t.rows, r.id)
	port := r.Local.Port()
	switch {
	case r.prev != nil:
		r.prev.next = r.next
	case r.next != nil:
		t.byPort[port] = r.next
	default:
		delete(t.byPort, port)
	}
	if r.next != nil {
		r.next.prev = r.prev
	}
	*r = row{next: t.free}
	t.free = r
}

// Port returns the sockets on a local port, listeners first.
func (t *Table) Port(port uint16) []Socket {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []Socket
	for r := t.byPort[port]; r != nil; r = r.next {
		out = append(out, r.Socket)
	}
	SortSockets(out)
	return out
}

// inTheWay looks at some sockets on the port of a refused bind and returns the first
// that are in its way, at most max, and how many more.
func (t *Table) inTheWay(ev *Event, look, max int) (out []Socket, more int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for r := t.byPort[ev.Local.Port()]; r != nil && look > 0; r = r.next {
		look--
		if !conflict(ev, &r.Socket) {
			continue
		}
		if len(out) == max {
			more++
		} else {
			out = append(out, r.Socket)
		}
	}
	return out, more
}

// All returns every socket, ordered as SortSockets does.
func (t *Table) All() []Socket {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]Socket, 0, len(t.rows))
	for _, r := range t.rows {
		out = append(out, r.Socket)
	}
	SortSockets(out)
	return out
}

// Each calls f with every socket, in no order. The socket stays the table's: f must
// neither change nor keep it, nor call the table.
func (t *Table) Each(f func(*Socket)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, r := range t.rows {
		f(&r.Socket)
	}
}

// Len returns the number of sockets.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.rows)
}

// SortSockets orders sockets for reading: by role (listeners first), protocol,
// namespace, local port and address, then remote.
func SortSockets(s []Socket) {
	// Sorting short keys and moving each socket once is several times faster than
	// moving sockets at every step.
	keys := make([]sortKey, len(s))
	for i := range s {
		keys[i] = keyOf(&s[i])
	}
	slices.SortFunc(keys, compareKeys)
	sorted := make([]Socket, len(s))
	for i, k := range keys {
		sorted[i] = *k.so
	}
	copy(s, sorted)
}

// sortKey orders most sockets without a look at them.
type sortKey struct {
	order uint64 // role, protocol, namespace, local port
	ends  uint64 // of IPv4 the addresses, local before remote; 0 of IPv6
	port  uint16 // remote
	so    *Socket
}

func keyOf(so *Socket) sortKey {
	k := sortKey{
		order: uint64(so.Role)<<52 | uint64(so.Proto&1)<<48 | uint64(so.NetNS)<<16 | uint64(so.Local.Port()),
		port:  so.Remote.Port(), so: so,
	}
	if local, remote := so.Local.Addr(), so.Remote.Addr(); local.Is4() && remote.Is4() {
		l, r := local.As4(), remote.As4()
		k.ends = uint64(binary.BigEndian.Uint32(l[:]))<<32 | uint64(binary.BigEndian.Uint32(r[:]))
	}
	return k
}

func compareKeys(a, b sortKey) int {
	if a.order != b.order {
		return cmp.Compare(a.order, b.order)
	}
	if a.ends != 0 && b.ends != 0 && (a.ends != b.ends || a.port != b.port) {
		return cmp.Or(cmp.Compare(a.ends, b.ends), cmp.Compare(a.port, b.port))
	}
	return compareEnds(a.so, b.so)
}

// compareEnds orders sockets of one role, protocol, namespace and local port.
func compareEnds(a, b *Socket) int {
	if c := a.Local.Addr().Compare(b.Local.Addr()); c != 0 {
		return c
	}
	if c := a.Remote.Compare(b.Remote); c != 0 {
		return c
	}
	return cmp.Compare(a.id, b.id)
}

// inTheWay returns those of sockets that made a bind fail with EADDRINUSE:
// inet_bind_conflict() and inet_rcv_saddr_equal() of the kernel.
func inTheWay(ev *Event, sockets []Socket) []Socket {
	var out []Socket
	for i := range sockets {
		if conflict(ev, &sockets[i]) {
			out = append(out, sockets[i])
		}
	}
	return out
}

// conflict tells whether a socket is in the way of a refused bind.
func conflict(ev *Event, s *Socket) bool {
	flag := func(f bpfEventFlag) bool { return ev.flags&uint8(f) != 0 }
	switch {
	case s.id == ev.sock || s.Proto != ev.Proto || s.NetNS != ev.NetNS || s.Local.Port() != ev.Local.Port():
		return false
	case flag(bpfEventFlagEVENT_REUSEADDR) && s.ReuseAddr && (s.State != StateListen || s.Proto == UDP):
		return false
	case flag(bpfEventFlagEVENT_REUSEPORT) && s.ReusePort && (s.UID == ev.Process.UID || s.Role == RoleTimeWait):
		return false // of TIME_WAIT the kernel does not ask whose it was
	}
	return addrConflict(ev.Local.Addr(), flag(bpfEventFlagEVENT_V6ONLY), s.Local.Addr(), s.V6Only)
}

// addrConflict: may a socket not be bound to a because another is bound to b?
// The flags are IPV6_V6ONLY of each. A connected socket's b is its own address.
func addrConflict(a netip.Addr, aV6Only bool, b netip.Addr, bV6Only bool) bool {
	switch {
	case a.Is4() == b.Is4():
		return a == b || a.IsUnspecified() || b.IsUnspecified()
	case a.Is4(): // 0.0.0.0 meets connected IPv6 sockets too
		return !bV6Only && (a.IsUnspecified() || b.IsUnspecified())
	default: // but one IPv6 address does not meet 0.0.0.0
		return !aV6Only && a.IsUnspecified()
	}
}
