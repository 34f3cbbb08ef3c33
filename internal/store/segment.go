package store

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"syscall"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// segment is one that was read. What it refers to is in the memory it was read into.
type segment struct {
	head    header
	blocks  []block
	entries []rawEntry // by number
	places  map[uint32]identity.Cgroup
	procs   map[uint32]*Process
	spaces  map[uint32]space
	end     int  // of the last good block
	sealed  bool // an index ends it
	damaged int  // stretches that are neither blocks nor a tail that was being written
}

type rawEntry struct {
	kind uint8
	body []byte
}

// parse reads a segment: every block that is whole. One that is damaged is left out, and what is
// after it is found again. more are blocks that are not in the file yet.
func (g *segment) parse(p []byte, more ...[]byte) (err error) {
	*g = segment{entries: g.entries[:0], blocks: g.blocks[:0]}
	if g.head, err = parseHeader(p); err != nil {
		return err
	}
	g.places, g.procs, g.spaces = make(map[uint32]identity.Cgroup), make(map[uint32]*Process), make(map[uint32]space)
	at, bad := headerSize, false
	g.end = at
	for at < len(p) {
		blk, size := cutBlock(p[at:], blockMagic)
		if size == 0 {
			if _, size = cutBlock(p[at:], indexMagic); size != 0 {
				g.sealed = true
			}
		}
		if size == 0 {
			bad = true
			at = nextBlock(p, at+8)
			continue
		}
		if bad { // there is more after it: no torn tail
			g.damaged++
			bad = false
		}
		if !g.sealed {
			g.take(blk)
			g.end = at + size
		}
		at += size
	}
	for _, b := range more {
		for len(b) > 0 {
			blk, size := cutBlock(b, blockMagic)
			if size == 0 {
				break
			}
			g.take(blk)
			b = b[size:]
		}
	}
	return nil
}

// nextBlock is where a block may begin, from a place on.
func nextBlock(p []byte, at int) int {
	for at < len(p) {
		i := bytes.IndexByte(p[at:], 'P')
		if i < 0 {
			return len(p)
		}
		if at += i; at%8 == 0 && at+4 <= len(p) {
			if m := binary.LittleEndian.Uint32(p[at:]); m == blockMagic || m == indexMagic {
				return at
			}
		}
		at++
	}
	return len(p)
}

func (g *segment) take(blk block) {
	for rest := blk.entries; len(rest) > 0; {
		kind, id, body, more, ok := cutEntry(rest)
		if !ok {
			break
		}
		rest = more
		if id > 1<<24 { // more than fit into a segment
			continue
		}
		for uint32(len(g.entries)) <= id {
			g.entries = append(g.entries, rawEntry{})
		}
		g.entries[id] = rawEntry{kind, body}
	}
	if len(blk.records)%recordSize == 0 {
		g.blocks = append(g.blocks, blk)
	}
}

// body is what an entry has; nil: it is not there, for its block was damaged.
func (g *segment) body(kind uint8, id uint32) []byte {
	if id == 0 || id >= uint32(len(g.entries)) || g.entries[id].kind != kind {
		return nil
	}
	return g.entries[id].body
}

// addr is an address of a record; not valid where it was damaged.
func (g *segment) addr(v uint32, six bool) netip.Addr {
	if !six {
		return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	}
	if b := g.body(entryAddr, v); len(b) == 16 {
		return netip.AddrFrom16([16]byte(b))
	}
	return netip.Addr{}
}

func (g *segment) space(id uint32) space {
	s, ok := g.spaces[id]
	if !ok {
		s = parseSpace(g.body(entrySpace, id))
		g.spaces[id] = s
	}
	return s
}

// process is shared by all rows that have it; nil: none is known.
func (g *segment) process(id uint32) *Process {
	p, ok := g.procs[id]
	if ok {
		return p
	}
	if body := g.body(entryProcess, id); body != nil {
		one, place := parseProcess(body)
		c, ok := g.places[place]
		if !ok {
			c = parsePlace(g.body(entryPlace, place))
			g.places[place] = c
		}
		one.Place = c
		p = &one
	}
	g.procs[id] = p
	return p
}

// Row is a part of the answer.
type Row struct {
	Kind        Kind
	Proto       tracer.Proto
	Role        tracer.Role // 0: not known
	Listener    bool        // it is kept with listeners: its role, or a bind(), says so
	Spilled     bool        // it is kept among connections, whatever it is
	Local       netip.AddrPort
	Remote      netip.AddrPort // not valid: none
	NetNS       uint32
	NetNSCookie uint64
	Space       string // name of the network namespace then; "": none
	Device      uint32 // index, 0: none
	MPTCP       bool
	V6Only      bool
	Asked       bool // a bind() gave it its port
	TimeWait    bool
	Implicit    bool             // Refused: without a bind()
	Errno       syscall.Errno    // Refused: why; Held: what ended the connection
	Event       tracer.EventType // Refused: which call
	Count       uint32           // Folded: how many
	OfRefused   bool             // Folded: calls that were refused
	Owner       *Process         // nil: not known
	// HeldBy is, of a refused bind, who was in the way, as far as it is kept; HeldByMore how many more sockets were.
	HeldBy     []HeldBy
	HeldByMore int
	// Since is when the socket took its port; where SinceUnknown, when it was first seen to have it.
	Since        time.Time
	SinceUnknown bool
	// Until is when it gave the port back; of Holding zero; where UntilUnknown, the last moment at which
	// it is known to have had it.
	Until        time.Time
	UntilUnknown bool
	About        bool          // as tracer.Tenancy
	Took         time.Duration // from Since to Until by a clock that nobody sets
	Cursor       string        // Query.After goes on from here
}

