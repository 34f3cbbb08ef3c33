package tracer

import (
	"iter"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Table is the live map of every socket that has a port, to be read by any number of
// goroutines, which get copies; the one that runs Run writes it. It knows no kernel and no
// clock. Its memory does not shrink: some 160 bytes for each of the most sockets there ever
// were.
type Table struct {
	mu        sync.Mutex          // not RWMutex, which takes the writer twice as long
	entries   slab[entry]         // the first is none: its index means that there is no entry
	byID      map[uint64]uint32   // by address of the kernel's struct sock
	byPort    [1 << 16]uint32     // first entry of each local port, linked by next
	byPeer    [1 << 16]uint32     // the same of entries that had a peer when they were added
	free      uint32              // first entry to use again, linked by next
	procs     processes           // owners and holders
	groups    groups              // processes that hold sockets together
	more      map[uint64][]owned  // holders after the first, by id
	backlogs  map[uint64]Backlog  // of listeners, by id, as the last comparison found them
	loaded    bool                // a snapshot has been merged
	timeWaits map[uint64]timeWait // by address of the timewait sock; nil: not kept
	// closed tells when sockets were closed, since expect; nil: no snapshot is expected.
	closed map[uint64]uint64
	// doubt: a snapshot and the events before it contradict each other.
	doubt bool
	// changes counts what the writer has done, so that it can tell whether that was anything.
	changes uint64
	// unseen are the closes of sockets that were found to be gone, for the writer to take.
	unseen []Event
	// zero is the wall-clock time of CLOCK_BOOTTIME zero, as events have it: how long a port
	// is held does not depend on who sets the clock meanwhile.
	zero int64
}

// timeWait is who left a socket in TIME_WAIT.
type timeWait struct {
	stamp uint64   // CLOCK_BOOTTIME of the event, nanoseconds
	addr  [16]byte // local
	port  uint16   // local
	found bool     // by the snapshot that is being merged
	owner uint32   // in procs
}

// maxTimeWaits bounds how many sockets in TIME_WAIT are remembered.
const maxTimeWaits = 1 << 16

// entry is a Socket as it is kept: without pointers (see slab), a third of its size.
type entry struct {
	id    uint64
	stamp uint64
	since uint64 // CLOCK_BOOTTIME, nanoseconds; 0: not known
	inode uint64
	flow  bpfFlow // no remote port: no peer
	uid   uint32
	owner uint32 // in procs
	first owned  // the first holder, or some together

	unlisted uint32 // holders that there was no room for

	next, prev uint32 // entries of the same local port; prev is noEntry of one to use again

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
	closed    bool // a close was published, and a snapshot had it later: one came between the word and the deed
	asked     bool // a bind() gave it its port
	fixed     bool // UDP: as Socket.FixedPort; TCP: it listened until it went down, and no event has told so
	merged    merged
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

// merged is how much the snapshot that is being merged has of an entry.
type merged uint8

const (
	mergedNothing merged = iota
	mergedState          // that it is there: its holders are those of the snapshot before
	mergedHolders
)

const noEntry = ^uint32(0)

// newTable returns an empty table.
func newTable() *Table {
	t := &Table{byID: make(map[uint64]uint32), procs: newProcesses(), more: make(map[uint64][]owned), backlogs: make(map[uint64]Backlog)}
	t.entries.grow()
	return t
}

// entry returns the entry of a socket, nil: there is none.
func (t *Table) entry(id uint64) *entry {
	if i := t.byID[id]; i != 0 {
		return t.entries.at(i)
	}
	return nil
}

// apply takes one event, in kernel order, and completes it with what the table
// knows: the owner of a closed socket, how long it held its port. It reports
// whether the event is news; if not it is a repetition, or about a socket no
// process ever had, and must not be published. It allocates only for sockets
// beyond the most there ever were.
func (t *Table) apply(ev *Event) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.zero = ev.Time.UnixNano() - int64(ev.boot)
	e := t.entry(ev.sock)
	if ev.Errno == 0 || isShort(ev.Type) {
		t.changes++
	}
	if t.closed != nil && ev.Type == EventClose {
		t.closed[ev.sock] = ev.boot
	}
	if e != nil && e.initial && ev.boot <= e.stamp {
		switch flow := ev.flow(); {
		case ev.Type == EventClose || ev.Type == eventDown:
			t.doubt = true // of a socket before, or the snapshot came between the word and the deed
		case !e.reused(&flow):
			t.adopt(e, ev)
		}
		return false // the snapshot has told it already
	}
	if first := t.entry(ev.first); ev.first != 0 && first != nil {
		ev.Process = t.owner(first)
	}
	if e != nil && e.contradicts(ev) {
		t.removeUnseen(e, ev.boot) // its close was lost; of this one there is no word but that
		return false
	}
	switch ev.Type {
	case EventClose:
		return t.applyClose(e, ev)
	case eventDown:
		if e != nil {
			t.leave(e, ev)
			e.ended, e.timeWait = uint16(ev.Errno), ev.TimeWait
			listened := e.role == RoleListener
			e.unpeer(ev.boot)
			if listened && e.role != RoleListener {
				e.fixed = true
			}
		}
		return false
	case eventUnpeer:
		if e != nil {
			e.unpeer(ev.boot)
		}
		return false
	case EventEstablished:
		return t.applyEstablished(e, ev)
	}
	if ev.Errno != 0 {
		return true // refused: all is as before
	}
	return t.applyTaken(e, ev)
}

// applyTaken: bind, listen, connect or accept gave the socket a port or a role.
func (t *Table) applyTaken(e *entry, ev *Event) bool {
	flow := ev.flow()
	if e != nil && e.reused(&flow) {
		t.removeUnseen(e, ev.boot)
		e = nil
	}
	if e != nil && ev.Type == EventAccept && e.sameRemote(&flow) && t.accepted(e, ev) {
		return false
	}
	if e != nil && ev.Type == EventBind && ev.Proto == UDP && ev.Implicit {
		return false // the first datagram after connect() or the start of porthole
	}
	if e != nil && e.stamp > ev.boot {
		t.adopt(e, ev) // a later snapshot knows its state better
		e.tell(ev)
		return true
	}
	if e == nil {
		e = t.add(ev.sock, &flow)
		e.origin, e.uid = OriginObserved, ev.Process.UID
	}
	listened := e.listens() || e.stopped()
	if e.stopped() {
		e.fixed = false
	}
	t.adopt(e, ev)
	e.proto, e.mptcp, e.flow, e.stamp = ev.Proto, ev.MPTCP, flow, ev.boot
	e.initial, e.missing, e.closed = false, false, false
	e.ended, e.timeWait = 0, false // of an earlier connection
	// Only these two tell the options.
	if ev.Type == EventBind || ev.Type == EventListen {
		e.v6Only = ev.flags&uint8(bpfEventFlagEVENT_V6ONLY) != 0
		e.reuseAddr = ev.flags&uint8(bpfEventFlagEVENT_REUSEADDR) != 0
		e.reusePort = ev.flags&uint8(bpfEventFlagEVENT_REUSEPORT) != 0
	}
	switch {
	case ev.Type == EventBind:
		e.state, e.role = StateUnconn, RoleBound
	case ev.Type == EventListen:
		e.state, e.role = StateListen, RoleListener
		delete(t.backlogs, e.id)
	case ev.Type == EventAccept:
		e.state, e.role = StateEstablished, RoleServer
	case ev.Proto == UDP:
		e.state, e.role = StateEstablished, RoleClient
	default:
		e.state, e.role = StateSynSent, RoleClient
	}
	if ev.Type == EventBind {
		e.asked = !ev.Implicit
		e.fixed = ev.Proto == UDP && ev.RequestedPort != 0
	}
	e.tell(ev)
	switch is := e.listens(); {
	case is && !listened:
		ev.change = 1
	case listened && !is:
		ev.change = -1
	}
	return true
}

func (e *entry) listens() bool { return listens(e.proto, e.role, e.fixed) }

// stopped tells whether it listened, and no event has told yet that it does no more.
func (e *entry) stopped() bool { return e.proto == TCP && e.fixed }

// tell adds to an event what is known of the socket.
func (e *entry) tell(ev *Event) {
	ev.role, ev.asked, ev.since = e.role, e.asked, e.since
}

// accepted tells whether the accept of a connection is known: it was told, or was before
// porthole looked. A holder alone does not mean that: a snapshot may have seen the
// descriptor before accept() returned.
func (t *Table) accepted(e *entry, ev *Event) bool {
	maybe := ev.flags&uint8(bpfEventFlagEVENT_MAYBE) != 0
	return t.procs.at(e.owner).PID != 0 || (maybe || e.initial) && e.first.by != 0 && e.stamp < ev.boot
}

// reused tells whether word of these ends is about another socket, that has the
// entry's address now. An accepted connection never changes its peer.
func (e *entry) reused(flow *bpfFlow) bool {
	return e.flow.LocalPort != flow.LocalPort || e.role == RoleServer && flow.RemotePort != 0 && !e.sameRemote(flow)
}

func (e *entry) sameRemote(flow *bpfFlow) bool {
	return e.flow.RemotePort == flow.RemotePort && e.flow.RemoteIp == flow.RemoteIp
}

func (e *entry) sameLocal(flow *bpfFlow) bool {
	return e.flow.LocalPort == flow.LocalPort && e.flow.LocalIp == flow.LocalIp
}

// waits tells whether the socket is a connection in an accept queue: no process has or
// had it. One that a process closed is past these states.
func (e *entry) waits() bool {
	return e.role == RoleOrphan && e.owner == 0 && e.first.by == 0 &&
		(e.state == StateEstablished || e.state == StateCloseWait || e.state == StateSynRecv)
}

// contradicts tells whether word of the end of a connection, or of a socket, is about
// another one, whose beginning was lost. It tells the port at most, and no peer.
func (e *entry) contradicts(ev *Event) bool {
	if !isShort(ev.Type) || e.stamp > ev.boot {
		return false
	}
	port := ev.Local.Port()
	return e.proto != ev.Proto || port != 0 && port != e.flow.LocalPort || e.role == RoleListener && ev.tw != 0
}

// unpeer: the socket keeps its port and nothing else.
func (e *entry) unpeer(stamp uint64) {
	e.state, e.role, e.stamp = StateUnconn, RoleBound, stamp
	e.flow.RemoteIp, e.flow.RemotePort = [16]byte{}, 0
}

// reusedBy is reused of a socket of a snapshot, which may have the same ends: a service
// that was started again while events were lost.
func (e *entry) reusedBy(flow *bpfFlow, inode uint64) bool {
	return e.reused(flow) || e.inode != 0 && inode != 0 && e.inode != inode
}

// adopt keeps who acted, and since when.
func (t *Table) adopt(e *entry, ev *Event) {
	if ev.Process.PID == 0 || ev.Errno != 0 {
		return
	}
	t.setOwner(e, &ev.Process)
	if e.since == 0 {
		e.since = ev.boot
	}
}

func (t *Table) setOwner(e *entry, p *Process) {
	before := e.owner
	e.owner = t.procs.use(p)
	t.procs.drop(before)
}

func (t *Table) applyEstablished(e *entry, ev *Event) bool {
	if e == nil {
		return true // a connection no process has accepted yet
	}
	ev.Process = t.owner(e)
	if e.role == RoleClient && e.since != 0 && e.state == StateSynSent {
		ev.Duration = time.Duration(ev.boot - e.since)
	}
	if e.stamp <= ev.boot {
		e.state, e.stamp, e.missing = StateEstablished, ev.boot, false
	}
	return true
}

func (t *Table) applyClose(e *entry, ev *Event) bool {
	if e == nil || e.stamp > ev.boot {
		return false // never accepted, reported already, or the address is a newer socket's
	}
	if e.waits() {
		t.remove(e)
		return false
	}
	t.fillClose(e, ev)
	t.leave(e, ev)
	t.remove(e)
	return true
}

// removeUnseen removes a socket whose close was not seen: a loss, or a kernel that does not run the
// hook. That it is gone is known since a time of CLOCK_BOOTTIME.
func (t *Table) removeUnseen(e *entry, known uint64) {
	if !e.waits() && !e.closed {
		ev := Event{Type: EventClose, Proto: e.proto, About: true, Time: t.wall(known), boot: known, sock: e.id}
		t.fillClose(e, &ev)
		t.unseen = append(t.unseen, ev)
	}
	t.remove(e)
}

// fillClose adds what is known of a socket to its close.
func (t *Table) fillClose(e *entry, ev *Event) {
	ev.Process = t.owner(e)
	e.tell(ev)
	if e.listens() || e.stopped() {
		ev.change = -1
	}
	ev.Local, ev.MPTCP = addrPort(e.flow.LocalIp, e.flow.LocalPort), e.mptcp
	ev.NetNS, ev.NetNSCookie, ev.Device, ev.V6Only = e.flow.Netns, e.flow.NetnsCookie, e.flow.Dev, e.v6Only
	if remote := peer(e.flow.RemoteIp, e.flow.RemotePort); remote.IsValid() {
		ev.Remote = remote
	}
	if e.role == RoleBound || e.role == RoleListener {
		ev.Remote = netip.AddrPort{}
	}
	if ev.Errno == 0 {
		ev.Errno = syscall.Errno(e.ended)
	}
	ev.TimeWait = ev.TimeWait || e.timeWait
	if e.since != 0 {
		ev.Duration = time.Duration(ev.boot - min(ev.boot, e.since))
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
func (t *Table) leave(e *entry, ev *Event) {
	if t.timeWaits == nil || ev.tw == 0 || len(t.timeWaits) >= maxTimeWaits {
		return
	}
	owner := t.owner(e)
	before := t.timeWaits[ev.tw].owner
	t.timeWaits[ev.tw] = timeWait{stamp: ev.boot, addr: e.flow.LocalIp, port: e.flow.LocalPort, owner: t.procs.use(&owner)}
	t.procs.drop(before)
}

// owner is the process that acted on the socket, or else its first holder.
func (t *Table) owner(e *entry) Process {
	if e.owner != 0 {
		return t.procs.at(e.owner)
	}
	if by := e.first.by; by&groupBit != 0 {
		return t.procs.at(t.groups.list[by&^groupBit].procs[0])
	}
	return t.procs.at(e.first.by)
}

func (t *Table) add(id uint64, flow *bpfFlow) *entry {
	i := t.free
	if i == 0 {
		i = t.entries.grow()
	} else {
		t.free = t.entries.at(i).next
	}
	e := t.entries.at(i)
	*e = entry{id: id, flow: *flow, peered: flow.RemotePort != 0}
	first := t.head(e)
	e.next = *first
	if e.next != 0 {
		t.entries.at(e.next).prev = i
	}
	*first = i
	t.byID[id] = i
	return e
}

func (t *Table) remove(e *entry) {
	t.procs.drop(e.owner)
	t.dropHolders(e)
	delete(t.byID, e.id)
	if e.role == RoleListener || e.stopped() {
		delete(t.backlogs, e.id)
	}
	link := t.head(e) // what links to the entry
	if e.prev != 0 {
		link = &t.entries.at(e.prev).next
	}
	i := *link
	*link = e.next
	if e.next != 0 {
		t.entries.at(e.next).prev = e.prev
	}
	*e = entry{next: t.free, prev: noEntry}
	t.free = i
}

// all ranges over the entries in use.
func (t *Table) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for i := 1; i < t.entries.len; i++ {
			if e := t.entries.at(uint32(i)); e.prev != noEntry && !yield(e) {
				return
			}
		}
	}
}

// head is the first entry of those that an entry is linked with.
func (t *Table) head(e *entry) *uint32 {
	if e.peered {
		return &t.byPeer[e.flow.LocalPort]
	}
	return &t.byPort[e.flow.LocalPort]
}

// onPort ranges over the entries of a local port, first those that had no peer when they were
// added: a listener's connections may be very many.
func (t *Table) onPort(port uint16) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for _, first := range []uint32{t.byPort[port], t.byPeer[port]} {
			for i := first; i != 0; i = t.entries.at(i).next {
				if !yield(t.entries.at(i)) {
					return
				}
			}
		}
	}
}
