package tracer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// These are calls that fail elsewhere than where they are made, or after they took
// effect, and ports that go without a call of their owner.

const (
	uringWrite = 23
	uringSend  = 26
)

// sends are ways to send from a UDP socket that has no port, which fail and give it one.
// to is where, on the loopback.
var sends = []struct {
	name   string
	send   func(r *recorder, fd int, to unix.Sockaddr) error
	v4Only bool // IPv6 sends it
}{
	{"too long", func(r *recorder, fd int, to unix.Sockaddr) error {
		return unix.Sendto(fd, make([]byte, 70_000), 0, to)
	}, false},
	{"to port 0", func(r *recorder, fd int, to unix.Sockaddr) error {
		switch to := to.(type) {
		case *unix.SockaddrInet4:
			to.Port = 0
		case *unix.SockaddrInet6:
			to.Port = 0
		}
		return unix.Sendto(fd, []byte("x"), 0, to)
	}, false},
	{"to another family", func(r *recorder, fd int, to unix.Sockaddr) error {
		return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrUnix{Name: "/nowhere"})
	}, false},
	{"out of band", func(r *recorder, fd int, to unix.Sockaddr) error {
		return unix.Sendto(fd, []byte("x"), unix.MSG_OOB, to)
	}, true},
	{"wrong control message", func(r *recorder, fd int, to unix.Sockaddr) error {
		oob := make([]byte, unix.CmsgSpace(4))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		h.Level, h.Type = unix.SOL_SOCKET, 9999
		h.SetLen(unix.CmsgLen(4))
		return unix.Sendmsg(fd, []byte("x"), oob, to, 0)
	}, false},
	{"without a peer, send", func(r *recorder, fd int, to unix.Sockaddr) error {
		return unix.Sendmsg(fd, []byte("x"), nil, nil, 0)
	}, false},
	{"without a peer, sendmmsg", func(r *recorder, fd int, to unix.Sockaddr) error {
		var msg struct {
			unix.Msghdr
			_ [8]byte // msg_len
		}
		_, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), 1, 0, 0, 0)
		return errno
	}, false},
	{"without a peer, write", func(r *recorder, fd int, to unix.Sockaddr) error {
		_, err := unix.Write(fd, []byte("x"))
		return err
	}, false},
	{"without a peer, writev", func(r *recorder, fd int, to unix.Sockaddr) error {
		_, err := unix.Writev(fd, [][]byte{[]byte("x")})
		return err
	}, false},
	{"without a peer, pwritev2", func(r *recorder, fd int, to unix.Sockaddr) error {
		_, err := unix.Pwritev2(fd, [][]byte{[]byte("x")}, -1, 0)
		return err
	}, false},
	{"without a peer, sendfile", func(r *recorder, fd int, to unix.Sockaddr) error {
		f, err := os.Open("/proc/self/exe")
		if err != nil {
			return nil
		}
		defer f.Close()
		_, err = unix.Sendfile(fd, int(f.Fd()), nil, 100)
		return err
	}, false},
	{"without a peer, splice", func(r *recorder, fd int, to unix.Sockaddr) error {
		var pipe [2]int
		if err := unix.Pipe(pipe[:]); err != nil {
			return nil
		}
		defer unix.Close(pipe[0])
		defer unix.Close(pipe[1])
		if _, err := unix.Write(pipe[1], []byte("x")); err != nil {
			return nil
		}
		_, err := unix.Splice(pipe[0], nil, fd, nil, 1, 0)
		return err
	}, false},
	{"no route", func(r *recorder, fd int, to unix.Sockaddr) error {
		if _, ok := to.(*unix.SockaddrInet4); ok {
			return unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET, noRoute))
		}
		return unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET6, "[2001:db8::1]:443"))
	}, false},
	{"to a broadcast address", func(r *recorder, fd int, to unix.Sockaddr) error {
		if _, ok := to.(*unix.SockaddrInet4); ok {
			return unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET, "127.255.255.255:9"))
		}
		return unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET6, "[::ffff:127.255.255.255]:9"))
	}, false},
}