// HeldBy is a socket in the way of a refused bind.
type HeldBy struct {
	State   tracer.State
	Role    tracer.Role
	Local   netip.AddrPort
	Remote  netip.AddrPort // not valid: none
	Owner   *Process       // who bound, connected or accepted it; nil: not known
	Holders []*Process     // the first of those who had it
	More    int            // how many more descriptors there were
}

// heldBy reads who was in the way.
func (g *segment) heldBy(id uint32) (all []HeldBy, more int) {
	p := g.body(entryHeldBy, id)
	if len(p) < 4 {
		return nil, 0
	}
	more = int(le.Uint32(p))
	for p = p[4:]; ; {
		h, rest, ok := cutHeldBy(p)
		if !ok {
			return all, more
		}
		p = rest
		one := HeldBy{State: h.state, Role: h.role, Local: netip.AddrPortFrom(g.addr(h.local, h.bits&heldLocal6 != 0), h.lport), Owner: g.process(h.owner), More: int(h.more)}
		if h.bits&heldRemote != 0 {
			one.Remote = netip.AddrPortFrom(g.addr(h.remote, h.bits&heldRemote6 != 0), h.rport)
		}
		for _, n := range h.holders {
			if who := g.process(n); who != nil {
				one.Holders = append(one.Holders, who)
			}
		}
		all = append(all, one)
	}
}

// row makes a row of a record; false: what it refers to is damaged.
func (g *segment) row(r *record, offset int64, row *Row) bool {
	space := g.space(r.space)
	*row = Row{
		Kind: r.kind, Proto: tracer.TCP, Role: r.role, Listener: g.head.class == ofPorts, Spilled: g.head.class == ofConnections,
		Local: netip.AddrPortFrom(g.addr(r.local, r.has(flagLocal6)), r.lport),
		NetNS: space.inode, NetNSCookie: space.cookie, Space: space.name, MPTCP: r.has(flagMPTCP), V6Only: r.has(flagV6Only),
		Asked: r.has(flagAsked), TimeWait: r.has(flagTimeWait), Implicit: r.has(flagImplicit), Errno: syscall.Errno(r.errno), Event: tracer.EventType(r.event),
		OfRefused: r.has(flagOfRefused), Owner: g.process(r.proc),
		Since: time.Unix(0, int64(r.since)+offset), SinceUnknown: !r.has(flagSinceKnown),
		Until: time.Unix(0, int64(r.until)+offset), UntilUnknown: r.has(flagUntilUnknown), About: r.has(flagAbout),
		Took: time.Duration(r.until - min(r.since, r.until)),
	}
	if r.has(flagUDP) {
		row.Proto = tracer.UDP
	}
	if r.has(flagRemote) {
		row.Remote = netip.AddrPortFrom(g.addr(r.remote, r.has(flagRemote6)), r.rport)
	}
	switch r.kind {
	case Refused:
		row.Device = r.aux
		if !r.has(flagRemote) && r.remote != 0 {
			row.HeldBy, row.HeldByMore = g.heldBy(r.remote)
		}
	case Folded:
		row.Count = r.aux
	case Holding:
		row.Until, row.Took = time.Time{}, 0
		fallthrough
	default:
		row.Device = r.aux
	}
	if r.kind != Folded {
		row.Listener = isListener(row.Role, row.Asked, row.SinceUnknown)
	}
	return row.Local.Addr().IsValid() && (!r.has(flagRemote) || row.Remote.Addr().IsValid())
}

// isListener tells whether a socket is kept with listeners: it is one, or is bound because a bind() said
// so, as is supposed where that was not seen.
func isListener(role tracer.Role, asked, unseen bool) bool {
	return role == tracer.RoleListener || role == tracer.RoleBound && (asked || unseen)
}

// key tells the records of a socket from those of others. Of one whose beginning was not seen those
// with the same address are one.
type key struct {
	cookie uint64
	since  uint64
	local  netip.Addr // where since is not when it took its port
	remote netip.AddrPort
	inode  uint32
	port   uint16
	proto  tracer.Proto
}

func (g *segment) key(r *record) key {
	s := g.space(r.space)
	k := key{cookie: s.cookie, inode: s.inode, since: r.since, port: r.lport, proto: tracer.TCP}
	if r.has(flagUDP) {
		k.proto = tracer.UDP
	}
	if !r.has(flagSinceKnown) {
		k.local = g.addr(r.local, r.has(flagLocal6))
		if r.has(flagRemote) && k.proto == tracer.TCP { // a listener's connections have its address; one of UDP changes its peer
			k.remote = netip.AddrPortFrom(g.addr(r.remote, r.has(flagRemote6)), r.rport)
		}
	}
	return k
}
