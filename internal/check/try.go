package check

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/tracer"
)

// Try makes the call in the network namespace of the calling thread, undoes it at once, and returns
// what it failed with; 0: it did not. For some microseconds the port is taken; nothing is received on it.
func (b *Bind) Try() (unix.Errno, error) {
	addr := b.Local.Addr()
	family, typ := unix.AF_INET6, unix.SOCK_STREAM
	if addr.Is4() {
		family = unix.AF_INET
	}
	if b.Proto == tracer.UDP {
		typ = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return unix.EAFNOSUPPORT, nil
	} else if err != nil {
		return 0, fmt.Errorf("make a socket: %w", err)
	}
	defer unix.Close(fd)
	if b.Device != "" {
		if err := unix.BindToDevice(fd, b.Device); errors.Is(err, unix.ENODEV) {
			return unix.ENODEV, nil
		} else if err != nil {
			return 0, fmt.Errorf("bind to device %s: %w", b.Device, err)
		}
	}
	if b.ReuseAddr {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	var to unix.Sockaddr
	if addr.Is4() {
		to = &unix.SockaddrInet4{Addr: addr.As4(), Port: int(b.Local.Port())}
	} else {
		only := 0
		if b.V6Only {
			only = 1
		}
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only))
		to = &unix.SockaddrInet6{Addr: addr.As16(), Port: int(b.Local.Port())}
	}
	if err != nil {
		return 0, fmt.Errorf("prepare a socket: %w", err)
	}
	var errno unix.Errno
	if err := unix.Bind(fd, to); err != nil && !errors.As(err, &errno) {
		return 0, fmt.Errorf("bind: %w", err)
	}
	return errno, nil
}
