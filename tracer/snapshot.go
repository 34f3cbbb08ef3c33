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
	// Devices are the names of the devices that sockets are bound to; nil where none is, or
	// they could not be read.
	Devices Devices

	start uint64 // CLOCK_BOOTTIME when the first table was opened, nanoseconds
}

// Snapshotter reads snapshots. It needs CAP_BPF and CAP_PERFMON. It is safe for
// concurrent use; callers wait for each other.
type Snapshotter struct {
	mu sync.Mutex // for one snapshot
	// turns is for one call of a program, and for what it leaves in its maps: of each
	// lane of the walk, as many as can go on at once, and of the iterator of files.
	turns   []sync.Mutex
	fdsTurn sync.Mutex

	maps     *ebpf.Collection
	sockWalk walker // of sockets
	portWalk walker // of ephemeral ports
	// loadPorts loads portWalk, if that was not asked for; nil: it is loaded.
	loadPorts func() error
	files     *link.Iter
	devices   deviceReader
	udp       int // a UDP socket, for struct walk
	ring      int // an io_uring, for struct walk; -1: none
	sight     sight
	rows      *ebpf.Memory
	fds       *ebpf.Memory
	spaces    *ebpf.Memory
	dec       *decoder

	deviceRows *ebpf.Memory

	kernel *btf.Cache // the kernel's types, to load more programs with
	timed  uint8      // 1: tell when each row was read, which takes a tenth of the walk
}

// Reads is what a Snapshotter can read: each takes a program, and that some time to load.
type Reads uint8

const (
	// ReadsSockets is for Take and Rows.
	ReadsSockets Reads = 1 << iota
	// ReadsPorts is for Ports.
	ReadsPorts
)

// NewSnapshotter loads the programs. The error wraps ErrNotPermitted or
// ErrNotSupported where one of these is the reason.
func NewSnapshotter(reads Reads) (*Snapshotter, error) { return newSnapshotter(reads, false) }

// newSnapshotter with oldKernel does as on a kernel before 5.17.
func newSnapshotter(reads Reads, oldKernel bool) (*Snapshotter, error) {
	if err := checkLoad(); err != nil {
		return nil, err
	}
	s := &Snapshotter{dec: newDecoder(), udp: -1, ring: -1}
	if err := s.open(reads, oldKernel); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Snapshotter) open(reads Reads, oldKernel bool) error {
	kernel := kernelTypes() // decoded while the programs for most kernels are, and their maps made
	spec, err := s.prepare(loadSnapshot)
	if err != nil {
		return err
	}
	s.kernel = kernel()
	cast, err := hasCast(s.kernel)
	if err != nil {
		return err
	}
	if !cast || oldKernel {
		s.maps.Close()
		if spec, err = s.prepare(loadSnapshotOld); err != nil {
			return err
		}
	}
	return s.load(spec, reads, oldKernel)
}

// prepare reads an object and creates its maps.
func (s *Snapshotter) prepare(load func() (*ebpf.CollectionSpec, error)) (*ebpf.CollectionSpec, error) {
	spec, err := load()
	if err != nil {
		return nil, fmt.Errorf("read BPF object: %w", err)
	}
	s.maps, err = createMaps(spec)
	return spec, err
}

func (s *Snapshotter) load(spec *ebpf.CollectionSpec, reads Reads, oldKernel bool) error {
	opts, err := loadOptions(s.maps.Maps, s.kernel)
	if err != nil {
		return err
	}
	s.devices.load = func() (*link.Iter, error) { return loadIter(spec, snapshotProgPhDevices, opts) }
	// One after the other: see loadOptions. At once it takes as long.
	var errs [3]error
	s.files, errs[0] = loadIter(spec, snapshotProgPhFiles, opts)
	if reads&ReadsSockets != 0 {
		errs[1] = s.sockWalk.load(spec, snapshotProgPhWalk, snapshotOldProgPhWalkBurst, opts, oldKernel)
	}
	loadPorts := func() error {
		return s.portWalk.load(spec, snapshotProgPhPorts, snapshotOldProgPhPortsBurst, opts, oldKernel)
	}
	if reads&ReadsPorts != 0 {
		errs[2] = loadPorts()
	} else {
		s.loadPorts = loadPorts
	}
	if err := errors.Join(errs[:]...); err != nil {
		return explain("load snapshot programs", err)
	}
	s.turns = make([]sync.Mutex, s.maps.Maps[snapshotMapWalks].MaxEntries())
	if s.udp, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open a UDP socket: %w", err)
	}
	s.openRing()
	for name, memory := range map[string]**ebpf.Memory{
		snapshotMapRows: &s.rows, snapshotMapNetnsRows: &s.spaces, snapshotMapFds: &s.fds, snapshotMapDevices: &s.deviceRows,
	} {
		if *memory, err = s.maps.Maps[name].Memory(); err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
	}
	return nil
}

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

