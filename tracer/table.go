package tracer

import (
	"iter"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Table is the live port-to-process map. One goroutine writes it (Apply,
// Reconcile); any number may read, and get copies. It knows no kernel and no
// clock. It keeps the memory of the most sockets there ever were for others to come:
// some 160 bytes each.
type Table struct {
	mu     sync.Mutex         // not RWMutex, which takes the writer twice as long
	rows   slab[row]          // the first is none: its index means that there is no row
	byID   map[uint64]uint32  // by address of the kernel's struct sock
	byPort [1 << 16]uint32    // first row of each local port, linked by next
	byPeer [1 << 16]uint32    // the same of rows that had a peer when they were added
	free   uint32             // first row to use again, linked by next
	procs  processes          // owners and holders
	groups groups             // processes that hold sockets together
	more   map[uint64][]owned // holders after the first, by id
	loaded bool               // a snapshot has been merged
	left   map[uint64]left    // by address of the timewait sock; nil: not kept
	// closed tells when sockets were closed, since Expect; nil: no snapshot is expected.
	closed map[uint64]uint64
	// doubt: a snapshot and the events before it contradict each other.
	doubt bool
	// changes counts what the writer has done, so that it can tell whether that was anything.
	changes uint64
	// missed are the closes of sockets that were found to be gone, for the writer to take.
	missed []Event
	// zero is the wall-clock time of CLOCK_BOOTTIME zero, as events have it: how long a port
	// is held does not depend on who sets the clock meanwhile.
	zero int64
}

// left is who left a socket in TIME_WAIT.
type left struct {
	stamp uint64   // CLOCK_BOOTTIME of the event, nanoseconds
	addr  [16]byte // local
	port  uint16   // local
	found bool     // by the snapshot that is being merged
	owner uint32   // in procs
}

// maxLeft bounds how many sockets in TIME_WAIT are remembered.
const maxLeft = 1 << 16

// row is a Socket as it is kept: without pointers (see slab), a third of its size.
type row struct {
	id    uint64
	stamp uint64
	since uint64 // CLOCK_BOOTTIME, nanoseconds; 0: not known
	inode uint64
	flow  bpfFlow // no remote port: no peer
	uid   uint32
	owner uint32 // in procs
	first owned  // the first holder, or some together

	unlisted uint32 // holders that there was no room for

	next, prev uint32 // rows of the same local port; prev is noRow of a row to use again

	ended     uint16 // errno of why the connection ended, while the socket keeps its port
	proto     Proto
	state     State
	role      Role
	origin    Origin
	mptcp     bool
	v6Only    bool
	reuseAddr bool
	reusePort bool
	attached  bool
	timeWait  bool // as ended: a TIME_WAIT was left
	initial   bool // from the first snapshot, no event since
	missing   bool // the last snapshot did not have it, and no event since
	shared    bool // there are more holders
	peered    bool // linked by Table.byPeer
	closed    bool // a close was told, and a snapshot had it later: one came between the word and the deed
	told      told
}

// owned is a descriptor and who has it; by nobody is none.
type owned struct {
	by uint32 // a process in procs, or with groupBit some in groups
	fd uint32 // with ringBit that of an io_uring
}

const (
	groupBit = 1 << 31
	ringBit  = 1 << 31 // descriptors are smaller: fs.nr_open is
)

// told is how much the snapshot that is being merged has told of a row.
type told uint8

const (
	toldNothing told = iota
	toldState        // that it is there: its holders are those of the snapshot before
	toldHolders
)

const noRow = ^uint32(0)

// NewTable returns an empty table.
func NewTable() *Table {
	t := &Table{byID: make(map[uint64]uint32), procs: newProcesses(), more: make(map[uint64][]owned)}
	t.rows.grow()
	return t
}

// row returns the row of a socket, nil: there is none.
func (t *Table) row(id uint64) *row {
	if i := t.byID[id]; i != 0 {
		return t.rows.at(i)
	}
	return nil
}

// Apply takes one event, in kernel order, and completes it with what the table
// knows: the owner of a closed socket, how long it held its port. It reports
// whether the event is news; if not it is a repetition, or about a socket no
// process ever had, and must not be published. It allocates only for sockets
// beyond the most there ever were.
func (t *Table) Apply(ev *Event) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.zero = ev.Time.UnixNano() - int64(ev.boot)
	r := t.row(ev.sock)
	if ev.Errno == 0 || isShort(ev.Type) {
		t.changes++
	}
	if t.closed != nil && ev.Type == EventClose {
		t.closed[ev.sock] = ev.boot
	}
	if r != nil && r.initial && ev.boot <= r.stamp {
		switch flow := ev.flow(); {
		case ev.Type == EventClose || ev.Type == eventDown:
			t.doubt = true // of a socket before, or the snapshot came between the word and the deed
		case !r.reused(&flow):
			t.adopt(r, ev)
		}
		return false // the snapshot has told it already
	}
	if first := t.row(ev.first); ev.first != 0 && first != nil {
		ev.Process = t.owner(first)
	}
	if r != nil && r.contradicts(ev) {
		t.miss(r, ev.boot) // its close was lost; of this one there is no word but that
		return false
	}
	switch ev.Type {
	case EventClose:
		return t.applyClose(r, ev)
	case eventDown:
		if r != nil {
			t.leave(r, ev)
			r.ended, r.timeWait = uint16(ev.Errno), ev.TimeWait
			r.unpeer(ev.boot)
		}
		return false
	case eventUnpeer:
		if r != nil {
			r.unpeer(ev.boot)
		}
		return false
	case EventEstablished:
		return t.applyEstablished(r, ev)
	}
	if ev.Errno != 0 {
		return true // refused: all is as before
	}
	return t.applyTaken(r, ev)
}

// applyTaken: bind, listen, connect or accept gave the socket a port or a role.
func (t *Table) applyTaken(r *row, ev *Event) bool {
	flow := ev.flow()
	if r != nil && r.reused(&flow) {
		t.miss(r, ev.boot)
		r = nil
	}
	if r != nil && ev.Type == EventAccept && r.sameRemote(&flow) && t.accepted(r, ev) {
		return false
	}
	if r != nil && ev.Type == EventBind && ev.Proto == UDP && ev.Implicit {
		return false // the first datagram after connect() or the start of porthole
	}
	if r != nil && r.stamp > ev.boot {
		t.adopt(r, ev) // a later snapshot knows its state better
		return true
	}
	if r == nil {
		r = t.add(ev.sock, &flow)
		r.origin, r.uid = OriginObserved, ev.Process.UID
	}
	t.adopt(r, ev)
	r.proto, r.mptcp, r.flow, r.stamp = ev.Proto, ev.MPTCP, flow, ev.boot
	r.initial, r.missing, r.closed = false, false, false
	r.ended, r.timeWait = 0, false // of an earlier connection
	// Only these two tell the options.
	if ev.Type == EventBind || ev.Type == EventListen {
		r.v6Only = ev.flags&uint8(bpfEventFlagEVENT_V6ONLY) != 0
		r.reuseAddr = ev.flags&uint8(bpfEventFlagEVENT_REUSEADDR) != 0
		r.reusePort = ev.flags&uint8(bpfEventFlagEVENT_REUSEPORT) != 0
	}
	switch {
	case ev.Type == EventBind:
		r.state, r.role = StateUnconn, RoleBound
	case ev.Type == EventListen:
		r.state, r.role = StateListen, RoleListener
	case ev.Type == EventAccept:
		r.state, r.role = StateEstablished, RoleServer
	case ev.Proto == UDP:
		r.state, r.role = StateEstablished, RoleClient
	default:
		r.state, r.role = StateSynSent, RoleClient
	}
	return true
}

// accepted tells whether the accept of a connection is known: it was told, or was before
// porthole looked. A holder alone does not mean that: a snapshot may have seen the
// descriptor before accept() returned.
func (t *Table) accepted(r *row, ev *Event) bool {
	maybe := ev.flags&uint8(bpfEventFlagEVENT_MAYBE) != 0
	return t.procs.at(r.owner).PID != 0 || (maybe || r.initial) && r.first.by != 0 && r.stamp < ev.boot
}

// reused tells whether word of these ends is about another socket, that has the
// row's address now. An accepted connection never changes its peer.
func (r *row) reused(flow *bpfFlow) bool {
	return r.flow.LocalPort != flow.LocalPort || r.role == RoleServer && flow.RemotePort != 0 && !r.sameRemote(flow)
}

func (r *row) sameRemote(flow *bpfFlow) bool {
	return r.flow.RemotePort == flow.RemotePort && r.flow.RemoteIp == flow.RemoteIp
}

func (r *row) sameLocal(flow *bpfFlow) bool {
	return r.flow.LocalPort == flow.LocalPort && r.flow.LocalIp == flow.LocalIp
}

// waits tells whether the socket is a connection in an accept queue: no process has or
// had it. One that a process closed is past these states.
func (r *row) waits() bool {
	return r.role == RoleOrphan && r.owner == 0 && r.first.by == 0 &&
		(r.state == StateEstablished || r.state == StateCloseWait || r.state == StateSynRecv)
}

// contradicts tells whether word of the end of a connection, or of a socket, is about
// another one, whose beginning was lost. It tells the port at most, and no peer.
func (r *row) contradicts(ev *Event) bool {
	if !isShort(ev.Type) || r.stamp > ev.boot {
		return false
	}
	port := ev.Local.Port()
	return r.proto != ev.Proto || port != 0 && port != r.flow.LocalPort || r.role == RoleListener && ev.tw != 0
}

// unpeer: the socket keeps its port and nothing else.
func (r *row) unpeer(stamp uint64) {
	r.state, r.role, r.stamp = StateUnconn, RoleBound, stamp
	r.flow.RemoteIp, r.flow.RemotePort = [16]byte{}, 0
}

// reusedBy is reused of a socket of a snapshot, which may have the same ends: a service
// that was started again while events were lost.
func (r *row) reusedBy(flow *bpfFlow, inode uint64) bool {
	return r.reused(flow) || r.inode != 0 && inode != 0 && r.inode != inode
}

// adopt keeps who acted, and since when.
func (t *Table) adopt(r *row, ev *Event) {
	if ev.Process.PID == 0 || ev.Errno != 0 {
		return
	}
	t.setOwner(r, &ev.Process)
	if r.since == 0 {
		r.since = ev.boot
	}
}

func (t *Table) setOwner(r *row, p *Process) {
	before := r.owner
	r.owner = t.procs.use(p)
	t.procs.drop(before)
}

func (t *Table) applyEstablished(r *row, ev *Event) bool {
	if r == nil {
		return true // a connection no process has accepted yet
	}
	ev.Process = t.owner(r)
	if r.role == RoleClient && r.since != 0 && r.state == StateSynSent {
		ev.Duration = time.Duration(ev.boot - r.since)
	}
	if r.stamp <= ev.boot {
		r.state, r.stamp, r.missing = StateEstablished, ev.boot, false
	}
	return true
}

func (t *Table) applyClose(r *row, ev *Event) bool {
	if r == nil || r.stamp > ev.boot {
		return false // never accepted, reported already, or the address is a newer socket's
	}
	if r.waits() {
		t.remove(r)
		return false
	}
	t.fillClose(r, ev)
	t.leave(r, ev)
	t.remove(r)
	return true
}

// miss removes a socket whose close was not seen: a loss, or a kernel that does not run the
// hook. That it is gone is known since a time of CLOCK_BOOTTIME.
func (t *Table) miss(r *row, known uint64) {
	if !r.waits() && !r.closed {
		ev := Event{Type: EventClose, Proto: r.proto, About: true, Time: t.wall(known), boot: known, sock: r.id}
		t.fillClose(r, &ev)
		t.missed = append(t.missed, ev)
	}
	t.remove(r)
}

// fillClose adds what is known of a socket to its close.
func (t *Table) fillClose(r *row, ev *Event) {
	ev.Process = t.owner(r)
	ev.Local, ev.MPTCP = addrPort(r.flow.LocalIp, r.flow.LocalPort), r.mptcp
	ev.NetNS, ev.NetNSCookie, ev.Device, ev.V6Only = r.flow.Netns, r.flow.NetnsCookie, r.flow.Dev, r.v6Only
	if remote := peer(r.flow.RemoteIp, r.flow.RemotePort); remote.IsValid() {
		ev.Remote = remote
	}
	if r.role == RoleBound || r.role == RoleListener {
		ev.Remote = netip.AddrPort{}
	}
	if ev.Errno == 0 {
		ev.Errno = syscall.Errno(r.ended)
	}
	ev.TimeWait = ev.TimeWait || r.timeWait
	if r.since != 0 {
		ev.Duration = time.Duration(ev.boot - min(ev.boot, r.since))
	}
}

// setZero is for where there was no event since the clock was set.
func (t *Table) setZero(zero int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.zero = zero
}

// wall is the wall-clock time of a time of CLOCK_BOOTTIME; 0 is the zero time.
func (t *Table) wall(boot uint64) time.Time {
	if boot == 0 {
		return time.Time{}
	}
	return time.Unix(0, t.zero+int64(boot))
}

// leave remembers who left a timewait sock, while there is room.
func (t *Table) leave(r *row, ev *Event) {
	if t.left == nil || ev.tw == 0 || len(t.left) >= maxLeft {
		return
	}
	owner := t.owner(r)
	before := t.left[ev.tw].owner
	t.left[ev.tw] = left{stamp: ev.boot, addr: r.flow.LocalIp, port: r.flow.LocalPort, owner: t.procs.use(&owner)}
	t.procs.drop(before)
}

// owner is the process that acted on the socket, or else its first holder.
func (t *Table) owner(r *row) Process {
	if r.owner != 0 {
		return t.procs.at(r.owner)
	}
	if by := r.first.by; by&groupBit != 0 {
		return t.procs.at(t.groups.list[by&^groupBit].procs[0])
	}
	return t.procs.at(r.first.by)
}

func (t *Table) add(id uint64, flow *bpfFlow) *row {
	i := t.free
	if i == 0 {
		i = t.rows.grow()
	} else {
		t.free = t.rows.at(i).next
	}
	r := t.rows.at(i)
	*r = row{id: id, flow: *flow, peered: flow.RemotePort != 0}
	first := t.head(r)
	r.next = *first
	if r.next != 0 {
		t.rows.at(r.next).prev = i
	}
	*first = i
	t.byID[id] = i
	return r
}

func (t *Table) remove(r *row) {
	t.procs.drop(r.owner)
	t.dropHolders(r)
	delete(t.byID, r.id)
	link := t.head(r) // what links to the row
	if r.prev != 0 {
		link = &t.rows.at(r.prev).next
	}
	i := *link
	*link = r.next
	if r.next != 0 {
		t.rows.at(r.next).prev = r.prev
	}
	*r = row{next: t.free, prev: noRow}
	t.free = i
}

// all ranges over the rows in use.
func (t *Table) all() iter.Seq[*row] {
	return func(yield func(*row) bool) {
		for i := 1; i < t.rows.len; i++ {
			if r := t.rows.at(uint32(i)); r.prev != noRow && !yield(r) {
				return
			}
		}
	}
}

// head is the first row of those that a row is linked with.
func (t *Table) head(r *row) *uint32 {
	if r.peered {
		return &t.byPeer[r.flow.LocalPort]
	}
	return &t.byPort[r.flow.LocalPort]
}

// onPort ranges over the rows of a local port, first those that had no peer when they were
// added: a listener's connections may be very many.
func (t *Table) onPort(port uint16) iter.Seq[*row] {
	return func(yield func(*row) bool) {
		for _, first := range []uint32{t.byPort[port], t.byPeer[port]} {
			for i := first; i != 0; i = t.rows.at(i).next {
				if !yield(t.rows.at(i)) {
					return
				}
			}
		}
	}
}
