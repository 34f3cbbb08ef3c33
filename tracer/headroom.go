package tracer

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
)

// PortOp is a way to get a port from the kernel.
type PortOp uint8

// The ways. Their names are those of the JSON contract and of metrics.
const (
	OpConnect      PortOp = iota + 1 // TCP connect() of a socket without a port
	OpBind                           // bind() to port 0
	OpImplicitBind                   // the first datagram or connect() of a UDP socket without a port
	OpListen                         // listen(), only in Failure
	OpConnectBound                   // TCP connect() of a socket with a port whose pair of ends is taken, only in Failure
)

var opNames = [...]string{OpConnect: "connect", OpBind: "bind", OpImplicitBind: "implicit_bind", OpListen: "listen", OpConnectBound: "connect_bound"}

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
	NetNS uint32 // inode number
	// NetNSCookie is the namespace's cookie (SO_NETNS_COOKIE), which no other ever has; 0 before Linux 5.12.
	NetNSCookie uint64
	Proto       Proto
	Low, High   uint16 // net.ipv4.ip_local_port_range, both ends included
	Reserved    int    // ports of the range that are in ip_local_reserved_ports
	Capacity    int    // ports of the range that are not
	// ReservedPorts is all of ip_local_reserved_ports, as that shows it.
	ReservedPorts string
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
	Remote   netip.AddrPort // OpConnect: the destination; not valid: any without a connection
	Device   uint32         // index of the device of sockets that are bound to one; 0: of those that are not
	Used     int            // taken, for this way; TIME_WAIT that cannot be reused included
	TimeWait int            // how many of Used are in TIME_WAIT and have no other user
	Free     int            // how many calls in a row would succeed now
	// Reclaimable is how many of TimeWait connect() would take over if tcp_tw_reuse
	// were 1.
	Reclaimable int
	// MaybeOneLess: the range has an odd number of ports, of which the kernel looks at
	// all but one: the last Free port may not be found. Not known beforehand, for which
	// one it leaves out depends on a secret of the kernel.
	MaybeOneLess bool
	Holders      []PortUser // who has the Used ports, most first
}

func (s *PortSpace) netNS() NetNS { return NetNS{s.NetNS, s.NetNSCookie} }

// Utilization is the share of Capacity that is not Free, 0 to 1; of no capacity
// it is 1.
func (h *Headroom) Utilization() float64 {
	if h.Capacity == 0 {
		return 1
	}
	return 1 - float64(h.Free)/float64(h.Capacity)
}

// DeviceID is Device; Index 0: it is of sockets that are bound to none.
func (h *Headroom) DeviceID() DeviceID { return DeviceID{h.NetNS, h.NetNSCookie, h.Device} }

// NetNS is which network namespace. No other ever has its cookie (SO_NETNS_COOKIE), which
// is 0 before Linux 5.12; its inode number is given to the next once it is gone.
type NetNS struct {
	Inode  uint32
	Cookie uint64
}

// ErrNoNetNS reports that there is no network namespace with this inode number.
var ErrNoNetNS = errors.New("no such network namespace")

// Ports is every use of an ephemeral port of the machine at one moment, and the
// settings of every network namespace. What it computes from them is what the
// kernel's __inet_hash_connect(), inet_csk_find_open_port() and udp_lib_get_port()
// would find, for sockets without options, bound to no device or to one that is in no VRF.
type Ports struct {
	spaces map[NetNS]*space
	found  []NetNS           // of spaces, as they were read
	newest map[uint32]*space // by inode number: one that went away meanwhile may have had it too
	names  func() (Devices, error)
	procs  []Process // what users of the spaces point to; the first is nobody
	procOf map[processID]int
}

// space is one namespace.
type space struct {
	netns     NetNS
	low, high uint16
	reserved  [1024]uint64
	twReuse   uint32
	words     int // of a portSet

	dests     map[destination]*dest
	blocked   portSet // TCP: bound to, so not for connect()
	blockedBy []holding
	listening []holding
	owners    map[Proto]map[boundTo]*taken
	devices   []uint32 // those of owners, none (0) among them
}

