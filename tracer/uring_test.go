package tracer

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is the smallest io_uring: one request at a time, include/uapi/linux/io_uring.h.
type ring struct {
	fd           int
	sqes, sq, cq []byte
	p            uringParams
}

type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	_                                                                      [3]uint32
	sqOff                                                                  struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cqOff struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

const (
	uringAccept  = 13
	uringConnect = 16
)

func newRing(t *testing.T) *ring {
	t.Helper()
	r := &ring{}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&r.p)), 0)
	if errno != 0 {
		t.Fatalf("io_uring_setup: %v", errno)
	}
	r.fd = int(fd)
	t.Cleanup(func() { unix.Close(r.fd) })
	for _, m := range []struct {
		to     *[]byte
		offset int64
		size   int
	}{
		{&r.sq, 0, int(r.p.sqOff.array + r.p.sqEntries*4)},
		{&r.cq, 0x8000000, int(r.p.cqOff.cqes + r.p.cqEntries*16)},
		{&r.sqes, 0x10000000, int(r.p.sqEntries * 64)},
	} {
		b, err := unix.Mmap(r.fd, m.offset, m.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			t.Fatalf("mmap io_uring: %v", err)
		}
		t.Cleanup(func() { unix.Munmap(b) })
		*m.to = b
	}
	return r
}

func word(b []byte, offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[offset])) }

// do submits one request and waits for its result.
func (r *ring) do(t *testing.T, op uint8, fd int, addr unsafe.Pointer, off uint64) int32 {
	t.Helper()
	tail := atomic.LoadUint32(word(r.sq, r.p.sqOff.tail))
	at := tail & *word(r.sq, r.p.sqOff.mask)
	clear(r.sqes[at*64 : at*64+64])
	r.sqes[at*64] = op
	*(*int32)(unsafe.Pointer(&r.sqes[at*64+4])) = int32(fd)
	*(*uint64)(unsafe.Pointer(&r.sqes[at*64+8])) = off
	*(*uint64)(unsafe.Pointer(&r.sqes[at*64+16])) = uint64(uintptr(addr))
	*word(r.sq, r.p.sqOff.array+at*4) = at
	atomic.StoreUint32(word(r.sq, r.p.sqOff.tail), tail+1)
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 1, 1 /* GETEVENTS */, 0, 0); errno != 0 {
		t.Fatalf("io_uring_enter: %v", errno)
	}
	head := atomic.LoadUint32(word(r.cq, r.p.cqOff.head))
	res := int32(*word(r.cq, r.p.cqOff.cqes+(head&*word(r.cq, r.p.cqOff.mask))*16+8))
	atomic.StoreUint32(word(r.cq, r.p.cqOff.head), head+1)
	return res
}

// io_uring passes no system call hook: connects are seen, and accepts that ask
// for the peer's address.
func TestKernelIOUring(t *testing.T) {
	r := record(t, Config{})
	u := newRing(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	r.events(0)
	var want []string
	for range rounds {
		client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: 0x2823 /* 9000, network order */, Addr: [4]byte{127, 0, 0, 1}}
		if res := u.do(t, uringConnect, client, unsafe.Pointer(&sa), unix.SizeofSockaddrInet4); res != 0 {
			t.Fatalf("connect: %v", unix.Errno(-res))
		}
		from := r.local(client)
		var peer unix.RawSockaddrAny
		size := uint32(unix.SizeofSockaddrAny)
		server := u.do(t, uringAccept, l, unsafe.Pointer(&peer), uint64(uintptr(unsafe.Pointer(&size))))
		if server < 0 {
			t.Fatalf("accept: %v", unix.Errno(-server))
		}
		r.fds = append(r.fds, int(server))
		r.close(client)
		r.awaitClosed(int(server))
		r.close(int(server))
		want = append(want,
			fmt.Sprintf("connect tcp %s > %s", from, to), fmt.Sprintf("accept tcp %s > %s", to, from),
			closeLine("client time_wait", from, to), closeLine("server", from, to))
	}
	r.expectConnections(want...)
}

// A process that uses io_uring and plain system calls is reported once for each
// accept, however it asks for the peer's address.
func TestKernelIOUringMixed(t *testing.T) {
	r := record(t, Config{})
	u := newRing(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	if res := u.do(t, 0 /* NOP */, 0, nil, 0); res != 0 { // now the task has an io_uring context
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
