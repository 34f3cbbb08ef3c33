package store

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// writer makes blocks of a class.
type writer struct {
	file     *outFile
	head     header
	dict     dict
	entries  []byte // of the block that is being filled
	records  []byte
	size     int64  // of the file, once all that is queued is written
	first    uint32 // records before the block
	x        index
	old      *finished // the segment before, which is ended once the first block of this one is written
	checked  bool      // the sockets that are open are in this segment
	alive    bool      // a block is to be written, though nothing is in it
	lastTime uint64
	from, to uint64 // CLOCK_BOOTTIME: times that the block's records have
}

// finished is a segment that has all it will have.
type finished struct {
	file *outFile
	x    index
	size int64
}

// outFile is a segment that is written. Whoever flushes uses it.
type outFile struct {
	path  string
	class class
	head  []byte
	seq   uint64
	f     *os.File // nil: not made yet
	made  bool     // the file is its own
	done  int64    // bytes that are synced; of Store.mu
}

// job is bytes to be written to a file.
type job struct {
	file    *outFile
	at      int64
	b       []byte
	records int
	upTo    stamp
	ends    *finished // the segment that ends with them
}

// dict numbers the entries of a segment.
type dict struct {
	next   uint32
	addrs  map[[16]byte]uint32
	spaces map[spaceKey]uint32
	places map[string]uint32 // by what appendPlace makes
	procs  map[tracer.Process]numbered
	held   map[string]uint32 // by what is in the entry

	// What the record before had.
	space   spaceKey
	spaceID uint32
	proc    tracer.Process
	procID  numbered
}

type spaceKey struct {
	inode  uint32
	cookie uint64
}

// numbered is the entry of a process, and the place it has there.
type numbered struct {
	id    uint32
	place identity.Cgroup
}

func newDict() dict {
	return dict{addrs: make(map[[16]byte]uint32), spaces: make(map[spaceKey]uint32), places: make(map[string]uint32), procs: make(map[tracer.Process]numbered), held: make(map[string]uint32)}
}

// begin begins a segment, in memory. Hold mu.
func (s *Store) begin(c class) {
	s.seq++
	h := s.head
	h.class, h.seq, h.created = c, s.seq, s.cfg.clock()
	w := s.out[c]
	if w == nil {
		w = &writer{}
		s.out[c] = w
	}
	*w = writer{
		head: h, dict: newDict(), entries: w.entries[:0], records: w.records[:0], size: headerSize, old: w.old, checked: c == ofConnections,
		file: &outFile{path: pathOf(s.cfg.Dir, c, s.seq), class: c, seq: s.seq, head: h.append(nil)},
	}
}

// seal queues the block that is being filled. Hold mu.
func (s *Store) seal(c class) {
	w := s.out[c]
	if len(w.records) > 0 || w.alive {
		at := s.cfg.clock()
		b := appendBlock(nil, blockMagic, w.entries, w.records, at, w.first)
		n := len(w.records) / recordSize
		w.x.during(w.from, w.to, at.offset())
		s.push(job{file: w.file, at: w.size, b: b, records: n, upTo: at})
		w.size += int64(len(b))
		w.first += uint32(n)
		w.entries, w.records, w.alive = w.entries[:0], w.records[:0], false
		if old := w.old; old != nil && w.checked {
			w.old = nil
			s.push(job{file: old.file, at: old.size, b: old.x.append(nil, at), upTo: at, ends: old})
		}
	}
	if w.size >= s.segAt && w.old == nil {
		w.old = &finished{w.file, w.x, w.size}
		s.begin(c)
	}
}

func (s *Store) push(j job) {
	s.queue = append(s.queue, j)
	s.queued += len(j.b)
}

// Wanting tells whether the sockets that are open are to be added: a segment began. Once they are,
// Opened is called. They are then known to who has that segment and none before.
func (s *Store) Wanting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.out[ofPorts].checked
}

// Opened says that what Wanting asks for was added.
func (s *Store) Opened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out[ofPorts].checked = true
}

