package tracer

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
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

// Snapshotter reads snapshots. It needs CAP_BPF and CAP_PERFMON. It is safe for
// concurrent use; callers wait for each other.
type Snapshotter struct {
	mu sync.Mutex // for one snapshot
	// turn is for one call of a program, and for what it leaves in its maps.
	turn sync.Mutex

	tables  tableObjects
	step    *ebpf.Program // goes on with the walk
	burst   *link.Iter    // the same for old kernels, instead
	holders holderObjects
	files   *link.Iter
	udp     int // a UDP socket, for struct walk
	rows    *ebpf.Memory
	fds     *ebpf.Memory
	spaces  *ebpf.Memory
	dec     *decoder
	kernel  *btf.Cache // the kernel's types, to load more programs with
}

type tableObjects struct {
	Walk   *ebpf.Variable `ebpf:"walk"`
	Rows   *ebpf.Map      `ebpf:"rows"`
	Spaces *ebpf.Map      `ebpf:"netns_rows"`
}

type holderObjects struct {
	Cursor *ebpf.Variable `ebpf:"fds_cursor"`
	Chunks *ebpf.Map      `ebpf:"fds"`
	Files  *ebpf.Program  `ebpf:"ph_files"`
}

// NewSnapshotter loads the programs. The error wraps ErrNotPermitted or
// ErrNotSupported where one of these is the reason.
func NewSnapshotter() (*Snapshotter, error) { return newSnapshotter(false) }

// newSnapshotter with oldKernel does as on a kernel before 5.17.
func newSnapshotter(oldKernel bool) (*Snapshotter, error) {
	if err := checkLoad(); err != nil {
		return nil, err
	}
	kernel := kernelTypes() // decoded while the programs for most kernels are
	with := loadSnapshot
	if oldKernel {
		with = loadSnapshotOld
	}
	spec, err := readSpec(kernel, with, loadSnapshotOld)
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{dec: newDecoder(), kernel: kernel(), udp: -1}
	if err := s.load(spec, oldKernel); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Snapshotter) load(spec *ebpf.CollectionSpec, oldKernel bool) error {
	opts := ebpf.CollectionOptions{Cache: s.kernel}
	done := make(chan error)
	holders := spec.Copy()
	go func() { done <- holders.LoadAndAssign(&s.holders, &opts) }()
	err := s.loadWalk(spec, opts, oldKernel)
	if err := errors.Join(err, <-done); err != nil {
		return explain("load snapshot programs", err)
	}
	if s.udp, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open a UDP socket: %w", err)
	}
	if s.rows, err = s.tables.Rows.Memory(); err != nil {
		return fmt.Errorf("map rows: %w", err)
	}
	if s.spaces, err = s.tables.Spaces.Memory(); err != nil {
		return fmt.Errorf("map namespaces: %w", err)
	}
	if s.fds, err = s.holders.Chunks.Memory(); err != nil {
		return fmt.Errorf("map descriptors: %w", err)
	}
	s.files, err = link.AttachIter(link.IterOptions{Program: s.holders.Files})
	if err != nil {
		return explain("attach iter/task", err)
	}
	return nil
}

// loadWalk loads the program that walks, and where the kernel has no bpf_loop()
// (5.17) or programs of type syscall (5.14) the one that does it in short bursts.
func (s *Snapshotter) loadWalk(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions, oldKernel bool) error {
	var walk struct {
		tableObjects
		Step *ebpf.Program `ebpf:"ph_walk"`
	}
	var burst struct {
		tableObjects
		Step *ebpf.Program `ebpf:"ph_walk_burst"`
	}
	var err error
	if !oldKernel {
		if err = spec.LoadAndAssign(&walk, &opts); err == nil {
			s.tables, s.step = walk.tableObjects, walk.Step
			return nil
		}
	}
	if burstErr := spec.LoadAndAssign(&burst, &opts); burstErr != nil {
		return errors.Join(err, burstErr)
	}
	defer burst.Step.Close() // the link keeps it
	s.tables = burst.tableObjects
	s.burst, err = link.AttachIter(link.IterOptions{Program: burst.Step})
	return err
}

// forget frees what only loading programs takes: some 10 MB.
func (s *Snapshotter) forget() { s.kernel = nil }

// Close unloads the programs.
func (s *Snapshotter) Close() error {
	var errs []error
	for _, it := range []*link.Iter{s.files, s.burst} {
		if it != nil {
			errs = append(errs, it.Close())
		}
	}
	if s.udp >= 0 {
		errs = append(errs, unix.Close(s.udp))
	}
	return errors.Join(append(errs, s.tables.Rows.Close(), s.tables.Spaces.Close(), s.step.Close(),
		s.holders.Chunks.Close(), s.holders.Files.Close())...)
}

