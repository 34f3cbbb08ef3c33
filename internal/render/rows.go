package render

import (
	"net/netip"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Place is the unit, the container and the pod of a process, each where it is known, in JSON.
type Place struct {
	Unit      string              `json:"unit,omitempty"`
	UnitUser  *uint32             `json:"unit_user,omitempty"` // of the service manager of that user
	Container *identity.Container `json:"container,omitempty"`
	Pod       *identity.Pod       `json:"pod,omitempty"`
}

// Label is the most telling name for people that a place has; "" where none is known.
func (p *Place) Label() string {
	c := identity.Cgroup{Unit: p.Unit, Container: p.Container, Pod: p.Pod}
	return c.Label()
}

// owner is what a network namespace can be called by: the pod, else the container; "": neither is known.
func (p *Place) owner() string {
	c := identity.Cgroup{Container: p.Container, Pod: p.Pod}
	return c.Label()
}

// spaceName is NetNSName, but where the namespace has no name, or one at random, it is called by the
// pod or container whose process has something in it.
func (n Renderer) spaceName(id identity.NetNS, at time.Time, p *Place) string {
	if owner := p.owner(); owner != "" && identity.IsRandom(n.NetNS.Name(id, at)) {
		return identity.Safe(owner)
	}
	return n.NetNSName(id, at)
}

// place is where a process is.
func (n Renderer) place(p *tracer.Process) Place { return placeOf(n.Cgroups.Of(p)) }

func placeOf(c identity.Cgroup) Place { return Place{c.Unit, c.UnitUser, c.Container, c.Pod} }

// Holder is a file descriptor of a process in JSON. UID and Container are there
// where the socket is of a Port.
type Holder struct {
	PID     uint32  `json:"pid"`
	Comm    string  `json:"comm"`
	FD      uint32  `json:"fd"`
	IOUring bool    `json:"io_uring,omitempty"`
	UID     *uint32 `json:"uid,omitempty"`
	*Process
	Place
}

// Process is what is known of a process besides its name, in JSON. ArgsUnread: the command line
// could not be read.
type Process struct {
	Exe        string            `json:"exe,omitempty"`
	Args       []string          `json:"args,omitempty"`
	ArgsCut    bool              `json:"args_cut,omitempty"`
	ArgsUnread bool              `json:"args_unread,omitempty"`
	Started    Stamp             `json:"started,omitzero"`
	PPID       uint32            `json:"ppid,omitempty"`
	Parents    []identity.Parent `json:"parents,omitempty"`
}

// Owner is the process that bound, connected or accepted a socket, in JSON. Status is
// there where the socket is of a Port, and it is known.
type Owner struct {
	PID    uint32 `json:"pid"`
	Comm   string `json:"comm"`
	Status string `json:"status,omitempty"`
}

// Socket is a socket in JSON, and the row of ls.
type Socket struct {
	Proto       string     `json:"proto"`
	State       string     `json:"state"`
	Role        string     `json:"role"`
	LocalIP     netip.Addr `json:"local_ip"`
	LocalPort   uint16     `json:"local_port"`
	RemoteIP    netip.Addr `json:"remote_ip,omitzero"`
	RemotePort  uint16     `json:"remote_port,omitempty"`
	Device      string     `json:"device,omitempty"`
	Index       uint32     `json:"device_index,omitempty"` // where the device's name is not known
	Scope       string     `json:"scope,omitempty"`
	NetNS       uint32     `json:"netns"`
	Cookie      uint64     `json:"netns_cookie,omitempty"`
	Inode       uint64     `json:"inode,omitempty"`
	UID         *uint32    `json:"uid,omitempty"`
	MPTCP       bool       `json:"mptcp,omitempty"`
	V6Only      bool       `json:"v6_only,omitempty"`
	ReuseAddr   bool       `json:"reuse_addr,omitempty"`
	ReusePort   bool       `json:"reuse_port,omitempty"`
	FixedPort   bool       `json:"fixed_port,omitempty"`
	Backlog     *uint32    `json:"backlog,omitempty"` // of a listener
	BacklogMax  *uint32    `json:"backlog_max,omitempty"`
	SocketUnit  string     `json:"socket_unit,omitempty"` // of systemd, which listens until somebody connects
	Holders     []Holder   `json:"holders"`
	HoldersMore int        `json:"holders_more,omitempty"`
	NoHolder    string     `json:"no_holder,omitempty"`
	Owner       *Owner     `json:"owner,omitempty"` // where observed
	Since       Stamp      `json:"since,omitzero"`
	Origin      string     `json:"origin"`
	Service     string     `json:"service,omitempty"`
	Place
	RangeLow  uint16 `json:"range_low,omitempty"` // where the socket is of a Port, and of another namespace
	RangeHigh uint16 `json:"range_high,omitempty"`
	// ForwardsTo is there where the socket is of a Port, and held for another.
	ForwardsTo []Forward `json:"forwards_to,omitempty"`
	// Partial: it is read with the rights of an ordinary user, to whom not all is told.
	Partial bool `json:"partial,omitempty"`
}

// Quote makes the words that are porthole's own safe to show on a terminal, as who answers in place of an agent may
// send others. Names are quoted where they are shown, whoever sent them.
func (s *Socket) Quote() { quote(&s.Proto, &s.State, &s.Role, &s.NoHolder, &s.Origin) }

func quote(words ...*string) {
	for _, w := range words {
		*w = identity.Safe(*w)
	}
}

func (s *Socket) netNS() identity.NetNS { return identity.NetNS{Inode: s.NetNS, Cookie: s.Cookie} }

// Event is an event in JSON, and the row of tail.
type Event struct {
	Time          Stamp      `json:"time"`
	Event         string     `json:"event"`
	Proto         string     `json:"proto"`
	LocalIP       netip.Addr `json:"local_ip,omitzero"`
	LocalPort     uint16     `json:"local_port,omitempty"`
	RemoteIP      netip.Addr `json:"remote_ip,omitzero"`
	RemotePort    uint16     `json:"remote_port,omitempty"`
	Device        string     `json:"device,omitempty"`
	Index         uint32     `json:"device_index,omitempty"` // where the device's name is not known
	Scope         string     `json:"scope,omitempty"`
	RequestedPort *uint16    `json:"requested_port,omitempty"`
	Implicit      bool       `json:"implicit,omitempty"`
	Error         string     `json:"error,omitempty"`
	HeldBy        []Socket   `json:"held_by,omitempty"`
	HeldByMore    int        `json:"held_by_more,omitempty"`
	PID           uint32     `json:"pid,omitempty"`
	Comm          string     `json:"comm,omitempty"`
	UID           *uint32    `json:"uid,omitempty"`
	NetNS         uint32     `json:"netns"`
	Cookie        uint64     `json:"netns_cookie,omitempty"`
	Cgroup        string     `json:"cgroup,omitempty"`
	Place
	MPTCP      bool  `json:"mptcp,omitempty"`
	V6Only     bool  `json:"v6_only,omitempty"`
	DurationNS int64 `json:"duration_ns,omitempty"`
	TimeWait   bool  `json:"time_wait,omitempty"`
	UntilAbout bool  `json:"until_about,omitempty"`
	SearchNS   int64 `json:"search_ns,omitempty"`
}

// Quote is as Socket.Quote.
func (ev *Event) Quote() {
	quote(&ev.Event, &ev.Proto, &ev.Error)
	for i := range ev.HeldBy {
		ev.HeldBy[i].Quote()
	}
}

// Stamp is a time as JSON has it: RFC 3339 in UTC, always with nine digits after
// the second, so that stamps sort as text.
type Stamp struct{ time.Time }

// AppendText implements encoding.TextAppender. It never fails.
func (s Stamp) AppendText(b []byte) ([]byte, error) {
	return appendNanoseconds(appendSecond(b, s.Time), s.Nanosecond()), nil
}

// appendSecond appends a time up to the point after its seconds.
func appendSecond(b []byte, t time.Time) []byte {
	// RFC3339 is the one layout package time writes without interpreting it.
	b = t.UTC().AppendFormat(b, time.RFC3339)
	b[len(b)-1] = '.' // Z
	return b
}

// appendNanoseconds appends what comes after that point.
func appendNanoseconds(b []byte, ns int) []byte {
	text := [...]byte{9: 'Z'}
	for i, rest := 8, uint32(ns); i >= 0; i-- {
		text[i] = byte('0' + rest%10)
		rest /= 10
	}
	return append(b, text[:]...)
}

// MarshalText implements encoding.TextMarshaler. It never fails.
func (s Stamp) MarshalText() ([]byte, error) { return s.AppendText(nil) }

// MarshalJSON hides that of time.Time. It never fails.
func (s Stamp) MarshalJSON() ([]byte, error) {
	b, err := s.AppendText([]byte{'"'})
	return append(b, '"'), err
}

// Sockets are sockets to be listed: so many, of which read makes each, or tells that it is
// not to be listed. They are read by several goroutines at once, each into a Socket of its
// own.
type Sockets struct {
	count int
	read  func(i int, so *tracer.Socket) bool
}

// SocketsOf are those of a slice that pass; keep nil: all.
func SocketsOf(sockets []tracer.Socket, keep func(*tracer.Socket) bool) Sockets {
	return Sockets{len(sockets), func(i int, so *tracer.Socket) bool {
		*so = sockets[i]
		return keep == nil || keep(so)
	}}
}

// SocketsOfRows are those of a snapshot that pass.
func SocketsOfRows(rows *tracer.Rows, keep func(*tracer.Socket) bool) Sockets {
	return Sockets{rows.Len(), func(i int, so *tracer.Socket) bool {
		rows.Read(i, so)
		if !keep(so) { // by any of its holders
			return false
		}
		rows.Cut(so)
		return true
	}}
}

// Sockets makes the rows of those that are to be listed.
func (n Renderer) Sockets(sockets Sockets) []Socket {
	rows := []Socket{}
	for i := range sockets.count {
		var so tracer.Socket // its own: rows refer to it
		if sockets.read(i, &so) {
			rows = append(rows, n.Socket(&so))
		}
	}
	return rows
}

// Socket makes the row of a socket.
func (n Renderer) Socket(s *tracer.Socket) Socket { return n.socket(s, []Holder{}) }

// socket makes a row that keeps its holders in the memory of holders.
func (n Renderer) socket(s *tracer.Socket, holders []Holder) Socket {
	var row Socket
	n.fill(&row, s, holders)
	return row
}

// fill is socket, in memory that is there.
func (n Renderer) fill(row *Socket, s *tracer.Socket, holders []Holder) {
	*row = Socket{
		Proto: s.Proto.String(), State: s.State.String(), Role: s.Role.String(),
		LocalIP: s.Local.Addr(), LocalPort: s.Local.Port(),
		RemoteIP: s.Remote.Addr(), RemotePort: s.Remote.Port(),
		NetNS: s.NetNS, Cookie: s.NetNSCookie, Inode: s.Inode, MPTCP: s.MPTCP,
		V6Only: s.V6Only, ReuseAddr: s.ReuseAddr, ReusePort: s.ReusePort, FixedPort: s.FixedPort,
		Holders: holders[:0], HoldersMore: s.HoldersMore, NoHolder: s.NoHolder.String(),
		Origin: s.Origin.String(), Service: n.service(s), Since: Stamp{s.Since}, Partial: n.Partial,
	}
	if s.Device != 0 {
		row.Device, row.Index = n.DeviceOrIndex(s.DeviceID())
		row.Scope = scope(row.Device, row.LocalIP, row.RemoteIP)
	}
	if s.Role != tracer.RoleTimeWait { // nobody owns these
		row.UID = &s.UID
	}
	if s.Backlog.Known {
		row.Backlog, row.BacklogMax = &s.Backlog.Waiting, &s.Backlog.Max
	}
	row.SocketUnit = n.socketUnit(s)
	for i := range s.Holders {
		h := &s.Holders[i]
		row.Holders = append(row.Holders, Holder{PID: h.PID, Comm: h.Comm, FD: h.FD, IOUring: h.Ring})
	}
	if s.Owner.PID != 0 {
		row.Owner = &Owner{PID: s.Owner.PID, Comm: s.Owner.Comm}
	}
	row.Place = n.placeOf(s)
}

// socketUnit is the unit that a listener is of: systemd makes it in the unit's own cgroup, and
// no process is there.
func (n Renderer) socketUnit(s *tracer.Socket) string {
	if unit := n.Cgroups.Resolve(s.Cgroup).Unit; strings.HasSuffix(unit, ".socket") {
		return unit
	}
	return ""
}

// service is the name of the port that tells what the socket is for: the other
// side's where this side's was picked for it.
func (n Renderer) service(s *tracer.Socket) string {
	port := s.Local.Port()
	if s.Role == tracer.RoleClient {
		port = s.Remote.Port()
	}
	return n.Services.Name(port, s.Proto == tracer.UDP)
}

// placeOf is the place of a socket's first holder.
func (n Renderer) placeOf(s *tracer.Socket) Place {
	if len(s.Holders) == 0 {
		return Place{}
	}
	return n.place(&s.Holders[0].Process)
}

// fillInFull is fill, with what only a Port tells.
func (n Renderer) fillInFull(row *Socket, s *tracer.Socket, holders []Holder, seen *lookups) {
	n.fill(row, s, holders)
	for i := range s.Holders {
		h := &row.Holders[i]
		h.UID = &s.Holders[i].UID
		h.Place = n.place(&s.Holders[i].Process)
		h.Process = seen.process(&s.Holders[i].Process)
		if s.Role == tracer.RoleListener || s.Role == tracer.RoleBound {
			n.addForward(row, s, h)
		}
	}
	if n.Range != nil {
		if r := n.Range(tracer.NetNS{Inode: s.NetNS, Cookie: s.NetNSCookie}); r != nil {
			row.RangeLow, row.RangeHigh = r.Low, r.High
		}
	}
	if row.Owner != nil && s.OwnerStatus != 0 {
		row.Owner.Status = s.OwnerStatus.String()
	}
}

// hasLocal: a socket without a port has no local end worth telling, unless it
// was asked for.
func hasLocal(ev *tracer.Event) bool {
	return ev.Local.Port() != 0 || ev.Type == tracer.EventBind && !ev.Implicit
}

// Event makes the row of an event.
func (n Renderer) Event(ev *tracer.Event) Event {
	row := Event{
		Time: Stamp{ev.Time}, Event: ev.Type.String(), Proto: ev.Proto.String(),
		RemoteIP: ev.Remote.Addr(), RemotePort: ev.Remote.Port(),
		Implicit: ev.Implicit, Error: ev.ErrnoName(), NetNS: ev.NetNS, Cookie: ev.NetNSCookie, MPTCP: ev.MPTCP, V6Only: ev.V6Only,
		DurationNS: ev.Duration.Nanoseconds(), TimeWait: ev.TimeWait, UntilAbout: ev.About, SearchNS: ev.Search.Nanoseconds(),
	}
	if hasLocal(ev) {
		row.LocalIP, row.LocalPort = ev.Local.Addr(), ev.Local.Port()
	}
	if ev.Device != 0 {
		row.Device, row.Index = n.DeviceOrIndex(ev.DeviceID())
		row.Scope = scope(row.Device, row.LocalIP, row.RemoteIP)
	}
	if ev.Type == tracer.EventBind && !ev.Implicit {
		row.RequestedPort = &ev.RequestedPort
	}
	for i := range ev.HeldBy {
		row.HeldBy = append(row.HeldBy, n.Socket(&ev.HeldBy[i]))
	}
	row.HeldByMore = ev.HeldByMore
	if ev.Process.PID != 0 {
		info := n.Cgroups.Of(&ev.Process)
		row.PID, row.Comm, row.UID = ev.Process.PID, ev.Process.Comm, &ev.Process.UID
		row.Cgroup, row.Place = info.Path, placeOf(info)
	}
	return row
}

// clockFormat is the time of day with milliseconds, for package time.
const clockFormat = "15:04:05.000"
