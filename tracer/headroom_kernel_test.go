package tracer

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// headroomScenarios is how many random states of a namespace are predicted and then
// driven to exhaustion. Each is a subtest named by its seed:
//
//	go test ./tracer -run 'TestKernelHeadroomExact/seed=17$' -v
const headroomScenarios = 200

// headroomForTier are those of a machine that tests a tier, of which there are many. Each tier
// has half: nothing here depends on it.
const headroomForTier = 80

// TestKernelHeadroomExact makes a namespace with a random range and random sockets,
// asks how many more ports there are for a random call, and makes that call until
// the kernel refuses.
func TestKernelHeadroomExact(t *testing.T) {
	tally := make(map[string]*struct{ checks, ports, orLess int })
	for seed := range uint64(headroomScenarios) {
		if testTier != "" && (seed >= headroomForTier || (seed%2 == 0) != (testTier == TierFentry)) {
			continue
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			s := newScenario(t, seed)
			s.populate()
			for range 4 {
				class, got, predicted := s.check()
				if tally[class] == nil {
					tally[class] = new(struct{ checks, ports, orLess int })
				}
				tally[class].checks++
				tally[class].ports += got
				if predicted.MaybeOneLess {
					tally[class].orLess++
				}
				if got != predicted.Free && !(predicted.MaybeOneLess && got == predicted.Free-1) {
					t.Errorf("%s: %d calls succeeded, predicted %+v\nscenario:\n%s\n%s", class, got, predicted, strings.Join(s.story, "\n"), s.evidence())
				}
			}
		})
	}
	for _, class := range slices.Sorted(maps.Keys(tally)) {
		n := tally[class]
		t.Logf("%-34s %3d predictions, %4d ports, %3d with the one-port rule", class, n.checks, n.ports, n.orLess)
	}
}

// scenario is a namespace with sockets in it.
type scenario struct {
	*recorder
	rnd       *rand.Rand
	low, high int
	delay     bool // there is tcp_tw_reuse_delay
	reuse     int
	aged      bool // connections in TIME_WAIT are to be old enough
	link      bool // there is a veth pair, and 10.9.0.1 on lo
	story     []string
	dests     []target
	servers   map[netip.AddrPort]int
	read      *Ports // what the last prediction is made from
}

// target is a destination, and the address the kernel takes to reach it; the device of a
// link-local one is its zone.
type target struct {
	family int
	to     netip.AddrPort
	from   netip.Addr
}

// silent tells that nobody answers.
func (d target) silent() bool {
	return d.to.Addr() == netip.MustParseAddr("10.9.9.2") || d.to.Addr().WithZone("") == netip.MustParseAddr("fe80::2")
}

func newScenario(t *testing.T, seed uint64) *scenario {
	s := &scenario{recorder: idle(t), rnd: rand.New(rand.NewPCG(seed, 4)), servers: make(map[netip.AddrPort]int)}
	size := 1 + s.rnd.IntN(48)
	s.low = 20000 + s.rnd.IntN(40000)
	s.high = s.low + size - 1
	s.sysctl("ipv4/ip_local_port_range", fmt.Sprintf("%d %d", s.low, s.high))
	if s.chance(2) {
		var reserved []string
		for port := s.low - 2; port <= s.high+2; port++ {
			if s.chance(5) {
				reserved = append(reserved, fmt.Sprint(port))
			}
		}
		s.sysctl("ipv4/ip_local_reserved_ports", strings.Join(reserved, ","))
	}
	s.timeWaitRules()
	if s.chance(2) {
		s.addLink()
	}
	s.addDestinations()
	return s
}

func (s *scenario) chance(oneIn int) bool { return s.rnd.IntN(oneIn) == 0 }

func (s *scenario) sysctl(name, value string) {
	s.story = append(s.story, name+" = "+value)
	testutil.WriteSysctl(s, name, value)
}

// timeWaitRules: before 6.14 there is no tcp_tw_reuse_delay, and to wait for the next
// second takes long.
func (s *scenario) timeWaitRules() {
	_, err := os.Stat("/proc/sys/net/ipv4/tcp_tw_reuse_delay")
	s.delay = err == nil
	s.reuse = s.rnd.IntN(3)
	s.aged = s.chance(2)
	switch {
	case s.delay && s.aged:
		s.sysctl("ipv4/tcp_tw_reuse_delay", "1")
	case s.delay:
		s.sysctl("ipv4/tcp_tw_reuse_delay", "60000")
	case s.aged && s.chance(2):
		s.aged, s.reuse = false, 0
	case !s.aged:
		s.reuse = 0
	}
	s.sysctl("ipv4/tcp_tw_reuse", fmt.Sprint(s.reuse))
	if s.chance(5) {
		s.sysctl("ipv4/tcp_timestamps", "0")
	}
}

