// Package check says what a system call would do, before it is made.
package check

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// Bind is a call of bind() with a port, in the network namespace whose sockets it is compared
// with, by a new socket without SO_REUSEPORT: with that the kernel's answer depends on what was
// bound before, too.
type Bind struct {
	Proto     tracer.Proto
	Local     netip.AddrPort // IPv4 as IPv4
	Device    string         // the socket is bound to; "": to none
	V6Only    bool           // IPV6_V6ONLY is set
	ReuseAddr bool           // SO_REUSEADDR is set
}

// conflicts tells whether a socket that has the port keeps the call from it, as
// inet_csk_get_port() and udp_lib_get_port() of the kernel decide it.
func (b *Bind) conflicts(o *render.Socket) bool {
	if o.Proto != b.Proto.String() || o.LocalPort != b.Local.Port() || o.State == tracer.StateSynRecv.String() { // a request has no port of its own
		return false
	}
	if b.Device != "" && o.Device != "" && o.Device != b.Device || !b.sameAddr(o) {
		return false
	}
	return !b.ReuseAddr || !o.ReuseAddr || o.State == tracer.StateListen.String()
}

// TakesIPv4 tells whether what is sent over IPv4 gets to the socket.
func (b *Bind) TakesIPv4() bool {
	return b.Local.Addr().Is4() || b.Local.Addr().IsUnspecified() && !b.V6Only
}

// sameAddr tells whether the addresses conflict (inet_rcv_saddr_equal). What makes it uneven is
// that a socket with a native IPv6 address keeps IPv4 out only with IPV6_V6ONLY, which bind() to
// an address sets and connect() does not.
func (b *Bind) sameAddr(o *render.Socket) bool {
	mine, its := b.Local.Addr(), o.LocalIP.WithZone("")
	switch {
	case mine.Is4() && its.Is4():
		return mine == its || mine.IsUnspecified() || its.IsUnspecified()
	case mine.Is4():
		return !o.V6Only && (mine.IsUnspecified() || its.IsUnspecified())
	case its.Is4():
		return mine.IsUnspecified() && !b.V6Only
	}
	return mine == its || mine.IsUnspecified() || its.IsUnspecified()
}

// InTheWay returns those of some sockets that the call conflicts with, which makes it fail with
// EADDRINUSE.
func (b *Bind) InTheWay(owners []render.Socket) []render.Socket {
	in := []render.Socket{}
	for i := range owners {
		if b.conflicts(&owners[i]) {
			in = append(in, owners[i])
		}
	}
	return in
}

// Settings are what else decides in a network namespace.
type Settings struct {
	Pool       *identity.Pool // ports that the kernel picks itself
	Privileged uint16         // ports below take CAP_NET_BIND_SERVICE
	Local      bool           // the address is one of the namespace, or need not be
	V6Only     bool           // net.ipv6.bindv6only: IPV6_V6ONLY of new sockets
	NoIPv6     bool           // the kernel has no IPv6
	NoDevice   bool           // the namespace has no such device
}

// ReadSettings reads those of the calling thread's network namespace, for an address; device is
// as of identity.IsLocal.
func ReadSettings(addr netip.Addr, device string) (s Settings, err error) {
	if s.Pool, err = identity.ReadPool(); err != nil {
		return s, err
	}
	if device != "" {
		has, err := identity.HasDevice(device)
		if err != nil {
			return s, err
		}
		s.NoDevice = !has
	}
	start, err := sysctl("ipv4/ip_unprivileged_port_start")
	if err != nil {
		return s, err
	}
	s.Privileged = uint16(start)
	only, err := sysctl("ipv6/bindv6only")
	if s.NoIPv6 = errors.Is(err, fs.ErrNotExist); err != nil && !s.NoIPv6 {
		return s, err
	}
	s.V6Only = only != 0
	family := "ipv4"
	if addr.Is6() {
		family = "ipv6"
	}
	anywhere, err := sysctl(family + "/ip_nonlocal_bind")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if s.Local = anywhere != 0; s.Local {
		return s, nil
	}
	s.Local, err = identity.IsLocal(addr, device)
	return s, err
}

func sysctl(name string) (uint64, error) {
	text, err := os.ReadFile("/proc/sys/net/" + name)
	if err != nil {
		return 0, fmt.Errorf("read net.%s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 16)
}

// Errno is what the call fails with for other reasons than sockets in the way, 0: nothing; capable:
// as of Capable.
func (b *Bind) Errno(s Settings, capable bool) unix.Errno {
	refused := b.Local.Port() < s.Privileged && !capable
	switch {
	case b.Local.Addr().Is6() && s.NoIPv6:
		return unix.EAFNOSUPPORT
	case s.NoDevice:
		return unix.ENODEV
	case b.Local.Addr().Is6() && b.Proto == tracer.TCP && b.Local.Addr().IsMulticast(), needsDevice(b.Local.Addr()) && b.Device == "":
		return unix.EINVAL
	case b.Local.Addr().Is6() && refused: // looked at first
		return unix.EACCES
	case !s.Local:
		return unix.EADDRNOTAVAIL
	case refused:
		return unix.EACCES
	}
	return 0
}

// needsDevice tells whether an address counts on one device alone (__ipv6_addr_needs_scope_id).
func needsDevice(addr netip.Addr) bool {
	return addr.Is6() && (addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() || addr.IsInterfaceLocalMulticast())
}

// Capable tells whether this process has CAP_NET_BIND_SERVICE in the calling thread's network
// namespace: in the user namespace that owns that, or in one above.
func Capable() (bool, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&head, &sets[0]); err != nil {
		return false, fmt.Errorf("capget: %w", err)
	}
	if sets[0].Effective&(1<<unix.CAP_NET_BIND_SERVICE) == 0 {
		return false, nil
	}
	space, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return false, fmt.Errorf("open the network namespace: %w", err)
	}
	defer space.Close()
	owner, err := unix.IoctlRetInt(int(space.Fd()), unix.NS_GET_USERNS)
	switch {
	case errors.Is(err, unix.EPERM): // it is neither that of this process nor one below (ns_get_owner)
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ask who owns the network namespace: %w", err)
	}
	return true, unix.Close(owner)
}
