package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// The format of segments, byte by byte, is docs/history.md. Numbers are little-endian; a header, a
// block, and each of its two parts take a multiple of eight bytes.
const (
	formatVersion = 1

	headerSize = 128
	blockHead  = 40
	recordSize = 48
	entryHead  = 8
	mapSize    = 1 << 16 / 8
	// indexSize is the payload of an index: six numbers and two maps.
	indexSize = 48 + 2*mapSize

	blockMagic = 0x54424850 // "PHBT"
	indexMagic = 0x58494850 // "PHIX"
	// maxBlock bounds the payload of a block: a length beyond it is damage.
	maxBlock = 1 << 20
)

var (
	headerMagic = [8]byte{'P', 'O', 'R', 'T', 'H', 'I', 'S', 'T'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	le          = binary.LittleEndian
)

// class says what a segment has.
type class uint8

const (
	ofPorts       class = iota // listeners, sockets bound by bind(), calls that were refused
	ofConnections              // all else
	classes
)

var classNames = [classes]string{"ports", "connections"}

// Kind says what a record, or a row, tells.
type Kind uint8

// The kinds.
const (
	Held    Kind = iota + 1 // a socket had a port, and has it no more
	Holding                 // a socket has a port
	Refused                 // a call got no port
	Folded                  // how many of the above, which are not kept one by one
)

// flag is a bit of a record's flags.
type flag uint16

const (
	flagUDP          flag = 1 << iota // else TCP
	flagLocal6                        // the local address is an entry, else it is IPv4
	flagRemote6                       // the same of the remote address
	flagRemote                        // there is a remote end
	flagSinceKnown                    // since is when the socket took its port; else when it was first seen
	flagUntilUnknown                  // until is the last moment at which it is known to have had it
	flagAbout                         // the close was not seen: until is when it was at the latest
	flagTimeWait
	flagMPTCP
	flagV6Only
	flagAsked // a bind() gave it its port
	flagOfRefused
	flagImplicit
)

// header is the beginning of a segment.
type header struct {
	class   class
	boot    [16]byte // boot_id of the kernel
	run     [16]byte // random, of each agent
	seq     uint64
	created stamp
	began   uint64 // CLOCK_BOOTTIME when the agent began, nanoseconds
}

// stamp is one moment by both clocks.
type stamp struct {
	boot uint64 // CLOCK_BOOTTIME, nanoseconds
	wall int64  // nanoseconds since 1970
}

// offset is how far the wall clock is ahead of CLOCK_BOOTTIME.
func (s stamp) offset() int64 { return s.wall - int64(s.boot) }

func now() stamp { return stamp{uint64(tracer.Boottime()), time.Now().UnixNano()} }

// errNewer tells of a segment of a version that is not known here.
var errNewer = errors.New("the segment is of a newer version of porthole")

var errNotSegment = errors.New("this is no segment, or its header is damaged")

func (h *header) append(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, headerSize)...)
	p := b[at:]
	copy(p, headerMagic[:])
	le.PutUint16(p[8:], formatVersion)
	le.PutUint16(p[10:], headerSize)
	p[12] = byte(h.class)
	copy(p[16:], h.boot[:])
	copy(p[32:], h.run[:])
	le.PutUint64(p[48:], h.seq)
	le.PutUint64(p[56:], h.created.boot)
	le.PutUint64(p[64:], uint64(h.created.wall))
	le.PutUint64(p[72:], h.began)
	le.PutUint32(p[124:], crc32.Checksum(p[:124], castagnoli))
	return b
}

func parseHeader(p []byte) (header, error) {
	if len(p) < headerSize || [8]byte(p[:8]) != headerMagic {
		return header{}, errNotSegment
	}
	if v := le.Uint16(p[8:]); v > formatVersion {
		return header{}, fmt.Errorf("%w: version %d, want at most %d", errNewer, v, formatVersion)
	}
	if le.Uint32(p[124:]) != crc32.Checksum(p[:124], castagnoli) || p[12] >= byte(classes) {
		return header{}, errNotSegment
	}
	return header{
		class: class(p[12]), boot: [16]byte(p[16:32]), run: [16]byte(p[32:48]), seq: le.Uint64(p[48:]),
		created: stamp{le.Uint64(p[56:]), int64(le.Uint64(p[64:]))}, began: le.Uint64(p[72:]),
	}, nil
}

// block is some entries, then some records.
type block struct {
	entries, records []byte
	at               stamp  // when it was written
	first            uint32 // how many records of the segment are before it
}

