package tracer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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
	Walk  *ebpf.Variable `ebpf:"walk"`
	Rows  *ebpf.Map      `ebpf:"rows"`
	Files *ebpf.Program  `ebpf:"ph_files"`
	Step  *ebpf.Program  `ebpf:"ph_walk"`
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
// The tables are read before the file descriptors, so a socket without a holder
// had none when the descriptors were read.
func (s *Snapshotter) Take(port uint16) (*Snapshot, error) {
	snap := &Snapshot{start: boottime()}
	w := bpfWalk{Port: port}
	backlog := false
	index := make(map[uint64]int)
	for _, table := range []bpfWalkTable{bpfWalkTableWALK_TCP_BIND, bpfWalkTableWALK_UDP, bpfWalkTableWALK_TCP_REQUEST} {
		if table == bpfWalkTableWALK_TCP_REQUEST && !backlog {
			break // no listener has a half-open connection
		}
		err := s.walk(&w, table, func(raw *bpfRow) {
			if _, ok := index[raw.Sock]; ok {
				return // its slot was read twice
			}
			index[raw.Sock] = len(snap.Sockets)
			snap.Sockets = append(snap.Sockets, s.dec.socket(raw))
			backlog = backlog || raw.Flags&uint8(bpfRowFlagROW_BACKLOG) != 0
		})
		if err != nil {
			return nil, err
		}
	}
	if err := s.holders(port, snap.Sockets, index); err != nil {
		return nil, err
	}
	if err := s.settle(&w, snap); err != nil {
		return nil, err
	}
	snap.Restarts, snap.Unfinished = int(w.Restarts), int(w.GaveUp)
	return snap, nil
}

// settle looks again at sockets without a holder that had a file when the
// tables were read: one that was closed since is an orphan now, or gone; one
// that was not is the kernel's own, or its descriptor is on its way to another
// process.
func (s *Snapshotter) settle(w *bpfWalk, snap *Snapshot) error {
	suspect := make(map[uint64]Socket)
	for i := range snap.Sockets {
		so := &snap.Sockets[i]
		if len(so.Holders) == 0 && so.file {
			suspect[so.id] = Socket{}
		}
	}
	if len(suspect) > 0 {
		for _, table := range []bpfWalkTable{bpfWalkTableWALK_TCP_BIND, bpfWalkTableWALK_UDP} {
			err := s.walk(w, table, func(raw *bpfRow) {
				if _, ok := suspect[raw.Sock]; ok {
					suspect[raw.Sock] = s.dec.socket(raw)
				}
			})
			if err != nil {
				return err
			}
		}
	}
	kept := snap.Sockets[:0]
	for _, so := range snap.Sockets {
		if len(so.Holders) == 0 {
			if now, ok := suspect[so.id]; ok {
				so = now
			}
			if so.id == 0 {
				continue // gone
			}
			if !so.file && (so.Role == RoleClient || so.Role == RoleServer) {
				so.Role = RoleOrphan
			}
		}
		kept = append(kept, so)
	}
	snap.Sockets = kept
	return nil
}

// walk reads one table to its end.
func (s *Snapshotter) walk(w *bpfWalk, table bpfWalkTable, each func(*bpfRow)) error {
	*w = bpfWalk{Table: uint32(table), Port: w.Port, Restarts: w.Restarts, GaveUp: w.GaveUp}
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
		for i := range rows {
			each(&rows[i])
		}
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

// holders reads every file descriptor of every process and adds those that
// refer to one of sockets.
func (s *Snapshotter) holders(port uint16, sockets []Socket, index map[uint64]int) error {
	if err := s.objs.Walk.Set(&bpfWalk{Port: port}); err != nil {
		return fmt.Errorf("prepare iterator: %w", err)
	}
	it, err := s.files.Open()
	if err != nil {
		return explain("open iter/task_file", err)
	}
	defer it.Close()
	in := bufio.NewReaderSize(it, 1<<16)
	var raw bpfHolder
	record := unsafe.Slice((*byte)(unsafe.Pointer(&raw)), unsafe.Sizeof(raw))
	var last Process
	var lastRaw bpfProcess
	all := make([]Holder, 0, len(sockets)) // one allocation for the usual case of a holder each
	for {
		if _, err := io.ReadFull(in, record); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read iter/task_file: %w", err)
		}
		i, ok := index[raw.Sock]
		if !ok {
			continue // opened after the walk
		}
		if raw.Process != lastRaw {
			last, lastRaw = s.dec.process(&raw.Process), raw.Process
		}
		so := &sockets[i]
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
