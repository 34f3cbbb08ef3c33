package tracer

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// walker is a program that walks.
type walker struct {
	prog  *ebpf.Program
	burst *link.Iter // the same for old kernels, instead
}

// load loads a program, and where the kernel has no bpf_loop() (5.17) or programs of type
// syscall (5.14) the one that does the same in short bursts.
func (w *walker) load(spec *ebpf.CollectionSpec, prog, burst string, opts ebpf.CollectionOptions, oldKernel bool) (err error) {
	if !oldKernel {
		// The object for newer kernels has no other.
		if w.prog, err = loadProgram(spec, prog, opts); err == nil || spec.Programs[burst] == nil {
			return err
		}
	}
	var burstErr error
	if w.burst, burstErr = loadIter(spec, burst, opts); burstErr != nil {
		return errors.Join(err, burstErr)
	}
	return nil
}

// loadIter loads a program and attaches it as an iterator, which keeps it.
func loadIter(spec *ebpf.CollectionSpec, name string, opts ebpf.CollectionOptions) (*link.Iter, error) {
	prog, err := loadProgram(spec, name, opts)
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	return link.AttachIter(link.IterOptions{Program: prog})
}

// readTables walks every table that has sockets with a port. buf is as for read; if it
// is nil, several processors walk, and each is called by them at once.
func (s *Snapshotter) readTables(w *bpfWalk, port uint16, buf []bpfRow, each func([]bpfRow)) error {
	var backlog atomic.Bool
	look := func(rows []bpfRow) {
		for i := range rows {
			if has(&rows[i], bpfRowFlagROW_BACKLOG) {
				backlog.Store(true)
			}
		}
		each(rows)
	}
	own, err := s.ownTables(w)
	if err != nil {
		return err
	}
	what := bpfWalk{Port: port, Timed: s.timed}
	what.Table = bpfWalkTableWALK_TCP_BIND // one for all namespaces
	if err := s.readTable(w, what, buf, look); err != nil {
		return err
	}
	what.Table = bpfWalkTableWALK_UDP
	if err := s.readEach(w, what, own.udp, buf, look); err != nil {
		return err
	}
	if !backlog.Load() {
		return nil // no listener has a half-open connection
	}
	what.Table = bpfWalkTableWALK_TCP_REQUEST
	return s.readEach(w, what, own.tcp, buf, look)
}

// readTable walks one table.
func (s *Snapshotter) readTable(w *bpfWalk, what bpfWalk, buf []bpfRow, each func([]bpfRow)) error {
	if buf == nil && s.sockWalk.burst == nil {
		return s.readParts(w, what, each)
	}
	return s.read(&s.sockWalk, w, what, buf, each)
}

// readEach walks a table of each of these addresses, the largest first, which is that of
// most namespaces. The others go with the namespace that has them: what was read
// of one counts only if it is still there afterwards.
func (s *Snapshotter) readEach(w *bpfWalk, what bpfWalk, tables []ownTable, buf []bpfRow, each func([]bpfRow)) error {
	if len(tables) == 0 {
		return nil
	}
	what.Heads = tables[0].at
	if err := s.readTable(w, what, buf, each); err != nil {
		return err
	}
	type read struct {
		from ownTable
		rows []bpfRow
	}
	var some []read // to look afterwards takes as long as there are namespaces: once for many
	n := 0
	for i, table := range tables[1:] {
		var rows []bpfRow
		what.Heads = table.at
		if err := s.read(&s.sockWalk, w, what, nil, func(part []bpfRow) { rows = append(rows, part...) }); err != nil {
			return err
		}
		some, n = append(some, read{table, rows}), n+len(rows)
		if n < s.laneRows() && i < len(tables)-2 {
			continue
		}
		now, err := s.ownTables(w)
		if err != nil {
			return err
		}
		still := make(map[ownTable]bool)
		for _, table := range slices.Concat(now.udp, now.tcp) {
			still[table] = true
		}
		for _, r := range some {
			if still[r.from] {
				for rows := range slices.Chunk(r.rows, s.laneRows()) {
					each(rows)
				}
			}
		}
		some, n = nil, 0
	}
	return nil
}

// ownTable is a table of sockets: its address, and a namespace that has it.
type ownTable struct {
	at, cookie uint64
}

// ownTables are the tables there are, that of most namespaces first: for UDP and, for
// half-open connections, TCP. A namespace has tables of its own where
// net.ipv4.udp_child_hash_entries or tcp_child_ehash_entries of its maker said so.
type ownTables struct{ udp, tcp []ownTable }

func (s *Snapshotter) ownTables(w *bpfWalk) (ownTables, error) {
	var found ownTables
	users := make(map[uint64]int)
	add := func(to []ownTable, t ownTable) []ownTable {
		if users[t.at]++; users[t.at] > 1 {
			return to
		}
		return append(to, t)
	}
	err := s.read(&s.sockWalk, w, bpfWalk{Table: bpfWalkTableWALK_NETNS}, nil, func(rows []bpfRow) {
		for i := range rows {
			row := &rows[i]
			found.udp = add(found.udp, ownTable{row.Socket, row.Flow.NetnsCookie})
			found.tcp = add(found.tcp, ownTable{row.Inode, row.Flow.NetnsCookie})
		}
	})
	for _, tables := range [][]ownTable{found.udp, found.tcp} {
		slices.SortStableFunc(tables, func(a, b ownTable) int { return users[b.at] - users[a.at] })
	}
	return found, err
}

