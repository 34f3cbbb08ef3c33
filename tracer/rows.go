package tracer

import (
	"math"
	"net/netip"
	"slices"
	"sync"
)

// Rows is what a Snapshot is made from. Each socket is made when it is read, so that a
// list of very many need not be in memory. It is safe for concurrent use.
type Rows struct {
	// Restarts, Unfinished and Devices are as in Snapshot.
	Restarts, Unfinished int
	Devices              Devices

	start  uint64
	from   *collection
	keys   []sortKey
	known  []known   // of each key, where a Tracer has completed them
	owners []Process // that known names by number
}

// known is what events told of a socket.
type known struct {
	since  int64 // wall clock, nanoseconds; 0: not known
	owner  uint32
	origin Origin
	late   bool
}

// Len is the number of sockets.
func (r *Rows) Len() int { return len(r.keys) }

// Kind is the role and the protocol of a socket.
func (r *Rows) Kind(i int) (Role, Proto) {
	row := r.from.row(r.keys[i].at())
	return roleOf(row), Proto(row.Proto)
}

// NetNS is a socket's network namespace.
func (r *Rows) NetNS(i int) NetNS {
	flow := &r.from.row(r.keys[i].at()).Flow
	return NetNS{flow.Netns, flow.NetnsCookie}
}

// Read makes a socket; they are ordered as SortSockets does. Its holders are in the memory
// of those that so has, if there is room.
func (r *Rows) Read(i int, so *Socket) {
	at := r.keys[i].at()
	holders := r.from.holders(so.Holders[:0], at)
	*so = socketOf(r.from.row(at))
	so.Holders = holders
	if r.known != nil {
		k := &r.known[i]
		so.Owner, so.Since, so.Origin, so.late = r.owners[k.owner], wallTime(k.since), k.origin, k.late
	}
}

// Snapshot makes all sockets. It uses two processors.
func (r *Rows) Snapshot() *Snapshot {
	snap := &Snapshot{Sockets: make([]Socket, r.Len()), Restarts: r.Restarts, Unfinished: r.Unfinished, Devices: r.Devices, start: r.start}
	fill := func(from, to int) {
		pool := make([]Holder, 0, to-from) // for the usual case of a holder each
		for i := from; i < to; i++ {
			so := &snap.Sockets[i]
			so.Holders = pool[len(pool):]
			r.Read(i, so)
			if len(pool)+len(so.Holders) <= cap(pool) {
				pool = pool[:len(pool)+len(so.Holders)]
			}
			if so.Holders = slices.Clip(so.Holders); len(so.Holders) == 0 {
				so.Holders = nil
			}
		}
	}
	half := r.Len() / 2
	var rest sync.WaitGroup
	rest.Go(func() { fill(half, r.Len()) })
	fill(0, half)
	rest.Wait()
	return snap
}

// collection is rows on their way into a snapshot. A row is named by the number of its
// part and, in the lower 16 bits, its own.
type collection struct {
	mu     sync.Mutex // for add
	parts  []*part
	byFile fileIndex
	next   map[uint32]uint32 // MPTCP: subflows share a file
	procs  []Process
	more   map[uint32][]rawHolder // the holders of a row but the first
}

// part is the rows of one call of the walk, the first holder of each, and their keys.
type part struct {
	rows    []bpfRow
	held    []rawHolder
	keys    []sortKey
	deviced bool // some socket is bound to a device
}

// rawHolder is a holder on its way: a process by its place in collection.procs, or nobody.
type rawHolder struct {
	proc int32
	fd   uint32
}

const nobody = -1

func newCollection() *collection {
	return &collection{next: make(map[uint32]uint32), more: make(map[uint32][]rawHolder)}
}

func (c *collection) row(at uint32) *bpfRow { return &c.parts[at>>16].rows[at&0xffff] }

// add takes rows, and keeps them. It is safe for concurrent use.
func (c *collection) add(rows []bpfRow) {
	p := &part{rows: rows, held: make([]rawHolder, len(rows)), keys: make([]sortKey, 0, len(rows))}
	for i := range p.held { // written before it is read: a page that is read first faults twice
		p.held[i].proc = nobody
	}
	first := c.addPart(p)
	for i := range rows {
		p.deviced = p.deviced || rows[i].Flow.Dev != 0
		if rows[i].Sock != 0 {
			p.keys = append(p.keys, keyOf(&rows[i], first|uint32(i)))
		}
	}
}

// deviced tells whether some socket is bound to a device.
func (c *collection) deviced() bool {
	return slices.ContainsFunc(c.parts, func(p *part) bool { return p.deviced })
}

