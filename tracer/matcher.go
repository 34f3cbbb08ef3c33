package tracer

import (
	"bytes"
	"hash/maphash"
	"math"
	"slices"
	"unsafe"
)

// matcher finds who holds sockets, among the descriptor tables of all processes. A
// descriptor is matched with a socket by the address of its struct socket and by the
// inode number of that, which no two sockets share: the address alone is another's as
// soon as the socket is closed.
//
// Parts of tables that are equal, as those of a server and of the children it forked, are
// kept once, with a list of who has them. What any user can multiply is bounded: of the
// holders beyond those that fit only the number is known.
type matcher struct {
	dec     *decoder
	targets []heldSocket
	index   addressIndex // number of the first target of a struct socket
	parts   []fdsPart
	procs   []tableOwner
	byID    map[processID]uint32
	seed    maphash.Seed
	known   map[uint64]*knownPart // by hash of the contents, the first maxKnown
	more    map[uint32][]ref      // by number of a target: its refs but the first
	room    int                   // for refs beyond fewRefs of a target
	pass    uint8                 // times that all tables have been read
	matches []match               // of the part that is being added
}

// match is a target and a descriptor of it.
type match struct {
	target uint32
	fd     uint32
}

// heldSocket is a socket to find holders of.
type heldSocket struct {
	sock, socket uint64
	inode        uint32
	next         uint32 // another with this struct socket; noTarget: none
	first        ref
	extra        uint32 // holders that there was no room for
	found        uint8  // pass in which the first was found; 0: none
}

// ref is a place in a part of a table: a descriptor of whoever has such a part.
type ref struct {
	part uint32
	fd   uint32
}

// knownPart is a part with its contents, to compare others with.
type knownPart struct {
	part  uint32
	table bpfFds
}

// fdsPart is a part of a table that some processes have.
type fdsPart struct {
	procs []uint32 // places in matcher.procs, each once
	ring  bool     // not of a table of descriptors, but of files registered with an io_uring

	holders uint32 // the same processes in a Table; 0: not there yet
}

// tableOwner is a process that has descriptors of sockets.
type tableOwner struct {
	Process
	tid uint32 // first thread whose table was read
	// several: other threads have tables of their own.
	several bool
}

const (
	noTarget = math.MaxUint32
	// fewRefs is how many refs each target has room for, moreRefs how many more all of
	// them together: 16 bytes each.
	fewRefs  = 16
	moreRefs = 1 << 16
	// maxKnown is how many parts are compared with new ones: some 3 MB.
	maxKnown = 1 << 12
)

func newMatcher(dec *decoder) *matcher {
	return &matcher{
		dec: dec, byID: make(map[processID]uint32), seed: maphash.MakeSeed(), known: make(map[uint64]*knownPart),
		more: make(map[uint32][]ref), room: moreRefs, pass: 1,
	}
}

// reserve makes room for so many targets.
func (m *matcher) reserve(n int) {
	m.targets = make([]heldSocket, 0, n)
	m.index = newAddressIndex(n)
}

// want adds a socket to find holders of and returns its number. Known: the same was added
// before, for a slot of a table was read twice.
func (m *matcher) want(row *bpfRow) (n uint32, known bool) {
	first, ok := m.index.find(row.Socket)
	if !ok {
		first = noTarget
	}
	for n := first; n != noTarget; n = m.targets[n].next {
		if t := &m.targets[n]; t.sock == row.Sock && t.inode == uint32(row.Inode) {
			return n, true
		}
	}
	n = uint32(len(m.targets))
	m.targets = append(m.targets, heldSocket{sock: row.Sock, socket: row.Socket, inode: uint32(row.Inode), next: first})
	m.index.put(row.Socket, n)
	return n, false
}

// open tells whether holders of a target are still being looked for.
func (m *matcher) open(t *heldSocket) bool { return t.found == 0 || t.found == m.pass }

