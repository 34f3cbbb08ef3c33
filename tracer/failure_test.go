package tracer

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

func connectRaw(fd int, sa *unix.RawSockaddrAny, size uintptr) error {
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(sa)), size); errno != 0 {
		return errno
	}
	return nil
}

// fails makes sure that a call fails as the test needs it to, or with 0 does not.
func (r *recorder) fails(err error, want unix.Errno) {
	r.Helper()
	if err != want && (err != nil || want != 0) {
		r.Fatalf("got error %v, want %v", err, want)
	}
}

func TestKernelBindRefused(t *testing.T) {
	for _, kind := range []struct {
		name string
		kind int
	}{{"tcp", unix.SOCK_STREAM}, {"udp", unix.SOCK_DGRAM}} {
		t.Run(kind.name, func(t *testing.T) {
			r := record(t, Config{})
			holder := r.socket(unix.AF_INET, kind.kind)
			r.bind(holder, "127.0.0.1:7001")
			other := r.socket(unix.AF_INET, kind.kind) // same port, elsewhere: not in the way
			r.bind(other, "127.0.0.2:7001")
			r.events(0)

			fd := r.socket(unix.AF_INET, kind.kind)
			r.fails(unix.Bind(fd, sockaddr(unix.AF_INET, "127.0.0.1:7001")), unix.EADDRINUSE)
			r.fails(unix.Bind(fd, sockaddr(unix.AF_INET, "192.0.2.1:7002")), unix.EADDRNOTAVAIL)
			six := r.socket(unix.AF_INET6, kind.kind)
			r.fails(unix.Bind(six, sockaddr(unix.AF_INET6, "[::]:7001")), unix.EADDRINUSE)
			got := r.expect(os.Getpid(),
				fmt.Sprintf("bind %s 127.0.0.1:7001 asked 7001 EADDRINUSE", kind.name),
				fmt.Sprintf("bind %s 192.0.2.1:7002 asked 7002 EADDRNOTAVAIL", kind.name),
				fmt.Sprintf("bind %s [::]:7001 asked 7001 EADDRINUSE", kind.name))
			by := got[0].HeldBy
			for deadline := time.Now().Add(20 * time.Second); len(by) == 1 && len(by[0].Holders) == 0 && time.Now().Before(deadline); {
				// Who holds them is asked for a tenth of the time only.
				r.fails(unix.Bind(fd, sockaddr(unix.AF_INET, "127.0.0.1:7001")), unix.EADDRINUSE)
				by = r.events(1)[0].HeldBy
			}
			if len(by) != 1 || by[0].Local.String() != "127.0.0.1:7001" || by[0].Role != RoleBound ||
				len(by[0].Holders) != 1 || int(by[0].Holders[0].PID) != os.Getpid() || int(by[0].Holders[0].FD) != holder {
				t.Errorf("held by %+v, want the socket on descriptor %d", by, holder)
			}
			if len(got[1].HeldBy) != 0 || len(got[2].HeldBy) != 2 {
				t.Errorf("held by %+v and %+v, want nobody and both", got[1].HeldBy, got[2].HeldBy)
			}
		})
	}
}

// Sockets of other devices are not in the way of a bind: neither of one to a device, nor of
// one to a link-local address, which the kernel ties to its scope's device.
func TestKernelBindRefusedOnDevice(t *testing.T) {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		t.Run(map[int]string{unix.SOCK_STREAM: "tcp", unix.SOCK_DGRAM: "udp"}[kind], func(t *testing.T) {
			r := record(t, Config{})
			twoLinks(t)
			bound := func(family int, dev, addr string) error {
				fd := r.socket(family, kind)
				if dev != "" {
					r.device(fd, dev)
				}
				return unix.Bind(fd, sockaddr(family, addr))
			}
			for _, dev := range []string{"left", "right"} {
				r.fails(bound(unix.AF_INET6, "", "[fe80::1%"+dev+"]:7001"), 0)
				r.fails(bound(unix.AF_INET, dev, "0.0.0.0:7002"), 0)
			}
			r.events(4)
			for _, refused := range []struct {
				family    int
				dev, addr string
				want      []string // the devices of those in the way
			}{
				{unix.AF_INET6, "", "[fe80::1%right]:7001", []string{"right"}},
				{unix.AF_INET6, "left", "[::]:7001", []string{"left"}},
				{unix.AF_INET6, "", "[::]:7001", []string{"left", "right"}},
				{unix.AF_INET, "left", "127.0.0.1:7002", []string{"left"}},
				{unix.AF_INET, "", "0.0.0.0:7002", []string{"left", "right"}},
			} {
				r.fails(bound(refused.family, refused.dev, refused.addr), unix.EADDRINUSE)
				ev := r.events(1)[0]
				var got []string
				for _, so := range ev.HeldBy {
					got = append(got, r.tracer.DeviceName(so.DeviceID()))
				}
				if slices.Sort(got); !slices.Equal(got, refused.want) {
					t.Errorf("%s: held by sockets of %q, want %q", line(&ev), got, refused.want)
				}
			}
			r.fails(bound(unix.AF_INET, "lo", "0.0.0.0:7002"), 0) // the kernel agrees
			r.events(1)
		})
	}
}