// A UDP socket gets its port before the kernel looks at its first datagram: one that
// cannot be sent has taken it, once, and it is given back.
func TestKernelUDPSendFails(t *testing.T) {
	for _, end := range ends {
		t.Run(end.name, func(t *testing.T) {
			r := record(t, Config{})
			any := map[int]string{unix.AF_INET: "0.0.0.0", unix.AF_INET6: "[::]"}[end.family]
			for _, s := range sends {
				if s.v4Only && end.shown != "127.0.0.1" {
					continue
				}
				fd := r.socket(end.family, unix.SOCK_DGRAM)
				for range 3 {
					if err := s.send(r, fd, sockaddr(end.family, end.ip+":9")); err == nil {
						t.Fatalf("%s: no error", s.name)
					}
				}
				port := r.local(fd).Port()
				if port == 0 {
					t.Logf("%s: takes no port in this kernel", s.name)
					r.close(fd)
					r.expect(os.Getpid())
					continue
				}
				// One that can be sent changes nothing.
				if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(end.family, end.ip+":9")); err != nil {
					t.Fatalf("%s: %v", s.name, err)
				}
				r.close(fd)
				r.expect(os.Getpid(), fmt.Sprintf("bind udp %s:%d implicit", any, port), fmt.Sprintf("close udp %s:%d", any, port))
			}
		})
	}
}

// The same by io_uring, which passes no system call hook.
func TestKernelUDPSendFailsByRing(t *testing.T) {
	r := record(t, Config{})
	u := newRing(t)
	for _, op := range []uint8{uringSend, uringWrite} {
		fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
		data := []byte("x")
		res := u.do(testutil.Request{Op: op, FD: int32(fd), Addr: uint64(uintptr(unsafe.Pointer(&data[0]))), Len: 1})
		runtime.KeepAlive(data)
		if unix.Errno(-res) != unix.EDESTADDRREQ {
			t.Fatalf("request %d: %v, want EDESTADDRREQ", op, unix.Errno(-res))
		}
		port := r.local(fd).Port()
		r.close(fd)
		if port == 0 {
			t.Fatalf("request %d took no port", op)
		}
		if !seesRequests(r.tracer) {
			r.expect(os.Getpid())
			continue
		}
		r.expect(os.Getpid(), fmt.Sprintf("bind udp 0.0.0.0:%d implicit", port), fmt.Sprintf("close udp 0.0.0.0:%d", port))
	}
}

// A UDP connect() that io_uring could not make has taken a port too.
func TestKernelUDPConnectFailsByRing(t *testing.T) {
	r := record(t, Config{})
	u := newRing(t)
	fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	to := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: 9 << 8, Addr: [4]byte{192, 0, 2, 1}}
	res := u.do(testutil.Request{Op: uringConnect, FD: int32(fd), Addr: uint64(uintptr(unsafe.Pointer(&to))), Off: unix.SizeofSockaddrInet4})
	runtime.KeepAlive(&to)
	if unix.Errno(-res) != unix.ENETUNREACH {
		t.Fatalf("connect: %v, want ENETUNREACH", unix.Errno(-res))
	}
	port := r.local(fd).Port()
	r.close(fd)
	var want []string
	if seesRequests(r.tracer) {
		want = append(want, fmt.Sprintf("bind udp 0.0.0.0:%d implicit", port))
	}
	if r.tracer.byTracepoint&partPeer == 0 {
		want = append(want, fmt.Sprintf("connect udp 0.0.0.0:%d > 192.0.2.1:9 ENETUNREACH", port))
	}
	if len(want) > 0 {
		want = append(want, fmt.Sprintf("close udp 0.0.0.0:%d", port))
	}
	r.expect(os.Getpid(), want...)
}

// What a socket sends after it got another port, or the same anew, is its first datagram.
func TestKernelUDPSendsAgain(t *testing.T) {
	r := record(t, Config{})
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "50000 50000")
	fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	to := sockaddr(unix.AF_INET, "127.0.0.1:9")
	var want []string
	for range 3 {
		if err := unix.Sendto(fd, []byte("x"), 0, to); err != nil && err != unix.ECONNREFUSED {
			t.Fatal(err)
		}
		if err := unix.Connect(fd, to); err != nil {
			t.Fatal(err)
		}
		if err := disconnect(fd); err != nil {
			t.Fatal(err)
		}
		want = append(want, "bind udp 0.0.0.0:50000 implicit",
			"connect udp 127.0.0.1:50000 > 127.0.0.1:9", "close udp 127.0.0.1:50000 > 127.0.0.1:9")
	}
	r.expect(os.Getpid(), want...)
}