// destination is both addresses as the kernel's rows have them, and the remote port.
type destination struct {
	local, remote [16]byte
	port          uint16
}

// dest is the ports in use towards a destination, by sockets that are bound to no device:
// nobody else may use them.
type dest struct {
	used, timeWait, reclaimable int
	lowUsed, highUsed           bool
	users                       []PortUser
	ports                       []uint16 // used
	// bound are the ports of sockets that are bound to a device. They are in use for
	// others of that device alone, who may not have those above either.
	bound map[uint32][]boundUse
}

// boundUse is a port of a socket that is bound to a device.
type boundUse struct {
	row   bpfRow
	procs []int
}

// holding is a port of a process: the port, and in the lower half an index into
// procs.
type holding uint64

func holdingOf(port uint16, proc int) holding { return holding(port)<<32 | holding(proc) }
func (h holding) port() uint16                { return uint16(h >> 32) }
func (h holding) proc() int                   { return int(uint32(h)) }

// boundTo is what decides whether two sockets may have the same port.
type boundTo struct {
	addr   [16]byte // as the kernel's rows have it
	v6only bool
	device uint32
}

// taken is the ports that sockets with the same boundTo have.
type taken struct {
	all, live portSet // live: without those in TIME_WAIT
	users     []holding
}

type processID struct {
	pid   uint32
	start int64
}

// portSet is a set of ports of a range, bit 0 is the lowest.
type portSet []uint64

func (s portSet) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s portSet) has(i int) bool { return s != nil && s[i/64]&(1<<(i%64)) != 0 }

func (s portSet) len() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s portSet) or(other portSet) {
	for i, w := range other {
		s[i] |= w
	}
}

func newPorts() *Ports {
	return &Ports{spaces: make(map[NetNS]*space), newest: make(map[uint32]*space), procs: []Process{{}}, procOf: map[processID]int{{}: 0}}
}

// addSpace takes a namespace's settings. All of them come before the first owner.
func (p *Ports) addSpace(row *bpfNetnsRow) {
	if row.Low == 0 || row.Low > row.High {
		return // being set up
	}
	s := &space{
		netns: NetNS{row.Netns, row.Cookie}, low: row.Low, high: row.High, reserved: row.Reserved, twReuse: row.TwReuse,
		words: (int(row.High)-int(row.Low))/64 + 1,
		dests: make(map[destination]*dest), owners: map[Proto]map[boundTo]*taken{TCP: {}, UDP: {}},
		devices: []uint32{0},
	}
	p.spaces[s.netns], p.newest[row.Netns] = s, s
	p.found = append(p.found, s.netns)
}

func (s *space) isReserved(port uint16) bool { return s.reserved[port/64]&(1<<(port%64)) != 0 }

// proc is the index of a process.
func (p *Ports) proc(of Process) int {
	id := processID{of.PID, int64(of.Start)}
	i, ok := p.procOf[id]
	if !ok {
		i = len(p.procs)
		p.procs = append(p.procs, of)
		p.procOf[id] = i
	}
	return i
}

// addOwner takes one socket or timewait sock with a port; by are the processes that
// have it, or left it in TIME_WAIT.
func (p *Ports) addOwner(row *bpfRow, by []Process) {
	s := p.spaces[NetNS{row.Flow.Netns, row.Flow.NetnsCookie}]
	port := row.Flow.LocalPort
	if s == nil || port < s.low || port > s.high || s.isReserved(port) {
		return
	}
	procs := make([]int, 0, 4)
	for _, process := range by {
		if i := p.proc(process); !slices.Contains(procs, i) {
			procs = append(procs, i) // once, however many descriptors
		}
	}
	if len(procs) == 0 {
		procs = append(procs, 0)
	}
	s.take(row, procs)
	if row.Proto != uint8(TCP) {
		return
	}
	connected := has(row, bpfRowFlagROW_CONNECTED)
	if !connected {
		s.block(row, procs)
	}
	if row.Flow.RemotePort == 0 || !connected && !has(row, bpfRowFlagROW_ACTIVE) {
		return // no connection, or one that came from a listener
	}
	key := destination{row.Flow.LocalIp, row.Flow.RemoteIp, row.Flow.RemotePort}
	d := s.dests[key]
	if d == nil {
		d = new(dest)
		s.dests[key] = d
	}
	inUse := connected && !s.reusable(row)
	switch dev := row.Flow.Dev; {
	case dev != 0:
		if d.bound == nil {
			d.bound = make(map[uint32][]boundUse)
		}
		uses := d.bound[dev]
		if inUse {
			uses = append(uses, boundUse{*row, procs})
		}
		d.bound[dev] = uses
	case inUse:
		p.use(d, s, row, procs)
	}
}

