package tracer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"
)

// decoder turns bytes of the ring buffer into events. It keeps the process
// names it has seen, so that a name costs memory once.
type decoder struct {
	comms map[[16]byte]string
	raw   bpfEvent // the record being decoded; of a short one the tail is an older one's
}

const maxComms = 4096

func newDecoder() *decoder { return &decoder{comms: make(map[[16]byte]string)} }

func (d *decoder) comm(raw *[16]byte) string {
	if s, ok := d.comms[*raw]; ok {
		return s
	}
	if len(d.comms) >= maxComms {
		clear(d.comms)
	}
	name, _, _ := bytes.Cut(raw[:], []byte{0})
	s := string(name)
	d.comms[*raw] = s
	return s
}

func (d *decoder) process(p *bpfProcess) Process {
	return Process{PID: p.Pid, UID: p.Uid, Start: time.Duration(p.StartNs), Comm: d.comm(&p.Comm), Cgroup: p.Cgroup}
}

// addrPort gives an IPv4-mapped address as IPv4.
func addrPort(ip [16]byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(ip).Unmap(), port)
}

// peer is addrPort, but not valid where there is no peer: all zero, for a peer's port may
// be 0.
func peer(ip [16]byte, port uint16) netip.AddrPort {
	if port == 0 && ip == [16]byte{} {
		return netip.AddrPort{}
	}
	return addrPort(ip, port)
}

// flowOf packs both ends of a socket, the reverse of addrPort and peer.
func flowOf(local, remote netip.AddrPort) bpfFlow {
	return bpfFlow{
		LocalIp: local.Addr().As16(), LocalPort: local.Port(),
		RemoteIp: remote.Addr().As16(), RemotePort: remote.Port(),
	}
}

// flow packs both ends of the socket and where it lives.
func (ev *Event) flow() bpfFlow {
	f := flowOf(ev.Local, ev.Remote)
	f.Netns, f.NetnsCookie, f.Dev = ev.NetNS, ev.NetNSCookie, ev.Device
	return f
}

// flow packs both ends of the socket and where it lives.
func (s *Socket) flow() bpfFlow {
	f := flowOf(s.Local, s.Remote)
	f.Netns, f.NetnsCookie, f.Dev = s.NetNS, s.NetNSCookie, s.Device
	return f
}

// packProcess is the reverse of decoder.process.
func packProcess(p *Process) bpfProcess {
	packed := bpfProcess{StartNs: uint64(p.Start), Cgroup: p.Cgroup, Pid: p.PID, Uid: p.UID}
	copy(packed.Comm[:], p.Comm)
	return packed
}

// wallTime is the reverse of UnixNano; 0 is the zero time.
func wallTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// unixNano is the reverse of wallTime.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

const (
	fullEvent  = int(unsafe.Sizeof(bpfEvent{}))
	shortEvent = int(unsafe.Offsetof(bpfEvent{}.Flow)) // EVENT_SHORT
)

// isShort tells whether the kernel sends events of a type without flow and
// process.
func isShort(t EventType) bool { return t == EventClose || t == eventDown || t == eventUnpeer }

// event decodes one record into ev, overwriting it. booted is the wall-clock
// time of CLOCK_BOOTTIME zero.
func (d *decoder) event(record []byte, booted time.Time, ev *Event) error {
	if len(record) != shortEvent && len(record) != fullEvent {
		return fmt.Errorf("decode event: %d bytes, want %d or %d", len(record), shortEvent, fullEvent)
	}
	raw := &d.raw // a short record is not a bpfEvent, and need not be aligned like one
	copy(unsafe.Slice((*byte)(unsafe.Pointer(raw)), fullEvent), record)
	if raw.Type < uint8(EventBind) || raw.Type > uint8(eventUnpeer) {
		return fmt.Errorf("decode event: unknown type %d", raw.Type)
	}
	if raw.Proto != uint8(TCP) && raw.Proto != uint8(UDP) {
		return fmt.Errorf("decode event: unknown protocol %d", raw.Proto)
	}
	*ev = Event{
		Time:          booted.Add(time.Duration(raw.TimeNs)),
		Type:          EventType(raw.Type),
		Proto:         Proto(raw.Proto),
		RequestedPort: raw.RequestedPort,
		Implicit:      raw.Flags&uint8(bpfEventFlagEVENT_IMPLICIT) != 0,
		MPTCP:         raw.Flags&uint8(bpfEventFlagEVENT_MPTCP) != 0,
		V6Only:        raw.Flags&uint8(bpfEventFlagEVENT_V6ONLY) != 0,
		Errno:         syscall.Errno(raw.Error),
		boot:          raw.TimeNs,
		sock:          raw.Sock,
		flags:         raw.Flags,
	}
	switch {
	case (ev.Type == EventConnect || ev.Type == EventBind) && raw.Process.Pid == 0:
		ev.first = raw.Detail
	case ev.Type == EventConnect:
		ev.Search = time.Duration(raw.Detail)
	default:
		ev.tw, ev.TimeWait = raw.Detail, raw.Detail != 0
	}
	if short := len(record) == shortEvent; short != isShort(ev.Type) {
		return fmt.Errorf("decode event: %d bytes for %s", len(record), ev.Type)
	} else if short {
		ev.Local, ev.RequestedPort = netip.AddrPortFrom(netip.Addr{}, raw.RequestedPort), 0
		return nil
	}
	ev.Local = addrPort(raw.Flow.LocalIp, raw.Flow.LocalPort)
	if hasPeer := ev.Type != EventBind && ev.Type != EventListen; hasPeer || raw.Flow.RemotePort != 0 {
		ev.Remote = addrPort(raw.Flow.RemoteIp, raw.Flow.RemotePort)
	}
	ev.NetNS, ev.NetNSCookie, ev.Device = raw.Flow.Netns, raw.Flow.NetnsCookie, raw.Flow.Dev
	ev.Process = d.process(&raw.Process)
	return nil
}