func (s *scenario) addLink() {
	s.link = true
	twoLinks(s)
	ip(s, "addr add 10.9.0.1/32 dev lo", "addr add 10.9.9.1/24 dev left",
		"neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev left nud permanent")
}

func (s *scenario) addDestinations() {
	addr := netip.MustParseAddr
	add := func(family int, to string, port int, from string) {
		s.dests = append(s.dests, target{family, netip.AddrPortFrom(addr(to), uint16(port)), addr(from)})
	}
	for i := range 1 + s.rnd.IntN(2) {
		port := 1000 + i
		add(unix.AF_INET, "127.0.0.1", port, "127.0.0.1")
		add(unix.AF_INET6, "::1", port, "::1")
		add(unix.AF_INET6, "127.0.0.1", port, "127.0.0.1") // v4-mapped
		if s.chance(2) {
			add(unix.AF_INET, "127.0.0.2", port, "127.0.0.1")
		}
		if s.link {
			add(unix.AF_INET, "10.9.0.1", port, "10.9.0.1")
			add(unix.AF_INET, "10.9.9.2", port, "10.9.9.1") // nobody answers
			for _, dev := range []string{"left", "right"} {
				add(unix.AF_INET6, "fe80::1%"+dev, port, "fe80::1")
				add(unix.AF_INET6, "fe80::2%"+dev, port, "fe80::1") // nobody answers
			}
		}
	}
	for _, d := range append(s.dests, s.deviceTarget()) {
		if _, ok := s.servers[d.to]; !ok && !d.silent() {
			family := unix.AF_INET
			if !d.to.Addr().Is4() {
				family = unix.AF_INET6
			}
			fd := s.socket(family, unix.SOCK_STREAM)
			s.bind(fd, d.to.String())
			if err := unix.Listen(fd, 4096); err != nil {
				s.Fatal(err)
			}
			s.servers[d.to] = fd
		}
	}
}

func (s *scenario) target() target { return s.dests[s.rnd.IntN(len(s.dests))] }

func (s *scenario) tell(format string, args ...any) {
	s.story = append(s.story, fmt.Sprintf(format, args...))
}

// populate makes sockets, in random numbers of random kinds.
func (s *scenario) populate() {
	kinds := []func() string{
		s.connectOut, s.connectOut, s.connectFrom, s.leaveTimeWait, s.leaveTimeWait, s.leaveFinWait2, s.bindAny, s.bindAny, s.bindPort,
		s.bindAndConnect, s.boundTimeWait, s.connectReset, s.boundReset, s.listenInside, s.listenUnbound, s.shareConnected, s.toDevice, s.udp, s.udp, s.udp,
	}
	for range s.rnd.IntN(14) {
		kind := kinds[s.rnd.IntN(len(kinds))]
		for range 1 + s.rnd.IntN(6) {
			if what := kind(); what != "" {
				s.tell("%s", what)
			}
		}
	}
	s.awaitRest()
}

// awaitRest waits until no connection is on its way to another state. FIN_WAIT2 is a
// state to stay in: mostly as a timewait sock, but if the kernel was busy with the
// socket as the ACK came, for a minute as it is.
func (s *scenario) awaitRest() {
	moving := []State{StateFinWait1, StateClosing, StateLastAck}
	timeWait := false
	testutil.Await(s, "all connections are in a state to stay in", func() bool {
		still := true
		for _, so := range snapshot(s, 0).Sockets {
			if so.NetNS == s.netns && slices.Contains(moving, so.State) {
				still = false
			}
			timeWait = timeWait || so.NetNS == s.netns && so.Role == RoleTimeWait
		}
		return still
	})
	if !timeWait || !s.aged {
		return
	}
	tick, ticks := int64(time.Second), int64(1) // as coarse as the kernel counts their age
	if s.delay {
		tick, ticks = int64(time.Millisecond), 3
	}
	for end := clockNow(unix.CLOCK_MONOTONIC)/tick + ticks; clockNow(unix.CLOCK_MONOTONIC)/tick < end; {
		time.Sleep(time.Millisecond) // the clock is the condition
	}
}

// ---- what sockets do ----