// use counts a port that connect() finds in use towards its destination.
func (p *Ports) use(d *dest, s *space, row *bpfRow, procs []int) {
	d.used++
	d.ports = append(d.ports, row.Flow.LocalPort)
	if has(row, bpfRowFlagROW_TIMEWAIT) {
		d.timeWait++
		if aged(row) {
			d.reclaimable++
		}
	}
	d.lowUsed = d.lowUsed || row.Flow.LocalPort == s.low
	d.highUsed = d.highUsed || row.Flow.LocalPort == s.high
	for _, i := range procs {
		d.users = addUser(d.users, p.procs[i])
	}
}

// seenFrom is what a socket that is bound to a device finds in use towards a destination,
// as inet_sk_bound_dev_eq() of the kernel decides: the ports of its device's sockets, and
// those of sockets that are bound to none.
func (p *Ports) seenFrom(s *space, d *dest, dev uint32) *dest {
	if d == nil || dev == 0 || len(d.bound[dev]) == 0 {
		return d
	}
	out := *d
	out.users, out.ports = slices.Clone(d.users), nil
	seen := make(map[uint16]bool, len(d.ports)) // an unbound socket may share a port with one of a device, if that was first
	for _, port := range d.ports {
		seen[port] = true
	}
	for i := range d.bound[dev] {
		if b := &d.bound[dev][i]; !seen[b.row.Flow.LocalPort] {
			p.use(&out, s, &b.row, b.procs)
		}
	}
	return &out
}

func addUser(users []PortUser, process Process) []PortUser {
	for i := range users {
		if users[i].PID == process.PID && users[i].Start == process.Start {
			users[i].Ports++
			return users
		}
	}
	return append(users, PortUser{process, 1})
}

// reusable tells whether connect() takes over the port of a timewait sock:
// tcp_twsk_unique() of the kernel.
func (s *space) reusable(row *bpfRow) bool {
	switch {
	case !aged(row):
		return false
	case s.twReuse == 2:
		const loopbackIndex = 1
		local, remote := addrPort(row.Flow.LocalIp, 0).Addr(), addrPort(row.Flow.RemoteIp, 0).Addr()
		return row.Flow.Dev == loopbackIndex || local.IsLoopback() || remote.IsLoopback()
	}
	return s.twReuse == 1
}

// aged tells whether a socket is a timewait sock that may be taken over, if
// tcp_tw_reuse allows it. Not in FIN_WAIT2: since 6.12, and since the stable releases of
// 2024 of older kernels.
func aged(row *bpfRow) bool {
	const both = uint16(bpfRowFlagROW_TIMEWAIT | bpfRowFlagROW_TW_AGED)
	return row.Flags&both == both && row.State != uint8(StateFinWait2)
}

// take marks the port as one that bind() to what conflicts with row would not get.
func (s *space) take(row *bpfRow, procs []int) {
	owners := s.owners[Proto(row.Proto)]
	key := boundTo{row.Flow.LocalIp, has(row, bpfRowFlagROW_V6ONLY), row.Flow.Dev}
	t := owners[key]
	if t == nil {
		if !slices.Contains(s.devices, key.device) {
			s.devices = append(s.devices, key.device)
		}
		t = &taken{all: make(portSet, s.words), live: make(portSet, s.words)}
		owners[key] = t
	}
	i := int(row.Flow.LocalPort - s.low)
	t.all.add(i)
	if !has(row, bpfRowFlagROW_TIMEWAIT) {
		t.live.add(i)
	}
	t.users = addHoldings(t.users, row.Flow.LocalPort, procs)
}