// Take reads every socket with a port, or those on one local port (port not 0),
// ordered as SortSockets does. It blocks for about a millisecond and for a
// microsecond per socket.
//
// The tables are read before the file descriptors, so a socket without a holder
// had none when the descriptors were read.
func (s *Snapshotter) Take(port uint16) (*Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := &Snapshot{start: boottime()}
	var w bpfWalk
	// One processor sorts out what the other reads from the kernel.
	rows := make(chan []bpfRow, 64)
	sorted := make(chan *collection, 1)
	go func() {
		c := newCollection()
		for some := range rows {
			c.add(some)
		}
		sorted <- c
		c.sort()
		sorted <- c
	}()
	err := s.readTables(&w, port, nil, func(some []bpfRow) { rows <- some })
	close(rows)
	c := <-sorted
	fdsErr := s.eachFds(func(tables []bpfFds) { c.join(s.dec, tables) })
	<-sorted
	if err := errors.Join(err, fdsErr); err != nil {
		return nil, err
	}
	snap.Sockets = c.sockets()
	if err := s.settle(&w, snap); err != nil {
		return nil, err
	}
	snap.Restarts, snap.Unfinished = int(w.Restarts), int(w.GaveUp)
	return snap, nil
}

// collection is sockets on their way into a snapshot. They do not move while
// others point to them.
type collection struct {
	keys   []sortKey
	byFile map[uint64]*Socket  // by the address of the file that refers to them
	next   map[*Socket]*Socket // MPTCP: subflows share a file
	pool   []Holder            // memory for the usual case of a holder each
}

func newCollection() *collection {
	return &collection{byFile: make(map[uint64]*Socket), next: make(map[*Socket]*Socket)}
}

// add decodes rows.
func (c *collection) add(rows []bpfRow) {
	part := make([]Socket, len(rows))
	for i := range rows {
		so := &part[i]
		*so = socketOf(&rows[i])
		c.keys = append(c.keys, keyOf(so))
		if so.file == 0 {
			continue
		}
		switch other := c.byFile[so.file]; {
		case other == nil:
			c.byFile[so.file] = so
		case other.id == so.id: // a slot of a table was read twice
			so.id = 0
		default:
			c.next[so] = other
			c.byFile[so.file] = so
		}
	}
}

func (c *collection) sort() { slices.SortFunc(c.keys, compareKeys) }

// sockets returns the sockets in order, each once.
func (c *collection) sockets() []Socket {
	out := make([]Socket, 0, len(c.keys))
	for _, k := range c.keys {
		if id := k.so.id; id != 0 && (len(out) == 0 || out[len(out)-1].id != id) {
			out = append(out, *k.so)
		}
	}
	return out
}

