package testutil

import (
	"fmt"
	"net/netip"
	"syscall"
)

// BoundTCP returns a TCP socket that is bound to an IPv4 address, and the port it got. It is made by one bind() alone: what is
// refused to a listener of package net that tries again, without MPTCP, would count twice.
func BoundTCP(at netip.AddrPort) (fd int, port uint16, err error) {
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	if err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		syscall.Close(fd)
		return 0, 0, fmt.Errorf("bind %v: %w", at, err)
	}
	own, err := syscall.Getsockname(fd)
	if err != nil {
		syscall.Close(fd)
		return 0, 0, err
	}
	return fd, uint16(own.(*syscall.SockaddrInet4).Port), nil
}
