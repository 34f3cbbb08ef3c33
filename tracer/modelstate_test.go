package tracer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The model is what a test knows of the sockets it has made its workers open: what
// every descriptor refers to, and what state TCP has come to.

// identity is a process for ever: pids are reused.
type identity struct {
	pid   int
	ticks uint64 // start time as in proc(5)
}

// worker is a process of the model.
type worker struct {
	identity
	tid   int // of the thread that works
	ctl   int // requests
	stub  bool
	space uint32 // network namespace of the thread
	files map[int]*file
}

// file is what a descriptor of a worker refers to.
type file struct {
	*socket
	cloexec bool
}

// socket is one of the model.
type socket struct {
	number        int // for the log
	proto         Proto
	family        int
	space         uint32
	role          Role // 0: it has no port
	local, remote netip.AddrPort
	owner         identity
	refs          int // descriptors, those on their way included

	keepsPort bool // bound to a port it asked for
	// gaveUp: the kernel has put the address that was bound in the place of the
	// connection's, which no hook is told.
	gaveUp bool
	linger bool // its close is a reset

	// mapped: an IPv6 socket has tried to connect to IPv4. The kernel has made it one of
	// IPv4 for good: what it sends by IPv6 later gets lost.
	mapped bool

	// TCP connections.
	peer             *socket
	accepted, queued bool      // it came from a listener; it is in its queue still
	queue            []*socket // of a listener
	sentFIN, gotFIN  bool
	over             bool // the connection has ended
}

// state is that of ss(8).
func (s *socket) state() State {
	switch {
	case s.role == RoleListener:
		return StateListen
	case s.role == RoleBound:
		return StateUnconn
	case s.sentFIN:
		return StateFinWait2
	case s.gotFIN:
		return StateCloseWait
	}
	return StateEstablished
}

// model is all workers and sockets.
type model struct {
	workers []*worker
	sockets []*socket // that have a descriptor or are in a queue
	mail    []*socket // descriptors on their way, the oldest first
	closed  []seen    // connections that were closed at one end, the last ones: see lingers
	known   map[identity]bool
	count   int
}

func (m *model) newSocket(s socket) *socket {
	m.count++
	s.number = m.count
	m.sockets = append(m.sockets, &s)
	return &s
}

// open gives a worker a descriptor.
func (m *model) open(w *worker, fd int, s *socket, cloexec bool) {
	s.refs++
	w.files[fd] = &file{s, cloexec}
}

// closeFD takes it away.
func (m *model) closeFD(w *worker, fd int) {
	s := w.files[fd].socket
	delete(w.files, fd)
	m.unref(s)
}

// maxClosed is how many connections may linger.
const maxClosed = 200

// unref is what the end of a descriptor does.
func (m *model) unref(s *socket) {
	if s.refs--; s.refs > 0 {
		return
	}
	switch {
	case s.role == RoleListener:
		m.unlisten(s)
	case s.peer != nil && s.linger:
		s.reset()
	case s.peer != nil:
		if !s.over {
			m.closed = append(m.closed[max(0, len(m.closed)-maxClosed):], s.view())
		}
		s.finish()
	}
	m.forget(s)
}

func (m *model) forget(s *socket) {
	m.sockets = slices.DeleteFunc(m.sockets, func(o *socket) bool { return o == s })
}

// unlisten is the end of a listener: connections that nobody accepted are reset.
func (m *model) unlisten(s *socket) {
	for _, c := range s.queue {
		c.reset()
		m.forget(c)
	}
	s.queue = nil
}

// finish sends a FIN, unless it has been. A connection is over when both ends have.
func (s *socket) finish() {
	if s.over {
		return
	}
	s.sentFIN, s.peer.gotFIN = true, true
	if s.peer.sentFIN {
		s.end()
		s.peer.end()
	}
}

// reset ends a connection at both ends.
func (s *socket) reset() {
	if s.over {
		return
	}
	s.end()
	s.peer.end()
}

// end: a port that was asked for is kept until the socket is closed.
func (s *socket) end() {
	if s.over {
		return
	}
	s.over, s.remote = true, netip.AddrPort{}
	s.unconnected()
}

// unconnected is the role of a socket that had a peer, or listened.
func (s *socket) unconnected() {
	s.role = 0
	if s.keepsPort {
		s.role = RoleBound
	}
}

// acted: a worker bound, connected or accepted the socket; r tells its ends.
func (s *socket) acted(w *worker, role Role, r reply) {
	s.role, s.owner, s.local, s.remote, s.gaveUp = role, w.identity, r.local, r.remote, false
}