// What a UDP socket heard of a peer is not the end of what it is after that peer.
func TestKernelUDPErrorOfPeer(t *testing.T) {
	r := record(t, Config{})
	for _, leaves := range []bool{false, true} {
		fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
		r.bind(fd, "127.0.0.1:7001")
		r.connect(fd, netip.MustParseAddrPort("127.0.0.1:9"))
		if _, err := unix.Write(fd, []byte("x")); err != nil { // that nobody is there comes back before it returns
			t.Fatal(err)
		}
		want := "close udp 127.0.0.1:7001 > 127.0.0.1:9 ECONNREFUSED"
		if leaves {
			if err := disconnect(fd); err != nil {
				t.Fatal(err)
			}
			want = "close udp 127.0.0.1:7001"
		}
		r.close(fd)
		r.expect(os.Getpid(), "bind udp 127.0.0.1:7001 asked 7001", "connect udp 127.0.0.1:7001 > 127.0.0.1:9", want)
	}
}

// getaddrinfo() connects UDP sockets to port 0: the peer is set like any other.
func TestKernelUDPConnectPortZero(t *testing.T) {
	for _, end := range ends {
		for _, bound := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s bound %v", end.name, bound), func(t *testing.T) {
				r := record(t, Config{})
				fd := r.socket(end.family, unix.SOCK_DGRAM)
				any := map[int]string{unix.AF_INET: "0.0.0.0", unix.AF_INET6: "[::]"}[end.family]
				var want []string
				if bound {
					r.bind(fd, end.ip+":5400")
					want = append(want, fmt.Sprintf("bind udp %s:5400 asked 5400", end.shown))
				}
				r.connect(fd, netip.MustParseAddrPort(end.ip+":0"))
				from := r.local(fd)
				if !bound {
					want = append(want, fmt.Sprintf("bind udp %s:%d implicit", any, from.Port()))
				}
				want = append(want, fmt.Sprintf("connect udp %s > %s:0", from, end.shown))
				r.expect(os.Getpid(), want...)
				shown := fmt.Sprintf("ESTAB client > %s:0", end.shown)
				of := func(s []Socket) string {
					if len(s) != 1 {
						return fmt.Sprint(s)
					}
					return fmt.Sprintf("%s %s > %s", s[0].State, s[0].Role, s[0].Remote)
				}
				if got := of(r.held(from.Port())); got != shown {
					t.Errorf("table has %s, want %s", got, shown)
				}
				if got := of(snapshotOf(t, r.netns, from.Port())); got != shown {
					t.Errorf("snapshot has %s, want %s", got, shown)
				}
				if err := disconnect(fd); err != nil {
					t.Fatal(err)
				}
				if bound {
					r.close(fd)
					r.expect(os.Getpid(), fmt.Sprintf("close udp %s", from))
				} else {
					r.expect(os.Getpid(), fmt.Sprintf("close udp %s > %s:0", from, end.shown))
				}
			})
		}
	}
}

// snapshotOf is what the kernel has on a port of a namespace.
func snapshotOf(t *testing.T, netns uint32, port uint16) []Socket {
	t.Helper()
	var out []Socket
	for _, s := range snapshot(t, port).Sockets {
		if s.NetNS == netns {
			out = append(out, s)
		}
	}
	return out
}