// Add keeps what happened to a socket. It does not wait for the disk, and allocates only for what is new
// to the segment.
func (s *Store) Add(kind Kind, e *Entry) { s.add(kind, e, 0) }

func (s *Store) add(kind Kind, e *Entry, flags flag) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := uint64(e.At)
	if minute := at / uint64(time.Minute); minute != s.minute {
		s.unfold()
		s.minute = minute
	}
	c := ofConnections
	if kind == Refused || isListener(e.Role, e.Asked, e.Taken == 0) || kind == Held && e.Taken != 0 && Failed(e.Errno) {
		c = ofPorts
	}
	if c == ofPorts && flags&flagUntilUnknown == 0 && !s.budget.port(e.Owner.Cgroup, at) {
		c = ofConnections
	}
	if c == ofConnections && flags&flagUntilUnknown == 0 && !s.budget.connection(at) {
		if kind != Holding {
			s.fold(kind, e)
		}
		return
	}
	if s.queued+len(s.out[c].records)+len(s.out[c].entries) > maxQueued {
		why := LostSlow
		if s.trouble != nil {
			why = s.why
		} else {
			s.sayBehind(at)
		}
		s.lost[why]++
		return
	}
	s.put(c, kind, e, flags, 0, 0)
}

const (
	// stalledFor is how long a flush may take before it is said that the disk does not answer.
	stalledFor = 10 * time.Second
	// inTimeFor is for how long it has to have been in time before that is said.
	inTimeFor = time.Minute
)

// sayBehind says once that the disk takes less than there is. Hold mu.
func (s *Store) sayBehind(at uint64) {
	s.slow = max(s.slow, at)
	if !s.behind {
		s.behind = true
		s.cfg.Log.Error("the history cannot be written in time, for the disk is slow or does not answer; what does not fit into memory meanwhile is lost", "dir", s.cfg.Dir)
	}
}

// look sees whether a flush does not end.
func (s *Store) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := s.cfg.clock().boot; s.flushed != 0 && at-min(at, s.flushed) > uint64(stalledFor) {
		s.sayBehind(at)
	}
}

// put makes a record. Hold mu.
func (s *Store) put(c class, kind Kind, e *Entry, flags flag, first uint64, count uint32) {
	w := s.out[c]
	r := record{
		kind: kind, role: e.Role, flags: flags | flagsOf(e), lport: e.Local.Port(), until: uint64(e.At), errno: uint16(e.Errno),
		event: uint8(e.Event), aux: e.Device,
	}
	switch {
	case kind == Folded:
		r.since, r.aux = first, count
	case kind == Refused:
		r.since = r.until
	case e.Taken != 0:
		r.since = uint64(e.Taken)
	default:
		r.since = min(s.head.began, r.until)
	}
	var six bool
	if r.local, six = w.addr(e.Local.Addr()); six {
		r.flags |= flagLocal6
	}
	if e.Remote.IsValid() {
		r.flags |= flagRemote
		r.rport = e.Remote.Port()
		if r.remote, six = w.addr(e.Remote.Addr()); six {
			r.flags |= flagRemote6
		}
	}
	r.space = s.spaceOf(w, e)
	if e.Owner.PID != 0 {
		r.proc = s.procOf(w, &e.Owner)
	}
	if kind == Refused && !e.Remote.IsValid() && len(e.HeldBy) > 0 {
		r.remote = s.heldByOf(w, e)
	}
	w.insert(&r)
	w.x.add(&r)
	if len(w.records)+len(w.entries) >= blockBytes {
		s.seal(c)
		s.wake()
	}
}

func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

func flagsOf(e *Entry) (f flag) {
	for _, b := range [...]struct {
		is   bool
		flag flag
	}{
		{e.Proto == tracer.UDP, flagUDP}, {e.Taken != 0, flagSinceKnown}, {e.About, flagAbout}, {e.TimeWait, flagTimeWait},
		{e.MPTCP, flagMPTCP}, {e.V6Only, flagV6Only}, {e.Asked, flagAsked}, {e.Implicit, flagImplicit},
	} {
		if b.is {
			f |= b.flag
		}
	}
	return f
}

