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

// maxTableHolders is how many holders of a socket readers of the table get.
const maxTableHolders = 64

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

// Expect tells that a snapshot is about to be taken. Every event older than it is to be
// applied before it is given to Reconcile.
func (t *Table) Expect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = make(map[uint64]uint64)
	for r := range t.all() {
		r.told = toldNothing // that of a snapshot that was not finished is void
	}
}

// Reconcile takes what a snapshot tells. Rows with newer events keep their state.
// A socket that the snapshot lacks stays until Settle, for its close may still be on
// its way.
func (t *Table) Reconcile(snap *Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range snap.Sockets {
		s := &snap.Sockets[i]
		t.merge(s)
		if r := t.row(s.id); r != nil && r.told != toldNothing {
			t.holdSnapshot(r, s.Holders)
		}
	}
	t.finish(snap.start)
}

// merge takes what a snapshot tells of one socket, but not who holds it. As for hold and
// finish, which go on from there, the caller has locked the table.
func (t *Table) merge(s *Socket) {
	t.changes++
	flow := s.flow()
	if s.Role == RoleTimeWait {
		if l, ok := t.left[s.id]; ok && l.port == flow.LocalPort && l.addr == flow.LocalIp {
			l.found = true
			t.left[s.id] = l
		}
		return // no event tells its end: only snapshots do
	}
	if s.State == StateSynRecv && !s.attached {
		return // nor that of this
	}
	r := t.row(s.id)
	if r != nil && r.stamp > s.stamp { // keep what the event said, take only who holds it
		if !r.reused(&flow) {
			r.inode, r.uid, r.told = s.Inode, s.UID, toldState
		}
		return
	}
	if r != nil && r.reusedBy(&flow, s.Inode) {
		t.miss(r, s.stamp)
		r = nil
	}
	told := false
	if r == nil {
		// Nobody is known to have the address since it was closed. Then either the open of
		// the next was lost, or the snapshot came before the socket was gone.
		if at, ok := t.closed[s.id]; ok {
			if at >= s.stamp || !s.attached {
				return
			}
			t.doubt, told = true, true
		}
		r = t.add(s.id, &flow)
		r.initial, r.origin = !t.loaded, s.Origin
		t.setOwner(r, &s.Owner)
		if !s.Since.IsZero() {
			r.since = uint64(s.Since.UnixNano() - t.zero)
		}
	}
	t.doubt = t.doubt || r.state == StateUnconn && s.State != StateUnconn
	r.flow, r.stamp, r.inode, r.uid = flow, s.stamp, s.Inode, s.UID
	r.proto, r.state, r.role, r.mptcp = s.Proto, s.State, s.Role, s.MPTCP
	r.v6Only, r.reuseAddr, r.reusePort, r.attached = s.V6Only, s.ReuseAddr, s.ReusePort, s.attached
	_, again := t.closed[s.id] // read twice
	r.missing, r.told, r.closed = false, toldState, told || r.closed && again
}

// holdSnapshot takes the holders of a socket that has been merged.
func (t *Table) holdSnapshot(r *row, holders []Holder) {
	for i := range holders {
		h := &holders[i]
		fd := h.FD
		if h.Ring {
			fd |= ringBit
		}
		t.hold(r, owned{t.procs.use(&h.Process), fd})
	}
}

// hold takes a holder of a socket that has been merged, with its use.
func (t *Table) hold(r *row, h owned) {
	if r.told == toldState {
		t.dropHolders(r)
		r.told = toldHolders
	}
	if r.first.by == 0 {
		r.first = h
		return
	}
	r.shared = true
	t.more[r.id] = append(t.more[r.id], h)
}

func (t *Table) dropHolders(r *row) {
	t.drop(r.first.by)
	r.first, r.unlisted = owned{}, 0
	if !r.shared {
		return
	}
	for _, h := range t.more[r.id] {
		t.drop(h.by)
	}
	delete(t.more, r.id)
	r.shared = false
}

// useAll returns the number of some processes, one of procs if it is one, and counts a use.
func (t *Table) useAll(processes iter.Seq[*Process]) uint32 {
	var numbers []uint32
	for p := range processes {
		numbers = append(numbers, t.procs.use(p))
	}
	if len(numbers) == 1 {
		return numbers[0]
	}
	return t.groups.add(numbers)
}

// use counts a use more of what useAll returned.
func (t *Table) use(by uint32) {
	if by&groupBit == 0 {
		t.procs.again(by)
		return
	}
	t.groups.list[by&^groupBit].uses++
}

// drop counts a use less.
func (t *Table) drop(by uint32) {
	if by&groupBit == 0 {
		t.procs.drop(by)
		return
	}
	for _, proc := range t.groups.drop(by) {
		t.procs.drop(proc)
	}
}

// finish ends a snapshot, begun at a time of CLOCK_BOOTTIME, whose sockets have been
// merged and whose holders are known.
func (t *Table) finish(start uint64) {
	t.loaded = true
	for r := range t.all() {
		r.missing = r.stamp < start
		if r.told == toldState {
			t.dropHolders(r)
		}
		r.told = toldNothing
	}
	t.closed = nil
	for tw, l := range t.left {
		if l.found {
			l.found = false
			t.left[tw] = l
		} else if l.stamp < start {
			t.procs.drop(l.owner)
			delete(t.left, tw)
		}
	}
	if t.left != nil && len(t.left) == 0 {
		t.left = make(map[uint64]left) // one that was large stays so
	}
}