// socketOf decodes a row of the walk.
func socketOf(raw *bpfRow) Socket {
	return Socket{
		Proto:     Proto(raw.Proto),
		State:     stateOf(raw),
		Role:      roleOf(raw),
		Local:     addrPort(raw.Flow.LocalIp, raw.Flow.LocalPort),
		Remote:    remoteOf(raw),
		NetNS:     raw.Flow.Netns,
		Device:    raw.Flow.Dev,
		UID:       raw.Uid,
		MPTCP:     has(raw, bpfRowFlagROW_MPTCP),
		V6Only:    has(raw, bpfRowFlagROW_V6ONLY),
		ReuseAddr: has(raw, bpfRowFlagROW_REUSEADDR),
		ReusePort: has(raw, bpfRowFlagROW_REUSEPORT),
		Origin:    OriginSnapshot,
		id:        raw.Sock,
		Inode:     raw.Inode,
		Backlog:   backlogOf(raw),
		Cgroup:    cgroupOf(raw),
		attached:  has(raw, bpfRowFlagROW_SOCKET),
		FixedPort: has(raw, bpfRowFlagROW_FIXED),
		stamp:     raw.TimeNs,

		NetNSCookie: raw.Flow.NetnsCookie,
	}
}

func has(raw *bpfRow, f bpfRowFlag) bool { return raw.Flags&uint16(f) != 0 }

func stateOf(raw *bpfRow) State {
	if raw.State == uint8(bpfTcpStateTCP_NEW_SYN_RECV) {
		return StateSynRecv
	}
	return State(raw.State)
}

func roleOf(raw *bpfRow) Role {
	switch state := stateOf(raw); {
	case has(raw, bpfRowFlagROW_TIMEWAIT):
		return RoleTimeWait
	case state == StateListen:
		return RoleListener
	case state == StateUnconn:
		return RoleBound
	case !has(raw, bpfRowFlagROW_SOCKET):
		return RoleOrphan
	case raw.Proto == uint8(UDP) || has(raw, bpfRowFlagROW_ACTIVE):
		return RoleClient
	}
	return RoleServer
}

// isListener tells whether remote_ip of a row is a struct backlog of bpf/rows.h.
func isListener(raw *bpfRow) bool { return Proto(raw.Proto) == TCP && stateOf(raw) == StateListen }

// cgroupOf reads the cgroup that a TCP listener was made in.
func cgroupOf(raw *bpfRow) uint64 {
	if !isListener(raw) {
		return 0
	}
	return binary.NativeEndian.Uint64(raw.Flow.RemoteIp[8:])
}

// backlogOf reads the queue of a TCP listener.
func backlogOf(raw *bpfRow) Backlog {
	if !isListener(raw) {
		return Backlog{}
	}
	ip := &raw.Flow.RemoteIp
	return Backlog{Waiting: binary.NativeEndian.Uint32(ip[:]), Max: binary.NativeEndian.Uint32(ip[4:]), Known: true}
}

// remoteOf is the remote end; not valid of a socket that has none by its state.
func remoteOf(raw *bpfRow) netip.AddrPort {
	if state := stateOf(raw); state == StateUnconn || state == StateListen {
		return netip.AddrPort{}
	}
	return addrPort(raw.Flow.RemoteIp, raw.Flow.RemotePort)
}