// appendBlock appends what a block is on disk.
func appendBlock(b []byte, magic uint32, entries, records []byte, at stamp, first uint32) []byte {
	from := len(b)
	b = append(b, make([]byte, blockHead)...)
	b = append(append(b, entries...), records...)
	p := b[from:]
	le.PutUint32(p, magic)
	le.PutUint32(p[4:], uint32(len(entries)+len(records)))
	le.PutUint32(p[8:], uint32(len(entries)))
	le.PutUint32(p[12:], first)
	le.PutUint64(p[16:], at.boot)
	le.PutUint64(p[24:], uint64(at.offset()))
	le.PutUint32(p[36:], blockSum(p))
	return b
}

// blockSum is the checksum of a block: of everything but the checksum itself.
func blockSum(p []byte) uint32 {
	return crc32.Update(crc32.Checksum(p[:36], castagnoli), castagnoli, p[blockHead:])
}

// cutBlock takes a block off the beginning of p; size 0: there is none, or it is damaged.
func cutBlock(p []byte, magic uint32) (blk block, size int) {
	if len(p) < blockHead || le.Uint32(p) != magic {
		return block{}, 0
	}
	length, entries := le.Uint32(p[4:]), le.Uint32(p[8:])
	if length > maxBlock || length%8 != 0 || entries > length || entries%8 != 0 || blockHead+int(length) > len(p) {
		return block{}, 0
	}
	p = p[:blockHead+length]
	if le.Uint32(p[36:]) != blockSum(p) {
		return block{}, 0
	}
	boot := le.Uint64(p[16:])
	return block{
		entries: p[blockHead : blockHead+entries], records: p[blockHead+entries:],
		at: stamp{boot, int64(boot) + int64(le.Uint64(p[24:]))}, first: le.Uint32(p[12:]),
	}, len(p)
}

// record is one record as it is kept.
type record struct {
	kind         Kind
	role         tracer.Role
	flags        flag
	lport, rport uint16
	local        uint32 // IPv4 address, first byte highest, or with flagLocal6 an entry
	remote       uint32
	space, proc  uint32 // entries
	until, since uint64 // CLOCK_BOOTTIME, nanoseconds
	aux          uint32 // index of the device; Folded: how many
	errno        uint16
	event        uint8 // Refused: tracer.EventType of the call
}

func (r *record) append(b []byte) []byte {
	b = append(b, byte(r.kind), byte(r.role))
	b = le.AppendUint16(b, uint16(r.flags))
	b = le.AppendUint16(b, r.lport)
	b = le.AppendUint16(b, r.rport)
	b = le.AppendUint32(b, r.local)
	b = le.AppendUint32(b, r.remote)
	b = le.AppendUint32(b, r.space)
	b = le.AppendUint32(b, r.proc)
	b = le.AppendUint64(b, r.until)
	b = le.AppendUint64(b, r.since)
	b = le.AppendUint32(b, r.aux)
	b = le.AppendUint16(b, r.errno)
	return append(b, r.event, 0)
}

func (r *record) read(p []byte) {
	p = p[:recordSize]
	*r = record{
		kind: Kind(p[0]), role: tracer.Role(p[1]), flags: flag(le.Uint16(p[2:])), lport: le.Uint16(p[4:]), rport: le.Uint16(p[6:]),
		local: le.Uint32(p[8:]), remote: le.Uint32(p[12:]), space: le.Uint32(p[16:]), proc: le.Uint32(p[20:]),
		until: le.Uint64(p[24:]), since: le.Uint64(p[32:]), aux: le.Uint32(p[40:]), errno: le.Uint16(p[44:]), event: p[46],
	}
}

func (r *record) has(f flag) bool { return r.flags&f != 0 }

// The kinds of entries: what records refer to by number.
const (
	entryAddr = iota + 1
	entrySpace
	entryPlace
	entryProcess
	entryHeldBy
)

// entry numbers are of a segment and begin with 1; 0: none. appendEntry appends one, with bytes that
// put makes.
func appendEntry(b []byte, kind uint8, id uint32, put func([]byte) []byte) []byte {
	at := len(b)
	b = append(b, kind, 0, 0, 0)
	b = le.AppendUint32(b, id)
	b = put(b)
	le.PutUint16(b[at+2:], uint16(len(b)-at-entryHead))
	return pad(b)
}

func pad(b []byte) []byte {
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	return b
}

// cutEntry takes an entry off the beginning of p; ok is false at the end.
func cutEntry(p []byte) (kind uint8, id uint32, body, rest []byte, ok bool) {
	if len(p) < entryHead {
		return 0, 0, nil, nil, false
	}
	n := int(le.Uint16(p[2:]))
	whole := (entryHead + n + 7) &^ 7
	if whole > len(p) {
		return 0, 0, nil, nil, false
	}
	return p[0], le.Uint32(p[4:]), p[entryHead : entryHead+n], p[whole:], true
}

func appendText(b []byte, s string) []byte {
	return append(le.AppendUint16(b, uint16(len(s))), s...)
}