// Any user can have very many sockets on a port, with very many descriptors, and be
// refused it very often: what an event keeps of them is bounded.
func TestKernelBindRefusedByMany(t *testing.T) {
	r := idle(t)
	r.start(Config{}) // its own: what other tests' refused binds took to look into would count against this one's
	const sockets, copies = 100, 50
	for range sockets {
		fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
		r.setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		r.bind(fd, "127.0.0.1:7001")
		for range copies {
			other, err := unix.Dup(fd)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(other)
		}
	}
	r.events(sockets)
	fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	const binds = 200
	for range binds {
		r.fails(unix.Bind(fd, sockaddr(unix.AF_INET, "127.0.0.1:7001")), unix.EADDRINUSE)
	}
	for i, ev := range r.events(binds) {
		if n := len(ev.HeldBy); n != maxHeldBy && n != fewHeldBy || n+ev.HeldByMore != sockets {
			t.Fatalf("event %d is held by %d sockets and %d more, want %d of %d", i, n, ev.HeldByMore, maxHeldBy, sockets)
		}
		for _, s := range ev.HeldBy {
			if len(s.Holders) > maxHeldBy || cap(s.Holders) > 2*maxHeldBy {
				t.Fatalf("event %d: a socket in the way has %d holders in room for %d", i, len(s.Holders), cap(s.Holders))
			}
		}
	}
}

// A port below ip_unprivileged_port_start, without CAP_NET_BIND_SERVICE.
func TestKernelBindNotPermitted(t *testing.T) {
	r := record(t, Config{})
	pid := r.wait(r.child("bind-privileged"))
	got := r.events(1)
	if len(got) != 1 || line(&got[0]) != "bind tcp 0.0.0.0:80 asked 80 EACCES" ||
		int(got[0].Process.PID) != pid || got[0].Process.UID != 65534 {
		t.Fatalf("got %+v", got)
	}
}

func helperBindPrivileged() error {
	if err := unix.Setresuid(65534, 65534, 65534); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 80}); err != unix.EACCES {
		return fmt.Errorf("bind: %v, want EACCES", err)
	}
	return nil
}

// fill takes every port of a range of rounds ports with UDP or TCP sockets bound
// to any address.
func (r *recorder) fill(kind int) {
	r.Helper()
	testutil.WriteSysctl(r, "ipv4/ip_local_port_range", fmt.Sprintf("50000 %d", 50000+rounds))
	for port := 50000; port <= 50000+rounds; port++ {
		fd := r.socket(unix.AF_INET, kind)
		r.bind(fd, fmt.Sprintf("0.0.0.0:%d", port))
	}
}

func TestKernelConnectNoPortLeft(t *testing.T) {
	r := record(t, Config{})
	_, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	r.fill(unix.SOCK_STREAM)
	r.events(0)
	var want []string
	for range rounds {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, to.String())), unix.EADDRNOTAVAIL)
		r.close(fd)
		want = append(want, "connect tcp 127.0.0.1:0 > 127.0.0.1:9000 EADDRNOTAVAIL")
	}
	r.expect(os.Getpid(), want...)
}

func TestKernelListenNoPortLeft(t *testing.T) {
	r := record(t, Config{})
	r.fill(unix.SOCK_STREAM)
	r.events(0)
	fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.fails(unix.Listen(fd, 1), unix.EADDRINUSE)
	r.close(fd)
	r.expect(os.Getpid(), "listen tcp 0.0.0.0:0 EADDRINUSE")
}

