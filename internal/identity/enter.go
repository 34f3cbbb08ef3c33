package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// OpenNetNS opens a file that refers to the network namespace of an inode number, for
// InNetNS and NAT; nil: it is that of the calling thread. The error wraps ErrNoNetNS or
// ErrNotPermitted.
func OpenNetNS(inode uint32) (*os.File, error) {
	own, err := NetNSOfThread()
	if err != nil || own == inode {
		return nil, err
	}
	return openNetNS(inode)
}

// InNetNS calls f in the network namespace that an open file refers to; nil: that of the calling
// thread. f must not start goroutines that look at the namespace. To enter another takes
// CAP_SYS_ADMIN: the error wraps ErrNotPermitted then.
func InNetNS(space *os.File, f func() error) error {
	if space == nil {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread, which is elsewhere then, ends with the goroutine
		err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET)
		switch {
		case err == nil:
			err = f()
		case errors.Is(err, unix.EPERM):
			err = fmt.Errorf("enter network namespace: %w: that takes CAP_SYS_ADMIN", ErrNotPermitted)
		default:
			err = fmt.Errorf("enter network namespace: %w", err)
		}
		done <- err
	}()
	return <-done
}

// IsLocal tells whether sockets of the calling thread's network namespace can be bound to an
// address: one of a device, or a multicast or broadcast address. device is that of a link-local
// address, by name; "": any.
func IsLocal(addr netip.Addr, device string) (bool, error) {
	if addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}) { // whatever leads there
		return true, nil
	}
	return hasLocal(addr, device, unix.RTN_LOCAL, unix.RTN_BROADCAST)
}

// IsHere is IsLocal of addresses that are the namespace's alone: no multicast or broadcast address.
func IsHere(addr netip.Addr, device string) (bool, error) {
	if addr.IsMulticast() {
		return false, nil
	}
	return hasLocal(addr, device, unix.RTN_LOCAL)
}

// HasDevice tells whether the calling thread's network namespace has a network device of this name.
func HasDevice(name string) (bool, error) {
	request, err := unix.NewIfreq(name)
	if err != nil { // no device has a name as long
		return false, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("look for network device %s: %w", Safe(name), err)
	}
	defer unix.Close(fd)
	err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for network device %s: %w", Safe(name), err)
	}
	return true, nil
}

// hasLocal tells whether an address is one of the namespace, by the types of routes that IPv4 has to
// its addresses.
func hasLocal(addr netip.Addr, device string, types ...int) (bool, error) {
	if addr.IsUnspecified() {
		return true, nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("ask for addresses: %w", err)
	}
	defer h.Close()
	if addr.Is4() { // routes also know all of 127.0.0.0/8
		routes, err := h.RouteGet(addr.AsSlice())
		if err != nil || len(routes) == 0 {
			return false, nil // nothing leads there
		}
		return slices.Contains(types, routes[0].Type), nil
	}
	links, err := h.LinkList()
	if err != nil {
		return false, fmt.Errorf("ask for network devices: %w", err)
	}
	for _, link := range links {
		if device != "" && link.Attrs().Name != device {
			continue
		}
		addrs, err := h.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return false, fmt.Errorf("ask for addresses: %w", err)
		}
		for _, a := range addrs {
			got, _ := netip.AddrFromSlice(a.IP)
			tentative := a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0
			if got == addr && !tentative {
				return true, nil
			}
		}
	}
	return false, nil
}