// options sets what must make no difference to connect() and to bind(0) of TCP.
func (s *scenario) options(fd int) string {
	what := ""
	if s.chance(3) {
		s.setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		what += " reuseaddr"
	}
	if s.chance(4) {
		s.setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		what += " reuseport"
	}
	return what
}

// try connects without waiting. "": the socket was refused, and is closed.
func (s *scenario) try(fd int, d target) string {
	if err := unix.SetNonblock(fd, true); err != nil {
		s.Fatal(err)
	}
	err := unix.Connect(fd, sockaddr(d.family, d.to.String()))
	if err != nil && err != unix.EINPROGRESS {
		s.close(fd)
		return ""
	}
	return fmt.Sprintf("connect %s > %s", s.local(fd), d.to)
}

func (s *scenario) connectOut() string {
	d := s.target()
	fd := s.socket(d.family, unix.SOCK_STREAM)
	options := s.options(fd)
	if what := s.try(fd, d); what != "" {
		return what + options
	}
	return ""
}

// noPort binds to an address, and leaves the port to connect().
func (s *scenario) noPort(fd int, addr string) {
	s.setsockopt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	s.bind(fd, addr+":0")
}

func (s *scenario) connectFrom() string {
	d := s.v4()
	fd := s.socket(unix.AF_INET, unix.SOCK_STREAM)
	s.noPort(fd, "127.0.0.2")
	return s.try(fd, d)
}

// v4 is a destination on lo, for an IPv4 socket.
func (s *scenario) v4() target {
	for {
		if d := s.target(); d.family == unix.AF_INET && d.to.Addr().IsLoopback() {
			return d
		}
	}
}

// established returns both ends of a connection, or -1, -1.
func (s *scenario) established(fd int, d target) (client, server int, what string) {
	l, ok := s.servers[d.to]
	if !ok {
		s.close(fd)
		return -1, -1, ""
	}
	if what = s.try(fd, d); what == "" {
		return -1, -1, ""
	}
	s.awaitWritable(fd)
	for { // others may be in the queue before it
		got, peer, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			s.Fatalf("accept: %v", err)
		}
		s.fds = append(s.fds, got)
		if addrPortOf(peer) == s.local(fd) {
			return fd, got, what
		}
	}
}

func (s *scenario) leaveTimeWait() string {
	d := s.target()
	fd := s.socket(d.family, unix.SOCK_STREAM)
	if d.family == unix.AF_INET && d.to.Addr().IsLoopback() && s.chance(3) {
		s.noPort(fd, "127.0.0.2")
	}
	return s.timeWait(fd, d)
}

func (s *scenario) timeWait(fd int, d target) string {
	client, server, what := s.established(fd, d)
	if client < 0 {
		return ""
	}
	s.close(client)
	s.awaitClosed(server)
	s.close(server)
	return what + " TIME_WAIT"
}

func (s *scenario) leaveFinWait2() string {
	d := s.target()
	client, server, what := s.established(s.socket(d.family, unix.SOCK_STREAM), d)
	if client < 0 {
		return ""
	}
	s.close(client)
	s.awaitClosed(server)
	return what + " FIN_WAIT2"
}

func (s *scenario) connectReset() string {
	d := s.target()
	client, server, what := s.established(s.socket(d.family, unix.SOCK_STREAM), d)
	if client < 0 {
		return ""
	}
	s.resetOnClose(server)
	s.close(server)
	s.awaitClosed(client)
	return what + " reset"
}

// port is one of the range, or next to it.
func (s *scenario) port() int { return s.low - 1 + s.rnd.IntN(s.high-s.low+3) }

func (s *scenario) tcpAddress() (family int, addr string) {
	all := []struct {
		family int
		addr   string
	}{
		{unix.AF_INET, "127.0.0.1"}, {unix.AF_INET, "127.0.0.2"}, {unix.AF_INET, "0.0.0.0"},
		{unix.AF_INET6, "[::1]"}, {unix.AF_INET6, "[::]"}, {unix.AF_INET6, "[::ffff:127.0.0.1]"},
		{unix.AF_INET6, "[fe80::1%left]"}, {unix.AF_INET6, "[fe80::1%right]"},
	}
	if !s.link {
		all = all[:len(all)-2]
	}
	a := all[s.rnd.IntN(len(all))]
	return a.family, a.addr
}