// insert keeps records in the order of time: processors need not agree on that of events.
func (w *writer) insert(r *record) {
	if len(w.records) == 0 {
		w.from, w.to = r.since, r.until
	}
	w.from, w.to = min(w.from, r.since), max(w.to, r.until)
	w.records = r.append(w.records)
	if r.until >= w.lastTime || len(w.records) == recordSize {
		w.lastTime = r.until
		return
	}
	at := len(w.records) - recordSize
	to := at
	for to > 0 && le.Uint64(w.records[to-recordSize+24:]) > r.until {
		to -= recordSize
	}
	var own [recordSize]byte
	copy(own[:], w.records[at:])
	copy(w.records[to+recordSize:], w.records[to:at])
	copy(w.records[to:], own[:])
}

func (d *dict) number() uint32 {
	d.next++
	return d.next
}

// addr returns an address as a record has it, and whether that is an entry.
func (w *writer) addr(a netip.Addr) (uint32, bool) {
	if a.Is4() {
		b := a.As4()
		return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]), false
	}
	b := a.As16()
	id, ok := w.dict.addrs[b]
	if !ok {
		id = w.dict.number()
		w.dict.addrs[b] = id
		w.entries = appendEntry(w.entries, entryAddr, id, func(to []byte) []byte { return append(to, b[:]...) })
	}
	return id, true
}

func (s *Store) spaceOf(w *writer, e *Entry) uint32 {
	d := &w.dict
	k := spaceKey{e.NetNS, e.NetNSCookie}
	if k == d.space && d.spaceID != 0 {
		return d.spaceID
	}
	id, ok := d.spaces[k]
	if !ok {
		id = d.number()
		d.spaces[k] = id
		sp := space{inode: e.NetNS, cookie: e.NetNSCookie}
		if s.cfg.Space != nil {
			sp.name = cut(s.cfg.Space(e.NetNS, e.NetNSCookie), maxText)
		}
		w.entries = appendEntry(w.entries, entrySpace, id, sp.append)
	}
	d.space, d.spaceID = k, id
	return id
}

const (
	maxText = 512
	// maxProcs is how many processes are described at once, maxArgs how many bytes of their command
	// lines are kept for all together.
	maxProcs = 4096
	maxArgs  = 1 << 20
	// maxArgsOf is how much of a command line is kept.
	maxArgsOf = 2048
)

func cut(s string, most int) string {
	if len(s) > most {
		return s[:most]
	}
	return s
}

// described is what does not change of a process.
type described struct{ Process }

// procOf returns the entry of a process, as it is now.
func (s *Store) procOf(w *writer, p *tracer.Process) uint32 {
	d := &w.dict
	var place identity.Cgroup
	if s.cfg.Place != nil {
		place = s.cfg.Place(p)
	}
	if d.procID.id != 0 && *p == d.proc && d.procID.is(&place) {
		return d.procID.id
	}
	n, ok := d.procs[*p]
	if !ok || !n.is(&place) {
		one := s.describe(p).Process
		one.Place = place
		n = numbered{d.number(), place}
		placeID := w.placeOf(&place)
		w.entries = appendEntry(w.entries, entryProcess, n.id, func(to []byte) []byte { return appendProcess(to, &one, placeID) })
		d.procs[*p] = n
	}
	d.proc, d.procID = *p, n
	return n.id
}

// is tells whether a process that has an entry is in the same place still. One that is not known any
// more is no other.
func (n *numbered) is(c *identity.Cgroup) bool {
	return c.Path == "" || n.place.Unit == c.Unit && n.place.UnitUser == c.UnitUser && n.place.Container == c.Container && n.place.Pod == c.Pod
}

// What is kept of who was in the way of a bind.
const (
	maxHeldBy  = 4 // sockets
	maxHolders = 4 // of each
)

