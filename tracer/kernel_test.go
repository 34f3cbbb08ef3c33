package tracer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// These tests make system calls in a network namespace of their own and compare
// every event of it with what the calls must cause: nothing lost, nothing
// invented, in order, by the right process.

// rounds is prime, so that a count that is right by accident is unlikely.
const rounds = 23

// testTier is the tier to test, "" the one Open chooses here. The kernel matrix
// runs the tests once with each.
var testTier = Tier(os.Getenv("PORTHOLE_TEST_TIER"))

// tested is cfg in the tier to test, unless it names one.
func tested(cfg Config) Config {
	if cfg.Tier == "" {
		cfg.Tier = testTier
	}
	return cfg
}

// recorder traces while a test works.
type recorder struct {
	*testing.T
	netns  uint32
	tracer *Tracer
	sub    *Subscription
	seen   []Event
	fds    []int // open descriptors, closed when the test ends
}

// record puts the test into a namespace of its own and follows it with a tracer
// that other tests use too. What the test before did last may still be in the ring
// buffer, and its namespace's number be this one's: that is read first.
func record(t *testing.T, cfg Config) *recorder {
	t.Helper()
	r := idle(t)
	r.follow(cfg)
	r.events(0)
	return r
}

// idle is a recorder without a tracer.
func idle(t *testing.T) *recorder {
	t.Helper()
	r := &recorder{T: t, netns: testutil.NewNetNS(t)}
	t.Cleanup(func() { r.close(slices.Clone(r.fds)...) })
	return r
}

// start starts a tracer of the test's own: what was done before is older than
// it.
func (r *recorder) start(cfg Config) {
	r.Helper()
	running, err := newRunning(tested(cfg))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := running.stop(); err != nil {
			r.Error(err)
		}
	})
	r.use(running.tracer)
}

// follow uses the tracer that tests share.
func (r *recorder) follow(cfg Config) {
	r.Helper()
	running, err := share(cfg)
	if err != nil {
		r.Fatal(err)
	}
	r.use(running.tracer)
}

// use subscribes to a tracer, and demands that it loses nothing until the test
// ends.
func (r *recorder) use(tr *Tracer) {
	r.Helper()
	r.tracer, r.sub = tr, tr.Subscribe(1<<16)
	before, err := tr.Stats()
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		r.sub.Close()
		stats, err := tr.Stats()
		if err != nil || stats.Lost() != before.Lost() || stats.Bad != 0 || r.sub.Lost() != 0 || stats.Decoded > stats.Submitted {
			r.Errorf("stats %+v, skipped %v, subscriber lost %d, error %v: want nothing lost", stats, skipped(tr), r.sub.Lost(), err)
		}
	})
}

// skipped is how often the kernel has not run the program of a hook, for it was running.
func skipped(tr *Tracer) map[string]uint64 {
	out := make(map[string]uint64)
	for _, a := range tr.progs {
		if stats, err := a.prog.Stats(); err == nil && stats.RecursionMisses > 0 {
			out[a.hook] = stats.RecursionMisses
		}
	}
	return out
}

// running is a tracer at work.
type running struct {
	tracer *Tracer
	cancel context.CancelFunc
	ended  chan error
}

// shared are the tracers that tests share, one for each Config: to load one takes
// longer than most tests do. TestMain stops them.
var shared = make(map[Config]*running)

func share(cfg Config) (*running, error) {
	cfg = tested(cfg)
	if shared[cfg] == nil {
		running, err := newRunning(cfg)
		if err != nil {
			return nil, err
		}
		shared[cfg] = running
	}
	return shared[cfg], nil
}

func newRunning(cfg Config) (*running, error) {
	tr, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	run := &running{tracer: tr, cancel: cancel, ended: make(chan error, 1)}
	go func() { run.ended <- tr.Run(ctx, nil) }()
	select {
	case <-tr.Ready():
		return run, nil
	case err := <-run.ended:
		cancel()
		return nil, errors.Join(err, tr.Close())
	}
}

func (r *running) stop() error {
	r.cancel()
	return errors.Join(<-r.ended, r.tracer.Close())
}

// events returns the events of the namespace since the last call, at least n. It
// waits until everything that system calls have caused was reported: a socket
// bound and closed now comes last in the ring buffer. What the network does
// after them, on a busy machine later, is waited for by n.
func (r *recorder) events(n int) []Event {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		r.fence(ctx)
		if len(r.seen) >= n {
			out := r.seen
			r.seen = nil
			return out
		}
	}
}

const fencePort = 64999

// fence opens and closes a socket and waits until that was reported.
func (r *recorder) fence(ctx context.Context) {
	r.Helper()
	if err := r.tryFence(ctx); err != nil {
		r.Fatalf("wait for events: %v; so far:\n%s", err, lines(r.seen))
	}
}