// connected: TCP reached a listener. The end of an earlier connection with the same ends,
// whose client has gone, was reset on the way: it answers the SYN with an ACK that the
// new socket knows nothing of.
func (m *model) connected(w *worker, s, to *socket, r reply) {
	for _, old := range m.sockets {
		if old.accepted && !old.over && old.space == s.space && old.local == r.remote && old.remote == r.local {
			old.reset()
		}
	}
	s.acted(w, RoleClient, r)
	server := m.newSocket(socket{
		proto: TCP, family: to.family, space: s.space, role: RoleServer, local: r.remote, remote: r.local,
		peer: s, accepted: true, queued: true, linger: to.linger,
		mapped: to.family == unix.AF_INET6 && r.remote.Addr().Is4(),
	})
	to.queue = append(to.queue, server)
	s.peer, s.over, s.sentFIN, s.gotFIN = server, false, false, false
}

// refused: TCP connect() failed. Once the kernel has looked for a port, one that was
// not asked for is lost; the connection was that of who tried, once a SYN was sent.
func (s *socket) refused(w *worker, r reply) {
	if s.over || s.role != RoleBound && s.role != 0 || r.errno != unix.ECONNREFUSED && r.errno != unix.EADDRNOTAVAIL {
		return
	}
	if r.errno == unix.ECONNREFUSED {
		s.owner, s.gaveUp = w.identity, true
	}
	s.rebound(r)
}

// rebound is a socket after the kernel has given up its connection.
func (s *socket) rebound(r reply) {
	if s.unconnected(); s.role == RoleBound {
		s.local = r.local
	}
}

// disconnected: connect(AF_UNSPEC), or shutdown() of a listener.
func (m *model) disconnected(s *socket, r reply) {
	s.gaveUp = s.gaveUp || s.role != RoleListener
	if s.role == RoleListener {
		m.unlisten(s)
	} else if s.peer != nil {
		s.reset()
	}
	s.peer, s.over, s.sentFIN, s.gotFIN, s.remote = nil, false, false, false, netip.AddrPort{}
	s.rebound(r)
}

// fork copies a worker.
func (m *model) fork(w *worker, id identity, ctl int) *worker {
	child := &worker{identity: id, tid: id.pid, ctl: ctl, stub: true, space: w.space, files: make(map[int]*file)}
	for _, fd := range w.fds() {
		m.open(child, fd, w.files[fd].socket, w.files[fd].cloexec)
	}
	m.workers = append(m.workers, child)
	m.know(id)
	return child
}

// know remembers a process, for some time.
func (m *model) know(id identity) {
	if len(m.known) > 10_000 {
		clear(m.known)
		for _, w := range m.workers {
			m.known[w.identity] = true
		}
	}
	m.known[id] = true
}

// exec closes what is to be closed then.
func (m *model) exec(w *worker) {
	w.stub = false
	for _, fd := range w.fds() {
		if w.files[fd].cloexec {
			m.closeFD(w, fd)
		}
	}
}

// exit ends a worker.
func (m *model) exit(w *worker) {
	for _, fd := range w.fds() {
		m.closeFD(w, fd)
	}
	m.workers = slices.DeleteFunc(m.workers, func(o *worker) bool { return o == w })
}

// fds are the descriptors of a worker, in order.
func (w *worker) fds() []int {
	var out []int
	for fd := range w.files {
		out = append(out, fd)
	}
	slices.Sort(out)
	return out
}

