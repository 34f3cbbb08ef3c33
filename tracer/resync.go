package tracer

import (
	"errors"
	"slices"
	"time"
)

const (
	// retryAfter is when the table is tried to be rebuilt again that could not be.
	retryAfter = time.Second
	// restAfter is how long the table is not rebuilt, as a multiple of what the last time
	// took: whoever makes events be lost without end gets a tenth of the reader's time.
	restAfter = 9
	// mergeAtOnce rows, and holdAtOnce parts of descriptor tables, take a fraction of a
	// millisecond: between them the ring buffer is read, and others may use the table.
	mergeAtOnce = 512
	holdAtOnce  = 16
	// breatheEvery is how long the ring buffer waits for a comparison at most, but for
	// the one call of a kernel program that is under way.
	breatheEvery = 2 * time.Millisecond
)

// check rebuilds the table when events were lost since the last time, or its time
// has come.
func (t *Tracer) check() error {
	t.checked = time.Now()
	if t.settle != 0 && (t.newest > t.settle || boottime() > t.settle && t.reader.AvailableBytes() == 0) {
		t.settle = 0
		if again := t.checked.Add(retryAfter); !t.settleNow() && (t.next.IsZero() || t.next.After(again)) {
			t.next = again
		}
	}
	stats, err := t.Stats()
	if err != nil {
		return err
	}
	lost := stats.Lost()
	t.lost.Store(lost)
	t.owed = lost != t.resynced
	due := !t.next.IsZero() && !t.checked.Before(t.next)
	switch {
	case !t.owed && !due || t.checked.Before(t.retry):
	case !t.rebuild():
	case t.owed:
		t.owed, t.resynced = false, lost
		t.count(&t.stats.Resyncs, 1)
	default:
		t.count(&t.stats.Reconciles, 1)
	}
	return nil
}

// rebuild is resync. That it could not be done, because memory or a file was missing
// descriptor, is counted, and it is tried again after a while: what is known still
// serves, and events go on.
func (t *Tracer) rebuild() bool {
	start := time.Now()
	t.reading = 0
	err := t.resync()
	if err == nil {
		end := time.Now()
		if t.retry = end.Add(restAfter * (end.Sub(start) - t.reading)); t.every > 0 {
			t.next = time.Now().Add(t.every)
		} else {
			t.next = time.Time{}
		}
		return true
	}
	t.mu.Lock()
	t.stats.ResyncErrors++
	t.stats.ResyncError = err
	t.mu.Unlock()
	t.retry = time.Now().Add(retryAfter)
	t.next = t.retry
	return false
}

// settleSoon is for after a snapshot has been merged.
func (t *Tracer) settleSoon() {
	// A close is told a moment after the socket is in no table any more: by the time it
	// can be thought lost, it has long been in the ring buffer.
	t.settle = boottime() + uint64(readerIdle)
}

// resync makes the table equal to the kernel's, as Table.reconcile does with a
// Snapshot, which of 100,000 sockets would be 40 MB of garbage. Rows are merged as they
// are read; holders, which are read last, are added to what has been merged.
func (t *Tracer) resync() error {
	t.handOn() // sets the clock
	t.table.expect()
	start := boottime()
	held := newMatcher(newDecoder())
	var w bpfWalk
	var mergeErr error
	err := t.snap.readTables(&w, 0, make([]bpfRow, t.snap.laneRows()), func(rows []bpfRow) {
		if mergeErr == nil {
			mergeErr = t.mergeRows(rows, held)
		}
	})
	if err := errors.Join(err, mergeErr); err != nil {
		return err
	}
	if err := t.readHolders(held); err != nil {
		return err
	}
	if err := t.lookAgain(&w, held); err != nil {
		return err
	}
	if err := t.hold(held); err != nil {
		return err
	}
	t.table.endMerge(start)
	t.settleSoon()
	return nil
}

// mergeRows puts rows of a walk into the table. What is older is read from the ring
// buffer and handed on first: else a socket whose address has another by now would lose
// its last events.
func (t *Tracer) mergeRows(rows []bpfRow, held *matcher) error {
	if err := t.catchUp(boottime()); err != nil {
		return err
	}
	for some := range slices.Chunk(rows, mergeAtOnce) {
		t.table.mergeRows(some, held)
		t.handOnUnseen()
		if err := t.breathe(); err != nil {
			return err
		}
	}
	return nil
}

// readHolders looks for the holders of sockets in all tables of descriptors.
func (t *Tracer) readHolders(held *matcher) error {
	var catchErr error
	err := t.snap.eachFds(func(tables []bpfFds) {
		for some := range slices.Chunk(tables, holdAtOnce) {
			if catchErr == nil {
				held.add(some)
				catchErr = t.breathe()
			}
		}
	})
	return errors.Join(err, catchErr)
}

// hold gives the sockets that were merged the holders that were found.
func (t *Tracer) hold(held *matcher) error {
	defer t.table.held(held)
	for from := 0; from < len(held.targets); from += mergeAtOnce {
		t.table.holdSome(held, from, min(from+mergeAtOnce, len(held.targets)))
		if err := t.breathe(); err != nil {
			return err
		}
	}
	return nil
}

// breathe reads the ring buffer in the midst of a comparison, if that was not done just now.
func (t *Tracer) breathe() error {
	if time.Since(t.caughtUp) < breatheEvery {
		return nil
	}
	return t.catchUp(boottime())
}

// lookAgain does as Snapshotter.lookAgain: it reads sockets again that no process was found
// to hold. One that is gone is left to its close.
func (t *Tracer) lookAgain(w *bpfWalk, held *matcher) error {
	moved := false
	for _, row := range t.table.unheld(held) {
		now, err := t.snap.again(w, &row)
		if err != nil {
			return err
		}
		if now.Sock == 0 {
			continue
		}
		moved = moved || now.Socket != 0 && !has(&now, bpfRowFlagROW_NO_FILE)
		if err := t.catchUp(boottime()); err != nil {
			return err
		}
		t.table.mergeAgain(&now)
		t.handOnUnseen()
	}
	if !moved {
		return nil
	}
	held.again()
	return t.readHolders(held)
}

// settleNow removes what the last comparison did not find and the kernel does not have, and
// tells of it as closed: its close was lost, or the kernel did not run the hook. False: that
// is not all there is to it.
func (t *Tracer) settleNow() (sure bool) {
	sure = true
	var w bpfWalk
	for _, so := range t.table.missing() {
		row, err := t.snap.again(&w, &bpfRow{Sock: so.id, Inode: so.Inode, Proto: uint8(so.Proto), Flow: so.flow()})
		if err != nil || row.Sock != 0 {
			t.table.found(so.id) // the walk did not come by
		}
		if err == nil {
			err = t.breathe()
		}
		sure = sure && err == nil
	}
	sure = t.table.settle(boottime()) && sure
	t.handOnUnseen()
	t.handOn()
	return sure
}