// destroy ends a socket from outside, as ss -K does: SOCK_DESTROY of sock_diag(7).
func (r *recorder) destroy(fd int, proto Proto) {
	r.Helper()
	local, remote := r.local(fd), netip.AddrPort{}
	if sa, err := unix.Getpeername(fd); err == nil {
		remote = addrPortOf(sa)
	}
	nl, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		r.Fatal(err)
	}
	defer unix.Close(nl)
	const sockDestroy = 21
	req := make([]byte, unix.NLMSG_HDRLEN+56) // struct nlmsghdr, inet_diag_req_v2
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], sockDestroy)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	body := req[unix.NLMSG_HDRLEN:]
	body[0], body[1] = unix.AF_INET, uint8(proto)
	if local.Addr().Is6() {
		body[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(body[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(body[8:], local.Port())
	binary.BigEndian.PutUint16(body[10:], remote.Port())
	copy(body[12:], local.Addr().AsSlice())
	if remote.IsValid() {
		copy(body[28:], remote.Addr().AsSlice())
	}
	binary.NativeEndian.PutUint64(body[48:], ^uint64(0)) // no cookie
	if err := unix.Sendto(nl, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		r.Fatal(err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(nl, answer, 0)
	if err != nil || n < unix.NLMSG_HDRLEN+4 {
		r.Fatalf("SOCK_DESTROY: %d bytes, %v", n, err)
	}
	if errno := -int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); errno != 0 {
		r.Fatalf("SOCK_DESTROY of %s: %v", local, unix.Errno(errno))
	}
}

// tellsDestroy tells whether it is seen at once that SOCK_DESTROY took a UDP socket's port.
func tellsDestroy(tr *Tracer) bool {
	for _, h := range tr.Hooks() {
		if h.Hook == "tp_btf/inet_sk_error_report" && !h.Attached {
			return false
		}
	}
	return true
}

// SOCK_DESTROY takes the port of a UDP socket while a process still has the socket.
func TestKernelUDPDestroyed(t *testing.T) {
	for _, end := range ends[:2] { // sock_diag finds no IPv6 socket by an IPv4 address
		t.Run(end.name, func(t *testing.T) {
			r := record(t, Config{})
			at := end.ip + ":9"
			fd := r.socket(end.family, unix.SOCK_DGRAM)
			r.connect(fd, netip.MustParseAddrPort(at))
			from := r.local(fd)
			r.events(2)
			r.destroy(fd, UDP)
			want := fmt.Sprintf("close udp %s > %s ECONNABORTED", from, at)
			if tellsDestroy(r.tracer) {
				r.expect(os.Getpid(), want)
				r.close(fd)
				r.expect(os.Getpid())
			} else {
				r.close(fd)
				r.expect(os.Getpid(), want)
			}
			if held := r.held(from.Port()); len(held) != 0 {
				t.Errorf("table has %+v on the port", held)
			}

			bound := r.socket(end.family, unix.SOCK_DGRAM) // keeps its port
			r.bind(bound, end.ip+":7001")
			r.connect(bound, netip.MustParseAddrPort(at))
			r.destroy(bound, UDP)
			r.events(2)
			if held := r.held(7001); tellsDestroy(r.tracer) && (len(held) != 1 || held[0].Role != RoleBound || held[0].Remote.IsValid()) {
				t.Errorf("table has %+v on port 7001, want one bound socket without a peer", held)
			}
			r.close(bound)
			if got := r.events(1); len(got) != 1 || got[0].Type != EventClose || got[0].Local.Port() != 7001 {
				t.Errorf("got %s, want the close of port 7001", lines(got))
			}
		})
	}
}

// Of TCP it is a reset of both ends, and a listener listens no more.
func TestKernelTCPDestroyed(t *testing.T) {
	r := record(t, Config{})
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(client, to)
	from := r.local(client)
	server := r.accept(l)
	r.events(4)
	r.destroy(client, TCP)
	r.awaitClosed(server)
	r.expect(os.Getpid(),
		fmt.Sprintf("close tcp %s > %s ECONNABORTED", from, to), fmt.Sprintf("close tcp %s > %s ECONNRESET", to, from))
	r.destroy(l, TCP)
	r.expect(os.Getpid())
	if held := r.held(9000); len(held) != 1 || held[0].Role != RoleBound {
		t.Errorf("table has %+v on port 9000, want a bound socket", held)
	}
	r.close(l)
	r.expect(os.Getpid(), "close tcp 127.0.0.1:9000 ECONNABORTED")
}

// fillOptions uses all memory that a socket's options may take: a membership of a group
// costs it, and any user may have very many.
func (r *recorder) fillOptions(fd int) {
	r.Helper()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		r.Fatal(err)
	}
	for i := uint32(1); ; i++ {
		m := unix.IPv6Mreq{Interface: uint32(lo.Index), Multiaddr: [16]byte{0xff, 0x02, 11: 1}}
		binary.BigEndian.PutUint32(m.Multiaddr[12:], i)
		if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &m); err == unix.ENOMEM {
			return
		} else if err != nil {
			r.Fatalf("membership %d: %v", i, err)
		}
	}
}

// A socket without memory for a note of it loses nothing, and nothing is told twice.
func TestKernelNoOptionMemory(t *testing.T) {
	r := record(t, Config{})
	fd := r.socket(unix.AF_INET6, unix.SOCK_DGRAM)
	r.fillOptions(fd)
	for range rounds {
		if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET6, "[::1]:9")); err != nil {
			t.Fatal(err)
		}
	}
	before := r.tracer.decodedNow(t)
	for range rounds {
		if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(unix.AF_INET6, "[::1]:9")); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.tracer.decodedNow(t) - before; got >= rounds {
		t.Errorf("%d datagrams of a socket that is known made %d events", rounds, got)
	}
	port := r.local(fd).Port()
	r.close(fd)
	bound := r.socket(unix.AF_INET6, unix.SOCK_DGRAM)
	r.fillOptions(bound)
	r.bind(bound, "[::1]:7001")
	r.close(bound)
	r.expect(os.Getpid(),
		fmt.Sprintf("bind udp [::]:%d implicit", port), fmt.Sprintf("close udp [::]:%d", port),
		"bind udp [::1]:7001 asked 7001", "close udp [::1]:7001")
}