// spaces are the network namespaces there are.
func (m *model) spaces() []uint32 {
	var out []uint32
	for _, w := range m.workers {
		out = append(out, w.space)
	}
	for _, s := range m.sockets {
		out = append(out, s.space)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ours tells whether a socket of the tracer belongs to the model: it is in a
// namespace there is, or of a process there was.
func (m *model) ours(s *Socket) bool {
	return slices.Contains(m.spaces(), s.NetNS) || m.known[identityOf(s.Owner)] ||
		slices.ContainsFunc(s.Holders, func(h Holder) bool { return m.known[identityOf(h.Process)] })
}

// identityOf is the same process by its clock ticks.
func identityOf(p Process) identity {
	return identity{int(p.PID), uint64(p.Start.Nanoseconds() / (1e9 / 100))}
}

// tableLines are what the live table must have, and what it may have besides: a
// connection that nobody has accepted is in it if a snapshot told it.
func (m *model) tableLines() (must []string, may map[string]bool) {
	may = make(map[string]bool)
	gaveUp := m.gaveUp()
	for _, s := range m.sockets {
		line := tableLine(s.view(), gaveUp)
		switch {
		case s.role == 0:
		case s.queued:
			may[line] = true
		default:
			must = append(must, line)
		}
	}
	for _, v := range m.closed {
		may[tableLine(v, gaveUp)] = true
	}
	for _, line := range must {
		delete(may, line)
	}
	slices.Sort(must)
	return must, may
}

// bound is what stays known of a socket that gave up its connection.
type bound struct {
	space uint32
	port  uint16
	owner identity
}

// gaveUp are the sockets whose address the table need not have.
func (m *model) gaveUp() map[bound]bool {
	out := make(map[bound]bool)
	for _, s := range m.sockets {
		if s.gaveUp && s.role == RoleBound {
			out[bound{s.space, s.local.Port(), s.owner}] = true
		}
	}
	return out
}

// view is how a tracer should see the socket.
func (s *socket) view() (v seen) {
	v = seen{s.space, s.proto, s.local, s.remote, s.role, s.owner}
	if s.queued {
		v.role, v.owner = RoleOrphan, identity{}
	}
	return v
}

// seen is what the model and the tracer must agree on.
type seen struct {
	space         uint32
	proto         Proto
	local, remote netip.AddrPort
	role          Role
	owner         identity
}

// seenBy is the same of the tracer's.
func seenBy(s *Socket) seen {
	return seen{s.NetNS, s.Proto, s.Local, s.Remote, s.Role, identityOf(s.Owner)}
}

// tableLine leaves out the address of those that gave up a connection.
func tableLine(v seen, gaveUp map[bound]bool) string {
	local := v.local.String()
	if v.role == RoleBound && gaveUp[bound{v.space, v.local.Port(), v.owner}] {
		local = fmt.Sprintf("?:%d", v.local.Port())
	}
	return fmt.Sprintf("%d %s %s > %s %s of %d.%d", v.space, v.proto, local, orDash(v.remote), v.role, v.owner.pid, v.owner.ticks)
}

// snapshotLines are what a snapshot must have: TIME_WAIT apart every socket with a
// port, its state and its holders.
func (m *model) snapshotLines() []string {
	holders := make(map[*socket][]string)
	for _, w := range m.workers {
		for _, fd := range w.fds() {
			s := w.files[fd].socket
			holders[s] = append(holders[s], holderLine(w.identity, fd))
		}
	}
	var out []string
	for _, s := range m.sockets {
		if s.role == 0 {
			continue
		}
		out = append(out, snapshotRow(tableLine(s.view(), nil), s.state(), holders[s]))
	}
	slices.Sort(out)
	return out
}

func holderLine(id identity, fd int) string { return fmt.Sprintf("%d.%d/%d", id.pid, id.ticks, fd) }

func snapshotRow(line string, state State, holders []string) string {
	slices.Sort(holders)
	return fmt.Sprintf("%s in %s held by %s", line, state, strings.Join(holders, " "))
}

// snapshotLine is the same of the tracer's.
func snapshotLine(s *Socket) string {
	var holders []string
	for _, h := range s.Holders {
		holders = append(holders, holderLine(identityOf(h.Process), int(h.FD)))
	}
	return snapshotRow(tableLine(seenBy(s), nil), s.State, holders)
}

// targets are the listeners that a socket can reach.
func (m *model) targets(s *socket) []*socket {
	var out []*socket
	for _, l := range m.sockets {
		v4 := l.local.Addr().Is4() || l.local.Addr() == netip.IPv6Unspecified()
		self := s.role == RoleBound && s.local.Port() == l.local.Port() // it may reach itself
		if !self && l.role == RoleListener && l.space == s.space && (v4 || s.family == unix.AF_INET6) {
			out = append(out, l)
		}
	}
	return out
}

// address is one that a socket reaches a listener at.
func (s *socket) address(l *socket) netip.AddrPort {
	ip := l.local.Addr()
	switch {
	case ip == netip.IPv6Unspecified() && s.family == unix.AF_INET6 && s.number%2 == 0:
		ip = netip.IPv6Loopback()
	case ip.IsUnspecified():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(ip, l.local.Port())
}

// fresh tells whether a TCP or UDP socket can still be bound, or connected.
func (s *socket) fresh() bool {
	return !s.over && s.peer == nil && (s.role == 0 || s.role == RoleBound)
}

// errnoOf is how the log shows what a call returned.
func errnoOf(e syscall.Errno) string {
	if e == 0 {
		return "ok"
	}
	return errnoName(e)
}