// block marks the port as one connect() must leave alone.
func (s *space) block(row *bpfRow, procs []int) {
	if s.blocked == nil {
		s.blocked = make(portSet, s.words)
	}
	s.blocked.add(int(row.Flow.LocalPort - s.low))
	s.blockedBy = addHoldings(s.blockedBy, row.Flow.LocalPort, procs)
	if row.State == uint8(StateListen) {
		s.listening = addHoldings(s.listening, row.Flow.LocalPort, procs)
	}
}

// addHoldings adds a port, unless it is one of the last added: the owners of a port
// come one after the other.
func addHoldings(to []holding, port uint16, procs []int) []holding {
next:
	for _, proc := range procs {
		h := holdingOf(port, proc)
		for i := len(to) - 1; i >= 0 && to[i].port() == port; i-- {
			if to[i] == h {
				continue next
			}
		}
		to = append(to, h)
	}
	return to
}

// Devices reads the names of the network devices there are now: see Snapshotter.Devices.
func (p *Ports) Devices() (Devices, error) { return p.names() }

// NetNamespaces returns every network namespace there was, of one inode number the newest
// last.
func (p *Ports) NetNamespaces() []NetNS { return slices.Clone(p.found) }

// Spaces returns the port spaces of every namespace, TCP and UDP, ordered by
// namespace and protocol.
func (p *Ports) Spaces() []PortSpace {
	out := make([]PortSpace, 0, 2*len(p.spaces))
	for _, s := range p.sorted() {
		out = append(out, p.space(s, TCP), p.space(s, UDP))
	}
	return out
}

func (p *Ports) sorted() []*space {
	out := make([]*space, 0, len(p.spaces))
	for _, s := range p.spaces {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *space) int { return compareNetNS(a.netns, b.netns) })
	return out
}

func compareNetNS(a, b NetNS) int {
	return cmp.Or(cmp.Compare(a.Inode, b.Inode), cmp.Compare(a.Cookie, b.Cookie))
}

func (p *Ports) space(s *space, proto Proto) PortSpace {
	out := PortSpace{NetNS: s.netns.Inode, NetNSCookie: s.netns.Cookie, Proto: proto, Low: s.low, High: s.high}
	out.Reserved, out.ReservedPorts = s.reservedPorts()
	out.Capacity = s.size() - out.Reserved
	if proto == TCP {
		out.Blocked = s.blocked.len()
		out.BlockedBy = p.users(s.blockedBy)
		out.Listeners = p.users(s.listening)
		for _, h := range s.listening {
			out.ListenOn = append(out.ListenOn, h.port())
		}
		slices.Sort(out.ListenOn)
		out.ListenOn = slices.Compact(out.ListenOn)
	}
	return out
}

// reservedPorts returns how many ports of the range are reserved, and all that are.
func (s *space) reservedPorts() (n int, text string) {
	for port := 0; port < 1<<16; port++ {
		if s.reserved[port/64]>>(port%64) == 0 { // nor any other of this word
			port |= 63
			continue
		}
		if !s.isReserved(uint16(port)) {
			continue
		}
		first := port
		for port < 1<<16-1 && s.isReserved(uint16(port+1)) {
			port++
		}
		n += max(0, min(port, int(s.high))-max(first, int(s.low))+1)
		if text != "" {
			text += ","
		}
		if text += strconv.Itoa(first); port > first {
			text += "-" + strconv.Itoa(port)
		}
	}
	return n, text
}

func (s *space) size() int { return int(s.high) - int(s.low) + 1 }