// decodedNow is how many events the hooks have submitted.
func (t *Tracer) decodedNow(tb testing.TB) uint64 {
	tb.Helper()
	stats, err := t.Stats()
	if err != nil {
		tb.Fatal(err)
	}
	return stats.Submitted
}

// A raw socket of protocol TCP or UDP is neither.
func TestKernelRawSockets(t *testing.T) {
	r := record(t, Config{})
	for _, proto := range []int{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		for _, end := range ends[:2] {
			fd := r.socketOf(end.family, unix.SOCK_RAW, proto)
			r.connect(fd, netip.MustParseAddrPort(end.ip+":9"))
			if err := disconnect(fd); err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{
				unix.Connect(fd, sockaddr(end.family, map[int]string{unix.AF_INET: noRoute, unix.AF_INET6: "[2001:db8::1]:443"}[end.family])),
				unix.Bind(fd, sockaddr(end.family, map[int]string{unix.AF_INET: "192.0.2.1:1", unix.AF_INET6: "[2001:db8::1]:1"}[end.family])),
				unix.Listen(fd, 1),
				unix.Sendto(fd, nil, unix.MSG_OOB, sockaddr(end.family, end.ip+":0")),
			} {
				if err == nil {
					t.Errorf("%s protocol %d: a call succeeds that must not", end.name, proto)
				}
			}
			r.close(fd)
		}
	}
	r.expect(os.Getpid())
}

// bind() of no family is one of IPv4, to any address.
func TestKernelBindUnspec(t *testing.T) {
	r := record(t, Config{})
	bind := func(fd int, addr [4]byte) error {
		sa := unix.RawSockaddrInet4{Port: binary.NativeEndian.Uint16([]byte{0x1b, 0x59}), Addr: addr} // 7001
		if _, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4); errno != 0 {
			return errno
		}
		return nil
	}
	for proto, kind := range map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM} {
		holder, other := r.socket(unix.AF_INET, kind), r.socket(unix.AF_INET, kind)
		if err := bind(holder, [4]byte{}); err != nil {
			t.Fatal(err)
		}
		r.fails(bind(other, [4]byte{}), unix.EADDRINUSE)
		r.fails(bind(other, [4]byte{127, 0, 0, 1}), unix.EAFNOSUPPORT)
		r.close(holder, other)
		got := r.expect(os.Getpid(),
			fmt.Sprintf("bind %s 0.0.0.0:7001 asked 7001", proto),
			fmt.Sprintf("bind %s 0.0.0.0:7001 asked 7001 EADDRINUSE", proto),
			fmt.Sprintf("bind %s 127.0.0.1:7001 asked 7001 EAFNOSUPPORT", proto),
			fmt.Sprintf("close %s 0.0.0.0:7001", proto))
		if len(got[1].HeldBy) != 1 {
			t.Errorf("%s: held by %+v, want the first socket", proto, got[1].HeldBy)
		}
	}
}