// tryFence is fence where events may be lost, its own among them.
func (r *recorder) tryFence(ctx context.Context) error {
	r.Helper()
	fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	r.bind(fd, fmt.Sprintf("127.0.0.1:%d", fencePort))
	r.close(fd)
	for {
		batch, err := r.sub.Next(ctx, nil)
		if err != nil {
			return err
		}
		done := false
		for _, ev := range batch {
			switch {
			case ev.NetNS != r.netns:
			case ev.Proto == UDP && ev.Local.Port() == fencePort:
				done = done || ev.Type == EventClose
			default:
				r.seen = append(r.seen, ev)
			}
		}
		if done {
			return nil
		}
	}
}

// expect compares the events since the last call with want, line by line, and
// that this process, or the one given, is behind each.
func (r *recorder) expect(pid int, want ...string) []Event {
	r.Helper()
	return r.expectBy(slices.Repeat([]int{pid}, len(want)), want...)
}

// expectConnections is expect for connections one after the other. The last word
// of one travels while the next begins, so only events of the same connection
// have an order.
func (r *recorder) expectConnections(want ...string) []Event {
	r.Helper()
	got := r.events(len(want))
	first := make(map[uint16]int)
	at := func(ev *Event) int { // of the first event with this port on the client's side
		port := max(ev.Local.Port(), ev.Remote.Port())
		if _, ok := first[port]; !ok {
			first[port] = len(first)
		}
		return first[port]
	}
	for i := range got {
		at(&got[i])
	}
	slices.SortStableFunc(got, func(a, b Event) int { return at(&a) - at(&b) })
	r.compare(slices.Repeat([]int{os.Getpid()}, len(want)), got, want)
	return got
}

// expectBy is expect with a process for each event.
func (r *recorder) expectBy(pids []int, want ...string) []Event {
	r.Helper()
	got := r.events(len(want))
	for i := range got {
		if i > 0 && got[i].Time.Before(got[i-1].Time.Add(-time.Millisecond)) {
			r.Errorf("%s: earlier than the event before it", line(&got[i]))
		}
	}
	r.compare(pids, got, want)
	return got
}

func (r *recorder) compare(pids []int, got []Event, want []string) {
	r.Helper()
	if diff := cmp.Diff(strings.Join(want, "\n"), lines(got)); diff != "" {
		r.Fatalf("events (-want +got):\n%s", diff)
	}
	for i, ev := range got {
		if int(ev.Process.PID) != pids[i] || ev.Process.Comm == "" || int(ev.Process.UID) != os.Getuid() {
			r.Errorf("%s: by %+v, want pid %d", line(&ev), ev.Process, pids[i])
		}
	}
}

// held is what the live table has on a port of the test's namespace.
func (r *recorder) held(port uint16) []Socket {
	return slices.DeleteFunc(r.tracer.Table().Port(port), func(s Socket) bool { return s.NetNS != r.netns })
}

func lines(events []Event) string {
	out := make([]string, len(events))
	for i := range events {
		out[i] = line(&events[i])
	}
	return strings.Join(out, "\n")
}

// line is what an event says that does not differ from run to run.
func line(ev *Event) string {
	s := fmt.Sprintf("%s %s %s", ev.Type, ev.Proto, ev.Local)
	if ev.Remote.IsValid() {
		s += " > " + ev.Remote.String()
	}
	if ev.Type == EventBind && !ev.Implicit {
		s += fmt.Sprintf(" asked %d", ev.RequestedPort)
	}
	for _, w := range []struct {
		on   bool
		word string
	}{
		{ev.Implicit, " implicit"}, {ev.MPTCP, " mptcp"}, {ev.TimeWait, " time_wait"}, {ev.Errno != 0, " " + ev.ErrnoName()},
	} {
		if w.on {
			s += w.word
		}
	}
	return s
}

// ---- system calls ----

func (r *recorder) socket(family, kind int) int {
	r.Helper()
	return r.socketOf(family, kind, 0)
}

func (r *recorder) socketOf(family, kind, proto int) int {
	r.Helper()
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, proto)
	if err == unix.EPROTONOSUPPORT && proto == unix.IPPROTO_MPTCP {
		r.Skip("this kernel has no MPTCP")
	}
	if err != nil {
		r.Fatalf("socket: %v", err)
	}
	r.fds = append(r.fds, fd)
	return fd
}

// sockaddr is the address for a socket of the family: IPv4 as mapped on IPv6; a zone is the
// name of a device of the calling thread's namespace.
func sockaddr(family int, addr string) unix.Sockaddr {
	a := netip.MustParseAddrPort(addr)
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().Unmap().As4()}
	}
	to := &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if zone := a.Addr().Zone(); zone != "" {
		dev, err := net.InterfaceByName(zone)
		if err != nil {
			panic(err)
		}
		to.ZoneId = uint32(dev.Index)
	}
	return to
}

func (r *recorder) family(fd int) int {
	r.Helper()
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		r.Fatalf("getsockopt: %v", err)
	}
	return family
}

func (r *recorder) bind(fd int, addr string) {
	r.Helper()
	if err := unix.Bind(fd, sockaddr(r.family(fd), addr)); err != nil {
		r.Fatalf("bind %s: %v", addr, err)
	}
}