// users adds holdings up by process, most ports first. Those of a port stand together;
// where a process is known to have it, nobody counts not.
func (p *Ports) users(holdings []holding) []PortUser {
	counts := make([]int, len(p.procs))
	for i := 0; i < len(holdings); {
		known, first := false, i
		for ; i < len(holdings) && holdings[i].port() == holdings[first].port(); i++ {
			if proc := holdings[i].proc(); proc != 0 {
				known = true
				counts[proc]++
			}
		}
		if !known {
			counts[0]++
		}
	}
	var out []PortUser
	for proc, n := range counts {
		if n > 0 {
			out = append(out, PortUser{p.procs[proc], n})
		}
	}
	sortUsers(out)
	return out
}

func sortUsers(users []PortUser) {
	slices.SortFunc(users, func(a, b PortUser) int {
		return cmp.Or(cmp.Compare(b.Ports, a.Ports), cmp.Compare(a.PID, b.PID))
	})
}

// All returns the headroom towards every destination that has a connection, and
// towards any other (OpConnect), of every local address that has a socket (OpBind) and of any address,
// and of UDP (OpImplicitBind), the fullest first. A destination is there once for sockets
// that are bound to no device, unless it is link-local, and once for each device that has
// connections to it.
func (p *Ports) All() []Headroom {
	var out []Headroom
	for _, s := range p.sorted() {
		tcp, udp := p.space(s, TCP), p.space(s, UDP)
		out = append(out, p.connect(s, tcp, nil))
		for key, d := range s.dests {
			for _, dev := range key.devices(d) {
				h := p.connect(s, tcp, p.seenFrom(s, d, dev))
				h.Local, h.Remote, h.Device = addrPort(key.local, 0).Addr(), addrPort(key.remote, key.port), dev
				out = append(out, h)
			}
		}
		for _, space := range []PortSpace{tcp, udp} {
			for _, at := range s.locals(space.Proto) {
				out = append(out, p.bind(s, space, OpBind, at.addr, at.device))
			}
		}
		for _, local := range anyAddress() {
			out = append(out, p.bind(s, udp, OpImplicitBind, local, 0))
		}
	}
	slices.SortFunc(out, compareHeadroom)
	return out
}

// devices are those from which a destination is told of; 0 is none.
func (key destination) devices(d *dest) []uint32 {
	var out []uint32
	if !IsScoped(addrPort(key.local, 0).Addr()) && !IsScoped(addrPort(key.remote, 0).Addr()) {
		out = append(out, 0)
	}
	for dev := range d.bound {
		out = append(out, dev)
	}
	return out
}

// IsScoped tells whether an address counts on one device alone: the kernel binds who uses
// it to that device.
func IsScoped(addr netip.Addr) bool { return addr.Is6() && addr.IsLinkLocalUnicast() }

func anyAddress() []netip.Addr { return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} }

func compareHeadroom(a, b Headroom) int {
	return cmp.Or(
		cmp.Compare(b.Utilization(), a.Utilization()), cmp.Compare(b.Used, a.Used), compareNetNS(a.netNS(), b.netNS()),
		cmp.Compare(a.Op, b.Op), cmp.Compare(a.Proto, b.Proto), a.Local.Compare(b.Local), a.Remote.Compare(b.Remote),
		cmp.Compare(a.Device, b.Device))
}

// place is an address, and if that is link-local its device.
type place struct {
	addr   netip.Addr
	device uint32
}