// sendto() with MSG_FASTOPEN connects: that it was refused is told as of connect().
func TestKernelFastOpenRefused(t *testing.T) {
	r := record(t, Config{})
	testutil.WriteSysctl(t, "ipv4/tcp_fastopen", "5") // as a client, and without a cookie
	_, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	r.fill(unix.SOCK_STREAM)
	r.events(0)
	for _, send := range []func(fd int, to unix.Sockaddr) error{
		func(fd int, to unix.Sockaddr) error { return unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, to) },
		func(fd int, to unix.Sockaddr) error { return unix.Sendmsg(fd, []byte("x"), nil, to, unix.MSG_FASTOPEN) },
	} {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.fails(send(fd, sockaddr(unix.AF_INET, noRoute)), unix.ENETUNREACH)
		r.fails(send(fd, sockaddr(unix.AF_INET, to.String())), unix.EADDRNOTAVAIL)
		r.close(fd)
		r.expect(os.Getpid(), "connect tcp 0.0.0.0:0 > "+noRoute+" ENETUNREACH",
			fmt.Sprintf("connect tcp 127.0.0.1:0 > %s EADDRNOTAVAIL", to))
	}
}

// refuseIn makes a cgroup in which a program refuses what comes to a hook.
func (r *recorder) refuseIn(at ebpf.AttachType, typ ebpf.ProgramType) string {
	r.Helper()
	root, err := CgroupRoot()
	if err != nil {
		r.Fatal(err)
	}
	dir := filepath.Join(root, fmt.Sprintf("porthole-test-%d-%d", os.Getpid(), at))
	if err := os.Mkdir(dir, 0o755); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = os.Remove(dir) })
	refuse, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: typ, AttachType: at, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		r.Fatal(err)
	}
	defer refuse.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: at, Program: refuse})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { l.Close() })
	return dir
}

// A bind that another program refuses is no success, though it came to the hook after
// bind(): the kernel takes the port back (5.17), where it keeps it, it is told as taken.
func TestKernelPostBindRefused(t *testing.T) {
	r := record(t, Config{})
	child := r.childIn(r.refuseIn(ebpf.AttachCGroupInet4PostBind, ebpf.CGroupSock), "bind-refused")
	pid := r.wait(child)
	got := r.events(2)
	var want []string
	for _, proto := range []string{"tcp", "udp"} {
		want = append(want, fmt.Sprintf("bind %s 127.0.0.1:7001 asked 7001 EPERM", proto))
	}
	if errors.Is(checkKernel(5, 18), ErrNotSupported) {
		for _, w := range want {
			if !strings.Contains(lines(got), w) {
				t.Errorf("got\n%s\nwant among them %s", lines(got), w)
			}
		}
		return
	}
	r.compare([]int{pid, pid}, got, want)
}

func helperBindRefused() error {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		fd, err := unix.Socket(unix.AF_INET, kind, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(unix.AF_INET, "127.0.0.1:7001")); err != unix.EPERM {
			return fmt.Errorf("bind: %v, want EPERM", err)
		}
		unix.Close(fd)
	}
	return nil
}

// A UDP connect that another program refuses has chosen no port. What the fentry tier
// does not see of it is among its blind spots.
func TestKernelUDPConnectRefusedByCgroup(t *testing.T) {
	r := record(t, Config{})
	child := r.childIn(r.refuseIn(ebpf.AttachCGroupInet4Connect, ebpf.CGroupSockAddr), "udp-connect-refused")
	pid := r.wait(child)
	if r.tracer.byTracepoint&partPeer == 0 {
		r.expect(pid)
		return
	}
	r.expect(pid, "connect udp 0.0.0.0:0 > 127.0.0.1:9000 EPERM")
}

func helperUDPConnectRefused() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, "127.0.0.1:9000")); err != unix.EPERM {
		return fmt.Errorf("connect: %v, want EPERM", err)
	}
	return nil
}

