package main

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// onLastCPU runs a load with this thread bound to the last CPU, and returns the
// nanoseconds one of n repetitions took. The tracer may use the other CPUs.
func onLastCPU(n int, load func(n int) error) (float64, error) {
	var before, last unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return 0, fmt.Errorf("read affinity: %w", err)
	}
	cpu := len(before)*64 - 1
	for !before.IsSet(cpu) {
		cpu--
	}
	last.Set(cpu)
	if err := unix.SchedSetaffinity(0, &last); err != nil {
		return 0, fmt.Errorf("bind load to CPU %d: %w", cpu, err)
	}
	runtime.GC() // not while the clock runs
	start := time.Now()
	err := load(n)
	took := time.Since(start)
	if err == nil {
		// Children inherit it.
		err = unix.SchedSetaffinity(0, &before)
	}
	return float64(took.Nanoseconds()) / float64(n), err
}

// getppid is the cheapest system call there is.
func getppid(n int) error {
	for range n {
		unix.RawSyscallNoError(unix.SYS_GETPPID, 0, 0, 0)
	}
	return nil
}

// nops makes n requests of io_uring that do nothing, many with each system call.
func nops(n int) error {
	var requests [64]testutil.Request
	ring, err := testutil.NewRing(uint32(len(requests)))
	if err != nil {
		return err
	}
	defer ring.Close()
	for n > 0 {
		now := requests[:min(n, len(requests))]
		if err := ring.Submit(now...); err != nil {
			return err
		}
		for range now {
			if res, _, err := ring.Result(); err != nil || res != 0 {
				return fmt.Errorf("io_uring: result %d: %w", res, err)
			}
		}
		n -= len(now)
	}
	return nil
}

// A listener has its address kept in the form of the system calls.
type listener struct {
	fd   int
	addr *unix.SockaddrInet4
}

func listen(at netip.AddrPort) (*listener, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	l := &listener{fd: fd, addr: &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, fmt.Errorf("allow reuse of %v: %w", at, err)
	}
	if err := unix.Bind(fd, l.addr); err != nil {
		return nil, fmt.Errorf("bind %v: %w", at, err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return nil, fmt.Errorf("listen on %v: %w", at, err)
	}
	return l, nil
}

func (l *listener) close() { _ = unix.Close(l.fd) }

func dial(to *unix.SockaddrInet4) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make socket: %w", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

// cycles makes n connections, one after the other, both ends in this thread:
// the handshake on lo is done when connect returns, so nothing ever waits.
//
// The server closes first, as it does in much of HTTP: TIME_WAIT then keeps no
// port of the client, and a new connection from the same port takes over the old
// one's. So no port ever lacks, nothing is reset, and there are never more
// sockets in TIME_WAIT than ports (see fewPorts): every run finds what the one
// before it found.
func (l *listener) cycles(n int) error {
	for i := range n {
		client, err := dial(l.addr)
		if err != nil {
			return fmt.Errorf("cycle %d: %w", i, err)
		}
		server, _, err := unix.Accept(l.fd)
		if err != nil {
			return fmt.Errorf("cycle %d: accept: %w", i, err)
		}
		if err := unix.Close(server); err != nil {
			return fmt.Errorf("cycle %d: close server: %w", i, err)
		}
		if err := unix.Close(client); err != nil {
			return fmt.Errorf("cycle %d: close client: %w", i, err)
		}
	}
	return nil
}

const ports = 2000

// fewPorts bounds TIME_WAIT to as many sockets in this namespace.
func fewPorts() error {
	const name = "/proc/sys/net/ipv4/ip_local_port_range"
	if err := os.WriteFile(name, []byte("32768 34767"), 0); err != nil {
		return fmt.Errorf("set ephemeral range: %w", err)
	}
	return nil
}