// addPart returns the name of the first row.
func (c *collection) addPart(p *part) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := uint32(len(c.parts)) << 16
	c.parts = append(c.parts, p)
	for i := range p.rows {
		row, at := &p.rows[i], first|uint32(i)
		if row.File == 0 {
			continue
		}
		other, ok := c.byFile.find(row.File)
		if ok && c.row(other).Sock == row.Sock { // a slot of a table was read twice
			*row = bpfRow{}
			continue
		}
		if ok {
			c.next[at] = other
		}
		c.byFile.put(row.File, at)
	}
	return first
}

// fileIndex finds a row by the address of the file that refers to its socket: a hash table
// with linear probing, at most half full. A map takes three times as long for that.
type fileIndex struct {
	slots []fileSlot // a power of two of them
	used  int
}

type fileSlot struct {
	file uint64 // 0: free
	at   uint32
}

// slot is where the file is, or would be.
func (x *fileIndex) slot(file uint64) *fileSlot {
	mask := uint64(len(x.slots) - 1)
	for i := file * 0x9e3779b97f4a7c15 >> 32; ; i++ { // Fibonacci hashing: addresses end in zeros
		if s := &x.slots[i&mask]; s.file == file || s.file == 0 {
			return s
		}
	}
}

func (x *fileIndex) find(file uint64) (at uint32, ok bool) {
	if x.used == 0 {
		return 0, false
	}
	s := x.slot(file)
	return s.at, s.file != 0
}

// put adds a file, or names another row for it.
func (x *fileIndex) put(file uint64, at uint32) {
	if 2*x.used >= len(x.slots) {
		x.grow()
	}
	s := x.slot(file)
	if s.file == 0 {
		x.used++
	}
	*s = fileSlot{file, at}
}

func (x *fileIndex) grow() {
	old := x.slots
	x.slots = make([]fileSlot, max(2*len(old), 1<<10))
	for i := range x.slots { // written before it is read: as in add
		x.slots[i].at = math.MaxUint32
	}
	for _, s := range old {
		if s.file != 0 {
			*x.slot(s.file) = s
		}
	}
}

func keyOf(row *bpfRow, at uint32) sortKey {
	local, remote, _ := endsOf(row)
	return newSortKey(roleOf(row), Proto(row.Proto), row.Flow.Netns, local, remote, at)
}

func endsOf(row *bpfRow) (local, remote netip.AddrPort, id uint64) {
	return addrPort(row.Flow.LocalIp, row.Flow.LocalPort), remoteOf(row), row.Sock
}

func (c *collection) ends(at uint32) (local, remote netip.AddrPort, id uint64) {
	return endsOf(c.row(at))
}

// sorted returns the keys in order.
func (c *collection) sorted() []sortKey {
	n := 0
	for _, p := range c.parts {
		n += len(p.keys)
	}
	keys := make([]sortKey, 0, n)
	for _, p := range c.parts {
		keys = append(keys, p.keys...)
	}
	sortKeys(keys, c.ends)
	return keys
}

// join gives each socket its holders among some descriptor tables.
func (c *collection) join(dec *decoder, tables []bpfFds) {
	for i := range tables {
		table := &tables[i]
		h := rawHolder{proc: int32(len(c.procs))}
		c.procs = append(c.procs, dec.process(&table.Process))
		for fd, file := range table.Files {
			if file == 0 {
				continue
			}
			h.fd = table.First + uint32(fd)
			for at, ok := c.byFile.find(file); ok; at, ok = c.next[at] {
				if first := &c.parts[at>>16].held[at&0xffff]; first.proc == nobody {
					*first = h
				} else {
					c.more[at] = append(c.more[at], h)
				}
			}
		}
	}
}

// holders appends the holders of a row.
func (c *collection) holders(to []Holder, at uint32) []Holder {
	first := c.parts[at>>16].held[at&0xffff]
	if first.proc == nobody {
		return to
	}
	to = append(to, Holder{Process: c.procs[first.proc], FD: first.fd})
	if len(c.more) == 0 {
		return to
	}
	for _, h := range c.more[at] {
		to = append(to, Holder{Process: c.procs[h.proc], FD: h.fd})
	}
	return to
}

// unique sorts keys anew, and leaves out rows that were read twice or are gone.
func (c *collection) unique(keys []sortKey) []sortKey {
	id := func(k sortKey) uint64 { return c.row(k.at()).Sock }
	keys = slices.DeleteFunc(keys, func(k sortKey) bool { return id(k) == 0 })
	for i, k := range keys {
		keys[i] = keyOf(c.row(k.at()), k.at())
	}
	sortKeys(keys, c.ends)
	return slices.CompactFunc(keys, func(a, b sortKey) bool { return id(a) == id(b) })
}
