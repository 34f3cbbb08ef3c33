package tracer

import "iter"

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

// holdSome gives some of the sockets that were merged their holders.
func (t *Table) holdSome(held *matcher, from, to int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n := from; n < to; n++ {
		target := &held.targets[n]
		r := t.row(target.sock)
		if r == nil || r.inode != uint64(target.inode) || r.told == toldNothing {
			continue // closed since
		}
		for at := range held.refs(uint32(n)) {
			part := &held.parts[at.part]
			fd := at.fd
			if part.ring {
				fd |= ringBit
			}
			t.hold(r, owned{t.holdersOf(held, part), fd})
		}
		r.unlisted = target.extra
	}
}

// held ends what holdSome began.
func (t *Table) held(held *matcher) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range held.parts {
		t.drop(held.parts[i].holders) // what holdersOf kept
	}
}

// holdersOf returns the processes that have a part of a table, by a number of this table's,
// and counts a use of it.
func (t *Table) holdersOf(held *matcher, part *fdsPart) uint32 {
	if part.holders == 0 {
		part.holders = t.useAll(func(yield func(*Process) bool) {
			for _, proc := range part.procs {
				if !yield(&held.procs[proc].Process) {
					return
				}
			}
		})
	}
	t.use(part.holders)
	return part.holders
}

// unheld returns the sockets that no process was found to hold, with what again looks at.
func (t *Table) unheld(held *matcher) []bpfRow {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []bpfRow
	for n := range held.targets {
		target := &held.targets[n]
		if target.found != 0 {
			continue
		}
		if r := t.row(target.sock); r != nil && r.told == toldState && r.inode == uint64(target.inode) {
			out = append(out, bpfRow{Sock: r.id, Socket: target.socket, Inode: r.inode, Proto: uint8(r.proto), Flow: r.flow})
		}
	}
	return out
}