// partBuckets is how much of a table a lane walks before it takes another part: few
// enough for all to end at the same time, many to one that is one call.
const partBuckets = 4096

// readParts is read by several processors at once; each is called by them at once.
func (s *Snapshotter) readParts(w *bpfWalk, what bpfWalk, each func([]bpfRow)) error {
	var next atomic.Uint64
	walks, errs := make([]bpfWalk, len(s.turns)), make([]error, len(s.turns))
	var all sync.WaitGroup
	for lane := range walks {
		all.Go(func() {
			w := &walks[lane]
			for errs[lane] == nil {
				part := what
				part.End = next.Add(partBuckets)
				part.Bucket = part.End - partBuckets
				if w.Buckets != 0 && part.Bucket >= w.Buckets {
					return
				}
				errs[lane] = s.readPart(&s.sockWalk, w, lane, part, nil, each)
			}
		})
	}
	all.Wait()
	for lane := range walks {
		w.Restarts += walks[lane].Restarts
		w.GaveUp += walks[lane].GaveUp
	}
	return errors.Join(errs...)
}

// read reads what is asked for to its end and hands each its rows: in buf, which has
// room for those of a lane, or if that is nil in memory of their own. The restarts of w go on counting.
func (s *Snapshotter) read(by *walker, w *bpfWalk, what bpfWalk, buf []bpfRow, each func([]bpfRow)) error {
	what.End = math.MaxUint64
	return s.readPart(by, w, 0, what, buf, each)
}

// readPart is read in a lane, from what.Bucket to what.End.
func (s *Snapshotter) readPart(by *walker, w *bpfWalk, lane int, what bpfWalk, buf []bpfRow, each func([]bpfRow)) error {
	what.Restarts, what.GaveUp, what.UdpFd, what.RingFd = w.Restarts, w.GaveUp, uint32(s.udp), uint32(max(s.ring, 0))
	*w = what
	step, err := by.stepper()
	if err != nil {
		return err
	}
	defer step.Close()
	for w.Done == 0 {
		rows, err := s.goOn(by, w, lane, step, buf)
		if err != nil {
			return err
		}
		if w.Buckets == 0 {
			return fmt.Errorf("walk the kernel's port tables: %w: table %d not found", ErrNotSupported, what.Table)
		}
		if w.Rows > 0 {
			each(rows)
		}
	}
	return nil
}

// laneRows is how many rows a lane has room for.
func (s *Snapshotter) laneRows() int {
	return int(s.maps.Maps[snapshotMapRows].MaxEntries()) / len(s.turns)
}

// goOn goes on with the walk of a lane and returns the rows of that call.
func (s *Snapshotter) goOn(by *walker, w *bpfWalk, lane int, step *stepper, buf []bpfRow) ([]bpfRow, error) {
	s.turns[lane].Lock()
	defer s.turns[lane].Unlock()
	call, walks := bpfWalkCall{Lane: uint32(lane)}, s.maps.Maps[snapshotMapWalks]
	if err := walks.Put(call.Lane, w); err != nil {
		return nil, fmt.Errorf("prepare walk: %w", err)
	}
	if err := step.run(&call); err != nil {
		return nil, explain("walk the kernel's port tables", err)
	}
	if err := walks.Lookup(call.Lane, w); err != nil {
		return nil, fmt.Errorf("read walk: %w", err)
	}
	if w.Table == bpfWalkTableWALK_NETNS && by == &s.portWalk {
		return nil, nil // they are in spaces
	}
	rows := buf
	if rows == nil {
		rows = make([]bpfRow, w.Rows)
	}
	rows = rows[:w.Rows]
	if err := readMemory(s.rows, w.FirstRow, rows); err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	return rows, nil
}

// stepper goes on with the walk at each call of run.
type stepper struct {
	prog *ebpf.Program
	it   io.ReadCloser // instead
}

func (w *walker) stepper() (*stepper, error) {
	if w.burst == nil {
		return &stepper{prog: w.prog}, nil
	}
	it, err := w.burst.Open()
	if err != nil {
		return nil, explain("open iter/task", err)
	}
	return &stepper{it: it}, nil
}

func (s *stepper) run(call *bpfWalkCall) error {
	if s.it == nil {
		_, err := s.prog.Run(&ebpf.RunOptions{Context: call})
		return err
	}
	// The program asks to be called again, so the iterator stays where it is.
	if _, err := s.it.Read(make([]byte, 1)); !errors.Is(err, syscall.EAGAIN) {
		return fmt.Errorf("iter/task: %w, want %w", err, syscall.EAGAIN)
	}
	return nil
}

// Close ends the iterator.
func (s *stepper) Close() {
	if s.it != nil {
		s.it.Close()
	}
}

// readMemory fills a slice of one of the BPF programs' types from a map, the first
// from an index.
func readMemory[T bpfRow | bpfFds | bpfNetnsRow | bpfDeviceRow](from *ebpf.Memory, first uint32, to []T) error {
	if len(to) == 0 {
		return nil
	}
	size := int(unsafe.Sizeof(to[0]))
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(to))), len(to)*size)
	_, err := from.ReadAt(bytes, int64(first)*int64(size))
	return err
}
