package tracer

import (
	"net/netip"
	"syscall"
	"time"
)

// EventType says what happened to a socket.
type EventType uint8

// The events. What each means is part of the JSON contract (docs/json.md).
const (
	// EventBind: a local port was taken without a peer, by bind() or by the
	// kernel's own choice (Implicit), or was refused (Errno).
	EventBind EventType = iota + 1
	// EventListen: the socket listens, or was refused.
	EventListen
	// EventConnect: TCP: the local port is picked and the SYN about to leave, or
	// connect() was refused before that. UDP: a peer was set.
	EventConnect
	// EventAccept: a process took a connection from a listener.
	EventAccept
	// EventClose: the socket gave its port back, whatever ended it.
	EventClose
	// EventEstablished: a TCP handshake ended well. Only with Config.Established.
	EventEstablished

	// Not published: they only keep the table true.
	eventDown   // the connection ended, the socket keeps its port
	eventUnpeer // a UDP socket lost its peer, and keeps its port
)

var eventNames = [...]string{
	EventBind: "bind", EventListen: "listen", EventConnect: "connect", EventAccept: "accept",
	EventClose: "close", EventEstablished: "established", eventDown: "down", eventUnpeer: "unpeer",
}

// String returns the name the JSON contract gives the event.
func (t EventType) String() string { return nameOf(eventNames[:], int(t)) }

// EventTypes returns every published event type.
func EventTypes() []EventType {
	return []EventType{EventBind, EventListen, EventConnect, EventAccept, EventClose, EventEstablished}
}

// Proto is a transport protocol by its IANA number.
type Proto uint8

// The protocols porthole knows. MPTCP is TCP with Socket.MPTCP set.
const (
	TCP Proto = syscall.IPPROTO_TCP
	UDP Proto = syscall.IPPROTO_UDP
)

// String returns "tcp" or "udp".
func (p Proto) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// State is the state of a socket by the kernel's number (include/net/tcp_states.h).
// A UDP socket is StateEstablished with a peer and StateUnconn without.
type State uint8

// The states. Their names are those of ss(8).
const (
	StateEstablished = State(bpfTcpStateTCP_ESTABLISHED)
	StateSynSent     = State(bpfTcpStateTCP_SYN_SENT)
	StateSynRecv     = State(bpfTcpStateTCP_SYN_RECV)
	StateFinWait1    = State(bpfTcpStateTCP_FIN_WAIT1)
	StateFinWait2    = State(bpfTcpStateTCP_FIN_WAIT2)
	StateTimeWait    = State(bpfTcpStateTCP_TIME_WAIT)
	StateUnconn      = State(bpfTcpStateTCP_CLOSE)
	StateCloseWait   = State(bpfTcpStateTCP_CLOSE_WAIT)
	StateLastAck     = State(bpfTcpStateTCP_LAST_ACK)
	StateListen      = State(bpfTcpStateTCP_LISTEN)
	StateClosing     = State(bpfTcpStateTCP_CLOSING)
)

var stateNames = [...]string{
	StateEstablished: "ESTAB", StateSynSent: "SYN-SENT", StateSynRecv: "SYN-RECV", StateFinWait1: "FIN-WAIT-1",
	StateFinWait2: "FIN-WAIT-2", StateTimeWait: "TIME-WAIT", StateUnconn: "UNCONN", StateCloseWait: "CLOSE-WAIT",
	StateLastAck: "LAST-ACK", StateListen: "LISTEN", StateClosing: "CLOSING",
}

// String returns the name ss(8) gives the state.
func (s State) String() string { return nameOf(stateNames[:], int(s)) }

// States returns every state a Socket can have.
func States() []State {
	return []State{
		StateEstablished, StateSynSent, StateSynRecv, StateFinWait1, StateFinWait2, StateTimeWait,
		StateUnconn, StateCloseWait, StateLastAck, StateListen, StateClosing,
	}
}

// Role says what a socket is there for.
type Role uint8

// The roles.
const (
	RoleListener Role = iota + 1 // waits for connections
	RoleClient                   // called connect()
	RoleServer                   // came from a listener
	RoleBound                    // has a port and no peer
	RoleTimeWait                 // only the port is left, for up to a minute
	RoleOrphan                   // alive in the kernel; no process has it, or none has accepted it yet
	RoleUnknown                  // it cannot be told; of no Socket of this package
)