// texts reads what appendText wrote. Of what is cut off it reads "".
type texts struct{ p []byte }

func (t *texts) next() string {
	if len(t.p) < 2 {
		t.p = nil
		return ""
	}
	n := int(le.Uint16(t.p))
	if 2+n > len(t.p) {
		t.p = nil
		return ""
	}
	s := string(t.p[2 : 2+n])
	t.p = t.p[2+n:]
	return s
}

// count reads how many texts follow: no more than there is room for.
func (t *texts) count() int {
	if len(t.p) < 2 {
		t.p = nil
		return 0
	}
	n := int(le.Uint16(t.p))
	t.p = t.p[2:]
	return min(n, len(t.p)/2)
}

// space is a network namespace.
type space struct {
	inode  uint32
	cookie uint64
	name   string // it had then; "": none
}

func (s *space) append(b []byte) []byte {
	b = le.AppendUint32(le.AppendUint32(b, s.inode), 0)
	return appendText(le.AppendUint64(b, s.cookie), s.name)
}

func parseSpace(p []byte) (s space) {
	if len(p) >= 16 {
		t := texts{p[16:]}
		s = space{inode: le.Uint32(p), cookie: le.Uint64(p[8:]), name: t.next()}
	}
	return s
}

// The bits of a place: what it has.
const (
	hasUnitUser = 1 << iota
	hasContainer
	hasPod
	labelsCut // of the pod there are more labels
)

// maxLabels bounds the bytes of a pod's labels: an entry has at most 65,535.
const maxLabels = 32 << 10

func appendPlace(b []byte, c *identity.Cgroup) []byte {
	var has, user uint32
	var container identity.Container
	var pod identity.Pod
	if c.UnitUser != nil {
		has, user = has|hasUnitUser, *c.UnitUser
	}
	if c.Container != nil {
		has, container = has|hasContainer, *c.Container
	}
	if c.Pod != nil {
		has, pod = has|hasPod, *c.Pod
		if pod.LabelsCut {
			has |= labelsCut
		}
	}
	at := len(b)
	b = le.AppendUint32(le.AppendUint32(b, has), user)
	for _, s := range []string{
		c.Unit, container.ID, container.Name, container.Image, container.Runtime, pod.Namespace, pod.Name, pod.UID, pod.Container,
	} {
		b = appendText(b, s)
	}
	count, room := len(b), maxLabels
	b = append(b, 0, 0)
	for _, k := range slices.Sorted(maps.Keys(pod.Labels)) {
		v := pod.Labels[k]
		if room -= len(k) + len(v) + 4; room < 0 {
			le.PutUint32(b[at:], has|labelsCut)
			break
		}
		b = appendText(appendText(b, k), v)
		le.PutUint16(b[count:], le.Uint16(b[count:])+1)
	}
	return b
}

func parsePlace(p []byte) (c identity.Cgroup) {
	if len(p) < 8 {
		return c
	}
	has, user, t := le.Uint32(p), le.Uint32(p[4:]), texts{p[8:]}
	c.Unit = t.next()
	container := identity.Container{ID: t.next(), Name: t.next(), Image: t.next(), Runtime: t.next()}
	pod := identity.Pod{Namespace: t.next(), Name: t.next(), UID: t.next(), Container: t.next(), LabelsCut: has&labelsCut != 0}
	for range t.count() {
		if pod.Labels == nil {
			pod.Labels = make(map[string]string)
		}
		k := t.next()
		pod.Labels[k] = t.next()
	}
	if has&hasUnitUser != 0 {
		c.UnitUser = &user
	}
	if has&hasContainer != 0 {
		c.Container = &container
	}
	if has&hasPod != 0 {
		c.Pod = &pod
	}
	return c
}

// The bits of a process.
const argsCut = 1

// Process is a process as it was then.
type Process struct {
	tracer.Process
	Exe     string   // path of its program; "": not known
	Args    []string // command line; nil: not known
	ArgsCut bool     // there was more of it
	Place   identity.Cgroup
}

func appendProcess(b []byte, p *Process, place uint32) []byte {
	var bits uint32
	if p.ArgsCut {
		bits = argsCut
	}
	for _, n := range []uint32{p.PID, p.UID, place, bits} {
		b = le.AppendUint32(b, n)
	}
	b = le.AppendUint64(b, uint64(p.Start))
	b = appendText(appendText(b, p.Comm), p.Exe)
	b = le.AppendUint16(b, uint16(len(p.Args)))
	for _, a := range p.Args {
		b = appendText(b, a)
	}
	return b
}