// locals are the addresses that have a socket, and any address.
func (s *space) locals(proto Proto) []place {
	var out []place
	for _, addr := range anyAddress() {
		out = append(out, place{addr, 0})
	}
	for key := range s.owners[proto] {
		at := place{addrPort(key.addr, 0).Addr(), 0}
		if IsScoped(at.addr) {
			at.device = key.device
		}
		if !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return out
}

// Connect returns the headroom from a local address to one destination, which need
// not have a connection, for sockets that are bound to a device, as those with a link-local
// address always are; 0: to none. The error wraps ErrNoNetNS.
func (p *Ports) Connect(netns uint32, local netip.Addr, remote netip.AddrPort, device uint32) (Headroom, error) {
	s := p.newest[netns]
	if s == nil {
		return Headroom{}, fmt.Errorf("%w: inode number %d", ErrNoNetNS, netns)
	}
	d := s.dests[destination{local.As16(), remote.Addr().As16(), remote.Port()}]
	h := p.connect(s, p.space(s, TCP), p.seenFrom(s, d, device))
	h.Local, h.Remote, h.Device = local.WithZone(""), netip.AddrPortFrom(remote.Addr().WithZone(""), remote.Port()), device
	return h, nil
}

// Bind returns the headroom of bind(addr, 0), or with OpImplicitBind of the port that a
// UDP socket gets by itself, which ignores other addresses than any, for sockets that are
// bound to a device; 0: to none. The error wraps ErrNoNetNS.
func (p *Ports) Bind(netns uint32, proto Proto, op PortOp, local netip.Addr, device uint32) (Headroom, error) {
	s := p.newest[netns]
	if s == nil {
		return Headroom{}, fmt.Errorf("%w: inode number %d", ErrNoNetNS, netns)
	}
	return p.bind(s, p.space(s, proto), op, local.Unmap().WithZone(""), device), nil
}

// connect is the headroom towards a destination, nil: one without a connection.
func (p *Ports) connect(s *space, space PortSpace, d *dest) Headroom {
	if d == nil {
		d = new(dest)
	}
	h := Headroom{
		PortSpace: space, Op: OpConnect, Used: d.used, TimeWait: d.timeWait, Reclaimable: d.reclaimable, Holders: slices.Clone(d.users),
	}
	sortUsers(h.Holders)
	h.Free = h.Capacity - h.Blocked - h.Used
	usable := func(port uint16, used bool) bool {
		return !used && !s.isReserved(port) && !s.blocked.has(int(port-s.low))
	}
	h.MaybeOneLess = s.odd() && (usable(s.low, d.lowUsed) || usable(s.high, d.highUsed))
	return h
}

// odd: of such a range connect() and bind() try all ports but one, the first or the
// last.
func (s *space) odd() bool { return s.size()%2 == 1 && s.size() > 1 }

func (p *Ports) bind(s *space, space PortSpace, op PortOp, local netip.Addr, device uint32) Headroom {
	all, live := make(portSet, s.words), make(portSet, s.words)
	var users []holding
	found := s.conflicts(space.Proto, local, device)
	for _, key := range found {
		t := s.owners[space.Proto][key]
		all.or(t.all)
		live.or(t.live)
		users = append(users, t.users...)
	}
	// A process may have a port at several addresses, and UDP's do not come port by port.
	if len(found) > 1 || space.Proto == UDP {
		slices.Sort(users)
		users = slices.Compact(users)
	}
	h := Headroom{PortSpace: space, Op: op, Local: local, Device: device, Used: all.len(), Holders: p.users(users)}
	h.TimeWait = h.Used - live.len()
	h.Blocked, h.BlockedBy = 0, nil // those are among Used
	h.Free = h.Capacity - h.Used
	usable := func(port uint16) bool { return !s.isReserved(port) && !all.has(int(port-s.low)) }
	// With SO_REUSEADDR it tries the two halves one after the other.
	half := s.low + uint16(s.size()>>2<<1)
	h.MaybeOneLess = space.Proto == TCP && s.odd() && (usable(s.low) || usable(half) || usable(s.high))
	return h
}

// conflicts returns what a socket bound to local, and to a device, may not share a port with.
func (s *space) conflicts(proto Proto, local netip.Addr, device uint32) []boundTo {
	owners := s.owners[proto]
	var out []boundTo
	if local.IsUnspecified() {
		for key := range owners {
			if sameDevice(device, key.device) && addrConflict(local, false, addrPort(key.addr, 0).Addr(), key.v6only) {
				out = append(out, key)
			}
		}
		return out
	}
	for _, addr := range append(anyAddress(), local) {
		for _, v6only := range []bool{false, true} {
			if !addrConflict(local, false, addr, v6only) {
				continue
			}
			for _, dev := range s.devices {
				if key := (boundTo{addr.As16(), v6only, dev}); owners[key] != nil && sameDevice(device, dev) {
					out = append(out, key)
				}
			}
		}
	}
	return out
}
