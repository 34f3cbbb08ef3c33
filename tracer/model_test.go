package tracer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	modelOps   = 10_000
	modelBurst = 100
	// modelSeedEnv makes TestModel repeat one run.
	modelSeedEnv = "PORTHOLE_MODEL_SEED"
	// modelPatience is how long the views may take to become equal.
	modelPatience = 5 * time.Second
	maxWorkers    = 8
	maxSockets    = 100
	// modelPorts are the ephemeral ones, few, so that they are used again; those that
	// are asked for are 7000 to 7009.
	modelPorts = "20000-20255"
	closedPort = 7999 // nobody binds it
)

// play is a run of the model against a tracer.
type play struct {
	*recorder
	model
	seed     uint64
	rng      *rand.Rand
	log      []string // of the last requests
	requests int
	asked    string         // the last request
	done     map[string]int // requests that went well, by name
	mail     [2]int
	dead     []identity // for pids to be used again
	lost     uint64     // events, before this play or begun anew since
	lasted   time.Duration
}

// Whatever processes do, in any order, the live table, a snapshot, and the kernel as
// ss and /proc show it agree with what was done.
func TestModel(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		ops  int
	}{
		{"events", Config{}, modelOps},
		{"reconciled", Config{Reconcile: 5 * time.Millisecond}, modelOps / 4},
		{"tracepoint", Config{Tier: TierTracepoint}, modelOps / 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlay(t, c.cfg, modelSeed(t))
			for range c.ops / modelBurst {
				p.burst()
			}
			p.t().Logf("%d requests in %v: %v", p.requests, p.lasted, p.done)
		})
	}
}

// modelSeed is a new one, or that to repeat.
func modelSeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv(modelSeedEnv)
	if text == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", modelSeedEnv, err)
	}
	return seed
}

func newPlay(t *testing.T, cfg Config, seed uint64) *play {
	t.Helper()
	p := &play{
		recorder: idle(t), seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), done: make(map[string]int),
		model: model{known: make(map[identity]bool)},
	}
	running, err := share(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.tracer, p.sub = running.tracer, running.tracer.Subscribe(1<<19) // what other processes do while this one waits included
	t.Cleanup(p.sub.Close)
	if p.mail, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for len(p.workers) > 0 {
			p.kill(p.workers[0])
		}
		for _, fd := range p.mail {
			unix.Close(fd)
		}
		if t.Failed() {
			t.Logf("repeat it with %s=%d; what was done last:\n%s", modelSeedEnv, p.seed, strings.Join(p.log, "\n"))
		}
	})
	p.begin()
	return p
}

// begin starts the first workers.
func (p *play) begin() {
	p.Helper()
	p.lost = p.lostNow()
	for range 3 {
		p.startWorker()
	}
}

// lostNow is how many events were lost, by the kernel or by this test.
func (p *play) lostNow() uint64 { return stats(p.T, p.tracer).Lost() + p.sub.Lost() }

// beginAnew ends everything there is: with the events that were lost is lost who did
// what.
func (p *play) beginAnew() {
	p.Helper()
	for len(p.model.mail) > 0 {
		p.tryReceive(p.workers[p.rng.IntN(len(p.workers))])
	}
	for len(p.workers) > 0 {
		p.kill(p.workers[0])
	}
	lost := p.lost
	p.begin()
	p.Logf("after %d requests %d events were lost: begun anew", p.requests, p.lost-lost)
}

func (p *play) t() *testing.T { return p.T }

// burst makes requests and then compares every view.
func (p *play) burst() {
	start := time.Now()
	p.log = p.log[max(0, len(p.log)-2*modelBurst):]
	for n := p.requests + modelBurst; p.requests < n; {
		p.step()
	}
	p.lasted += time.Since(start)
	p.compareAll()
}

// ---- processes ----

// control makes the socket for the requests of a worker: the test's end and the
// other.
func (p *play) control() (ours, theirs int) {
	p.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		p.Fatal(err)
	}
	return fds[0], fds[1]
}

