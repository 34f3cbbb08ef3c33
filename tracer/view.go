package tracer

// completeAll adds to the sockets of a snapshot what events told: Owner, Since, Origin;
// of TIME_WAIT who left it.
func (t *Table) completeAll(snap *Snapshot) {
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
	} else if e := t.entry(s.id); e != nil && !e.reusedBy(&flow, s.Inode) {
		s.Owner, s.Since, s.Origin = t.procs.at(e.owner), t.wall(e.since), e.origin
		s.late = e.stamp > s.stamp
	}
}

// Count is how many sockets of a local port are in the table; port 0 means all.
func (t *Table) Count(port uint16) (n int) {
	if port == 0 {
		return t.Len()
	}
	for at, more := 0, true; more; more = at != 0 {
		at = t.part(port, at, func(*entry) { n++ })
	}
	return n
}

// completeRows is completeAll of sockets that are not made yet.
func (t *Table) completeRows(r *Rows) {
	r.known, r.owners = make([]known, r.Len()), make([]Process, 1)
	number := map[Process]uint32{{}: 0}
	for from := 0; from < r.Len(); from += readAtOnce {
		t.mu.Lock()
		for i := from; i < min(from+readAtOnce, r.Len()); i++ {
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

// lastOwners adds to those rows that have no users who had the socket last, where that was
// observed.
func (t *Table) lastOwners(users [][]Process, rows []bpfRow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range rows {
		if len(users[i]) > 0 {
			continue
		}
		if owner := t.knownOwner(rows[i].Sock, &rows[i].Flow); owner.PID != 0 {
			users[i] = []Process{owner}
		}
	}
}

// knownOwner is who bound, connected, accepted or left in TIME_WAIT the socket of
// this address and this local end; PID 0: not known.
func (t *Table) knownOwner(id uint64, flow *bpfFlow) Process {
	if e := t.entry(id); e != nil && e.sameLocal(flow) {
		return t.owner(e)
	}
	if l, ok := t.timeWaits[id]; ok && l.port == flow.LocalPort && l.addr == flow.LocalIp {
		return t.procs.at(l.owner)
	}
	return Process{}
}

// socket is what is known of a socket but its holders.
func (t *Table) socket(e *entry) Socket {
	var backlog Backlog
	if e.role == RoleListener {
		backlog = t.backlogs[e.id]
	}
	return Socket{
		Proto: e.proto, State: e.state, Role: e.role,
		Local: addrPort(e.flow.LocalIp, e.flow.LocalPort), Remote: peer(e.flow.RemoteIp, e.flow.RemotePort),
		NetNS: e.flow.Netns, NetNSCookie: e.flow.NetnsCookie, Device: e.flow.Dev,
		Inode: e.inode, UID: e.uid, MPTCP: e.mptcp, V6Only: e.v6Only, ReuseAddr: e.reuseAddr, ReusePort: e.reusePort,
		FixedPort: e.fixed && e.proto == UDP, Backlog: backlog,
		Owner: t.procs.at(e.owner), Since: t.wall(e.since), Origin: e.origin,
		id: e.id, attached: e.attached, stamp: e.stamp, asked: e.asked, taken: e.since,
	}
}

// maxTableHolders is how many holders of a socket readers of the table get.
const maxTableHolders = 64

// holders appends the first holders of a socket; more is how many others there are.
func (t *Table) holders(e *entry, to []Holder, max int) (holders []Holder, more int) {
	to, more = t.holdersBy(e.first, to, max)
	more += int(e.unlisted)
	if e.shared {
		for _, h := range t.more[e.id] {
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

// readAtOnce is how many entries are looked at before the writer gets the table: as long as
// that takes an event waits for those who read.
const readAtOnce = 512

// part calls f with some entries of a local port or, if that is 0, of all, with the table
// locked, and returns the place to go on from; 0: that was the last part. The first is from
// place 0. An entry that is there all the time is in one part, one that comes or goes
// meanwhile may be.
func (t *Table) part(port uint16, from int, f func(*entry)) (next int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if from == 0 {
		if port != 0 && t.few(port) {
			for e := range t.onPort(port) {
				f(e)
			}
			return 0
		}
		from = 1
	}
	next = min(from+readAtOnce, t.entries.len)
	for i := from; i < next; i++ {
		if e := t.entries.at(uint32(i)); e.prev != noEntry && (port == 0 || e.flow.LocalPort == port) {
			f(e)
		}
	}
	if next == t.entries.len {
		return 0
	}
	return next
}

// few tells whether the entries of a local port are so few that they are one part. Of more, the
// one to go on from may be gone, or another's, by the time the table is locked again.
func (t *Table) few(port uint16) bool {
	n := 0
	for range t.onPort(port) {
		if n++; n > readAtOnce {
			return false
		}
	}
	return true
}

// copied is the sockets of a part of the table, and their holders.
type copied struct {
	sockets []Socket
	holders []Holder
}

func (c *copied) add(t *Table, e *entry) {
	s := t.socket(e)
	from := len(c.holders)
	c.holders, s.HoldersMore = t.holders(e, c.holders, from+maxTableHolders)
	if to := len(c.holders); to > from {
		s.Holders = c.holders[from:to:to]
	}
	c.sockets = append(c.sockets, s)
}

// read returns the sockets of a local port, or of all, in the order of SortSockets.
func (t *Table) read(port uint16) []Socket {
	n := t.Count(port)
	if n == 0 {
		return nil
	}
	out := make([]Socket, 0, n)
	some := copied{sockets: make([]Socket, 0, min(n, readAtOnce))}
	for at, more := 0, true; more; more = at != 0 {
		some.sockets = some.sockets[:0]
		some.holders = make([]Holder, 0, min(n, readAtOnce)) // for the usual case of a holder each
		at = t.part(port, at, func(e *entry) { some.add(t, e) })
		out = append(out, some.sockets...)
	}
	SortSockets(out)
	return out
}

// Port returns the sockets on a local port, listeners first; port 0 means all. One that is
// made or closed meanwhile may be among them or not; so it is with All and Each.
func (t *Table) Port(port uint16) []Socket { return t.read(port) }

// mostLooks bounds how many sockets on the port of a contested call are looked at: those
// without a peer come first, and all are in the way of most.
const mostLooks = 256

// inTheWay returns the first sockets on the port of a contested call that are in its way, at
// most max, and how many more were seen; but for who holds them.
func (t *Table) inTheWay(ev *Event, max int) (out []Socket, more int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	look := mostLooks
	for e := range t.onPort(ev.Local.Port()) {
		if look--; look < 0 {
			break
		}
		s := t.socket(e)
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
func (t *Table) All() []Socket { return t.read(0) }

// Each calls f with every socket, in no order. The socket and its holders are f's until it
// returns.
func (t *Table) Each(f func(*Socket)) {
	some := copied{sockets: make([]Socket, 0, readAtOnce)}
	for at, more := 0, true; more; more = at != 0 {
		some.sockets, some.holders = some.sockets[:0], some.holders[:0]
		at = t.part(0, at, func(e *entry) { some.add(t, e) })
		for i := range some.sockets {
			f(&some.sockets[i])
		}
	}
}

// Len returns the number of sockets.
func (t *Table) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}