// tryBind returns -1 where the kernel refuses.
func (s *scenario) tryBind(kind int, port int) (fd int, what string) {
	family, addr := s.tcpAddress()
	fd = s.socket(family, kind)
	what = s.options(fd)
	if family == unix.AF_INET6 && addr == "[::]" && s.chance(2) {
		s.setsockopt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
		what += " v6only"
	}
	if s.chance(6) {
		dev := s.anyDevice()
		s.device(fd, dev)
		what += " dev " + dev
	}
	to := fmt.Sprintf("%s:%d", addr, port)
	if err := unix.Bind(fd, sockaddr(family, to)); err != nil {
		s.close(fd)
		return -1, ""
	}
	return fd, fmt.Sprintf("bind %s = %s%s", to, s.local(fd), what)
}

// anyDevice is one of the namespace's.
func (s *scenario) anyDevice() string {
	if s.link && s.chance(2) {
		return "left"
	}
	return "lo"
}

func (s *scenario) bindAny() string {
	_, what := s.tryBind(unix.SOCK_STREAM, 0)
	return what
}

func (s *scenario) bindPort() string {
	fd, what := s.tryBind(unix.SOCK_STREAM, s.port())
	if fd >= 0 && s.chance(3) {
		s.close(fd)
		what += " closed"
	}
	return what
}

// boundTo127 is a socket bound to 127.0.0.1 and a port, or -1.
func (s *scenario) boundTo127() int {
	fd := s.socket(unix.AF_INET, unix.SOCK_STREAM)
	s.options(fd)
	port := 0
	if s.chance(2) {
		port = s.port()
	}
	if err := unix.Bind(fd, sockaddr(unix.AF_INET, fmt.Sprintf("127.0.0.1:%d", port))); err != nil {
		s.close(fd)
		return -1
	}
	return fd
}

func (s *scenario) bindAndConnect() string {
	fd := s.boundTo127()
	if fd < 0 {
		return ""
	}
	return "bound " + s.try(fd, s.v4())
}

func (s *scenario) boundTimeWait() string {
	fd := s.boundTo127()
	if fd < 0 {
		return ""
	}
	return "bound " + s.timeWait(fd, s.v4())
}

// boundReset: bind(A, 0) gives its port back at a reset, bind(A, P) does not.
func (s *scenario) boundReset() string {
	fd := s.boundTo127()
	if fd < 0 {
		return ""
	}
	client, server, what := s.established(fd, s.v4())
	if client < 0 {
		return ""
	}
	s.resetOnClose(server)
	s.close(server)
	s.awaitClosed(client)
	return "bound " + what + " reset"
}

// listenInside listens inside the range; its connections outlive it or not.
func (s *scenario) listenInside() string {
	fd := s.socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Bind(fd, sockaddr(unix.AF_INET, fmt.Sprintf("127.0.0.1:%d", s.port()))); err != nil {
		s.close(fd)
		return ""
	}
	s.listen(fd)
	to := s.local(fd)
	what := fmt.Sprintf("listen %s", to)
	if s.chance(2) {
		client := s.socket(unix.AF_INET, unix.SOCK_STREAM)
		if s.try(client, target{unix.AF_INET, to, to.Addr()}) == "" {
			return what
		}
		s.awaitWritable(client)
		s.accept(fd)
		what += " and a connection"
		if s.chance(2) {
			s.close(fd)
			what += ", closed"
		}
	}
	return what
}

func (s *scenario) listenUnbound() string {
	fd := s.socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := unix.Listen(fd, 1); err != nil {
		s.close(fd)
		return ""
	}
	return fmt.Sprintf("listen %s by itself", s.local(fd))
}

// shareConnected binds a port that connect() chose, at another address, and leaves
// it or not: until 6.17 connect() does not come back to it.
func (s *scenario) shareConnected() string {
	d := s.v4()
	fd := s.socket(d.family, unix.SOCK_STREAM)
	what := s.try(fd, d)
	if what == "" {
		return ""
	}
	other := s.socket(unix.AF_INET, unix.SOCK_STREAM)
	s.options(other)
	if err := unix.Bind(other, sockaddr(unix.AF_INET, fmt.Sprintf("127.0.0.9:%d", s.local(fd).Port()))); err != nil {
		s.close(other)
		return what
	}
	what += " and bound at 127.0.0.9"
	if s.chance(2) {
		s.close(other)
		what += ", closed"
	}
	return what
}