// startWorker starts one that no other has forked.
func (p *play) startWorker() *worker {
	p.Helper()
	ours, theirs := p.control()
	cmd := p.startChild("", "worker", theirs, p.mail[0], p.mail[1])
	unix.Close(theirs)
	w := &worker{identity: p.identity(cmd.Process.Pid), ctl: ours, files: make(map[int]*file)}
	if err := cmd.Process.Release(); err != nil { // reap waits for it, as for those that it forks
		p.Fatal(err)
	}
	w.tid = p.receive(w).ret
	p.workers = append(p.workers, w)
	p.know(w.identity)
	p.unshare(w)
	return w
}

// identity is the process of a pid now.
func (p *play) identity(pid int) identity {
	p.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		p.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), ") ")
	ticks, err := strconv.ParseUint(strings.Fields(after)[19], 10, 64)
	if err != nil {
		p.Fatal(err)
	}
	return identity{pid, ticks}
}

// receive returns the reply of a worker.
func (p *play) receive(w *worker) reply {
	p.Helper()
	buf := make([]byte, 256)
	n, err := unix.Read(w.ctl, buf)
	for err == unix.EINTR {
		n, err = unix.Read(w.ctl, buf)
	}
	if err != nil || n == 0 {
		p.Fatalf("worker %d: no reply to %s: %v", w.pid, p.asked, err)
	}
	if w.stub {
		return reply{}
	}
	r, err := parseReply(string(buf[:n]))
	if err != nil {
		p.Fatal(err)
	}
	return r
}

// ask makes a request, with a descriptor, -1: none.
func (p *play) ask(w *worker, with int, op, addr string, args ...int) reply {
	p.Helper()
	q := request{op: op, addr: addr}
	copy(q.args[:], args)
	var oob []byte
	if with >= 0 {
		oob = unix.UnixRights(with)
	}
	if err := unix.Sendmsg(w.ctl, []byte(q.String()), oob, nil, 0); err != nil {
		p.Fatalf("worker %d: %v", w.pid, err)
	}
	if op == "exec" || op == "exit" {
		p.note(w, q, reply{})
		return reply{}
	}
	p.asked = q.String()
	r := p.receive(w)
	p.note(w, q, r)
	return r
}

func (p *play) note(w *worker, q request, r reply) {
	p.log = append(p.log, fmt.Sprintf("%d: %s = %d %s %s > %s", w.pid, q, r.ret, errnoOf(r.errno), orDash(r.local), orDash(r.remote)))
	p.requests++
	if r.errno == 0 {
		p.done[q.op]++
	}
}

// kill ends a worker with SIGKILL.
func (p *play) kill(w *worker) {
	p.Helper()
	if err := unix.Kill(w.pid, unix.SIGKILL); err != nil {
		p.Fatalf("kill %d: %v", w.pid, err)
	}
	p.note(w, request{op: "killed"}, reply{})
	p.reap(w)
}

// reap waits for the end of a worker: its descriptors are closed by then.
func (p *play) reap(w *worker) {
	p.Helper()
	for {
		_, err := unix.Wait4(w.pid, nil, 0, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			p.Fatalf("wait for %d: %v", w.pid, err)
		}
	}
	unix.Close(w.ctl)
	p.exit(w)
	p.dead = append(p.dead[max(0, len(p.dead)-100):], w.identity)
}

// unshare gives a worker a network namespace of its own.
func (p *play) unshare(w *worker) {
	p.Helper()
	if r := p.ask(w, -1, "unshare", modelPorts); r.errno != 0 {
		p.Fatalf("worker %d: unshare: %v", w.pid, r.errno)
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/task/%d/ns/net", w.pid, w.tid), &st); err != nil {
		p.Fatal(err)
	}
	w.space = uint32(st.Ino)
}

// ---- the choice of what to do ----

