package tracer

import (
	"errors"
	"slices"
	"time"
)

// resync makes the table equal to the kernel's, as Table.Reconcile does with a
// Snapshot, which of 100,000 sockets would be 40 MB of garbage. Rows are merged as they
// are read; holders, which are read last, are added to what has been merged.
func (t *Tracer) resync() error {
	t.handOn() // sets the clock
	t.table.Expect()
	start := boottime()
	files := newFilesOf(t.table.Len())
	var w bpfWalk
	var mergeErr error
	err := t.snap.readTables(&w, 0, make([]bpfRow, t.snap.laneRows()), func(rows []bpfRow) {
		if mergeErr == nil {
			mergeErr = t.mergeRows(rows, files)
		}
	})
	if err := errors.Join(err, mergeErr); err != nil {
		return err
	}
	dec := newDecoder()
	var holdErr error
	err = t.snap.eachFds(func(tables []bpfFds) {
		if holdErr == nil {
			holdErr = t.holdPieces(tables, func(some []bpfFds) { t.table.holdFiles(files, dec, some) })
		}
	})
	if err := errors.Join(err, holdErr); err != nil {
		return err
	}
	if err := t.lookAgain(&w, files); err != nil {
		return err
	}
	t.table.mu.Lock()
	defer t.table.mu.Unlock()
	t.table.finish(start)
	t.settleSoon()
	return nil
}

// mergeRows puts rows of a walk into the table. What is older is read from the ring
// buffer and handed on first: else a socket whose address has another by now would lose
// its last events.
func (t *Tracer) mergeRows(rows []bpfRow, files filesOf) error {
	if err := t.catchUp(boottime()); err != nil {
		return err
	}
	for some := range slices.Chunk(rows, mergeAtOnce) {
		t.mergeSome(some, files)
		t.tellMissed()
		if err := t.breathe(); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tracer) mergeSome(rows []bpfRow, files filesOf) {
	t.table.mu.Lock()
	defer t.table.mu.Unlock()
	for i := range rows {
		so := socketOf(&rows[i])
		t.table.merge(&so)
		files.add(so.file, so.id)
	}
}

// holdPieces hands hold a few descriptor tables at a time.
func (t *Tracer) holdPieces(tables []bpfFds, hold func([]bpfFds)) error {
	for some := range slices.Chunk(tables, holdAtOnce) {
		hold(some)
		if err := t.breathe(); err != nil {
			return err
		}
	}
	return nil
}

const (
	// mergeAtOnce rows, and holdAtOnce parts of descriptor tables, take a fraction of a
	// millisecond: between them the ring buffer is read, and others may use the table.
	mergeAtOnce = 512
	holdAtOnce  = 16
	// breatheEvery is how long the ring buffer waits for a comparison at most, but for
	// the one call of a kernel program that is under way.
	breatheEvery = 2 * time.Millisecond
)

// breathe reads the ring buffer in the midst of a comparison, if that was not done just now.
func (t *Tracer) breathe() error {
	if time.Since(t.caughtUp) < breatheEvery {
		return nil
	}
	return t.catchUp(boottime())
}

// lookAgain does as Snapshotter.settle: it reads sockets again that had a file, which
// no process has. One that is gone is left to its close.
func (t *Tracer) lookAgain(w *bpfWalk, files filesOf) error {
	for _, so := range t.table.unheld(files) {
		flow := so.flow()
		row, err := t.snap.again(w, so.id, so.Proto, &flow)
		if err != nil {
			return err
		}
		if row.Sock == 0 {
			continue
		}
		now := socketOf(&row)
		if err := t.catchUp(boottime()); err != nil {
			return err
		}
		t.table.mu.Lock()
		t.table.merge(&now)
		t.table.mu.Unlock()
		t.tellMissed()
	}
	return nil
}

// settleNow removes what the last comparison did not find and the kernel does not have, and
// tells of it as closed: its close was lost, or the kernel did not run the hook. False: that
// is not all there is to it.
func (t *Tracer) settleNow() (sure bool) {
	sure = true
	var w bpfWalk
	for _, so := range t.table.missing() {
		row, err := t.snap.again(&w, so.id, so.Proto, &bpfFlow{LocalPort: so.Local.Port(), Netns: so.NetNS})
		if err != nil || row.Sock != 0 && (row.Inode == so.Inode || row.Inode == 0 || so.Inode == 0) {
			t.table.found(so.id) // the walk did not come by
		}
		if err == nil {
			err = t.breathe()
		}
		sure = sure && err == nil
	}
	sure = t.table.Settle(boottime()) && sure
	t.tellMissed()
	t.handOn()
	return sure
}

// filesOf has the sockets of each file, by address: but for the subflows of an MPTCP
// socket there is one.
type filesOf struct {
	first map[uint64]uint64
	more  map[uint64][]uint64
}

func newFilesOf(sockets int) filesOf {
	return filesOf{make(map[uint64]uint64, sockets), make(map[uint64][]uint64)}
}

func (f filesOf) add(file, id uint64) {
	if file == 0 {
		return
	}
	switch other, ok := f.first[file]; {
	case !ok:
		f.first[file] = id
	case other != id && !slices.Contains(f.more[file], id): // a slot of a table may be read twice
		f.more[file] = append(f.more[file], id)
	}
}

// holdFiles adds the holders among some descriptor tables.
func (t *Table) holdFiles(files filesOf, dec *decoder, tables []bpfFds) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range tables {
		table := &tables[i]
		process := dec.process(&table.Process)
		for n, file := range table.Files {
			id, ok := files.first[file]
			if !ok {
				continue
			}
			fd := table.First + uint32(n)
			t.hold(id, &process, fd)
			for _, id := range files.more[file] {
				t.hold(id, &process, fd)
			}
		}
	}
}

// unheld returns the sockets of files that no descriptor table has.
func (t *Table) unheld(files filesOf) []Socket {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Socket
	look := func(id uint64) {
		if r := t.row(id); r != nil && r.told == toldState {
			out = append(out, t.socket(r))
		}
	}
	for file, id := range files.first {
		look(id)
		for _, id := range files.more[file] {
			look(id)
		}
	}
	return out
}