var roleNames = [...]string{
	RoleListener: "listener", RoleClient: "client", RoleServer: "server", RoleBound: "bound",
	RoleTimeWait: "time_wait", RoleOrphan: "orphan",
}

// String returns the name the JSON contract gives the role.
func (r Role) String() string { return nameOf(roleNames[:], int(r)) }

// Roles returns every role a Socket can have.
func Roles() []Role {
	return []Role{RoleListener, RoleClient, RoleServer, RoleBound, RoleTimeWait, RoleOrphan}
}

func nameOf(names []string, i int) string {
	if i < len(names) && names[i] != "" {
		return names[i]
	}
	return "unknown"
}

// Process is a process, not a thread: the thread group leader. PID and Start
// together are its identity, for pids are reused.
type Process struct {
	PID    uint32        // in the initial pid namespace; 0: not known
	UID    uint32        // real uid in the initial user namespace
	Start  time.Duration // start time on CLOCK_BOOTTIME
	Comm   string        // name of the leader, up to 15 bytes, any bytes
	Cgroup uint64        // cgroup v2 id
}

// Event is one thing that happened to one socket. Zero fields do not apply or
// are not known.
type Event struct {
	Time          time.Time      // wall clock, from the kernel's CLOCK_BOOTTIME at the hook
	Type          EventType      //
	Proto         Proto          //
	Local         netip.AddrPort // IPv4 as IPv4, also on IPv6 sockets; of a failed bind what was asked for
	Remote        netip.AddrPort // not valid where there is no peer
	RequestedPort uint16         // bind: the port asked for, 0 = any
	Implicit      bool           // bind: the kernel bound without bind()
	Errno         syscall.Errno  // 0 on success; of a close what ended the connection
	HeldBy        []Socket       // bind refused with EADDRINUSE: the first sockets in the way, 16 at most with 16 holders each
	HeldByMore    int            // how many more were seen in the way
	Process       Process        // who acted; of a close the owner of the socket
	NetNS         uint32         // inode number of the socket's network namespace
	NetNSCookie   uint64         // its cookie (SO_NETNS_COOKIE), which no other ever has; 0 before Linux 5.12
	Device        uint32         // index of the device the socket is bound to (SO_BINDTODEVICE, or a link-local scope); 0: none
	MPTCP         bool           // the TCP subflow of an MPTCP socket
	V6Only        bool           // bind, listen, close: IPV6_V6ONLY is set, as of Socket
	Duration      time.Duration  // close: how long the port was held; established: of the handshake
	TimeWait      bool           // close: the port stays taken in TIME_WAIT
	About         bool           // close: it was not seen, but what it left: Time is when it was at the latest, Duration at the longest
	Search        time.Duration  // connect of TCP: how long the kernel looked for a port; TierFentry only

	boot  uint64 // CLOCK_BOOTTIME, nanoseconds: orders events and snapshot rows
	sock  uint64 // address of the kernel's struct sock
	tw    uint64 // close, down: address of the timewait sock that keeps the port
	first uint64 // bind, connect of a further subflow of MPTCP: address of the first one's struct sock
	flags uint8  // bpfEventFlag
	asks  bool   // HeldBy is what the table knows: see completer
	role  Role   // as Role
	asked bool   // as Asked
	since uint64 // CLOCK_BOOTTIME of when the socket took its port, nanoseconds; 0: not known
	// change: 1: the socket listens since the event, as Socket.Listens has it, and did not; -1: not any more.
	change int8
}

// Listener tells what the event did to the listeners there are: 1: the socket became one, as
// Socket.Listens has it; -1: it is one no more.
func (ev *Event) Listener() int { return int(ev.change) }

// Boottime is what the kernel's CLOCK_BOOTTIME said at the hook: unlike Time it does not change when
// the clock is set. See Boottime.
func (ev *Event) Boottime() time.Duration { return time.Duration(ev.boot) }

// Role says what the socket is there for since the event, of a close what it was there for; 0 of a
// call that was refused.
func (ev *Event) Role() Role { return ev.role }

// Asked tells whether a bind() gave the socket its port, as far as that was seen.
func (ev *Event) Asked() bool { return ev.asked }