// add looks for holders among parts of tables, which it does not keep.
func (m *matcher) add(tables []bpfFds) {
	for i := range tables {
		m.addPart(&tables[i])
	}
}

// again prepares for another look at all tables, which is for those targets alone that no
// holder was found of.
func (m *matcher) again() {
	m.pass++
	clear(m.known)
}

func (m *matcher) addPart(table *bpfFds) {
	m.matches = m.matchesOf(table, m.matches[:0])
	if len(m.matches) == 0 {
		return
	}
	proc := m.proc(table)
	hash := maphash.Bytes(m.seed, contentOf(table))
	if known := m.known[hash]; known != nil && bytes.Equal(contentOf(&known.table), contentOf(table)) {
		if part := &m.parts[known.part]; !m.procs[proc].several || !slices.Contains(part.procs, proc) {
			part.procs = append(part.procs, proc)
		}
		return
	}
	m.parts = append(m.parts, fdsPart{procs: []uint32{proc}, ring: table.Ring != 0})
	some, all := m.refer(proc)
	if !some {
		m.parts = m.parts[:len(m.parts)-1]
	} else if all && len(m.known) < maxKnown { // else each process is counted by itself
		m.known[hash] = &knownPart{uint32(len(m.parts) - 1), *table}
	}
}

// contentOf is what equal parts of tables have in common: everything but whose they are.
func contentOf(table *bpfFds) []byte {
	all := unsafe.Slice((*byte)(unsafe.Pointer(table)), unsafe.Sizeof(*table))
	return all[unsafe.Offsetof(table.First):]
}

// matchesOf appends the targets in a part whose holders are being looked for.
func (m *matcher) matchesOf(table *bpfFds, to []match) []match {
	for i, socket := range table.Sockets {
		if socket == 0 {
			continue
		}
		fd := table.First
		if table.Ring == 0 {
			fd += uint32(i)
		}
		for n := m.find(socket, table.Inodes[i]); n != noTarget; n = m.after(n) {
			if m.open(&m.targets[n]) {
				to = append(to, match{n, fd})
			}
		}
	}
	return to
}

// find returns the first target that is this socket; noTarget: none.
func (m *matcher) find(socket uint64, inode uint32) uint32 {
	n, ok := m.index.find(socket)
	if !ok {
		return noTarget
	}
	if m.targets[n].inode != inode {
		return m.afterOf(n, inode)
	}
	return n
}

// after returns the next target that is the same socket: a subflow of MPTCP.
func (m *matcher) after(n uint32) uint32 { return m.afterOf(n, m.targets[n].inode) }

func (m *matcher) afterOf(n uint32, inode uint32) uint32 {
	for n = m.targets[n].next; n != noTarget && m.targets[n].inode != inode; n = m.targets[n].next {
	}
	return n
}

// proc is the number of the process that has a table.
func (m *matcher) proc(table *bpfFds) uint32 {
	id := processID{table.Process.Pid, int64(table.Process.StartNs)}
	n, ok := m.byID[id]
	if !ok {
		n = uint32(len(m.procs))
		m.procs = append(m.procs, tableOwner{Process: m.dec.process(&table.Process), tid: table.Tid})
		m.byID[id] = n
	}
	if m.procs[n].tid != table.Tid {
		m.procs[n].several = true
	}
	return n
}

// refer adds the last part to the targets that are in it: to some, or to all.
func (m *matcher) refer(proc uint32) (some, all bool) {
	all = true
	part := uint32(len(m.parts) - 1)
	for _, match := range m.matches {
		added := m.addRef(match.target, ref{part, match.fd}, proc)
		some, all = some || added, all && added
	}
	return some, all
}

// addRef adds a ref to a target. False: there is no room, or the process is known to have
// the descriptor, by the table of another thread; or the ring to have the file.
func (m *matcher) addRef(n uint32, r ref, proc uint32) bool {
	t := &m.targets[n]
	if t.found == 0 {
		t.first, t.found = r, m.pass
		return true
	}
	if (m.procs[proc].several || m.parts[r.part].ring) && m.has(n, r, proc) {
		return false
	}
	more := m.more[n]
	if len(more) >= fewRefs-1 {
		if m.room == 0 {
			t.extra++
			return false
		}
		m.room--
	}
	m.more[n] = append(more, r)
	return true
}

