package query

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/porthole-dev/porthole/tracer"
)

// network is addresses, those of a device alone if it has one.
type network struct {
	netip.Prefix
	device string
}

// parseNetwork accepts an address, with a device too, and a network as 10.0.0.0/8.
func parseNetwork(s string) (network, error) {
	addr, bits, cidr := strings.Cut(s, "/")
	if !cidr {
		addr, device, err := parseAddr(s)
		if err != nil {
			return network{}, fmt.Errorf("%q: want an address, as 192.0.2.1 or 2001:db8::1, or a network, as 10.0.0.0/8", s)
		}
		return network{netip.PrefixFrom(addr, addr.BitLen()), device}, nil
	}
	prefix, err := netip.ParsePrefix(strings.Trim(addr, "[]") + "/" + bits)
	if err != nil {
		return network{}, fmt.Errorf("%q: want a network, as 10.0.0.0/8 or 2001:db8::/32", s)
	}
	if prefix.Addr().Is4In6() { // addresses of IPv4 are told as such
		if prefix.Bits() < 96 {
			return network{}, fmt.Errorf("%q: want at least 96 bits of an IPv4 address inside IPv6", s)
		}
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	return network{Prefix: prefix.Masked()}, nil
}

// parseEndFilter accepts what ParseEndsWord does, but for names of hosts: an address is compared.
func parseEndFilter(s string) (Ends, error) {
	ends, err := parseEnds(s)
	if err == nil && ends.Host != "" {
		err = ends.noHost(s)
	}
	return ends, err
}

// noHost is why an end with a host's name is not taken.
func (e *End) noHost(word string) error {
	return fmt.Errorf("%q: want an address instead of the name %s: getent ahosts %[2]s shows those it has", word, e.Host)
}

// NoHost refuses the name of a host where an address is wanted. The error is a *Wrong.
func (e *End) NoHost(word string) error {
	if e.Host == "" {
		return nil
	}
	return &Wrong{Err: e.noHost(word)}
}

// touches tells whether the ends and addresses asked for are of either side.
func (f *Filter) touches(proto tracer.Proto, local, remote netip.AddrPort, device tracer.DeviceID) bool {
	if len(f.ends) == 0 && len(f.addr) == 0 {
		return true
	}
	onDevice := func(name string) bool {
		return name == "" || device.Index != 0 && f.device != nil && f.device(device) == name
	}
	isEnd := func(e Ends) bool {
		one := func(end netip.AddrPort) bool {
			return end.Port() >= e.Port && end.Port() <= e.Last && (!e.Addr.IsValid() || end.Addr() == e.Addr)
		}
		return slices.Contains(e.Protos, proto) && onDevice(e.Device) && (one(local) || one(remote))
	}
	isIn := func(n network) bool {
		return onDevice(n.device) && (n.Contains(local.Addr()) || n.Contains(remote.Addr()))
	}
	return (len(f.ends) == 0 || slices.ContainsFunc(f.ends, isEnd)) && (len(f.addr) == 0 || slices.ContainsFunc(f.addr, isIn))
}

// NameDevices says what devices are called, for filters with one. Without, none passes those.
func (f *Filter) NameDevices(name func(tracer.DeviceID) string) { f.device = name }

// parseEnd accepts an address and a port, and a device: as 192.0.2.1:443,
// [2001:db8::1]:443 and [fe80::1%eth0]:443, as [fe80::1]%eth0:443 and 127.0.0.53%lo:53
// by ss(8), and as 127.0.0.53:53%lo. The address has no zone.
func parseEnd(s string) (end netip.AddrPort, device string, err error) {
	rest, device, ok := cutDevice(s)
	if end, err = netip.ParseAddrPort(rest); err != nil || !ok || end.Addr().Zone() != "" {
		return netip.AddrPort{}, "", fmt.Errorf("%q: want an address and a port, as 192.0.2.1:443 or [2001:db8::1]:443", s)
	}
	return netip.AddrPortFrom(end.Addr().Unmap(), end.Port()), device, nil
}

// parseAddr accepts an address, and a device: as 192.0.2.1, 2001:db8::1 and fe80::1%eth0,
// in brackets too. The address has no zone.
func parseAddr(s string) (addr netip.Addr, device string, err error) {
	rest, device, ok := cutDevice(s)
	if inner, bracket := strings.CutPrefix(rest, "["); bracket {
		if rest, bracket = strings.CutSuffix(inner, "]"); !bracket {
			ok = false
		}
	}
	if addr, err = netip.ParseAddr(rest); err != nil || !ok || addr.Zone() != "" {
		return netip.Addr{}, "", fmt.Errorf("%q: want an address, as 192.0.2.1 or 2001:db8::1", s)
	}
	return addr.Unmap(), device, nil
}

// cutDevice takes %DEVICE out of an end, wherever it stands. No device has a name with a
// colon, a slash or a space; false: it is none.
func cutDevice(s string) (rest, device string, ok bool) {
	before, after, found := strings.Cut(s, "%")
	if !found {
		return s, "", true
	}
	device, after = cutBefore(after, ":]")
	return before + after, device, device != "" && len(device) < 16 && !strings.ContainsAny(device, "%/ \t\n")
}

// cutBefore cuts before the first of some characters.
func cutBefore(s, chars string) (before, after string) {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}
