package render

import (
	"net/netip"
	"slices"

	"github.com/porthole-dev/porthole/internal/container"
	"github.com/porthole-dev/porthole/internal/netns"
	"github.com/porthole-dev/porthole/internal/services"
	"github.com/porthole-dev/porthole/tracer"
)

// Port is a local port in JSON: what who answers. Proto is there when that alone
// was asked for.
type Port struct {
	Port             uint16         `json:"port"`
	Proto            string         `json:"proto,omitempty"`
	Range            services.Class `json:"range"`
	Service          string         `json:"service,omitempty"`
	InEphemeralRange bool           `json:"in_ephemeral_range"`
	RangeLow         uint16         `json:"range_low"`
	RangeHigh        uint16         `json:"range_high"`
	Reserved         bool           `json:"reserved"`
	Sockets          []Socket       `json:"sockets"`
	History          []Tenancy      `json:"history"`

	counted map[section]int // sockets that are not among Sockets: see PortInBrief
}

// Held tells whether any socket has the port.
func (p *Port) Held() bool { return len(p.Sockets)+len(p.counted) > 0 }

// Tenancy is the time a socket held a port, now over, in JSON.
type Tenancy struct {
	Proto      string               `json:"proto"`
	LocalIP    netip.Addr           `json:"local_ip"`
	LocalPort  uint16               `json:"local_port"`
	RemoteIP   netip.Addr           `json:"remote_ip,omitzero"`
	RemotePort uint16               `json:"remote_port,omitempty"`
	NetNS      uint32               `json:"netns"`
	Cookie     uint64               `json:"netns_cookie,omitempty"`
	MPTCP      bool                 `json:"mptcp,omitempty"`
	PID        uint32               `json:"pid,omitempty"`
	Comm       string               `json:"comm,omitempty"`
	UID        *uint32              `json:"uid,omitempty"`
	Container  *container.Container `json:"container,omitempty"`
	Since      Stamp                `json:"since,omitzero"`
	Until      Stamp                `json:"until"`
	DurationNS int64                `json:"duration_ns,omitempty"`
	Error      string               `json:"error,omitempty"`
	TimeWait   bool                 `json:"time_wait,omitempty"`
}

// Question is what is asked about a port: of these protocols, at least one.
type Question struct {
	Port   uint16
	Protos []tracer.Proto
}

func (q Question) about(proto tracer.Proto) bool { return slices.Contains(q.Protos, proto) }

// Port makes the answer to a question, from the sockets on that port now and those
// before, of whatever protocol.
func (n *Names) Port(q Question, pool *netns.Pool, now []tracer.Socket, before []tracer.Tenancy) *Port {
	p := n.port(q, pool)
	if p.Proto != "" {
		now = slices.DeleteFunc(slices.Clone(now), func(s tracer.Socket) bool { return !q.about(s.Proto) })
	}
	p.Sockets = n.socketsInFull(now)
	for i := range before {
		if q.about(before[i].Proto) {
			p.History = append(p.History, n.Tenancy(&before[i]))
		}
	}
	return p
}

// PortInBrief is the answer for PortText alone: what that only counts has no row.
func (n *Names) PortInBrief(q Question, pool *netns.Pool, rows *tracer.Rows) *Port {
	p := n.port(q, pool)
	p.counted = make(map[section]int)
	for i := range rows.Len() {
		role, proto := rows.Kind(i)
		switch {
		case !q.about(proto):
		case role == tracer.RoleServer || role == tracer.RoleOrphan || role == tracer.RoleTimeWait:
			p.counted[section{role.String(), proto.String()}]++
		default:
			var so tracer.Socket
			rows.Read(i, &so)
			p.Sockets = append(p.Sockets, n.socketInFull(&so, nil))
		}
	}
	return p
}

// port is the answer but for who has it.
func (n *Names) port(q Question, pool *netns.Pool) *Port {
	p := &Port{
		Port: q.Port, Range: services.ClassOf(q.Port), Service: n.Services.Name(q.Port, q.Protos[0] == tracer.UDP),
		InEphemeralRange: pool.Has(q.Port), RangeLow: pool.Low, RangeHigh: pool.High, Reserved: pool.Reserved(q.Port),
		History: []Tenancy{},
	}
	if len(q.Protos) == 1 {
		p.Proto = q.Protos[0].String()
	}
	return p
}

// Tenancy makes the row of a tenancy.
func (n *Names) Tenancy(t *tracer.Tenancy) Tenancy {
	ended := tracer.Event{Errno: t.Errno}
	row := Tenancy{
		Proto: t.Proto.String(), LocalIP: t.Local.Addr(), LocalPort: t.Local.Port(),
		RemoteIP: t.Remote.Addr(), RemotePort: t.Remote.Port(), NetNS: t.NetNS, Cookie: t.NetNSCookie, MPTCP: t.MPTCP,
		Since: Stamp{t.Since}, Until: Stamp{t.Until}, Error: ended.Error(), TimeWait: t.TimeWait,
	}
	if !t.Since.IsZero() {
		row.DurationNS = t.Until.Sub(t.Since).Nanoseconds()
	}
	if t.Owner.PID != 0 {
		row.PID, row.Comm, row.UID = t.Owner.PID, t.Owner.Comm, &t.Owner.UID
		row.Container = n.Cgroups.Resolve(t.Owner.Cgroup).Container
	}
	return row
}
