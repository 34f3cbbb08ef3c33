package tracer

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

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
	hidden    atomic.Bool // the kernel shows BPF programs no process 1, and who knows which others
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

// Rows is like Take, but makes each socket when it is read: for callers that do not want a
// list of 100,000 sockets in memory.
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
	adding.Wait()
	sorted := make(chan struct{})
	go func() {
		r.keys = r.from.sorted()
		close(sorted)
	}()
	twice := r.from.want()
	joinErr := s.eachFds(r.from.held.add)
	<-sorted
	for _, row := range twice {
		*row = bpfRow{}
	}
	if err := errors.Join(err, joinErr); err != nil {
		return nil, err
	}
	changed, err := s.lookAgain(&w, r.from)
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
	r.sight, r.most = s.sees(), r.from.most()
	return r, nil
}

// lookAgain reads sockets again that no process was found to hold: they were closed since,
// are the kernel's own, or their descriptors moved from a process whose table had not been
// read yet to one whose table had. For those all tables are read a second time.
// It tells whether the rows are to be sorted anew.
func (s *Snapshotter) lookAgain(w *bpfWalk, c *collection) (changed bool, err error) {
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
