package tracer

import "iter"

// expect tells that a snapshot is about to be taken. Every event older than it is to be
// applied before it is given to reconcile.
func (t *Table) expect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = make(map[uint64]uint64)
	for e := range t.all() {
		e.merged = mergedNothing // that of a snapshot that was not finished is void
	}
}

// reconcile takes what a snapshot tells. Rows with newer events keep their state.
// A socket that the snapshot lacks stays until settle, for its close may still be on
// its way.
func (t *Table) reconcile(snap *Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range snap.Sockets {
		s := &snap.Sockets[i]
		t.merge(s)
		if e := t.entry(s.id); e != nil && e.merged != mergedNothing {
			t.holdSnapshot(e, s.Holders)
		}
	}
	t.finish(snap.start)
}

// mergeRows takes what a snapshot tells of some sockets, and has their holders looked for.
func (t *Table) mergeRows(rows []bpfRow, held *matcher) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range rows {
		so := socketOf(&rows[i])
		t.merge(&so)
		if rows[i].Socket != 0 {
			held.want(&rows[i])
		}
	}
}

// mergeAgain takes what is told of a socket that was looked at again.
func (t *Table) mergeAgain(row *bpfRow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	so := socketOf(row)
	t.merge(&so)
}

// endMerge ends a snapshot that was merged by mergeRows.
func (t *Table) endMerge(start uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finish(start)
}

// merge takes what a snapshot tells of one socket, but not who holds it. As for hold and
// finish, which go on from there, the caller has locked the table.
func (t *Table) merge(s *Socket) {
	t.changes++
	flow := s.flow()
	if s.Role == RoleTimeWait {
		if l, ok := t.timeWaits[s.id]; ok && l.port == flow.LocalPort && l.addr == flow.LocalIp {
			l.found = true
			t.timeWaits[s.id] = l
		}
		return // no event tells its end: only snapshots do
	}
	if s.State == StateSynRecv && !s.attached {
		return // nor that of this
	}
	e := t.entry(s.id)
	if e != nil && e.stamp > s.stamp { // keep what the event said, take only who holds it
		if !e.reused(&flow) {
			e.inode, e.uid, e.merged = s.Inode, s.UID, mergedState
		}
		return
	}
	if e != nil && e.reusedBy(&flow, s.Inode) {
		t.removeUnseen(e, s.stamp)
		e = nil
	}
	wasClosed := false
	if e == nil {
		// Nobody is known to have the address since it was closed. Then either the open of
		// the next was lost, or the snapshot came before the socket was gone.
		if at, ok := t.closed[s.id]; ok {
			if at >= s.stamp || !s.attached {
				return
			}
			t.doubt, wasClosed = true, true
		}
		e = t.add(s.id, &flow)
		e.initial, e.origin = !t.loaded, s.Origin
		t.setOwner(e, &s.Owner)
		if !s.Since.IsZero() {
			e.since = uint64(s.Since.UnixNano() - t.zero)
		}
	}
	t.doubt = t.doubt || e.state == StateUnconn && s.State != StateUnconn
	e.flow, e.stamp, e.inode, e.uid = flow, s.stamp, s.Inode, s.UID
	e.proto, e.state, e.role, e.mptcp = s.Proto, s.State, s.Role, s.MPTCP
	e.v6Only, e.reuseAddr, e.reusePort, e.attached = s.V6Only, s.ReuseAddr, s.ReusePort, s.attached
	if s.Backlog.Known {
		t.backlogs[s.id] = s.Backlog
	} else if s.Role == RoleListener {
		delete(t.backlogs, s.id)
	}
	if s.Proto == UDP {
		e.fixed = s.FixedPort
	}
	_, again := t.closed[s.id] // read twice
	e.missing, e.merged, e.closed = false, mergedState, wasClosed || e.closed && again
}

// holdSnapshot takes the holders of a socket that has been merged.
func (t *Table) holdSnapshot(e *entry, holders []Holder) {
	for i := range holders {
		h := &holders[i]
		fd := h.FD
		if h.Ring {
			fd |= ringBit
		}
		t.hold(e, owned{t.procs.use(&h.Process), fd})
	}
}

// hold takes a holder of a socket that has been merged, with its use.
func (t *Table) hold(e *entry, h owned) {
	if e.merged == mergedState {
		t.dropHolders(e)
		e.merged = mergedHolders
	}
	if e.first.by == 0 {
		e.first = h
		return
	}
	e.shared = true
	t.more[e.id] = append(t.more[e.id], h)
}

func (t *Table) dropHolders(e *entry) {
	t.drop(e.first.by)
	e.first, e.unlisted = owned{}, 0
	if !e.shared {
		return
	}
	for _, h := range t.more[e.id] {
		t.drop(h.by)
	}
	delete(t.more, e.id)
	e.shared = false
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
	for e := range t.all() {
		e.missing = e.stamp < start
		if e.merged == mergedState {
			t.dropHolders(e)
		}
		e.merged = mergedNothing
	}
	t.closed = nil
	for tw, l := range t.timeWaits {
		if l.found {
			l.found = false
			t.timeWaits[tw] = l
		} else if l.stamp < start {
			t.procs.drop(l.owner)
			delete(t.timeWaits, tw)
		}
	}
	if t.timeWaits != nil && len(t.timeWaits) == 0 {
		t.timeWaits = make(map[uint64]timeWait) // one that was large stays so
	}
}

// missing returns the sockets that the last snapshot lacked, but for who holds them.
func (t *Table) missing() []Socket {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Socket
	for e := range t.all() {
		if e.missing {
			out = append(out, t.socket(e))
		}
	}
	return out
}

// found tells that a socket is there, though the last snapshot lacked it.
func (t *Table) found(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entry(id); e != nil {
		e.missing = false
	}
}

// settle removes what the last snapshot lacked. Call it when every event older than
// that has been applied, with the time of CLOCK_BOOTTIME since when those are known to be
// gone. False: the snapshot and those events contradict each other, so that only another
// snapshot can tell. It may have come between what a hook told and what the kernel then did.
func (t *Table) settle(known uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changes++
	for e := range t.all() {
		if e.missing {
			t.removeUnseen(e, known)
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
		e := t.entry(target.sock)
		if e == nil || e.inode != uint64(target.inode) || e.merged == mergedNothing {
			continue // closed since
		}
		for at := range held.refs(uint32(n)) {
			part := &held.parts[at.part]
			fd := at.fd
			if part.ring {
				fd |= ringBit
			}
			t.hold(e, owned{t.holdersOf(held, part), fd})
		}
		e.unlisted = target.extra
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
		if e := t.entry(target.sock); e != nil && e.merged == mergedState && e.inode == uint64(target.inode) {
			out = append(out, bpfRow{Sock: e.id, Socket: target.socket, Inode: e.inode, Proto: uint8(e.proto), Flow: e.flow})
		}
	}
	return out
}