// has tells whether a process is known to have a target by this descriptor.
func (m *matcher) has(n uint32, r ref, proc uint32) bool {
	for at := range m.refs(n) {
		part := &m.parts[at.part]
		if at.fd == r.fd && part.ring == m.parts[r.part].ring && slices.Contains(part.procs, proc) {
			return true
		}
	}
	return false
}

// refs ranges over the refs of a target.
func (m *matcher) refs(n uint32) func(func(ref) bool) {
	return func(yield func(ref) bool) {
		if m.targets[n].found == 0 || !yield(m.targets[n].first) || len(m.more) == 0 {
			return
		}
		for _, r := range m.more[n] {
			if !yield(r) {
				return
			}
		}
	}
}

// holders appends the holders of a target; more is how many there was no room for.
func (m *matcher) holders(n uint32, to []Holder) (holders []Holder, more int) {
	for r := range m.refs(n) {
		part := &m.parts[r.part]
		for _, proc := range part.procs {
			to = append(to, Holder{Process: m.procs[proc].Process, FD: r.fd, Ring: part.ring})
		}
	}
	return to, int(m.targets[n].extra)
}

// processes returns some of the processes that hold a socket, which want has been told of.
func (m *matcher) processes(row *bpfRow) []Process {
	var out []Process
	for n := m.find(row.Socket, uint32(row.Inode)); n != noTarget; n = m.after(n) {
		if m.targets[n].sock != row.Sock {
			continue
		}
		for r := range m.refs(n) {
			for _, proc := range m.parts[r.part].procs[:min(len(m.parts[r.part].procs), fewRefs)] {
				out = append(out, m.procs[proc].Process)
			}
		}
	}
	return out
}

// count is how many holders a target has.
func (m *matcher) count(n uint32) int {
	total := int(m.targets[n].extra)
	for r := range m.refs(n) {
		total += len(m.parts[r.part].procs)
	}
	return total
}

// addressIndex finds a number by an address of the kernel: a hash table with linear
// probing, at most half full. A map takes three times as long for that.
type addressIndex struct {
	slots []addressSlot // a power of two of them
	used  int
}

type addressSlot struct {
	address uint64 // 0: free
	n       uint32
}

// slot is where the address is, or would be.
func (x *addressIndex) slot(address uint64) *addressSlot {
	mask := uint64(len(x.slots) - 1)
	for i := address * 0x9e3779b97f4a7c15 >> 32; ; i++ { // Fibonacci hashing: addresses end in zeros
		if s := &x.slots[i&mask]; s.address == address || s.address == 0 {
			return s
		}
	}
}

func (x *addressIndex) find(address uint64) (n uint32, ok bool) {
	if x.used == 0 {
		return 0, false
	}
	s := x.slot(address)
	return s.n, s.address != 0
}

// put adds an address, or gives it another number.
func (x *addressIndex) put(address uint64, n uint32) {
	if 2*(x.used+1) > len(x.slots) {
		x.grow()
	}
	s := x.slot(address)
	if s.address == 0 {
		x.used++
	}
	*s = addressSlot{address, n}
}

// newAddressIndex has room for so many addresses.
func newAddressIndex(n int) addressIndex {
	size := 1 << 10
	for size < 2*n {
		size *= 2
	}
	x := addressIndex{slots: make([]addressSlot, size)}
	for i := range x.slots { // written before it is read: a page that is read first faults twice
		x.slots[i].n = math.MaxUint32
	}
	return x
}

func (x *addressIndex) grow() {
	old := *x
	*x = newAddressIndex(len(old.slots))
	for _, s := range old.slots {
		if s.address != 0 {
			x.put(s.address, s.n)
		}
	}
}