// readTables walks every table that has sockets with a port. buf is as for walk.
func (s *Snapshotter) readTables(w *bpfWalk, port uint16, buf []bpfRow, each func([]bpfRow)) error {
	backlog := false
	for _, table := range []bpfWalkTable{bpfWalkTableWALK_TCP_BIND, bpfWalkTableWALK_UDP, bpfWalkTableWALK_TCP_REQUEST} {
		if table == bpfWalkTableWALK_TCP_REQUEST && !backlog {
			break // no listener has a half-open connection
		}
		err := s.walk(w, bpfWalk{Table: table, Port: port}, buf, func(rows []bpfRow) {
			backlog = backlog || slices.ContainsFunc(rows, func(r bpfRow) bool {
				return r.Flags&uint16(bpfRowFlagROW_BACKLOG) != 0
			})
			each(rows)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// settle gives sockets without a holder their role. One that had a file when
// the tables were read was closed since, or its descriptor is on its way to
// another process: it is read again to tell.
func (s *Snapshotter) settle(w *bpfWalk, snap *Snapshot) error {
	changed, gone := false, false
	for i := range snap.Sockets {
		so := &snap.Sockets[i]
		if len(so.Holders) > 0 || so.file == 0 {
			continue
		}
		again, err := s.again(w, so)
		if err != nil {
			return err
		}
		changed = changed || again.Role != so.Role
		*so = again
		gone = gone || so.id == 0
	}
	if gone {
		snap.Sockets = slices.DeleteFunc(snap.Sockets, func(so Socket) bool { return so.id == 0 })
	}
	if changed {
		SortSockets(snap.Sockets)
	}
	return nil
}

// again reads one socket as it is now. The zero Socket: it has no port any more.
func (s *Snapshotter) again(w *bpfWalk, so *Socket) (Socket, error) {
	var now Socket
	one := bpfWalk{Table: bpfWalkTableWALK_SOCK, Port: so.Local.Port(), Node: so.id}
	err := s.walk(w, one, nil, func(rows []bpfRow) {
		for i := range rows {
			now = socketOf(&rows[i])
		}
	})
	if err != nil || now.Proto != so.Proto || now.NetNS != so.NetNS {
		return Socket{}, err // its memory is another socket's
	}
	return now, nil
}

// walk reads what is asked for to its end and hands each its rows: in buf, which has
// room for all of the map, or if that is nil in memory of their own. The restarts of w go on counting.
func (s *Snapshotter) walk(w *bpfWalk, what bpfWalk, buf []bpfRow, each func([]bpfRow)) error {
	what.Restarts, what.GaveUp, what.UdpFd = w.Restarts, w.GaveUp, uint32(s.udp)
	*w = what
	step, err := s.stepper()
	if err != nil {
		return err
	}
	defer step.Close()
	for w.Done == 0 {
		rows, err := s.goOn(w, step, buf)
		if err != nil {
			return err
		}
		if w.Buckets == 0 {
			return fmt.Errorf("walk the kernel's port tables: %w: table %d not found", ErrNotSupported, what.Table)
		}
		each(rows)
	}
	return nil
}

// goOn goes on with a walk and returns the rows of that part.
func (s *Snapshotter) goOn(w *bpfWalk, step *stepper, buf []bpfRow) ([]bpfRow, error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := s.tables.Walk.Set(w); err != nil {
		return nil, fmt.Errorf("prepare walk: %w", err)
	}
	if err := step.run(); err != nil {
		return nil, explain("walk the kernel's port tables", err)
	}
	if err := s.tables.Walk.Get(w); err != nil {
		return nil, fmt.Errorf("read walk: %w", err)
	}
	if w.Table == bpfWalkTableWALK_NETNS {
		return nil, nil
	}
	rows := buf
	if rows == nil {
		rows = make([]bpfRow, w.Rows)
	}
	rows = rows[:w.Rows]
	if err := readMemory(s.rows, rows); err != nil {
		return nil, fmt.Errorf("read rows: %w", err)
	}
	return rows, nil
}

// stepper goes on with the walk at each call of run.
type stepper struct {
	prog *ebpf.Program
	it   io.ReadCloser // instead
}

func (s *Snapshotter) stepper() (*stepper, error) {
	if s.burst == nil {
		return &stepper{prog: s.step}, nil
	}
	it, err := s.burst.Open()
	if err != nil {
		return nil, explain("open iter/task", err)
	}
	return &stepper{it: it}, nil
}

func (s *stepper) run() error {
	if s.it == nil {
		_, err := s.prog.Run(&ebpf.RunOptions{})
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

// readMemory fills a slice of one of the BPF programs' types from a map.
func readMemory[T bpfRow | bpfFds | bpfNetnsRow](from *ebpf.Memory, to []T) error {
	if len(to) == 0 {
		return nil
	}
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(to))), len(to)*int(unsafe.Sizeof(to[0])))
	_, err := from.ReadAt(bytes, 0)
	return err
}

// eachFds hands f the descriptor tables of every process, in parts that it must not keep.
func (s *Snapshotter) eachFds(f func([]bpfFds)) error {
	it, err := s.files.Open()
	if err != nil {
		return explain("open iter/task", err)
	}
	defer it.Close()
	var cursor bpfFdsCursor
	buf := make([]bpfFds, s.holders.Chunks.MaxEntries())
	for {
		last, err := s.readFds(it, &cursor, buf)
		if err != nil {
			return err
		}
		f(buf[:cursor.Rows])
		if last {
			return nil
		}
	}
}

// readFds reads as many parts of descriptor tables as there is room for.
func (s *Snapshotter) readFds(it io.Reader, cursor *bpfFdsCursor, buf []bpfFds) (last bool, err error) {
	s.turn.Lock()
	defer s.turn.Unlock()
	cursor.Rows = 0
	if err := s.holders.Cursor.Set(cursor); err != nil {
		return false, fmt.Errorf("prepare iterator: %w", err)
	}
	// The iterator writes nothing to its reader: it ends with EOF, or with EAGAIN
	// when its map is full.
	_, readErr := it.Read(make([]byte, 1))
	if readErr != nil && readErr != io.EOF && !errors.Is(readErr, syscall.EAGAIN) {
		return false, fmt.Errorf("read iter/task: %w", readErr)
	}
	if err := s.holders.Cursor.Get(cursor); err != nil {
		return false, fmt.Errorf("read iterator: %w", err)
	}
	if err := readMemory(s.fds, buf[:cursor.Rows]); err != nil {
		return false, fmt.Errorf("read descriptors: %w", err)
	}
	return readErr == io.EOF, nil
}

// join gives each socket its holders among some descriptor tables.
func (c *collection) join(dec *decoder, tables []bpfFds) {
	if c.pool == nil {
		c.pool = make([]Holder, 0, len(c.keys))
	}
	for i := range tables {
		table := &tables[i]
		process := dec.process(&table.Process)
		for fd, file := range table.Files {
			if file == 0 {
				continue
			}
			for so := c.byFile[file]; so != nil; so = c.next[so] {
				h := Holder{Process: process, FD: table.First + uint32(fd)}
				if n := len(c.pool); so.Holders == nil && n < cap(c.pool) {
					c.pool = append(c.pool, h)
					so.Holders = c.pool[n : n+1 : n+1]
				} else {
					so.Holders = append(so.Holders, h)
				}
			}
		}
	}
}

// Ports reads every use of an ephemeral port in one pass over the kernel's tables,
// the settings of every namespace, and who holds the sockets. It blocks for about a
// millisecond and for a fraction of a microsecond per port in use.
func (s *Snapshotter) Ports() (*Ports, error) {
	return s.ports(nil, true)
}

// ports is Ports; of sockets that no process holds the table knows who had them.
func (s *Snapshotter) ports(known *Table, withHolders bool) (*Ports, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := newPorts()
	var w bpfWalk
	if err := s.readSpaces(&w, p); err != nil {
		return nil, err
	}
	var owners [][]bpfRow
	files := uint8(0)
	if withHolders {
		files = 1
	}
	for _, table := range []bpfWalkTable{bpfWalkTableWALK_TCP_BIND, bpfWalkTableWALK_UDP} {
		err := s.walk(&w, bpfWalk{Table: table, Ephemeral: 1, Files: files}, nil, func(rows []bpfRow) { owners = append(owners, rows) })
		if err != nil {
			return nil, err
		}
	}
	if w.GaveUp > 0 {
		return nil, fmt.Errorf("read the kernel's port tables: %d slots did not hold still", w.GaveUp)
	}
	var holders map[uint64][]Process
	if withHolders {
		var err error
		if holders, err = s.holdersOf(owners); err != nil {
			return nil, err
		}
	}
	if known != nil {
		known.mu.RLock()
		defer known.mu.RUnlock()
	}
	var seen map[uint64]bool // of slots that were read twice
	if w.Restarts > 0 {
		seen = make(map[uint64]bool)
	}
	for _, rows := range owners {
		for i := range rows {
			row := &rows[i]
			if seen != nil && seen[row.Sock] {
				continue
			} else if seen != nil {
				seen[row.Sock] = true
			}
			p.addOwner(row, usersOf(row, holders, known))
		}
	}
	return p, nil
}

// usersOf are the processes that hold a socket; of one that no process holds who had
// it last, where that was observed.
func usersOf(row *bpfRow, holders map[uint64][]Process, known *Table) []Process {
	if row.File != 0 && holders != nil {
		if by := holders[row.File]; len(by) > 0 {
			return by
		}
	}
	if known != nil {
		if owner := known.knownOwner(row.Sock, &row.Flow); owner.PID != 0 {
			return []Process{owner}
		}
	}
	return nil
}

func (s *Snapshotter) readSpaces(w *bpfWalk, p *Ports) error {
	var readErr error
	err := s.walk(w, bpfWalk{Table: bpfWalkTableWALK_NETNS}, nil, func([]bpfRow) {
		rows := make([]bpfNetnsRow, w.Rows)
		if err := readMemory(s.spaces, rows); err != nil {
			readErr = fmt.Errorf("read namespaces: %w", err)
		}
		for i := range rows {
			p.addSpace(&rows[i])
		}
	})
	return errors.Join(err, readErr)
}

// holdersOf returns the processes that have the files of owners, by file.
func (s *Snapshotter) holdersOf(owners [][]bpfRow) (map[uint64][]Process, error) {
	out := make(map[uint64][]Process)
	for _, rows := range owners {
		for i := range rows {
			if rows[i].File != 0 {
				out[rows[i].File] = nil
			}
		}
	}
	err := s.eachFds(func(tables []bpfFds) {
		for i := range tables {
			process := s.dec.process(&tables[i].Process)
			for _, file := range tables[i].Files {
				if file == 0 {
					continue
				}
				if by, ok := out[file]; ok {
					out[file] = append(by, process)
				}
			}
		}
	})
	return out, err
}
