package tracer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

const (
	uringPoll    = 6
	uringAccept  = 13
	uringConnect = 16
)

// ring is an io_uring of a test.
type ring struct {
	*testutil.Ring
	t *testing.T
}

func newRing(t *testing.T) ring {
	t.Helper()
	r, err := testutil.NewRing(4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return ring{r, t}
}

func (r ring) submit(request testutil.Request) {
	r.t.Helper()
	if err := r.Submit(request); err != nil {
		r.t.Fatal(err)
	}
}

func (r ring) result() (res int32, more bool) {
	r.t.Helper()
	res, more, err := r.Result()
	if err != nil {
		r.t.Fatal(err)
	}
	return res, more
}

// do submits one request and waits for its result.
func (r ring) do(request testutil.Request) int32 {
	r.t.Helper()
	r.submit(request)
	res, _ := r.result()
	return res
}

// connect connects a socket to a port of 127.0.0.1.
func (r ring) connect(fd int, port uint16) {
	r.t.Helper()
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port>>8 | port<<8, Addr: [4]byte{127, 0, 0, 1}}
	r.connectTo(fd, unsafe.Pointer(&sa))
}

func (r ring) connectTo(fd int, sa unsafe.Pointer) {
	r.t.Helper()
	if res := r.do(testutil.Request{Op: uringConnect, FD: int32(fd), Addr: uint64(uintptr(sa)), Off: unix.SizeofSockaddrInet4}); res != 0 {
		r.t.Fatalf("connect: %v", unix.Errno(-res))
	}
	runtime.KeepAlive(sa)
}

// seesRequests tells whether io_uring's requests are seen, and not only what it does
// through hooks that have nothing to do with it.
func seesRequests(tr *Tracer) bool {
	return !slices.ContainsFunc(tr.Hooks(), func(h HookStatus) bool { return h.Hook == hookUring && !h.Attached })
}

// io_uring passes no system call hook: accepts that ask for the peer's address are seen
// by every kernel, and where the kernel tells of the request, all others too.
func TestKernelIOUring(t *testing.T) {
	var peer unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	for _, tt := range []struct {
		name    string
		request testutil.Request
		always  bool // seen in each tier of each kernel
	}{
		{"address", testutil.Request{Addr: uint64(uintptr(unsafe.Pointer(&peer))), Off: uint64(uintptr(unsafe.Pointer(&size)))}, true},
		{"no address", testutil.Request{}, false},
		{"multishot", testutil.Request{IOPrio: 1 /* ACCEPT_MULTISHOT */}, false},
	} {
		if tt.request.IOPrio != 0 && errors.Is(checkKernel(5, 19), ErrNotSupported) {
			continue // has no such request
		}
		t.Run(tt.name, func(t *testing.T) {
			r := record(t, Config{})
			connecting, accepting := newRing(t), newRing(t)
			l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
			r.events(0)
			tt.request.Op, tt.request.FD = uringAccept, int32(l)
			seen, more := tt.always || seesRequests(r.tracer), false
			var want []string
			for range rounds {
				client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
				connecting.connect(client, to.Port())
				from := r.local(client)
				if !more {
					accepting.submit(tt.request)
				}
				var server int32
				if server, more = accepting.result(); server < 0 {
					t.Fatalf("accept: %v", unix.Errno(-server))
				}
				r.fds = append(r.fds, int(server))
				r.close(client)
				r.awaitClosed(int(server))
				r.close(int(server))
				want = append(want, fmt.Sprintf("connect tcp %s > %s", from, to))
				if seen {
					want = append(want, fmt.Sprintf("accept tcp %s > %s", to, from))
				}
				want = append(want, closeLine("client time_wait", from, to))
				if seen {
					want = append(want, closeLine("server", from, to))
				}
			}
			r.expectConnections(want...)
			runtime.KeepAlive(&peer)
			runtime.KeepAlive(&size)
		})
	}
}

// UDP sockets connected by io_uring, and disconnected.
func TestKernelIOUringUDP(t *testing.T) {
	r := record(t, Config{})
	u := newRing(t)
	var want []string
	for range rounds {
		fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
		u.connect(fd, 9)
		at := r.local(fd)
		var none unix.RawSockaddr // AF_UNSPEC
		u.connectTo(fd, unsafe.Pointer(&none))
		if !seesRequests(r.tracer) {
			continue
		}
		want = append(want,
			fmt.Sprintf("bind udp 0.0.0.0:%d implicit", at.Port()), fmt.Sprintf("connect udp %s > 127.0.0.1:9", at),
			fmt.Sprintf("close udp %s > 127.0.0.1:9", at))
	}
	r.expect(os.Getpid(), want...)
}

// A result of a request that goes on may be the number of a descriptor without having
// to do with it.
func TestKernelIOUringPoll(t *testing.T) {
	const writable = unix.POLLOUT | 0x100 /* POLLWRNORM */ | 0x200 /* POLLWRBAND */
	const fd = writable
	r := record(t, Config{})
	u := newRing(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(client, to)
	server := r.accept(l)
	reset := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(reset, to)
	closed := r.accept(l)
	r.resetOnClose(reset)
	r.close(reset)
	r.awaitClosed(closed)
	bound := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.bind(bound, "127.0.0.1:9001")
	r.events(8) // bind, listen, two connects, two accepts, a close, a bind
	if _, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != unix.EBADF {
		t.Fatalf("descriptor %d is in use: %v", fd, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.fds = append(r.fds, pair[:]...)
	for _, of := range []int{l, client, server, closed, bound, r.socket(unix.AF_INET, unix.SOCK_STREAM)} {
		if err := unix.Dup3(of, fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		u.submit(testutil.Request{Op: uringPoll, FD: int32(pair[0]), Len: 1 /* ADD_MULTI */, OpFlags: writable})
		if res, more := u.result(); res != fd || !more {
			t.Fatalf("poll says %d, more %v, want %d", res, more, fd)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
	}
	if more := r.events(0); len(more) != 0 {
		t.Errorf("told of what poll said:\n%s", lines(more))
	}
}

// A process that uses io_uring and plain system calls is reported once for each
// accept, however it asks for the peer's address.
func TestKernelIOUringMixed(t *testing.T) {
	r := record(t, Config{})
	u := newRing(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	if res := u.do(testutil.Request{Op: 0 /* NOP */}); res != 0 { // now the task has an io_uring context
		t.Fatalf("nop: %v", unix.Errno(-res))
	}
	r.events(0)
	var want []string
	for range rounds {
		client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.connect(client, to)
		from := r.local(client)
		server := r.accept(l)
		peerOf(t, server)
		peerOf(t, client)
		want = append(want, fmt.Sprintf("connect tcp %s > %s", from, to), fmt.Sprintf("accept tcp %s > %s", to, from))
	}
	r.expect(os.Getpid(), want...)
}

// Without the system call hooks of the tracepoint tier an accept that asks for the
// peer's address is still seen, and one that does not is not.
func TestKernelNoSyscallHooks(t *testing.T) {
	r := record(t, Config{NoSyscallHooks: true, Tier: TierTracepoint})
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	r.events(0)
	var want []string
	for i := range rounds {
		client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.connect(client, to)
		from := r.local(client)
		want = append(want, fmt.Sprintf("connect tcp %s > %s", from, to))
		if i%2 == 0 {
			r.accept(l)
			want = append(want, fmt.Sprintf("accept tcp %s > %s", to, from))
		} else {
			r.acceptNoAddr(l)
		}
	}
	r.expect(os.Getpid(), want...)
}
