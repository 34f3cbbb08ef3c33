package tracer

import (
	"errors"
	"net/netip"
)

// PortOp is a way to get a port from the kernel.
type PortOp uint8

// The ways. Their names are those of the JSON contract and of metrics.
const (
	OpConnect      PortOp = iota + 1 // TCP connect() of a socket without a port
	OpBind                           // bind() to port 0
	OpImplicitBind                   // the first datagram or connect() of a UDP socket without a port
	OpListen                         // listen(), only in Failure
)

var opNames = [...]string{OpConnect: "connect", OpBind: "bind", OpImplicitBind: "implicit_bind", OpListen: "listen"}

// String returns the name the JSON contract gives the way.
func (o PortOp) String() string { return nameOf(opNames[:], int(o)) }

// PortUser is a process and how many ephemeral ports it has. PID 0: nobody is known
// to have them.
type PortUser struct {
	Process
	Ports int
}

// PortSpace is the ephemeral ports of one network namespace for one protocol.
type PortSpace struct {
	NetNS     uint32
	Proto     Proto
	Low, High uint16 // net.ipv4.ip_local_port_range, both ends included
	Reserved  int    // ports of the range that are in ip_local_reserved_ports
	Capacity  int    // ports of the range that are not
	// Blocked ports no connect() may use, towards whatever destination, for a socket
	// bound or listens there; 0 for UDP.
	Blocked   int
	BlockedBy []PortUser // who has them, most first
	Listeners []PortUser // who listens inside the range, most first; subset of BlockedBy
	ListenOn  []uint16   // the ports they listen on, ascending
}

// Headroom is how many ports one way of getting one has left, at one moment.
// Capacity = Used + Blocked + Free.
type Headroom struct {
	PortSpace
	Op       PortOp
	Local    netip.Addr     // the address of this side; of OpBind what is bound to
	Remote   netip.AddrPort // OpConnect: the destination
	Used     int            // taken, for this way; TIME_WAIT that cannot be reused included
	TimeWait int            // how many of Used are in TIME_WAIT and have no other user
	Free     int            // how many calls in a row would succeed now
	// MaybeOneLess: the range has an odd number of ports, of which the kernel looks at
	// all but one: the last Free port may not be found.
	MaybeOneLess bool
	Holders      []PortUser // who has the Used ports, most first
}

// Utilization is the share of Capacity that is not Free, 0 to 1; of no capacity
// it is 1.
func (h *Headroom) Utilization() float64 {
	if h.Capacity == 0 {
		return 1
	}
	return 1 - float64(h.Free)/float64(h.Capacity)
}

// ErrNoNetNS: there is no network namespace with this inode number.
var ErrNoNetNS = errors.New("no such network namespace")

// Ports is every use of an ephemeral port of the machine at one moment, and the
// settings of every network namespace.
type Ports struct{}

// Spaces returns the port spaces of every namespace, TCP and UDP, ordered by
// namespace and protocol.
func (p *Ports) Spaces() []PortSpace { return nil }

// All returns the headroom towards every destination that has a connection
// (OpConnect), of every local address that has a socket (OpBind), and of UDP
// (OpImplicitBind), the fullest first.
func (p *Ports) All() []Headroom { return nil }

// Connect returns the headroom towards one destination, which need not have a
// connection. The error is ErrNoNetNS.
func (p *Ports) Connect(netns uint32, local netip.Addr, remote netip.AddrPort) (Headroom, error) {
	return Headroom{}, ErrNoNetNS
}