func TestKernelUDPNoPortLeft(t *testing.T) {
	r := record(t, Config{})
	r.fill(unix.SOCK_DGRAM)
	r.events(0)
	fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	r.fails(unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET, "127.0.0.1:9")), unix.EAGAIN)
	r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, "127.0.0.1:9")), unix.EAGAIN)
	r.fails(unix.Bind(fd, sockaddr(unix.AF_INET, "127.0.0.1:0")), unix.EADDRINUSE)
	r.close(fd)
	r.expect(os.Getpid(),
		"bind udp 0.0.0.0:0 implicit EAGAIN",
		"bind udp 0.0.0.0:0 implicit EAGAIN",
		"bind udp 127.0.0.1:0 asked 0 EADDRINUSE")
}

// A handshake that fails is the error of the close; one that never started is
// a failed connect.
func TestKernelConnectRefused(t *testing.T) {
	r := record(t, Config{})
	var want []string
	for i := range rounds {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK*(i%2))
		to := netip.MustParseAddrPort("127.0.0.1:1")
		err := unix.Connect(fd, sockaddr(unix.AF_INET, to.String()))
		if i%2 == 0 {
			r.fails(err, unix.ECONNREFUSED)
		} else { // the loopback answers before connect returns, or while it does
			if err != unix.EINPROGRESS && err != unix.ECONNREFUSED {
				t.Fatal(err)
			}
			r.awaitWritable(fd)
		}
		from := netip.AddrPortFrom(to.Addr(), r.local(fd).Port()) // stale, but still told
		r.close(fd)
		want = append(want, fmt.Sprintf("connect tcp %s > %s", from, to), fmt.Sprintf("close tcp %s > %s ECONNREFUSED", from, to))
	}
	r.expect(os.Getpid(), want...)
}

func TestKernelConnectUnreachable(t *testing.T) {
	r := record(t, Config{})
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		fd := r.socket(unix.AF_INET, kind)
		r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, noRoute)), unix.ENETUNREACH)
		port := r.local(fd).Port()
		r.close(fd)
		if kind == unix.SOCK_STREAM {
			r.expect(os.Getpid(), "connect tcp 0.0.0.0:0 > "+noRoute+" ENETUNREACH")
			continue
		}
		r.expect(os.Getpid(), // UDP keeps the port it was given before the route was looked up
			fmt.Sprintf("bind udp 0.0.0.0:%d implicit", port),
			fmt.Sprintf("connect udp 0.0.0.0:%d > %s ENETUNREACH", port, noRoute),
			fmt.Sprintf("close udp 0.0.0.0:%d", port))
	}
}

// nobody makes a link on which nobody answers, and returns an address on it.
func (r *recorder) nobody() netip.AddrPort {
	r.Helper()
	for _, args := range []string{
		"link add left type veth peer name right", "addr add 10.9.9.1/24 dev left", "link set left up", "link set right up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			r.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	testutil.WriteSysctl(r, "ipv4/neigh/left/mcast_solicit", "1")
	testutil.WriteSysctl(r, "ipv4/neigh/left/retrans_time_ms", "500")
	return netip.MustParseAddrPort("10.9.9.2:80")
}

// A non-blocking connect fails after it returned.
func TestKernelConnectFailsLater(t *testing.T) {
	r := record(t, Config{})
	to := r.nobody()
	fd := r.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, to.String())), unix.EINPROGRESS)
	from := r.local(fd)
	r.expect(os.Getpid(), fmt.Sprintf("connect tcp %s > %s", from, to)) // at once, not when it has failed
	ended := 0
	for deadline := time.Now().Add(20 * time.Second); ended == 0 && time.Now().Before(deadline); {
		r.awaitWritable(fd) // the state can be seen before the error
		var err error
		if ended, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
			t.Fatal(err)
		}
	}
	if unix.Errno(ended) != unix.EHOSTUNREACH {
		t.Fatalf("the connection ended with %v, want EHOSTUNREACH", unix.Errno(ended))
	}
	r.close(fd)
	r.expect(os.Getpid(), fmt.Sprintf("close tcp %s > %s EHOSTUNREACH", from, to))
}

const noRoute = "192.0.2.1:443"

