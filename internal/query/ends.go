package query

import (
	"fmt"
	"net/netip"
	"strings"
)

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
