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
	sight  sight
	most   int // holders of a socket that Cut leaves
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
	row := r.from.row(at)
	holders, more := r.from.holders(so.Holders[:0], at)
	*so = socketOf(row)
	so.Holders, so.HoldersMore = holders, more
	so.NoHolder = r.sight.noHolder(row, holders)
	if r.known != nil {
		k := &r.known[i]
		so.Owner, so.Since, so.Origin, so.late = r.owners[k.owner], wallTime(k.since), k.origin, k.late
	}
}

// Cut drops the holders of a socket that are too many to list, and counts them in HoldersMore.
// It drops any only where all sockets together have very many, as where the children of a
// server inherited all of its connections.
func (r *Rows) Cut(so *Socket) {
	if n := len(so.Holders) - r.most; n > 0 {
		so.Holders, so.HoldersMore = so.Holders[:r.most], so.HoldersMore+n
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
			r.Cut(so)
			switch n := len(so.Holders); {
			case n == 0:
				so.Holders = nil
			case len(pool)+n <= cap(pool):
				pool = pool[:len(pool)+n]
				so.Holders = slices.Clip(so.Holders)
			default: // what was cut is not kept
				so.Holders = slices.Clone(so.Holders)
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
	mu    sync.Mutex // for add
	parts []*part
	held  *matcher
}

// part is the rows of one call of the walk, what they are to find their holders, and their
// keys.
type part struct {
	rows    []bpfRow
	targets []uint32
	keys    []sortKey
	held    int  // rows of sockets that can have holders
	deviced bool // some socket is bound to a device
}

func newCollection(dec *decoder) *collection { return &collection{held: newMatcher(dec)} }

func (c *collection) row(at uint32) *bpfRow { return &c.parts[at>>16].rows[at&0xffff] }

// add takes rows, and keeps them. It is safe for concurrent use.
func (c *collection) add(rows []bpfRow) {
	p := &part{rows: rows, targets: make([]uint32, len(rows)), keys: make([]sortKey, 0, len(rows))}
	first := c.addPart(p)
	for i := range rows {
		p.deviced = p.deviced || rows[i].Flow.Dev != 0
		if rows[i].Sock != 0 {
			p.keys = append(p.keys, keyOf(&rows[i], first|uint32(i)))
		}
		if rows[i].Socket != 0 {
			p.held++
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
	c.parts = append(c.parts, p)
	return uint32(len(c.parts)-1) << 16
}

// want has holders of all rows looked for, and returns those that are there twice, because
// their slot of a table was read twice. Not by add: as soon as it is known how many there are,
// the memory for it can be had at once.
func (c *collection) want() (twice []*bpfRow) {
	n := 0
	for _, p := range c.parts {
		n += p.held
	}
	c.held.reserve(n)
	for _, p := range c.parts {
		for i := range p.rows {
			row := &p.rows[i]
			p.targets[i] = noTarget
			if row.Socket == 0 {
				continue
			}
			n, known := c.held.want(row)
			if known {
				twice = append(twice, row)
				continue
			}
			p.targets[i] = n
		}
	}
	return twice
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

// target is the number of a row in held.
func (c *collection) target(at uint32) uint32 { return c.parts[at>>16].targets[at&0xffff] }

// holders appends the holders of a row; more is how many there was no room for.
func (c *collection) holders(to []Holder, at uint32) (holders []Holder, more int) {
	n := c.target(at)
	if n == noTarget {
		return to, 0
	}
	return c.held.holders(n, to)
}

// most is how many holders of each socket are listed: all, but where there are very many
// besides some of each.
func (c *collection) most() int {
	total := 0
	for n := range c.held.targets {
		total += c.held.count(uint32(n))
	}
	if total > fewRefs*len(c.held.targets)+moreRefs {
		return fewRefs
	}
	return math.MaxInt
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
