package tracer

import "iter"

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

// completeRows is completeAll of sockets that are not made yet.
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
	return Socket{
		Proto: e.proto, State: e.state, Role: e.role,
		Local: addrPort(e.flow.LocalIp, e.flow.LocalPort), Remote: peer(e.flow.RemoteIp, e.flow.RemotePort),
		NetNS: e.flow.Netns, NetNSCookie: e.flow.NetnsCookie, Device: e.flow.Dev,
		Inode: e.inode, UID: e.uid, MPTCP: e.mptcp, V6Only: e.v6Only, ReuseAddr: e.reuseAddr, ReusePort: e.reusePort,
		Owner: t.procs.at(e.owner), Since: t.wall(e.since), Origin: e.origin,
		id: e.id, attached: e.attached, stamp: e.stamp,
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

// sockets makes sockets of n entries, in the order of SortSockets.
func (t *Table) sockets(n int, entries iter.Seq[*entry]) []Socket {
	if n == 0 {
		return nil
	}
	out := make([]Socket, 0, n)
	var holders []Holder
	for e := range entries {
		s := t.socket(e)
		if e.first.by != 0 {
			if holders == nil {
				holders = make([]Holder, 0, n) // one allocation for the usual case of a holder each
			}
			from := len(holders)
			holders, s.HoldersMore = t.holders(e, holders, from+maxTableHolders)
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
	for e := range t.all() {
		var more int
		holders, more = t.holders(e, holders[:0], maxTableHolders)
		s = t.socket(e)
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