// heldByOf returns the entry of who was in the way.
func (s *Store) heldByOf(w *writer, e *Entry) uint32 {
	number := func(p *tracer.Process) uint32 {
		if p.PID == 0 {
			return 0
		}
		return s.procOf(w, p)
	}
	some := e.HeldBy[:min(len(e.HeldBy), maxHeldBy)]
	body := le.AppendUint32(nil, uint32(len(e.HeldBy)-len(some)+e.HeldByMore))
	for i := range some {
		so := &some[i]
		holders := so.Holders[:min(len(so.Holders), maxHolders)]
		h := heldBy{state: so.State, role: so.Role, lport: so.Local.Port(), more: uint32(len(so.Holders) - len(holders) + so.HoldersMore), owner: number(&so.Owner)}
		var six bool
		if h.local, six = w.addr(so.Local.Addr()); six {
			h.bits |= heldLocal6
		}
		if so.Remote.IsValid() {
			h.bits, h.rport = h.bits|heldRemote, so.Remote.Port()
			if h.remote, six = w.addr(so.Remote.Addr()); six {
				h.bits |= heldRemote6
			}
		}
		for j := range holders {
			if n := number(&holders[j].Process); n != 0 && !slices.Contains(h.holders, n) { // one has it under several descriptors
				h.holders = append(h.holders, n)
			}
		}
		body = h.append(body)
	}
	id, ok := w.dict.held[string(body)]
	if !ok {
		id = w.dict.number()
		w.dict.held[string(body)] = id
		w.entries = appendEntry(w.entries, entryHeldBy, id, func(to []byte) []byte { return append(to, body...) })
	}
	return id
}

func (w *writer) placeOf(c *identity.Cgroup) uint32 {
	if c.Unit == "" && c.Container == nil && c.Pod == nil {
		return 0
	}
	body := appendPlace(nil, c)
	id, ok := w.dict.places[string(body)]
	if !ok {
		id = w.dict.number()
		w.dict.places[string(body)] = id
		w.entries = appendEntry(w.entries, entryPlace, id, func(to []byte) []byte { return append(to, body...) })
	}
	return id
}

// describe looks a process up once.
func (s *Store) describe(p *tracer.Process) *described {
	if d, ok := s.procs[*p]; ok {
		return d
	}
	d := &described{Process{Process: *p}}
	if s.cfg.Describe != nil {
		d.Process = s.cfg.Describe(p)
		d.Process.Process = *p
	}
	d.bound()
	if len(s.procs) >= maxProcs || s.argsLen > maxArgs {
		clear(s.procs)
		s.argsLen = 0
	}
	s.procs[*p] = d
	s.argsLen += len(d.Exe)
	for _, a := range d.Args {
		s.argsLen += len(a) + 16
	}
	return d
}

// bound cuts what is too long.
func (d *described) bound() {
	d.Exe = cut(d.Exe, maxText)
	room := maxArgsOf
	for i, a := range d.Args {
		if room -= len(a) + 2; room < 0 {
			d.Args, d.ArgsCut = append(slices.Clone(d.Args[:i]), cut(a, max(room+len(a), 0))), true
			return
		}
	}
}