// forget frees what only loading programs takes, some 10 MB, once all are loaded.
func (s *Snapshotter) forget() error {
	s.kernel = nil
	return s.devices.forget()
}

// Close unloads the programs.
func (s *Snapshotter) Close() error {
	var errs []error
	for _, it := range []*link.Iter{s.files, s.sockWalk.burst, s.portWalk.burst, s.devices.it} {
		if it != nil {
			errs = append(errs, it.Close())
		}
	}
	for _, fd := range []int{s.udp, s.ring} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if s.maps != nil {
		s.maps.Close()
	}
	return errors.Join(append(errs, s.sockWalk.prog.Close(), s.portWalk.prog.Close())...)
}

// Take reads every socket with a port, or those on one local port (port not 0),
// ordered as SortSockets does. It blocks for about a millisecond and for a
// microsecond per socket.
//
// The tables are read before the file descriptors. A holder had the socket when its
// descriptors were read; why a socket has none is Socket.NoHolder.
func (s *Snapshotter) Take(port uint16) (*Snapshot, error) {
	rows, err := s.Rows(port)
	if err != nil {
		return nil, err
	}
	return rows.Snapshot(), nil
}

// Rows is Take, but for making the sockets.
func (s *Snapshotter) Rows(port uint16) (*Rows, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rowsOf(s.dec, port)
}