// A socket whose connection failed may try again, and be refused before it sends
// anything: that is told, though the socket still shows the port it had.
func TestKernelConnectAgain(t *testing.T) {
	r := record(t, Config{})
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "50000 50000")
	r.events(0)
	fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, "127.0.0.1:1")), unix.ECONNREFUSED)
	r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, noRoute)), unix.ENETUNREACH)
	other := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(other, to)
	r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, to.String())), unix.EADDRNOTAVAIL)
	r.resetOnClose(other)
	r.close(other, r.accept(l))
	r.connect(fd, to)
	r.resetOnClose(fd)
	r.close(fd)
	r.expect(os.Getpid(),
		"connect tcp 127.0.0.1:50000 > 127.0.0.1:1",
		"close tcp 127.0.0.1:50000 > 127.0.0.1:1 ECONNREFUSED",
		"connect tcp 0.0.0.0:0 > "+noRoute+" ENETUNREACH",
		"connect tcp 127.0.0.1:50000 > 127.0.0.1:9000",
		"connect tcp 127.0.0.1:0 > 127.0.0.1:9000 EADDRNOTAVAIL",
		"accept tcp 127.0.0.1:9000 > 127.0.0.1:50000",
		"close tcp 127.0.0.1:50000 > 127.0.0.1:9000",
		"close tcp 127.0.0.1:9000 > 127.0.0.1:50000 ECONNRESET",
		"connect tcp 127.0.0.1:50000 > 127.0.0.1:9000",
		"close tcp 127.0.0.1:50000 > 127.0.0.1:9000")
}

// What connect() returns of a handshake that failed is told by the close of the
// socket alone; what it returns of itself is told.
func TestKernelConnectUnanswered(t *testing.T) {
	r := record(t, Config{})
	to := r.nobody()
	for _, bound := range []bool{false, true} {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		local := "0.0.0.0:0" // between connections
		if bound {
			local = "10.9.9.1:50001"
			r.bind(fd, local)
			r.events(1)
		}
		var want []string
		begun := func(from netip.AddrPort) {
			want = append(want, fmt.Sprintf("connect tcp %s > %s", from, to))
			if !bound {
				want = append(want, fmt.Sprintf("close tcp %s > %s EHOSTUNREACH", from, to))
			}
		}
		refused := func() {
			r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, noRoute)), unix.ENETUNREACH)
			want = append(want, fmt.Sprintf("connect tcp %s > %s ENETUNREACH", local, noRoute))
		}
		refused()
		r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, to.String())), unix.EHOSTUNREACH)
		begun(netip.AddrPortFrom(netip.MustParseAddr("10.9.9.1"), r.local(fd).Port()))
		refused()
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, to.String())), unix.EINPROGRESS)
		begun(r.local(fd))
		r.awaitWritable(fd)
		err := unix.EALREADY
		for deadline := time.Now().Add(20 * time.Second); err == unix.EALREADY && time.Now().Before(deadline); {
			err, _ = unix.Connect(fd, sockaddr(unix.AF_INET, to.String())).(unix.Errno)
		}
		r.fails(err, unix.EHOSTUNREACH)
		refused()
		r.expect(os.Getpid(), want...)
		r.close(fd)
		if bound {
			r.expect(os.Getpid(), "close tcp "+local+" EHOSTUNREACH") // why its last connection ended
		}
	}
}

// connect(AF_UNSPEC) takes a bound socket back from a connection that has not begun to
// be answered: it was not refused, and is bound as before.
func TestKernelConnectUndone(t *testing.T) {
	r := record(t, Config{})
	to := r.nobody()
	fd := r.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	r.bind(fd, "10.9.9.1:50001")
	r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, to.String())), unix.EINPROGRESS)
	if err := disconnect(fd); err != nil {
		t.Fatal(err)
	}
	r.expect(os.Getpid(), "bind tcp 10.9.9.1:50001 asked 50001", "connect tcp 10.9.9.1:50001 > 10.9.9.2:80")
	if got := r.held(50001); len(got) != 1 || got[0].Role != RoleBound || got[0].Remote.IsValid() {
		t.Errorf("the table has %+v, want the socket, bound", got)
	}
}

// A bound socket whose connection exists already.
func TestKernelConnectBoundTwice(t *testing.T) {
	r := record(t, Config{})
	_, to := r.listener(unix.AF_INET, "127.0.0.1:0")
	var fds [2]int
	for i := range fds {
		fds[i] = r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.setsockopt(fds[i], unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		r.bind(fds[i], "127.0.0.1:7001")
	}
	r.connect(fds[0], to)
	r.events(0)
	r.fails(unix.Connect(fds[1], sockaddr(unix.AF_INET, to.String())), unix.EADDRNOTAVAIL)
	r.expect(os.Getpid(), fmt.Sprintf("connect tcp 127.0.0.1:7001 > %s EADDRNOTAVAIL", to))
	r.close(fds[1])
	r.expect(os.Getpid(), "close tcp 127.0.0.1:7001")
}