// step makes a request that makes sense.
func (p *play) step() {
	for _, a := range []struct {
		weight int
		try    func(*worker) bool
	}{{14, p.trySocket}, {12, p.tryBind}, {8, p.tryListen}, {18, p.tryConnect}, {14, p.tryAccept}, {5, p.tryDup}, {4, p.tryFork},
		{1, p.tryExec}, {4, p.trySend}, {4, p.tryReceive}, {4, p.tryGetfd}, {5, p.tryShutdown}, {2, p.tryDisconnect},
		{p.closeWeight(), p.tryClose}, {1, p.tryExit}, {1, p.tryKill}, {1, p.tryUnshare}} {
		if p.rng.IntN(100) < a.weight {
			if w := p.workers[p.rng.IntN(len(p.workers))]; a.try(w) {
				return
			}
		}
	}
}

// closeWeight keeps the number of sockets down.
func (p *play) closeWeight() int { return 12 + 60*len(p.sockets)/maxSockets }

// pick returns one of a worker's descriptors that fits, false: none does.
func (p *play) pick(w *worker, fits func(*socket) bool) (int, *socket, bool) {
	if w.stub {
		return 0, nil, false
	}
	fds := slices.DeleteFunc(w.fds(), func(fd int) bool { return !fits(w.files[fd].socket) })
	if len(fds) == 0 {
		return 0, nil, false
	}
	fd := fds[p.rng.IntN(len(fds))]
	return fd, w.files[fd].socket, true
}

func (p *play) trySocket(w *worker) bool {
	if w.stub || len(p.sockets) >= maxSockets {
		return false
	}
	s := socket{proto: TCP, family: unix.AF_INET, space: w.space}
	kind, flags := unix.SOCK_STREAM, 0
	if p.rng.IntN(4) == 0 {
		s.proto, kind = UDP, unix.SOCK_DGRAM
	}
	if p.rng.IntN(3) == 0 {
		s.family = unix.AF_INET6
	}
	if p.rng.IntN(2) == 0 {
		flags = unix.SOCK_CLOEXEC
	}
	r := p.must(w, "socket", s.family, kind|flags)
	p.open(w, r.ret, p.newSocket(s), flags != 0)
	return true
}

// must makes a request that cannot fail.
func (p *play) must(w *worker, op string, args ...int) reply {
	p.Helper()
	r := p.ask(w, -1, op, "-", args...)
	if r.errno != 0 {
		p.Fatalf("worker %d: %s %v: %v", w.pid, op, args, r.errno)
	}
	return r
}

func (p *play) tryBind(w *worker) bool {
	fd, s, ok := p.pick(w, (*socket).fresh)
	if !ok {
		return false
	}
	ips := []string{"127.0.0.1", "0.0.0.0"}
	if s.family == unix.AF_INET6 {
		ips = []string{"::1", "::", "::ffff:127.0.0.1"}
	}
	port := 0
	if p.rng.IntN(3) > 0 {
		port = 7000 + p.rng.IntN(10)
	}
	to := netip.AddrPortFrom(netip.MustParseAddr(ips[p.rng.IntN(len(ips))]), uint16(port))
	if r := p.ask(w, -1, "bind", to.String(), fd, p.rng.IntN(2)); r.errno == 0 {
		s.acted(w, RoleBound, r)
		s.keepsPort = port != 0
	}
	return true
}

func (p *play) tryListen(w *worker) bool {
	fd, s, ok := p.pick(w, func(s *socket) bool { return s.proto == TCP && s.fresh() && !s.mapped })
	if !ok {
		return false
	}
	if r := p.ask(w, -1, "listen", "-", fd); r.errno == 0 {
		s.acted(w, RoleListener, r)
	}
	return true
}

func (p *play) tryConnect(w *worker) bool {
	fd, s, ok := p.pick(w, func(s *socket) bool { return s.role != RoleListener && s.role != RoleServer && !s.mapped })
	if !ok {
		return false
	}
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), closedPort)
	if s.proto == UDP {
		r := p.ask(w, -1, "connect", to.String(), fd)
		if r.errno == 0 {
			s.acted(w, RoleClient, r)
		}
		return true
	}
	var l *socket
	if targets := p.targets(s); len(targets) > 0 && p.rng.IntN(10) > 0 {
		l = targets[p.rng.IntN(len(targets))]
		to = s.address(l)
	}
	s.mapped = s.mapped || s.family == unix.AF_INET6 && to.Addr().Is4()
	if r := p.ask(w, -1, "connect", to.String(), fd); r.errno != 0 {
		s.refused(w, r)
	} else {
		p.connected(w, s, l, r)
	}
	return true
}

