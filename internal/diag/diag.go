// Package diag reads what the kernel tells every user about the sockets of his network namespace
// (NETLINK_SOCK_DIAG), as ss(8) does.
package diag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/tracer"
)

// Sizes and offsets are of struct inet_diag_req_v2 and struct inet_diag_msg (linux/inet_diag.h).
const (
	requestBytes = 56
	messageBytes = 72
	sportOffset  = 4
	dportOffset  = 6
	srcOffset    = 8
	dstOffset    = 24
	ifOffset     = 40
	timerOffset  = 2
	rqueueOffset = 56
	wqueueOffset = 60
	uidOffset    = 64
	inodeOffset  = 68
)

const (
	allStates = 1<<14 - 1
	// boundInactive is the state of TCP sockets that have a port, but neither listen nor are
	// connected: since Linux 6.8 they are told to who asks for it.
	boundInactive = 13
	// timeWaitTimer is the timer of timewait socks, whatever their state is.
	timeWaitTimer = 3
)

// request asks for the sockets of a family and a protocol.
type request struct{ family, proto uint8 }

// Len implements nl.NetlinkRequestData.
func (request) Len() int { return requestBytes }

// Serialize implements nl.NetlinkRequestData.
func (r request) Serialize() []byte {
	b := make([]byte, requestBytes)
	b[0], b[1] = r.family, r.proto
	b[2] = 1 << (netlink.INET_DIAG_INFO - 1)
	binary.NativeEndian.PutUint32(b[4:], allStates)
	return b
}

// Sockets reads the sockets of the calling thread's network namespace that have a port, with what any
// user may know: no holders, and neither SO_REUSEADDR nor SO_REUSEPORT. RoleUnknown is of connections
// whose counters do not say which end called connect(). They are not of one moment: one that changes
// its state meanwhile may be there twice or be missing. Before Linux 6.8 TCP sockets that are only bound
// are missing.
func Sockets(netns tracer.NetNS) ([]tracer.Socket, error) {
	var out []tracer.Socket
	for _, r := range []request{
		{unix.AF_INET, uint8(tracer.TCP)}, {unix.AF_INET6, uint8(tracer.TCP)}, {unix.AF_INET, uint8(tracer.UDP)}, {unix.AF_INET6, uint8(tracer.UDP)},
	} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(r)
		var bad error
		err := req.ExecuteIter(unix.NETLINK_SOCK_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
			s, err := socketOf(msg, tracer.Proto(r.proto))
			if err != nil {
				bad = err
				return false
			}
			if s.Local.Port() != 0 {
				s.NetNS, s.NetNSCookie = netns.Inode, netns.Cookie
				out = append(out, s)
			}
			return true
		})
		if errors.Is(err, unix.ENOENT) && r.family == unix.AF_INET6 { // a kernel without IPv6
			err = nil
		}
		if err := errors.Join(err, bad); err != nil {
			return nil, fmt.Errorf("read sockets: %w", err)
		}
	}
	return out, nil
}

// socketOf decodes a message.
func socketOf(b []byte, proto tracer.Proto) (tracer.Socket, error) {
	if len(b) < messageBytes {
		return tracer.Socket{}, fmt.Errorf("a message of %d bytes, want at least %d", len(b), messageBytes)
	}
	port := func(at int) uint16 { return binary.BigEndian.Uint16(b[at:]) }
	number := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	addr := func(at int) netip.Addr {
		if b[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(b[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(b[at : at+16])).Unmap()
	}
	s := tracer.Socket{
		Proto: proto, State: tracer.State(b[1]), Device: number(ifOffset), Inode: uint64(number(inodeOffset)), UID: number(uidOffset),
		Local: netip.AddrPortFrom(addr(srcOffset), port(sportOffset)), Origin: tracer.OriginSnapshot,
	}
	if s.State == boundInactive {
		s.State = tracer.StateUnconn
	}
	if s.State == tracer.StateListen && proto == tracer.TCP {
		s.Backlog = tracer.Backlog{Waiting: number(rqueueOffset), Max: number(wqueueOffset), Known: true}
	}
	if s.State != tracer.StateListen && s.State != tracer.StateUnconn {
		s.Remote = netip.AddrPortFrom(addr(dstOffset), port(dportOffset))
	}
	attrs, err := nl.ParseRouteAttr(b[messageBytes:])
	if err != nil {
		return s, fmt.Errorf("attributes of a socket: %w", err)
	}
	var counters []byte
	for _, a := range attrs {
		switch a.Attr.Type {
		case netlink.INET_DIAG_SKV6ONLY:
			s.V6Only = len(a.Value) > 0 && a.Value[0] != 0
		case netlink.INET_DIAG_INFO:
			counters = a.Value
		}
	}
	s.Role = roleOf(&s, b[timerOffset], counters)
	return s, nil
}

func roleOf(s *tracer.Socket, timer uint8, counters []byte) tracer.Role {
	switch {
	case s.Proto == tracer.TCP && timer == timeWaitTimer && s.Inode == 0:
		return tracer.RoleTimeWait
	case s.State == tracer.StateListen:
		return tracer.RoleListener
	case s.State == tracer.StateUnconn:
		return tracer.RoleBound
	case s.Inode == 0:
		return tracer.RoleOrphan
	case s.Proto == tracer.UDP, s.State == tracer.StateSynSent:
		return tracer.RoleClient
	case s.State == tracer.StateSynRecv:
		return tracer.RoleServer
	}
	return connected(s.State, counters)
}

// connected tells which end of a connection called connect(), as sock_is_active of bpf/sock.h does: the
// SYN counts among the bytes acknowledged, of the end that sent it. While something is on its way the
// counters do not say how much.
func connected(state tracer.State, info []byte) tracer.Role {
	var c unix.TCPInfo
	if len(info) < int(unsafe.Offsetof(c.Bytes_retrans)+unsafe.Sizeof(c.Bytes_retrans)) { // before Linux 4.19
		return tracer.RoleUnknown
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&c)), unsafe.Sizeof(c)), info)
	if c.Unacked != 0 {
		return tracer.RoleUnknown
	}
	sequence, payload := c.Bytes_acked, c.Bytes_sent-c.Bytes_retrans
	fin := state == tracer.StateFinWait1 || state == tracer.StateFinWait2 || state == tracer.StateClosing || state == tracer.StateLastAck
	if fin && c.Notsent_bytes == 0 {
		sequence-- // the FIN
	}
	if sequence > payload {
		return tracer.RoleClient
	}
	return tracer.RoleServer
}