func (r *recorder) listen(fd int) {
	r.Helper()
	if err := unix.Listen(fd, 128); err != nil {
		r.Fatalf("listen: %v", err)
	}
}

func (r *recorder) connect(fd int, to netip.AddrPort) {
	r.Helper()
	if err := unix.Connect(fd, sockaddr(r.family(fd), to.String())); err != nil {
		r.Fatalf("connect %s: %v", to, err)
	}
}

func (r *recorder) accept(fd int) int {
	r.Helper()
	got, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	if err != nil {
		r.Fatalf("accept: %v", err)
	}
	r.fds = append(r.fds, got)
	return got
}

// acceptNoAddr is accept(fd, NULL, NULL).
func (r *recorder) acceptNoAddr(fd int) int {
	r.Helper()
	got, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		r.Fatalf("accept: %v", errno)
	}
	r.fds = append(r.fds, int(got))
	return int(got)
}

func (r *recorder) close(fds ...int) {
	r.Helper()
	for _, fd := range fds {
		r.fds = slices.DeleteFunc(r.fds, func(o int) bool { return o == fd })
		if err := unix.Close(fd); err != nil {
			r.Fatalf("close: %v", err)
		}
	}
}

// local is getsockname, IPv4 as IPv4.
func (r *recorder) local(fd int) netip.AddrPort {
	r.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		r.Fatalf("getsockname: %v", err)
	}
	return addrPortOf(sa)
}

// addrPortOf is an address of the system's calls, IPv4 as IPv4.
func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func (r *recorder) setsockopt(fd, level, opt, value int) {
	r.Helper()
	if err := unix.SetsockoptInt(fd, level, opt, value); err != nil {
		r.Fatalf("setsockopt: %v", err)
	}
}

// device binds a socket to a device.
func (r *recorder) device(fd int, name string) {
	r.Helper()
	if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name); err != nil {
		r.Fatalf("bind to device: %v", err)
	}
}

// resetOnClose makes close() send a reset.
func (r *recorder) resetOnClose(fd int) {
	r.Helper()
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		r.Fatalf("setsockopt: %v", err)
	}
}

// listener is a bound and listening TCP socket.
func (r *recorder) listener(family int, addr string) (int, netip.AddrPort) {
	r.Helper()
	fd := r.socket(family, unix.SOCK_STREAM)
	r.bind(fd, addr)
	r.listen(fd)
	return fd, r.local(fd)
}

// awaitClosed waits until the peer of a connection has closed it.
func (r *recorder) awaitClosed(fd int) {
	r.Helper()
	for {
		n, err := unix.Read(fd, make([]byte, 64))
		if n == 0 || err != nil && err != unix.EINTR {
			return
		}
	}
}

// awaitWritable waits until a connection is made, or has failed.
func (r *recorder) awaitWritable(fd int) {
	r.Helper()
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 20000)
		if err == nil {
			return
		}
		if err != unix.EINTR { // a signal of the Go runtime
			r.Fatalf("poll: %v", err)
		}
	}
}

// ---- children ----

const helperEnv = "PORTHOLE_TEST_HELPER"

// TestMain runs a helper instead of the tests when this binary is a child of
// them.
func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		if err := helpers[name](); err != nil {
			fmt.Fprintln(os.Stderr, name, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	for cfg, running := range shared {
		if err := running.stop(); err != nil {
			fmt.Fprintf(os.Stderr, "stop tracer %+v: %v\n", cfg, err)
			code = 1
		}
	}
	os.Exit(code)
}

// child starts a helper in the test's namespace, with files from descriptor 3
// on.
func (r *recorder) child(name string, fds ...int) *exec.Cmd {
	r.Helper()
	return r.childIn("", name, fds...)
}

// childIn starts it in a cgroup, "" the test's own.
func (r *recorder) childIn(cgroup, name string, fds ...int) *exec.Cmd {
	r.Helper()
	cmd := r.startChild(cgroup, name, fds...)
	r.Cleanup(func() { _ = cmd.Process.Kill() }) // of a test that failed; else it has ended
	return cmd
}

// startChild is childIn for a child that is waited for in any case: a test may have very many.
func (r *recorder) startChild(cgroup, name string, fds ...int) *exec.Cmd {
	r.Helper()
	exe, err := os.Executable()
	if err != nil {
		r.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), helperEnv+"="+name)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // with the test's thread
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			r.Fatal(err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	for _, fd := range fds {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			r.Fatalf("dup: %v", err)
		}
		f := os.NewFile(uintptr(dup), "socket")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if err := cmd.Start(); err != nil {
		r.Fatalf("start %s: %v", filepath.Base(exe), err)
	}
	return cmd
}

func (r *recorder) wait(cmd *exec.Cmd) int {
	r.Helper()
	if err := cmd.Wait(); err != nil {
		r.Fatalf("child: %v", err)
	}
	return cmd.Process.Pid
}
