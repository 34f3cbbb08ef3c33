package tracer

import (
	"net/netip"
	"syscall"
)

// contested tells whether other sockets are what a call was refused for, so that conflict
// knows them: a bind to a certain port, a listen of a bound socket, a TCP connect from a
// port of the socket's own.
func (ev *Event) contested() bool {
	switch ev.Type {
	case EventBind:
		return ev.Errno == syscall.EADDRINUSE && ev.RequestedPort != 0
	case EventListen:
		return ev.Errno == syscall.EADDRINUSE && ev.Local.Port() != 0
	case EventConnect:
		return ev.pairTaken()
	}
	return false
}

// pairTaken tells whether a TCP connect found the pair of its ends taken: its socket had
// a port, so that it looked for none.
func (ev *Event) pairTaken() bool {
	return ev.Type == EventConnect && ev.Proto == TCP && ev.Errno == syscall.EADDRNOTAVAIL && ev.Local.Port() != 0
}

// conflict tells whether a socket is in the way of a contested call. Of a bind or listen:
// inet_bind_conflict(), inet_rcv_saddr_equal() and udp_lib_lport_inuse() of the kernel; of
// a connect: __inet_check_established().
func conflict(ev *Event, s *Socket) bool {
	flag := func(f bpfEventFlag) bool { return ev.flags&uint8(f) != 0 }
	switch {
	case s.id == ev.sock || s.Proto != ev.Proto || s.NetNS != ev.NetNS || s.NetNSCookie != ev.NetNSCookie || s.Local.Port() != ev.Local.Port():
		return false
	case !sameDevice(ev.Device, s.Device):
		return false
	case ev.Type == EventConnect:
		return s.Local == ev.Local && s.Remote == ev.Remote && (s.Device == 0 || s.Device == ev.Device)
	case flag(bpfEventFlagEVENT_REUSEADDR) && s.ReuseAddr && (s.State != StateListen || s.Proto == UDP):
		return false
	case flag(bpfEventFlagEVENT_REUSEPORT) && s.ReusePort && (s.UID == ev.Process.UID || s.Role == RoleTimeWait):
		return false // of TIME_WAIT the kernel does not ask whose it was
	}
	return addrConflict(ev.Local.Addr(), flag(bpfEventFlagEVENT_V6ONLY), s.Local.Addr(), s.V6Only)
}

// sameDevice: may sockets that are bound to these devices meet? One that is bound to none
// meets all.
func sameDevice(a, b uint32) bool { return a == b || a == 0 || b == 0 }

// addrConflict: may a socket not be bound to a because another is bound to b?
// The flags are IPV6_V6ONLY of each. A connected socket's b is its own address.
func addrConflict(a netip.Addr, aV6Only bool, b netip.Addr, bV6Only bool) bool {
	switch {
	case a.Is4() == b.Is4():
		return a == b || a.IsUnspecified() || b.IsUnspecified()
	case a.Is4(): // 0.0.0.0 meets connected IPv6 sockets too
		return !bV6Only && (a.IsUnspecified() || b.IsUnspecified())
	default: // but one IPv6 address does not meet 0.0.0.0
		return !aV6Only && a.IsUnspecified()
	}
}