// missing returns the sockets that the last snapshot lacked, but for who holds them.
func (t *Table) missing() []Socket {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Socket
	for r := range t.all() {
		if r.missing {
			out = append(out, t.socket(r))
		}
	}
	return out
}

// found tells that a socket is there, though the last snapshot lacked it.
func (t *Table) found(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.row(id); r != nil {
		r.missing = false
	}
}

// Settle removes what the last snapshot lacked. Call it when every event older than
// that has been applied, with the time of CLOCK_BOOTTIME since when those are known to be
// gone. False: the snapshot and those events contradict each other, so that only another
// snapshot can tell. It may have come between what a hook told and what the kernel then did.
func (t *Table) Settle(known uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes++
	for r := range t.all() {
		if r.missing {
			t.miss(r, known)
		}
	}
	sure := !t.doubt
	t.doubt = false
	return sure
}

// Complete adds to the sockets of a snapshot what events told: Owner, Since, Origin;
// of TIME_WAIT who left it.
func (t *Table) Complete(snap *Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range snap.Sockets {
		t.complete(&snap.Sockets[i])
	}
}

func (t *Table) complete(s *Socket) {
	flow := s.flow()
	if s.Role == RoleTimeWait {
		s.Owner = t.knownOwner(s.id, &flow)
	} else if r := t.row(s.id); r != nil && !r.reusedBy(&flow, s.Inode) {
		s.Owner, s.Since, s.Origin = t.procs.at(r.owner), t.wall(r.since), r.origin
		s.late = r.stamp > s.stamp
	}
}

// Count is how many sockets of a local port are in the table; port 0 means all.
func (t *Table) Count(port uint16) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if port == 0 {
		return len(t.byID)
	}
	for range t.onPort(port) {
		n++
	}
	return n
}

// completeBatch is how many rows are completed before others get the table.
const completeBatch = 512

// completeRows is Complete of sockets that are not made yet.
func (t *Table) completeRows(r *Rows) {
	r.known, r.owners = make([]known, r.Len()), make([]Process, 1)
	number := map[Process]uint32{{}: 0}
	for from := 0; from < r.Len(); from += completeBatch {
		t.mu.Lock()
		for i := from; i < min(from+completeBatch, r.Len()); i++ {
			s := socketOf(r.from.row(r.keys[i].at()))
			t.complete(&s)
			owner, ok := number[s.Owner]
			if !ok {
				owner = uint32(len(r.owners))
				number[s.Owner] = owner
				r.owners = append(r.owners, s.Owner)
			}
			r.known[i] = known{since: unixNano(s.Since), owner: owner, origin: s.Origin, late: s.late}
		}
		t.mu.Unlock()
	}
}