func (p *play) tryAccept(w *worker) bool {
	fd, l, ok := p.pick(w, func(s *socket) bool { return s.role == RoleListener && len(s.queue) > 0 })
	if !ok {
		return false
	}
	flags := unix.SOCK_CLOEXEC * p.rng.IntN(2)
	r := p.must(w, "accept", fd, flags)
	s := l.queue[0]
	l.queue = l.queue[1:]
	s.queued = false
	if !s.over {
		if r.local != s.local || r.remote != s.remote {
			p.Fatalf("accepted %s > %s, want %s > %s", r.local, r.remote, s.local, s.remote)
		}
		s.acted(w, RoleServer, r)
	}
	p.open(w, r.ret, s, flags != 0)
	return true
}

func (p *play) tryDup(w *worker) bool {
	fd, s, ok := p.pick(w, anySocket)
	if !ok || len(w.files) > maxSockets {
		return false
	}
	how := []int{unix.F_DUPFD, unix.F_DUPFD_CLOEXEC}[p.rng.IntN(2)]
	r := p.must(w, "dup", fd, p.rng.IntN(200), how)
	p.open(w, r.ret, s, how == unix.F_DUPFD_CLOEXEC)
	return true
}

func anySocket(*socket) bool { return true }

// tryFork makes a stub, half of the time with the pid of a process that was.
func (p *play) tryFork(w *worker) bool {
	if w.stub || len(p.workers) >= maxWorkers {
		return false
	}
	pid := 0
	if len(p.dead) > 0 && p.rng.IntN(2) == 0 {
		pid = p.dead[p.rng.IntN(len(p.dead))].pid
	}
	ours, theirs := p.control()
	r := p.ask(w, theirs, "fork", "-", pid)
	unix.Close(theirs)
	if r.errno == unix.EEXIST && pid != 0 { // somebody else has it now
		unix.Close(ours)
		return true
	}
	if r.errno != 0 {
		p.Fatalf("worker %d: fork: %v", w.pid, r.errno)
	}
	if pid != 0 {
		p.done["fork with a pid used before"]++
	}
	p.receive(p.fork(w, p.identity(r.ret), ours))
	return true
}

// tryExec makes a worker of a stub, or a new one of a worker.
func (p *play) tryExec(w *worker) bool {
	if w.stub {
		p.askStub(w, stubExec, 0)
	} else {
		p.ask(w, -1, "exec", "-")
	}
	p.exec(w)
	w.tid = p.receive(w).ret
	return true
}

// askStub makes a request to a stub, whose reply is still to come.
func (p *play) askStub(w *worker, op byte, fd int) {
	p.Helper()
	if _, err := unix.Write(w.ctl, askStub(op, fd)); err != nil {
		p.Fatalf("stub %d: %v", w.pid, err)
	}
	p.note(w, request{op: "stub-" + string(op), args: [3]int{fd}}, reply{})
}

// trySend lets a descriptor wait for who takes it, by SCM_RIGHTS.
func (p *play) trySend(w *worker) bool {
	fd, s, ok := p.pick(w, anySocket)
	if !ok || len(p.model.mail) > 5 {
		return false
	}
	p.must(w, "send", fd)
	s.refs++
	p.model.mail = append(p.model.mail, s)
	return true
}

func (p *play) tryReceive(w *worker) bool {
	if w.stub || len(p.model.mail) == 0 {
		return false
	}
	flags := unix.MSG_CMSG_CLOEXEC * p.rng.IntN(2)
	r := p.must(w, "recv", flags)
	s := p.model.mail[0]
	p.model.mail = p.model.mail[1:]
	p.open(w, r.ret, s, flags != 0)
	s.refs--
	return true
}

func (p *play) tryGetfd(w *worker) bool {
	of := p.workers[p.rng.IntN(len(p.workers))]
	fds := of.fds()
	if w.stub || of == w || len(fds) == 0 {
		return false
	}
	fd := fds[p.rng.IntN(len(fds))]
	r := p.must(w, "getfd", of.pid, fd)
	p.open(w, r.ret, of.files[fd].socket, true)
	return true
}