func parseProcess(p []byte) (out Process, place uint32) {
	if len(p) < 24 {
		return out, 0
	}
	out.PID, out.UID, place, out.ArgsCut = le.Uint32(p), le.Uint32(p[4:]), le.Uint32(p[8:]), le.Uint32(p[12:])&argsCut != 0
	out.Start = time.Duration(le.Uint64(p[16:]))
	t := texts{p[24:]}
	out.Comm, out.Exe = t.next(), t.next()
	for range t.count() {
		out.Args = append(out.Args, t.next())
	}
	return out, place
}

// The bits of a socket in the way.
const (
	heldLocal6  = 1 << iota // the local address is an entry, else it is IPv4
	heldRemote6             // the same of the remote address
	heldRemote              // there is a remote end
)

// heldBy is a socket in the way of a refused bind.
type heldBy struct {
	state         tracer.State
	role          tracer.Role
	bits          uint8
	lport, rport  uint16
	local, remote uint32
	owner         uint32   // entry of who bound, connected or accepted it; 0: not known
	more          uint32   // holders besides
	holders       []uint32 // entries
}

const heldBySize = 24

func (h *heldBy) append(b []byte) []byte {
	b = append(b, byte(h.state), byte(h.role), h.bits, byte(len(h.holders)))
	b = le.AppendUint16(le.AppendUint16(b, h.lport), h.rport)
	for _, n := range []uint32{h.local, h.remote, h.owner, h.more} {
		b = le.AppendUint32(b, n)
	}
	for _, n := range h.holders {
		b = le.AppendUint32(b, n)
	}
	return b
}

// cutHeldBy takes one off the beginning of p; ok is false at the end.
func cutHeldBy(p []byte) (h heldBy, rest []byte, ok bool) {
	if len(p) < heldBySize || len(p) < heldBySize+4*int(p[3]) {
		return h, nil, false
	}
	h = heldBy{
		state: tracer.State(p[0]), role: tracer.Role(p[1]), bits: p[2], lport: le.Uint16(p[4:]), rport: le.Uint16(p[6:]),
		local: le.Uint32(p[8:]), remote: le.Uint32(p[12:]), owner: le.Uint32(p[16:]), more: le.Uint32(p[20:]),
	}
	n := int(p[3])
	for i := range n {
		h.holders = append(h.holders, le.Uint32(p[heldBySize+4*i:]))
	}
	return h, p[heldBySize+4*n:], true
}

// index is the last of a finished segment: what it has, so that it need not be read.
type index struct {
	firstWall, lastWall int64 // nanoseconds since 1970: from the first since to the last until
	firstBoot, lastBoot uint64
	records, entries    uint64
	local, remote       portMap
}

// portMap has a bit for each port.
type portMap [mapSize]byte

func (m *portMap) set(port uint16)      { m[port/8] |= 1 << (port % 8) }
func (m *portMap) has(port uint16) bool { return m[port/8]&(1<<(port%8)) != 0 }

func (x *index) append(b []byte, at stamp) []byte {
	body := make([]byte, 0, indexSize)
	for _, n := range []uint64{uint64(x.firstWall), uint64(x.lastWall), x.firstBoot, x.lastBoot, x.records, x.entries} {
		body = le.AppendUint64(body, n)
	}
	body = append(append(body, x.local[:]...), x.remote[:]...)
	return appendBlock(b, indexMagic, body, nil, at, uint32(x.records))
}

// parseIndex reads the end of a segment; false: it is not finished, or damaged.
func parseIndex(tail []byte, x *index) bool {
	if len(tail) < blockHead+indexSize {
		return false
	}
	blk, size := cutBlock(tail[len(tail)-blockHead-indexSize:], indexMagic)
	if size == 0 || len(blk.entries) != indexSize {
		return false
	}
	p := blk.entries
	x.firstWall, x.lastWall = int64(le.Uint64(p)), int64(le.Uint64(p[8:]))
	x.firstBoot, x.lastBoot = le.Uint64(p[16:]), le.Uint64(p[24:])
	x.records, x.entries = le.Uint64(p[32:]), le.Uint64(p[40:])
	copy(x.local[:], p[48:])
	copy(x.remote[:], p[48+mapSize:])
	return true
}

// add takes a record in, but for its place in time by the wall clock.
func (x *index) add(r *record) {
	if x.records == 0 {
		x.firstBoot, x.lastBoot = r.until, r.until
	}
	x.records++
	x.firstBoot, x.lastBoot = min(x.firstBoot, r.until), max(x.lastBoot, r.until)
	x.local.set(r.lport)
	x.remote.set(r.rport)
}

// during takes in the times of a block, of CLOCK_BOOTTIME, and how far the wall clock is ahead of that.
func (x *index) during(from, to uint64, offset int64) {
	first, last := int64(from)+offset, int64(to)+offset
	if x.lastWall == 0 {
		x.firstWall, x.lastWall = first, last
	}
	x.firstWall, x.lastWall = min(x.firstWall, first), max(x.lastWall, last)
}