// knownOwner is who bound, connected, accepted or left in TIME_WAIT the socket of
// this address and this local end; PID 0: not known.
func (t *Table) knownOwner(id uint64, flow *bpfFlow) Process {
	if r := t.row(id); r != nil && r.sameLocal(flow) {
		return t.owner(r)
	}
	if l, ok := t.left[id]; ok && l.port == flow.LocalPort && l.addr == flow.LocalIp {
		return t.procs.at(l.owner)
	}
	return Process{}
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

// socket is what is known of a socket but its holders.
func (t *Table) socket(r *row) Socket {
	return Socket{
		Proto: r.proto, State: r.state, Role: r.role,
		Local: addrPort(r.flow.LocalIp, r.flow.LocalPort), Remote: peer(r.flow.RemoteIp, r.flow.RemotePort),
		NetNS: r.flow.Netns, NetNSCookie: r.flow.NetnsCookie, Device: r.flow.Dev,
		Inode: r.inode, UID: r.uid, MPTCP: r.mptcp, V6Only: r.v6Only, ReuseAddr: r.reuseAddr, ReusePort: r.reusePort,
		Owner: t.procs.at(r.owner), Since: t.wall(r.since), Origin: r.origin,
		id: r.id, attached: r.attached, stamp: r.stamp,
	}
}

// holders appends the first holders of a socket; more is how many others there are.
func (t *Table) holders(r *row, to []Holder, max int) (holders []Holder, more int) {
	to, more = t.holdersBy(r.first, to, max)
	more += int(r.unlisted)
	if r.shared {
		for _, h := range t.more[r.id] {
			n := 0
			to, n = t.holdersBy(h, to, max)
			more += n
		}
	}
	return to, more
}

// holdersBy appends those who have a descriptor, up to max holders.
func (t *Table) holdersBy(h owned, to []Holder, max int) (holders []Holder, more int) {
	if h.by == 0 {
		return to, 0
	}
	one := [1]uint32{h.by}
	procs := one[:]
	if h.by&groupBit != 0 {
		procs = t.groups.list[h.by&^groupBit].procs
	}
	room := min(max-len(to), len(procs))
	for _, proc := range procs[:room] {
		to = append(to, Holder{Process: t.procs.at(proc), FD: h.fd &^ ringBit, Ring: h.fd&ringBit != 0})
	}
	return to, len(procs) - room
}

// sockets makes n rows sockets, in the order of SortSockets.
func (t *Table) sockets(n int, rows iter.Seq[*row]) []Socket {
	if n == 0 {
		return nil
	}
	out := make([]Socket, 0, n)
	var holders []Holder
	for r := range rows {
		s := t.socket(r)
		if r.first.by != 0 {
			if holders == nil {
				holders = make([]Holder, 0, n) // one allocation for the usual case of a holder each
			}
			from := len(holders)
			holders, s.HoldersMore = t.holders(r, holders, from+maxTableHolders)
			s.Holders = holders[from:len(holders):len(holders)]
		}
		out = append(out, s)
	}
	SortSockets(out)
	return out
}

// Port returns the sockets on a local port, listeners first.
func (t *Table) Port(port uint16) []Socket {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for range t.onPort(port) {
		n++
	}
	return t.sockets(n, t.onPort(port))
}

// mostLooks bounds how many sockets on the port of a contested call are looked at: those
// without a peer come first, and all are in the way of most.
const mostLooks = 256

// inTheWay returns the first sockets on the port of a contested call that are in its way, at
// most max, and how many more were seen; but for who holds them.
func (t *Table) inTheWay(ev *Event, max int) (out []Socket, more int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	look := mostLooks
	for r := range t.onPort(ev.Local.Port()) {
		if look--; look < 0 {
			break
		}
		s := t.socket(r)
		switch {
		case !conflict(ev, &s):
		case len(out) == max:
			more++
		default:
			out = append(out, s)
		}
	}
	return out, more
}

// All returns every socket, ordered as SortSockets does.
func (t *Table) All() []Socket {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sockets(len(t.byID), t.all())
}

// Each calls f with every socket, in no order. The socket stays the table's: f must
// neither change nor keep it, nor call the table.
func (t *Table) Each(f func(*Socket)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var s Socket
	var holders []Holder
	for r := range t.all() {
		var more int
		holders, more = t.holders(r, holders[:0], maxTableHolders)
		s = t.socket(r)
		s.Holders, s.HoldersMore = holders, more
		f(&s)
	}
}

// Len returns the number of sockets.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}

// contested tells whether other sockets are what a call was refused for, so that conflict
// knows them: a bind to a certain port, a listen of a bound socket, a TCP connect from a
// port of the socket's own.
func (ev *Event) contested() bool {
	switch ev.Type {
	case EventBind:
		return ev.Errno == syscall.EADDRINUSE && ev.RequestedPort != 0
	case EventListen:
		return ev.Errno == syscall.EADDRINUSE && ev.Local.Port() != 0
	case EventConnect:
		return ev.pairTaken()
	}
	return false
}

// pairTaken tells whether a TCP connect found the pair of its ends taken: its socket had
// a port, so that it looked for none.
func (ev *Event) pairTaken() bool {
	return ev.Type == EventConnect && ev.Proto == TCP && ev.Errno == syscall.EADDRNOTAVAIL && ev.Local.Port() != 0
}

// inTheWay returns those of sockets that were in the way of a contested call.
func inTheWay(ev *Event, sockets []Socket) []Socket {
	var out []Socket
	for i := range sockets {
		if conflict(ev, &sockets[i]) {
			out = append(out, sockets[i])
		}
	}
	return out
}

// conflict tells whether a socket is in the way of a contested call. Of a bind or listen:
// inet_bind_conflict(), inet_rcv_saddr_equal() and udp_lib_lport_inuse() of the kernel; of
// a connect: __inet_check_established().
func conflict(ev *Event, s *Socket) bool {
	flag := func(f bpfEventFlag) bool { return ev.flags&uint8(f) != 0 }
	switch {
	case s.id == ev.sock || s.Proto != ev.Proto || s.NetNS != ev.NetNS || s.NetNSCookie != ev.NetNSCookie || s.Local.Port() != ev.Local.Port():
		return false
	case !sameDevice(ev.Device, s.Device):
		return false
	case ev.Type == EventConnect:
		return s.Local == ev.Local && s.Remote == ev.Remote && (s.Device == 0 || s.Device == ev.Device)
	case flag(bpfEventFlagEVENT_REUSEADDR) && s.ReuseAddr && (s.State != StateListen || s.Proto == UDP):
		return false
	case flag(bpfEventFlagEVENT_REUSEPORT) && s.ReusePort && (s.UID == ev.Process.UID || s.Role == RoleTimeWait):
		return false // of TIME_WAIT the kernel does not ask whose it was
	}
	return addrConflict(ev.Local.Addr(), flag(bpfEventFlagEVENT_V6ONLY), s.Local.Addr(), s.V6Only)
}

// sameDevice: may sockets that are bound to these devices meet? One that is bound to none
// meets all.
func sameDevice(a, b uint32) bool { return a == b || a == 0 || b == 0 }

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