// A socket whose connection was undone by connect(AF_UNSPEC) begins anew: the error of
// that is not the end of what it is next.
func TestKernelListenerOnceConnected(t *testing.T) {
	r := record(t, Config{})
	_, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	r.events(2)
	for _, listens := range []bool{true, false} {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.connect(fd, to)
		from := r.local(fd)
		if err := disconnect(fd); err != nil {
			t.Fatal(err)
		}
		r.bind(fd, "127.0.0.1:7001")
		want := []string{
			fmt.Sprintf("connect tcp %s > %s", from, to), fmt.Sprintf("close tcp %s > %s", from, to), "bind tcp 127.0.0.1:7001 asked 7001",
		}
		if listens {
			r.listen(fd)
			want = append(want, "listen tcp 127.0.0.1:7001")
		}
		r.close(fd)
		want = append(want, "close tcp 127.0.0.1:7001")
		r.expect(os.Getpid(), want...)
	}
}

// A connection that no process took is no tenancy: its end is told to nobody, also
// where a snapshot has seen it wait.
func TestKernelDiesInAcceptQueue(t *testing.T) {
	r := idle(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	queued, gone := r.socket(unix.AF_INET, unix.SOCK_STREAM), r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(queued, to)
	r.connect(gone, to)
	r.start(Config{History: 100})
	from, gfrom := r.local(queued), r.local(gone)
	if got := r.held(9000); len(got) != 3 {
		t.Fatalf("table has %+v on port 9000, want a listener and two that wait", got)
	}
	r.resetOnClose(gone) // the other end ends in the queue
	r.close(gone)
	r.expect(os.Getpid(), fmt.Sprintf("close tcp %s > %s", gfrom, to))
	r.close(l) // resets what waits
	r.awaitClosed(queued)
	got := r.events(2)
	want := []string{"close tcp 127.0.0.1:9000", fmt.Sprintf("close tcp %s > %s ECONNRESET", from, to)}
	if s := lines(got); s != strings.Join(want, "\n") && s != want[1]+"\n"+want[0] {
		t.Errorf("got\n%s\nwant\n%s", s, strings.Join(want, "\n"))
	}
	if held := r.held(9000); len(held) != 0 {
		t.Errorf("table has %+v on port 9000", held)
	}
	for _, past := range r.tracer.History().Port(9000) {
		if past.NetNS == r.netns && past.Remote.IsValid() {
			t.Errorf("history has %+v, which no process had", past)
		}
	}
}

// The path manager of MPTCP opens a second path in a worker of the kernel: the port is
// the program's that has the connection.
func TestKernelMPTCPSecondPath(t *testing.T) {
	if out, err := exec.Command("ip", "mptcp", "help").CombinedOutput(); err != nil && !strings.Contains(string(out), "endpoint") {
		t.Skipf("ip knows nothing of MPTCP: %s", out)
	}
	r := record(t, Config{})
	l := r.socketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	for _, args := range []string{
		"link add left type veth peer name right", "link set left up", // only for its addresses to be no loopback's
		"addr add 10.1.1.1/24 dev lo", "addr add 10.1.2.1/24 dev lo", "addr add 10.1.3.1/24 dev lo",
		"mptcp limits set subflow 2 add_addr_accepted 2", "mptcp endpoint add 10.1.2.1 subflow",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	r.bind(l, "10.1.1.1:9000")
	r.listen(l)
	path := netip.MustParseAddr("10.1.2.1")
	var connects, closes int
	more := func() {
		for _, ev := range r.events(0) {
			if ev.Local.Addr() != path {
				continue
			}
			if int(ev.Process.PID) != os.Getpid() || !ev.MPTCP || ev.Errno != 0 && ev.Type != EventClose {
				t.Errorf("%s by %+v, want this process", line(&ev), ev.Process)
			}
			switch ev.Type {
			case EventConnect:
				connects++
			case EventClose:
				closes++
			}
		}
	}
	// The kernel tries once for each connection, at a moment when it may not be able to.
	for deadline := time.Now().Add(20 * time.Second); connects == 0; {
		if time.Now().After(deadline) {
			t.Fatal("no second path")
		}
		client := r.socketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		r.bind(client, "10.1.3.1:0")
		r.connect(client, r.local(l))
		server := r.accept(l)
		for i := 0; i < rounds && connects == 0; i++ {
			for _, fds := range [][2]int{{client, server}, {server, client}} { // it is opened once data has been acknowledged
				if _, err := unix.Write(fds[0], []byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := unix.Read(fds[1], make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
			more()
		}
		r.close(client, server)
	}
	r.close(l)
	testutil.Await(t, "the end of each second path is told", func() bool {
		if closes < connects {
			more()
		}
		return closes >= connects
	})
}

// A connect from a port of the socket's own is refused because of one other socket: the
// event has it, and it is no exhaustion.
func TestKernelConnectPairTaken(t *testing.T) {
	r := record(t, Config{})
	_, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	var fds [2]int
	for i := range fds {
		fds[i] = r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.setsockopt(fds[i], unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		r.bind(fds[i], "127.0.0.1:3001")
	}
	r.connect(fds[0], to)
	r.events(5)
	before := r.tracer.Counts().Failures
	r.fails(unix.Connect(fds[1], sockaddr(unix.AF_INET, to.String())), unix.EADDRNOTAVAIL)
	ev := r.expect(os.Getpid(), fmt.Sprintf("connect tcp 127.0.0.1:3001 > %s EADDRNOTAVAIL", to))[0]
	if len(ev.HeldBy) != 1 || ev.HeldBy[0].Remote != to || ev.HeldBy[0].Role != RoleClient {
		t.Errorf("held by %+v, want the connection", ev.HeldBy)
	}
	after := r.tracer.Counts().Failures
	for op, want := range map[PortOp]uint64{OpConnect: 0, OpConnectBound: 1} {
		f := Failure{op, TCP, unix.EADDRNOTAVAIL}
		if got := after[f] - before[f]; got != want {
			t.Errorf("%s: %d failures more, want %d", op, got, want)
		}
	}
}

// Of two sockets that may be bound to a port one may listen; the other's listen() says who.
func TestKernelListenRefused(t *testing.T) {
	r := record(t, Config{})
	var fds [2]int
	for i := range fds {
		fds[i] = r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.setsockopt(fds[i], unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		r.bind(fds[i], "127.0.0.1:9000")
	}
	r.listen(fds[0])
	r.events(3)
	r.fails(unix.Listen(fds[1], 1), unix.EADDRINUSE)
	ev := r.expect(os.Getpid(), "listen tcp 127.0.0.1:9000 EADDRINUSE")[0]
	if len(ev.HeldBy) != 1 || ev.HeldBy[0].Role != RoleListener {
		t.Errorf("held by %+v, want the listener", ev.HeldBy)
	}
}

// A function whose form is not known has no program: it would take an argument for the result.
func TestKernelProbeSignature(t *testing.T) {
	testutil.RequireRoot(t)
	types := kernelTypes()()
	for _, p := range probes {
		if p.tier != TierFentry {
			continue
		}
		name, err := p.pick(types)
		if err != nil || name == "" {
			t.Errorf("%s: no program: %v", p.hook, err)
		}
		p.params += len(p.progs) // as if the kernel's had fewer
		if name, err := p.pick(types); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "unknown signature") {
			t.Errorf("%s with fewer parameters: %s, %v; want an unknown signature", p.hook, name, err)
		}
		p.params -= 2 * len(p.progs)
		if name, err := p.pick(types); p.params > 0 && !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s with more parameters: %s, %v; want an unknown signature", p.hook, name, err)
		}
	}
}

// What the hooks in use cannot see is said, by tracer and by docs/kernels.md.
func TestNotSeen(t *testing.T) {
	page, err := os.ReadFile("../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tier := range []Tier{TierFentry, TierTracepoint} {
		tr := Tracer{}
		if tier == TierTracepoint {
			for _, part := range parts {
				tr.byTracepoint |= part
			}
		}
		for _, said := range tr.NotSeen() {
			if !strings.Contains(string(page), "\n- "+said+"\n") {
				t.Errorf("docs/kernels.md does not say that tier %s does not see %s", tier, said)
			}
		}
		for _, b := range blindSpots {
			if here := b.tier == "" || b.tier == tier; here != slices.Contains(tr.NotSeen(), b.what) {
				t.Errorf("tier %s says %v of %s", tier, !here, b.what)
			}
		}
	}
}