// rowsOf is Rows of several ports, for who does not wait for others, and has a decoder of
// its own.
func (s *Snapshotter) rowsOf(dec *decoder, ports ...uint16) (*Rows, error) {
	r := &Rows{start: boottime(), from: newCollection(dec)}
	var w bpfWalk
	var adding sync.WaitGroup
	// Not the walk's own work: the sockets of a busy port are one chain, which one processor follows.
	var err error
	for _, port := range ports {
		err = errors.Join(err, s.readTables(&w, port, nil, func(rows []bpfRow) {
			adding.Go(func() { r.from.add(rows) })
		}))
	}
	sorted := make(chan struct{})
	go func() {
		adding.Wait()
		r.keys = r.from.sorted()
		close(sorted)
	}()
	joinErr := s.eachFds(func(tables []bpfFds) {
		adding.Wait()
		r.from.held.add(tables)
	})
	<-sorted
	if err := errors.Join(err, joinErr); err != nil {
		return nil, err
	}
	changed, err := s.settle(&w, r.from)
	if err != nil {
		return nil, err
	}
	if changed || w.Restarts > 0 {
		r.keys = r.from.unique(r.keys)
	}
	r.Restarts, r.Unfinished = int(w.Restarts), int(w.GaveUp)
	if r.from.deviced() {
		if r.Devices, err = s.Devices(); err != nil {
			r.Devices = nil // then they are shown by their numbers
		}
	}
	r.sight, r.most = s.sight, r.from.most()
	return r, nil
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
// of one counts only if it is still there.
func (s *Snapshotter) readEach(w *bpfWalk, what bpfWalk, tables []ownTable, buf []bpfRow, each func([]bpfRow)) error {
	for i, table := range tables {
		what.Heads = table.at
		if i == 0 {
			if err := s.readTable(w, what, buf, each); err != nil {
				return err
			}
			continue
		}
		var rows []bpfRow
		if err := s.read(&s.sockWalk, w, what, nil, func(some []bpfRow) { rows = append(rows, some...) }); err != nil {
			return err
		}
		now, err := s.ownTables(w)
		if err != nil {
			return err
		}
		if slices.Contains(now.udp, table) || slices.Contains(now.tcp, table) {
			for rows := range slices.Chunk(rows, s.laneRows()) {
				each(rows)
			}
		}
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

// settle reads sockets again that no process was found to hold: they were closed since,
// are the kernel's own, or their descriptors moved from a process whose table had not been
// read yet to one whose table had. For those all tables are read a second time.
// It tells whether the rows are to be sorted anew.
func (s *Snapshotter) settle(w *bpfWalk, c *collection) (changed bool, err error) {
	moved := false
	for _, p := range c.parts {
		for i := range p.rows {
			row := &p.rows[i]
			if p.targets[i] == noTarget || c.held.targets[p.targets[i]].found != 0 {
				continue
			}
			now, err := s.again(w, row)
			if err != nil {
				return false, err
			}
			changed = changed || now.Sock == 0 || roleOf(&now) != roleOf(row)
			moved = moved || now.Socket != 0 && !has(&now, bpfRowFlagROW_NO_FILE)
			*row = now
		}
	}
	if !moved {
		return changed, nil
	}
	c.held.again()
	return changed, s.eachFds(c.held.add)
}

// again reads one socket as it is now. The zero row: it has no port any more, or its
// memory is another socket's.
func (s *Snapshotter) again(w *bpfWalk, row *bpfRow) (bpfRow, error) {
	var now bpfRow
	one := bpfWalk{Table: bpfWalkTableWALK_SOCK, Port: row.Flow.LocalPort, Node: row.Sock, Timed: s.timed}
	err := s.read(&s.sockWalk, w, one, nil, func(rows []bpfRow) {
		for i := range rows {
			now = rows[i]
		}
	})
	if err != nil || now.Proto != row.Proto || now.Flow.Netns != row.Flow.Netns || now.Flow.NetnsCookie != row.Flow.NetnsCookie ||
		now.Inode != 0 && row.Inode != 0 && now.Inode != row.Inode {
		return bpfRow{}, err
	}
	return now, nil
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

// eachFds hands f the descriptor tables of every process, in parts that it must not keep.
func (s *Snapshotter) eachFds(f func([]bpfFds)) error {
	it, err := s.files.Open()
	if err != nil {
		return explain("open iter/task", err)
	}
	defer it.Close()
	var cursor bpfFdsCursor
	buf := make([]bpfFds, s.maps.Maps[snapshotMapFds].MaxEntries())
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
	s.fdsTurn.Lock()
	defer s.fdsTurn.Unlock()
	cursor.Rows = 0
	if err := s.maps.Variables[snapshotVarFdsCursor].Set(cursor); err != nil {
		return false, fmt.Errorf("prepare iterator: %w", err)
	}
	// The iterator writes nothing to its reader: it ends with EOF, or with EAGAIN
	// when its map is full.
	_, readErr := it.Read(make([]byte, 1))
	if readErr != nil && readErr != io.EOF && !errors.Is(readErr, syscall.EAGAIN) {
		return false, fmt.Errorf("read iter/task: %w", readErr)
	}
	if err := s.maps.Variables[snapshotVarFdsCursor].Get(cursor); err != nil {
		return false, fmt.Errorf("read iterator: %w", err)
	}
	if err := readMemory(s.fds, 0, buf[:cursor.Rows]); err != nil {
		return false, fmt.Errorf("read descriptors: %w", err)
	}
	return readErr == io.EOF, nil
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
	p.names = s.Devices
	var w bpfWalk
	tables, err := s.readSpaces(&w, p)
	if err != nil {
		return nil, err
	}
	var owners [][]bpfRow
	held := newMatcher(s.dec)
	what := bpfWalk{Table: bpfWalkTableWALK_TCP_BIND}
	if withHolders {
		what.Sockets = 1
	}
	keep := func(rows []bpfRow) { owners = append(owners, rows) }
	if err := s.read(&s.portWalk, &w, what, nil, keep); err != nil {
		return nil, err
	}
	what.Table = bpfWalkTableWALK_UDP
	for _, what.Heads = range tables {
		if err := s.read(&s.portWalk, &w, what, nil, keep); err != nil {
			return nil, err
		}
	}
	if w.GaveUp > 0 {
		return nil, fmt.Errorf("read the kernel's port tables: %d slots did not hold still", w.GaveUp)
	}
	if withHolders {
		for _, rows := range owners {
			for i := range rows {
				if rows[i].Socket != 0 {
					held.want(&rows[i])
				}
			}
		}
		if err := s.eachFds(held.add); err != nil {
			return nil, err
		}
	}
	if known != nil {
		known.mu.Lock()
		defer known.mu.Unlock()
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
			p.addOwner(row, usersOf(row, held, known))
		}
	}
	return p, nil
}

// usersOf are the processes that hold a socket, some if there are very many; of one that no
// process holds who had it last, where that was observed.
func usersOf(row *bpfRow, held *matcher, known *Table) []Process {
	if row.Socket != 0 {
		if by := held.processes(row); len(by) > 0 {
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

// NetNamespaces reads which network namespaces there are, of one inode number the newest
// last. It blocks for some microseconds for each. It needs ReadsPorts.
func (s *Snapshotter) NetNamespaces() ([]NetNS, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := newPorts()
	if _, err := s.readSpaces(new(bpfWalk), p); err != nil {
		return nil, err
	}
	return p.NetNamespaces(), nil
}

// readSpaces reads the settings of every namespace, and returns the addresses of the UDP
// tables they have.
func (s *Snapshotter) readSpaces(w *bpfWalk, p *Ports) (udpTables []uint64, err error) {
	var readErr error
	err = s.read(&s.portWalk, w, bpfWalk{Table: bpfWalkTableWALK_NETNS}, nil, func([]bpfRow) {
		rows := make([]bpfNetnsRow, w.Rows)
		if err := readMemory(s.spaces, 0, rows); err != nil {
			readErr = fmt.Errorf("read namespaces: %w", err)
		}
		for i := range rows {
			p.addSpace(&rows[i])
			if !slices.Contains(udpTables, rows[i].UdpTable) {
				udpTables = append(udpTables, rows[i].UdpTable)
			}
		}
	})
	return udpTables, errors.Join(err, readErr)
}