// Taken is what CLOCK_BOOTTIME said when the socket took its port; 0: that is not known. With the
// namespace, the protocol and the port it tells the events of one socket from those of others.
func (ev *Event) Taken() time.Duration { return time.Duration(ev.since) }

// ErrnoName returns the symbol of Errno ("EADDRINUSE"), "" on success.
func (ev *Event) ErrnoName() string { return errnoName(ev.Errno) }

// Origin says how porthole learnt of a socket.
type Origin uint8

// The origins.
const (
	OriginSnapshot Origin = iota // found in the kernel's tables; older than porthole, or not asked for events
	OriginObserved               // its first event was seen
)

// String returns "snapshot" or "observed".
func (o Origin) String() string {
	if o == OriginObserved {
		return "observed"
	}
	return "snapshot"
}

// Holder is a file descriptor of a process that refers to a socket.
type Holder struct {
	Process
	FD uint32
	// Ring: FD is that of an io_uring, with which the socket is registered.
	Ring bool
}

// Backlog is the queue of connections that a TCP listener has not accepted yet.
type Backlog struct {
	Waiting uint32 // it is full once there are more than Max
	Max     uint32 // what listen() asked for, at most net.core.somaxconn
	Known   bool   // it was read
}

// Socket is a kernel socket that has a port.
type Socket struct {
	Proto  Proto
	State  State
	Role   Role
	Local  netip.AddrPort
	Remote netip.AddrPort // not valid where there is no peer
	NetNS  uint32         // inode number of its network namespace: the next one may get it
	// NetNSCookie is the namespace's cookie (SO_NETNS_COOKIE), which no other ever has; 0 before Linux 5.12.
	NetNSCookie uint64
	Device      uint32 // index of the device it is bound to, in its namespace (SO_BINDTODEVICE, or a link-local scope); 0: none
	Inode       uint64 // as in /proc/PID/fd; 0: no file refers to it, or not known
	UID         uint32 // owner of the socket
	MPTCP       bool
	V6Only      bool    // IPV6_V6ONLY, which bind() to one IPv6 address sets too
	ReuseAddr   bool    // SO_REUSEADDR
	ReusePort   bool    // SO_REUSEPORT
	FixedPort   bool    // UDP: bound to a port that was asked for by its number; in no snapshot of PortsOf
	Backlog     Backlog // of a listener, at the last snapshot
	// Cgroup is the id of the cgroup that a TCP listener was made in, which need not be that of
	// who holds it; 0: not known.
	Cgroup  uint64
	Owner   Process  // who bound, connected or accepted it, where observed
	Holders []Holder // every descriptor that refers to it, at the last snapshot; see HoldersMore
	// HoldersMore is how many more descriptors refer to it. Not 0 only where there are very
	// many: 16 of each socket have room, and 65,536 besides.
	HoldersMore int
	NoHolder    NoHolder  // why no process has a descriptor; of a Snapshot
	Since       time.Time // when it took its port, where observed
	Origin      Origin

	OwnerStatus OwnerStatus // known after OwnerLookup.Set alone

	id       uint64 // address of the kernel's struct sock
	attached bool   // a struct socket is attached: not orphaned, nor in an accept queue
	asked    bool   // as Asked
	taken    uint64 // as Taken
	late     bool   // the Owner may be newer than the Holders
	stamp    uint64 // CLOCK_BOOTTIME of the last word about it, nanoseconds
}

// Listens tells whether others may begin to talk to the socket: a TCP listener, or a UDP socket without a
// peer on a port that was asked for by its number. Others that have no peer are mostly clients, which the
// kernel gave a port with their first datagram.
func (s *Socket) Listens() bool { return listens(s.Proto, s.Role, s.FixedPort) }

func listens(proto Proto, role Role, fixed bool) bool {
	return role == RoleListener || role == RoleBound && proto == UDP && fixed
}

// Asked tells, of a socket of the Table, whether a bind() gave it its port, as far as that was seen.
func (s *Socket) Asked() bool { return s.asked }

// Taken is Since of a socket of the Table by CLOCK_BOOTTIME; 0: not observed.
func (s *Socket) Taken() time.Duration { return time.Duration(s.taken) }