// Flush writes what is there, and syncs it.
func (s *Store) Flush() error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mu.Lock()
	for c := range classes {
		s.seal(c)
	}
	jobs := slices.Clone(s.queue)
	s.flushed = s.cfg.clock().boot
	s.mu.Unlock()
	var err error
	if len(jobs) > 0 || s.trouble != nil {
		err = s.write(jobs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushed = 0
	if at := s.cfg.clock().boot; s.behind && err == nil && at-min(at, s.slow) > uint64(inTimeFor) {
		s.behind = false
		s.cfg.Log.Warn("the history is written in time again", "dir", s.cfg.Dir)
	}
	if len(jobs) == 0 && s.trouble == nil && err == nil {
		return nil
	}
	if err == nil {
		for _, j := range jobs {
			s.stats.Records += uint64(j.records)
			s.queued -= len(j.b)
			j.file.done = j.at + int64(len(j.b))
			s.stats.Synced = time.Unix(0, j.upTo.wall)
		}
		s.queue = slices.Delete(s.queue, 0, len(jobs))
	}
	s.tell(err)
	if reason := reasonOf(err); err != nil && reason == LostGone {
		s.restart()
	}
	return err
}

// tell says once that something is wrong, and once that it is not any more.
func (s *Store) tell(err error) {
	switch {
	case err != nil && s.trouble == nil:
		s.cfg.Log.Error("the history cannot be written; it is tried again every second", "dir", s.cfg.Dir, "error", err)
	case err == nil && s.trouble != nil:
		s.cfg.Log.Warn("the history is written again", "dir", s.cfg.Dir)
	}
	s.trouble = err
	if err != nil {
		s.why = reasonOf(err)
	}
}

// restart begins new segments: the files are gone, and what was in them. Hold mu.
func (s *Store) restart() {
	for _, j := range s.queue {
		s.lost[LostGone] += uint64(j.records)
		_ = j.file.close()
	}
	s.queue, s.queued = nil, 0
	for c, w := range s.out {
		s.lost[LostGone] += uint64(len(w.records) / recordSize)
		_ = w.file.close()
		w.old, w.records, w.entries = nil, nil, nil
		s.begin(class(c))
	}
	_ = s.unlock()
	s.recovered = false // there may be another directory of that name
}

// errGone tells that a file is in no directory any more.
var errGone = errors.New("the directory of the history is gone")

// write writes jobs, and syncs what they are in. What is written already is written again.
func (s *Store) write(jobs []job) error {
	if err := s.takeDir(); err != nil { // it could not be had yet, or went away
		return err
	}
	var files []*outFile
	for i := range jobs {
		j := &jobs[i]
		if err := j.file.make(); err != nil {
			if errors.Is(err, fs.ErrExist) { // somebody put it there: the next attempt takes other names
				s.recovered = false
			}
			return err
		}
		if _, err := j.file.f.WriteAt(j.b, j.at); err != nil {
			return fmt.Errorf("write history: %w", err)
		}
		if !slices.Contains(files, j.file) {
			files = append(files, j.file)
		}
		if j.ends != nil || i == len(jobs)-1 || jobs[i+1].ends != nil { // a segment ends once the next is there
			if err := syncAll(files); err != nil {
				return err
			}
			files = files[:0]
		}
		if j.ends != nil {
			_ = j.file.close() // synced
		}
	}
	return nil
}

func syncAll(files []*outFile) error {
	for _, f := range files {
		if err := unix.Fdatasync(int(f.f.Fd())); err != nil {
			return fmt.Errorf("sync history: %w", err)
		}
	}
	return nil
}

// make makes the file, unless it is there.
func (o *outFile) make() error {
	if o.f != nil {
		var is, was unix.Stat_t
		if err := unix.Fstat(int(o.f.Fd()), &was); err != nil {
			return fmt.Errorf("look after the history: %w", err)
		}
		if err := unix.Lstat(o.path, &is); errors.Is(err, unix.ENOENT) || err == nil && (is.Ino != was.Ino || is.Dev != was.Dev) {
			return errGone
		}
		return nil
	}
	flags := os.O_RDWR | os.O_CREATE
	if !o.made {
		flags |= os.O_EXCL // never one that others have written
	}
	f, err := os.OpenFile(o.path, flags, 0o600)
	o.made = o.made || err == nil
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return errGone
		}
		return fmt.Errorf("make segment of the history: %w", err)
	}
	if _, err := f.WriteAt(o.head, 0); err != nil {
		return errors.Join(fmt.Errorf("write history: %w", err), f.Close())
	}
	if err := errors.Join(f.Sync(), syncDir(filepath.Dir(o.path))); err != nil {
		return errors.Join(fmt.Errorf("sync history: %w", err), f.Close())
	}
	o.f = f
	return nil
}

// finish ends a segment.
func (o *outFile) finish(x *index, at int64, when stamp) error {
	if _, err := o.f.WriteAt(x.append(nil, when), at); err != nil {
		return fmt.Errorf("write history: %w", err)
	}
	return syncAll([]*outFile{o})
}

func (o *outFile) close() error {
	if o.f == nil {
		return nil
	}
	err := o.f.Close()
	o.f = nil
	return err
}