// deviceTarget is where sockets of a device connect to. Others only do when the
// kernel is asked how often they can: two sockets may have the same ends then, which
// disturbs both.
func (s *scenario) deviceTarget() target {
	return target{unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:1009"), netip.MustParseAddr("127.0.0.1")}
}

// toDevice connects from a socket that is bound to a device.
func (s *scenario) toDevice() string {
	d, dev := s.deviceTarget(), "lo"
	if s.link && s.chance(2) {
		d, dev = target{unix.AF_INET, netip.MustParseAddrPort("10.9.9.2:1000"), netip.Addr{}}, "left"
	}
	fd := s.socket(d.family, unix.SOCK_STREAM)
	s.device(fd, dev)
	what := ""
	if dev == "lo" && s.chance(3) {
		what = s.timeWait(fd, d)
	} else {
		what = s.try(fd, d)
	}
	if what == "" {
		return ""
	}
	return what + " dev " + dev
}

func (s *scenario) udp() string {
	switch s.rnd.IntN(4) {
	case 0:
		_, what := s.tryBind(unix.SOCK_DGRAM, 0)
		return "udp " + what
	case 1:
		_, what := s.tryBind(unix.SOCK_DGRAM, s.port())
		return "udp " + what
	case 2:
		d := s.v4()
		fd := s.socket(d.family, unix.SOCK_DGRAM)
		return "udp " + s.try(fd, d)
	}
	fd := s.socket(unix.AF_INET6, unix.SOCK_DGRAM)
	if s.chance(2) {
		s.setsockopt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET6, "[::1]:9")); err != nil {
		s.close(fd)
		return ""
	}
	return fmt.Sprintf("udp sendto from %s", s.local(fd))
}

// ---- checks ----

// check predicts how often a random call will succeed, and calls. What it opened
// stays, or is closed with a reset.
func (s *scenario) check() (class string, got int, predicted Headroom) {
	s.Helper()
	kept := len(s.fds)
	ports, err := s.ports()
	if err != nil {
		s.Fatal(err)
	}
	s.read = ports
	q := s.question()
	class = q.name
	predicted, err = q.ask(ports)
	if err != nil {
		s.Fatal(err)
	}
	shown, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
	if err != nil {
		s.Fatal(err)
	}
	if want := strings.TrimSpace(string(shown)); predicted.ReservedPorts != want {
		s.Errorf("reserved ports %q, the kernel shows %q", predicted.ReservedPorts, want)
	}
	if predicted.Used+predicted.Blocked+predicted.Free != predicted.Capacity || predicted.Free < 0 {
		s.Errorf("%s: %+v does not add up", class, predicted)
	}
	for {
		err := q.call()
		if err == q.want {
			break
		}
		if got++; err != nil || got > 1000 {
			s.Fatalf("%s: %v after %d calls, want %v", class, err, got, q.want)
		}
	}
	s.tell("%s: %d of %d ports", class, got, predicted.Capacity)
	if s.chance(2) {
		opened := slices.Clone(s.fds[kept:])
		for _, fd := range opened {
			s.resetOnClose(fd)
		}
		s.close(opened...)
		s.tell("closed again")
	}
	return class, got, predicted
}

// evidence is what a prediction was made from, and the sockets that are there now.
func (s *scenario) evidence() string {
	s.Helper()
	var b strings.Builder
	if sp := s.read.newest[s.netns]; sp != nil {
		fmt.Fprintf(&b, "read: %d-%d, not for connect() %#x", sp.low, sp.high, sp.blocked)
		for to, d := range sp.dests {
			fmt.Fprintf(&b, "\nread: to %x:%d from %x: %d used, %d of them in TIME-WAIT, %d reclaimable", to.remote, to.port, to.local, d.used, d.timeWait, d.reclaimable)
		}
	}
	for _, so := range snapshot(s, 0).Sockets {
		if so.NetNS == s.netns {
			fmt.Fprintf(&b, "\nnow: %s %s > %s %s %s", so.Proto, so.Local, so.Remote, so.Role, so.State)
		}
	}
	return b.String()
}

func (s *scenario) ports() (*Ports, error) {
	snapper, err := snapshotter()
	if err != nil {
		return nil, err
	}
	return snapper.Ports()
}

// question is a call that takes a port, the error it ends with, what predicts how
// often it succeeds, and its name.
type question struct {
	call func() error
	want error
	ask  func(*Ports) (Headroom, error)
	name string
}