func (p *play) tryShutdown(w *worker) bool {
	fd, s, ok := p.pick(w, func(s *socket) bool {
		return s.proto == TCP && (s.role == RoleListener || s.role == RoleClient || s.role == RoleServer)
	})
	if !ok {
		return false
	}
	how := p.rng.IntN(3)
	r := p.must(w, "shutdown", fd, how)
	if s.role == RoleListener {
		if how != unix.SHUT_WR {
			p.disconnected(s, r)
		}
	} else if how != unix.SHUT_RD {
		s.finish()
	}
	return true
}

func (p *play) tryDisconnect(w *worker) bool {
	fd, s, ok := p.pick(w, func(s *socket) bool { return s.role == RoleClient || s.role == RoleServer || s.role == RoleListener })
	if !ok {
		return false
	}
	p.disconnected(s, p.must(w, "disconnect", fd))
	return true
}

func (p *play) tryClose(w *worker) bool {
	fds := w.fds()
	if len(fds) == 0 {
		return false
	}
	fd := fds[p.rng.IntN(len(fds))]
	s := w.files[fd].socket
	switch {
	case w.stub:
		p.askStub(w, stubClose, fd)
		p.receive(w)
	case s.peer != nil && p.rng.IntN(4) == 0:
		p.must(w, "linger", fd)
		s.linger = true
		fallthrough
	default:
		p.must(w, "close", fd)
	}
	p.closeFD(w, fd)
	return true
}

func (p *play) tryExit(w *worker) bool {
	if len(p.workers) < 4 {
		return false
	}
	if w.stub {
		p.askStub(w, stubExit, 0)
	} else {
		p.ask(w, -1, "exit", "-")
	}
	p.reap(w)
	p.refill()
	return true
}

func (p *play) tryKill(w *worker) bool {
	if len(p.workers) < 4 {
		return false
	}
	p.kill(w)
	p.refill()
	return true
}

// refill keeps some workers that are no stubs.
func (p *play) refill() {
	n := 0
	for _, w := range p.workers {
		if !w.stub {
			n++
		}
	}
	if n < 2 {
		p.startWorker()
	}
}

func (p *play) tryUnshare(w *worker) bool {
	if w.stub {
		return false
	}
	p.unshare(w)
	return true
}

// ---- the comparison ----

// compareAll waits until every view shows what was done: what TCP has to do may go on
// after the calls have returned.
func (p *play) compareAll() {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), modelPatience)
	defer cancel()
	for {
		err := p.tryFence(ctx)
		p.seen = nil
		diff := ""
		if err == nil {
			diff = p.differ()
		}
		if err == nil && diff == "" {
			return
		}
		if p.lost != p.lostNow() {
			p.beginAnew() // nothing may be left of what there was
			p.compareAll()
			return
		}
		if ctx.Err() != nil || time.Until(deadlineOf(ctx)) < time.Second {
			p.Fatalf("seed %d, after %d requests: %v %s", p.seed, p.requests, err, diff)
		}
		runtime.Gosched()
	}
}

func deadlineOf(ctx context.Context) time.Time {
	d, _ := ctx.Deadline()
	return d
}

// differ tells which view is not what was done, "": none.
func (p *play) differ() string {
	must, may := p.tableLines()
	gaveUp := p.gaveUp()
	var table []string
	for _, s := range p.tracer.Table().All() {
		if line := tableLine(seenBy(&s), gaveUp); p.ours(&s) && !may[line] && !lingers(&s) {
			table = append(table, line)
		}
	}
	slices.Sort(table)
	if diff := cmp.Diff(must, table); diff != "" {
		return "the table (-want +got):\n" + diff
	}
	snap, err := p.tracer.Snapshot(0)
	if err != nil {
		p.Fatal(err)
	}
	var rows []string
	ours := slices.DeleteFunc(snap.Sockets, func(s Socket) bool { return !p.ours(&s) })
	for i := range ours {
		if ours[i].Role != RoleTimeWait && !lingers(&ours[i]) {
			rows = append(rows, snapshotLine(&ours[i]))
		}
	}
	slices.Sort(rows)
	if diff := cmp.Diff(p.snapshotLines(), rows); diff != "" {
		return "the snapshot (-want +got):\n" + diff
	}
	if diff := cmp.Diff(p.procLines(ours), holdersByInode(ours)); diff != "" {
		return "holders (-/proc +snapshot):\n" + diff
	}
	return p.differFromSS(ours)
}

