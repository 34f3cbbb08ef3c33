package tracer

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Snapshot is the kernel's sockets with a port, in every network namespace, and
// the processes that hold them.
type Snapshot struct {
	Sockets []Socket
	// Restarts counts table slots that changed while they were read, and were
	// read again; Unfinished those that never held still, so that a socket may
	// be missing.
	Restarts, Unfinished int

	start uint64 // CLOCK_BOOTTIME when the first table was opened, nanoseconds
}

// Snapshotter reads snapshots. It needs CAP_BPF and CAP_PERFMON. It is not safe
// for concurrent use.
type Snapshotter struct {
	objs  snapshotObjects
	files *link.Iter
	rows  *ebpf.Memory
	buf   []byte // copy of rows
	dec   *decoder
}

type snapshotObjects struct {
	Walk        *ebpf.Variable `ebpf:"walk"`
	HoldersPort *ebpf.Variable `ebpf:"holders_port"`
	Rows        *ebpf.Map      `ebpf:"rows"`
	Files       *ebpf.Program  `ebpf:"ph_files"`
	Step        *ebpf.Program  `ebpf:"ph_walk"`
}

// NewSnapshotter loads the programs. The error wraps ErrNotPermitted or
// ErrNotSupported where one of these is the reason.
func NewSnapshotter() (*Snapshotter, error) {
	spec, err := loadSpec()
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{dec: newDecoder()}
	if err := spec.LoadAndAssign(&s.objs, nil); err != nil {
		return nil, explain("load snapshot programs", err)
	}
	if s.rows, err = s.objs.Rows.Memory(); err != nil {
		return nil, errors.Join(fmt.Errorf("map rows: %w", err), s.Close())
	}
	s.files, err = link.AttachIter(link.IterOptions{Program: s.objs.Files})
	if err != nil {
		return nil, errors.Join(explain("attach iter/task_file", err), s.Close())
	}
	return s, nil
}

// Close unloads the programs.
func (s *Snapshotter) Close() error {
	var errs []error
	if s.files != nil {
		errs = append(errs, s.files.Close())
	}
	return errors.Join(append(errs, s.objs.Rows.Close(), s.objs.Files.Close(), s.objs.Step.Close())...)
}

// Take reads every socket with a port, or those on one local port (port not 0).
// It blocks for about a millisecond and for a microsecond per socket. Sockets
// are in no order.
//
// A socket without a holder had none at one moment during the call: its state
// is from before the file descriptors were read.
func (s *Snapshotter) Take(port uint16) (*Snapshot, error) {
	snap := &Snapshot{start: boottime()}
	// On two processors the tables and the descriptors are read at once. What they
	// then disagree on is read again, one after the other.
	var holders []bpfHolder
	var holdersErr error
	done := make(chan struct{})
	go func() {
		defer close(done)
		holders, holdersErr = s.readHolders(port)
	}()
	w := bpfWalk{}
	rows, err := s.readTables(&w, port)
	if err != nil {
		<-done
		return nil, err
	}
	index := make(map[uint64]int, len(rows))
	snap.Sockets = make([]Socket, 0, len(rows))
	for i := range rows {
		if _, ok := index[rows[i].Sock]; ok {
			continue // its slot was read twice
		}
		index[rows[i].Sock] = len(snap.Sockets)
		snap.Sockets = append(snap.Sockets, s.dec.socket(&rows[i]))
	}
	<-done
	if holdersErr != nil {
		return nil, holdersErr
	}
	s.join(snap.Sockets, index, holders)
	if err := s.settle(&w, port, snap, index); err != nil {
		return nil, err
	}
	snap.Restarts, snap.Unfinished = int(w.Restarts), int(w.GaveUp)
	return snap, nil
}

