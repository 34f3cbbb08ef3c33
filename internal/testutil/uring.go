package testutil

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ring is an io_uring, include/uapi/linux/io_uring.h. Not for concurrent use.
type Ring struct {
	fd           int
	sqes, sq, cq []byte
	p            ringParams
}

// ringParams is struct io_uring_params.
type ringParams struct {
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

// Request is struct io_uring_sqe.
type Request struct {
	Op      uint8
	_       uint8
	IOPrio  uint16
	FD      int32
	Off     uint64
	Addr    uint64
	Len     uint32
	OpFlags uint32
	_       [4]uint64
}

// NewRing makes a ring that has room for so many requests, a power of two. Close it.
func NewRing(entries uint32) (*Ring, error) {
	r := &Ring{}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&r.p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r.fd = int(fd)
	for _, m := range []struct {
		to     *[]byte
		offset int64
		size   uint32
	}{
		{&r.sq, 0, r.p.sqOff.array + r.p.sqEntries*4},
		{&r.cq, 0x8000000, r.p.cqOff.cqes + r.p.cqEntries*16},
		{&r.sqes, 0x10000000, r.p.sqEntries * 64},
	} {
		var err error
		if *m.to, err = unix.Mmap(r.fd, m.offset, int(m.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
			r.Close()
			return nil, fmt.Errorf("mmap io_uring: %w", err)
		}
	}
	return r, nil
}

// Close ends what the ring still does.
func (r *Ring) Close() {
	for _, b := range [][]byte{r.sq, r.cq, r.sqes} {
		if b != nil {
			_ = unix.Munmap(b)
		}
	}
	_ = unix.Close(r.fd)
}

func word(b []byte, offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[offset])) }

// Submit hands requests to the kernel, no more than the ring has room for.
func (r *Ring) Submit(requests ...Request) error {
	tail, mask := atomic.LoadUint32(word(r.sq, r.p.sqOff.tail)), *word(r.sq, r.p.sqOff.mask)
	for _, request := range requests {
		at := tail & mask
		*(*Request)(unsafe.Pointer(&r.sqes[at*64])) = request
		*word(r.sq, r.p.sqOff.array+at*4) = at
		tail++
	}
	atomic.StoreUint32(word(r.sq, r.p.sqOff.tail), tail)
	return r.enter(len(requests), 0)
}

func (r *Ring) enter(submit, complete int) error {
	const getEvents = 1
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), uintptr(complete), getEvents, 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	if int(n) != submit {
		return fmt.Errorf("io_uring_enter: %d of %d requests taken", n, submit)
	}
	return nil
}

// Result waits for the next result; more: its request goes on.
func (r *Ring) Result() (res int32, more bool, err error) {
	const flagMore = 2
	head := atomic.LoadUint32(word(r.cq, r.p.cqOff.head))
	for atomic.LoadUint32(word(r.cq, r.p.cqOff.tail)) == head {
		if err := r.enter(0, 1); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, false, err
		}
	}
	cqe := r.p.cqOff.cqes + (head&*word(r.cq, r.p.cqOff.mask))*16
	res, more = int32(*word(r.cq, cqe+8)), *word(r.cq, cqe+12)&flagMore != 0
	atomic.StoreUint32(word(r.cq, r.p.cqOff.head), head+1)
	return res, more, nil
}