func (s *scenario) question() question {
	switch s.rnd.IntN(8) {
	case 0, 1, 2:
		return s.connectQuestion()
	case 3, 4:
		return s.bindQuestion(TCP, unix.SOCK_STREAM)
	case 5:
		return s.bindQuestion(UDP, unix.SOCK_DGRAM)
	case 6:
		d := s.v4()
		call := func() error {
			fd := s.socket(unix.AF_INET, unix.SOCK_DGRAM)
			return unix.Connect(fd, sockaddr(unix.AF_INET, d.to.String()))
		}
		return question{call, unix.EAGAIN, s.askBind(UDP, OpImplicitBind, "0.0.0.0", ""), "UDP implicit IPv4, connect"}
	}
	call := func() error {
		fd := s.socket(unix.AF_INET6, unix.SOCK_DGRAM)
		return unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET6, "[::1]:9"))
	}
	return question{call, unix.EAGAIN, s.askBind(UDP, OpImplicitBind, "[::]", ""), "UDP implicit IPv6, sendto"}
}

// bindQuestion is about a socket of a device one time in three; one with a link-local address
// always is of one.
func (s *scenario) bindQuestion(proto Proto, kind int) question {
	family, addr := s.tcpAddress()
	name, dev := fmt.Sprintf("%s bind %s", strings.ToUpper(proto.String()), addr), ""
	if at := netip.MustParseAddr(strings.Trim(addr, "[]")); at.Zone() == "" && s.chance(3) {
		if dev = s.anyDevice(); at == netip.IPv6Loopback() {
			dev = "lo" // the kernel looks for an IPv6 address on the device
		}
		name += ", of a device"
	}
	call := func() error { return s.callBind(family, kind, addr, dev) }
	return question{call, unix.EADDRINUSE, s.askBind(proto, OpBind, addr, dev), name}
}

func (s *scenario) connectQuestion() question {
	d := s.target()
	from, name, dev := d.from, "connect "+familyOf(d), ""
	bound := d.family == unix.AF_INET && d.to.Addr().IsLoopback() && s.chance(3)
	if bound {
		from, name = netip.MustParseAddr("127.0.0.2"), "connect IPv4, address bound"
	}
	switch {
	case d.to.Addr() == netip.MustParseAddr("10.9.9.2"):
		if name = "connect through a link"; s.chance(3) {
			name, dev = "connect through a link, of its device", "left"
		}
	case s.chance(5):
		d, bound = s.deviceTarget(), false
		from, name = d.from, "connect IPv4, beside a device's"
		if s.chance(2) {
			name, dev = "connect IPv4, of a device", "lo"
		}
	}
	call := func() error { return s.callConnect(d, bound, dev) }
	ask := func(p *Ports) (Headroom, error) {
		return p.Connect(s.netns, from, d.to, s.index(cmp.Or(d.to.Addr().Zone(), dev)))
	}
	return question{call, unix.EADDRNOTAVAIL, ask, name}
}

// index is that of a device; "" is none.
func (s *scenario) index(dev string) uint32 {
	s.Helper()
	if dev == "" {
		return 0
	}
	i, err := net.InterfaceByName(dev)
	if err != nil {
		s.Fatal(err)
	}
	return uint32(i.Index)
}

func familyOf(d target) string {
	switch {
	case d.family == unix.AF_INET:
		return "IPv4"
	case d.to.Addr().Is4():
		return "IPv4-mapped"
	case d.to.Addr().Zone() != "":
		return "IPv6 link-local"
	}
	return "IPv6"
}

func (s *scenario) askBind(proto Proto, op PortOp, addr, dev string) func(*Ports) (Headroom, error) {
	local := netip.MustParseAddr(strings.Trim(addr, "[]"))
	return func(p *Ports) (Headroom, error) {
		return p.Bind(s.netns, proto, op, local, s.index(cmp.Or(local.Zone(), dev)))
	}
}

func (s *scenario) callConnect(d target, bound bool, dev string) error {
	fd := s.socket(d.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	s.options(fd)
	if dev != "" {
		s.device(fd, dev)
	}
	if bound {
		s.noPort(fd, "127.0.0.2")
	}
	err := unix.Connect(fd, sockaddr(d.family, d.to.String()))
	if err == unix.EINPROGRESS {
		return nil
	}
	return err
}

func (s *scenario) callBind(family, kind int, addr, dev string) error {
	fd := s.socket(family, kind)
	if dev != "" {
		s.device(fd, dev)
	}
	if kind == unix.SOCK_STREAM {
		s.options(fd) // ignored by bind(0)
	}
	return unix.Bind(fd, sockaddr(family, addr+":0"))
}