// readTables walks every table that has sockets with a port.
func (s *Snapshotter) readTables(w *bpfWalk, port uint16) ([]bpfRow, error) {
	var rows []bpfRow
	for _, table := range []bpfWalkTable{bpfWalkTableWALK_TCP_BIND, bpfWalkTableWALK_UDP, bpfWalkTableWALK_TCP_REQUEST} {
		if table == bpfWalkTableWALK_TCP_REQUEST && !anyBacklog(rows) {
			break // no listener has a half-open connection
		}
		if err := s.walk(w, table, port, func(some []bpfRow) { rows = append(rows, some...) }); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

func anyBacklog(rows []bpfRow) bool {
	return slices.ContainsFunc(rows, func(r bpfRow) bool { return r.Flags&uint8(bpfRowFlagROW_BACKLOG) != 0 })
}

// settle looks again at sockets that have a file and no holder: they were opened
// or closed while the descriptors were read, or are the kernel's own, or their
// descriptor is on its way to another process.
func (s *Snapshotter) settle(w *bpfWalk, port uint16, snap *Snapshot, index map[uint64]int) error {
	suspect := make(map[uint64]bool)
	for i := range snap.Sockets {
		if so := &snap.Sockets[i]; len(so.Holders) == 0 && so.file {
			suspect[so.id] = true
		}
	}
	if len(suspect) > 0 {
		if err := s.again(w, port, snap, index, suspect); err != nil {
			return err
		}
	}
	snap.Sockets = slices.DeleteFunc(snap.Sockets, func(so Socket) bool { return so.id == 0 })
	for i := range snap.Sockets {
		so := &snap.Sockets[i]
		if len(so.Holders) == 0 && !so.file && (so.Role == RoleClient || so.Role == RoleServer) {
			so.Role = RoleOrphan
		}
	}
	return nil
}

// again reads the descriptors after the tables, and then the tables after the
// descriptors: a suspect still there and still without a holder has none.
func (s *Snapshotter) again(w *bpfWalk, port uint16, snap *Snapshot, index map[uint64]int, suspect map[uint64]bool) error {
	holders, err := s.readHolders(port)
	if err != nil {
		return err
	}
	holders = slices.DeleteFunc(holders, func(h bpfHolder) bool { return !suspect[h.Sock] })
	s.join(snap.Sockets, index, holders)
	rows, err := s.readTables(w, port)
	if err != nil {
		return err
	}
	for id := range suspect {
		if at := index[id]; len(snap.Sockets[at].Holders) == 0 {
			snap.Sockets[at].id = 0 // gone, unless found below
		}
	}
	for i := range rows {
		if id := rows[i].Sock; suspect[id] && snap.Sockets[index[id]].id == 0 {
			snap.Sockets[index[id]] = s.dec.socket(&rows[i])
		}
	}
	return nil
}

// walk reads one table to its end. The rows are each's only until it returns.
func (s *Snapshotter) walk(w *bpfWalk, table bpfWalkTable, port uint16, each func([]bpfRow)) error {
	*w = bpfWalk{Table: uint32(table), Port: port, Restarts: w.Restarts, GaveUp: w.GaveUp}
	for w.Done == 0 {
		if err := s.objs.Walk.Set(w); err != nil {
			return fmt.Errorf("prepare walk: %w", err)
		}
		if _, err := s.objs.Step.Run(&ebpf.RunOptions{}); err != nil {
			return explain("walk the kernel's port tables", err)
		}
		if err := s.objs.Walk.Get(w); err != nil {
			return fmt.Errorf("read walk: %w", err)
		}
		if w.Buckets == 0 {
			return fmt.Errorf("walk the kernel's port tables: %w: table %d not found", ErrNotSupported, table)
		}
		rows, err := s.readRows(int(w.Rows))
		if err != nil {
			return err
		}
		each(rows)
	}
	return nil
}

func (s *Snapshotter) readRows(n int) ([]bpfRow, error) {
	if n == 0 {
		return nil, nil
	}
	size := n * int(unsafe.Sizeof(bpfRow{}))
	if size > len(s.buf) {
		s.buf = make([]byte, size)
	}
	if _, err := s.rows.ReadAt(s.buf[:size], 0); err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	return unsafe.Slice((*bpfRow)(unsafe.Pointer(unsafe.SliceData(s.buf))), n), nil
}

// readHolders reads every file descriptor of every process that refers to a
// socket with a port, or with the port given.
func (s *Snapshotter) readHolders(port uint16) ([]bpfHolder, error) {
	if err := s.objs.HoldersPort.Set(port); err != nil {
		return nil, fmt.Errorf("prepare iterator: %w", err)
	}
	it, err := s.files.Open()
	if err != nil {
		return nil, explain("open iter/task_file", err)
	}
	defer it.Close()
	const size = int(unsafe.Sizeof(bpfHolder{}))
	buf := make([]byte, 0, 1024*size)
	for {
		n, err := it.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case err == io.EOF:
			if len(buf)%size != 0 {
				return nil, fmt.Errorf("read iter/task_file: %d bytes, want a multiple of %d", len(buf), size)
			}
			return unsafe.Slice((*bpfHolder)(unsafe.Pointer(unsafe.SliceData(buf))), len(buf)/size), nil
		case err != nil && !errors.Is(err, syscall.EAGAIN): // EAGAIN: a million descriptors without a socket
			return nil, fmt.Errorf("read iter/task_file: %w", err)
		}
		if cap(buf)-len(buf) < size {
			buf = slices.Grow(buf, len(buf))
		}
	}
}

// join gives each socket its holders.
func (s *Snapshotter) join(sockets []Socket, index map[uint64]int, holders []bpfHolder) {
	var last Process
	var lastRaw bpfProcess
	all := make([]Holder, 0, len(sockets)) // one allocation for the usual case of a holder each
	for i := range holders {
		raw := &holders[i]
		at, ok := index[raw.Sock]
		if !ok {
			continue // opened after the walk
		}
		if raw.Process != lastRaw {
			last, lastRaw = s.dec.process(&raw.Process), raw.Process
		}
		so := &sockets[at]
		so.Inode = raw.Inode
		h := Holder{Process: last, FD: raw.Fd}
		if so.Holders == nil && len(all) < cap(all) {
			all = append(all, h)
			so.Holders = all[len(all)-1 : len(all) : len(all)]
		} else {
			so.Holders = append(so.Holders, h)
		}
	}
}