// lingers tells whether a socket is what a connection that was closed leaves for up to a
// minute. Most often that is a timewait sock; not where the other end's word came while
// close() was at work (tcp_rcv_state_process, "Bad case").
func lingers(s *Socket) bool { return s.Role == RoleOrphan && s.State == StateFinWait2 }

// holdersByInode are the descriptors that a snapshot has.
func holdersByInode(sockets []Socket) []string {
	var out []string
	for _, s := range sockets {
		for _, h := range s.Holders {
			out = append(out, fmt.Sprintf("%d/%d %d", h.PID, h.FD, s.Inode))
		}
	}
	slices.Sort(out)
	return out
}

// procLines are the descriptors of these sockets as /proc has them.
func (p *play) procLines(sockets []Socket) []string {
	inodes := make(map[string]uint64)
	for _, s := range sockets {
		inodes[fmt.Sprintf("socket:[%d]", s.Inode)] = s.Inode
	}
	var out []string
	for _, w := range p.workers {
		dir := fmt.Sprintf("/proc/%d/fd/", w.pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			p.Fatal(err)
		}
		for _, e := range entries {
			to, err := os.Readlink(dir + e.Name())
			if inode := inodes[to]; err == nil && inode != 0 {
				out = append(out, fmt.Sprintf("%d/%s %d", w.pid, e.Name(), inode))
			}
		}
	}
	slices.Sort(out)
	return out
}

// differFromSS compares with ss in every namespace that a worker is in. TCP sockets
// that are only bound ss shows since iproute2 6.8, on Linux 6.8 and newer.
func (p *play) differFromSS(sockets []Socket) string {
	spaces := make(map[uint32]*worker)
	for _, w := range p.workers {
		spaces[w.space] = w
	}
	for _, space := range p.spaces() {
		w := spaces[space]
		if w == nil {
			continue // nobody can look
		}
		want := p.ssOf(w)
		bound := slices.ContainsFunc(want, func(row string) bool { return strings.HasPrefix(row, "tcp UNCONN") })
		var rows []string
		for i := range sockets {
			if s := &sockets[i]; s.NetNS == space && (bound || s.Proto != TCP || s.Role != RoleBound) {
				rows = append(rows, s.Proto.String()+" "+withoutPeer(asSS(s)))
			}
		}
		slices.Sort(rows)
		if diff := cmp.Diff(want, rows); diff != "" {
			return fmt.Sprintf("ss in %d (-ss +snapshot):\n%s", space, diff)
		}
	}
	return ""
}

// ssOf is what ss shows in the namespace of a worker.
func (p *play) ssOf(w *worker) []string {
	p.Helper()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		p.Fatal(err)
	}
	defer home.Close()
	there, err := os.Open(fmt.Sprintf("/proc/%d/task/%d/ns/net", w.pid, w.tid))
	if err != nil {
		p.Fatal(err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		p.Fatal(err)
	}
	var rows []string
	for _, c := range []struct{ proto, flags string }{{"tcp ", "-Htan"}, {"udp ", "-Huan"}} {
		for _, row := range ssRows(p.T, c.flags) {
			rows = append(rows, c.proto+withoutPeer(normal(row)))
		}
	}
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		p.Fatal(err)
	}
	slices.Sort(rows)
	return rows
}

// withoutPeer leaves out the peer of a socket that has none: ss may show a former one.
func withoutPeer(row string) string {
	if f := strings.Fields(row); f[0] == "LISTEN" || f[0] == "UNCONN" {
		return f[0] + " " + f[1]
	}
	return row
}
