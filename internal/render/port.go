package render

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"strings"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/tracer"
)

// Port is a local port in JSON: what who answers.
type Port struct {
	about
	Sockets     []Socket  `json:"sockets"`
	History     []Tenancy `json:"history"`
	HistoryCut  bool      `json:"history_cut,omitempty"`  // there is more than in History, and it is not known how much
	More        []More    `json:"more,omitempty"`         // sockets that are not among Sockets
	HistoryMore int       `json:"history_more,omitempty"` // how many are not in History

	// Where says what was asked about, if not everything: "in network namespace blue".
	Where string `json:"-"`
	// OnHost: pids are not those of the namespace where the answer is read.
	OnHost bool `json:"-"`
}

// Quote is as Socket.Quote.
func (p *Port) Quote() {
	quote(&p.Proto)
	for i := range p.Sockets {
		p.Sockets[i].Quote()
	}
	for i := range p.History {
		p.History[i].Quote()
	}
	for i := range p.More {
		quote(&p.More[i].Role, &p.More[i].Proto)
	}
}

// More tells of how many sockets of a role and a protocol a limit left out the rows.
type More struct {
	Role    string `json:"role"`
	Proto   string `json:"proto"`
	Sockets int    `json:"sockets"`
}

// about is what is known of the number itself. Proto is there when that alone was asked
// for.
type about struct {
	Port             uint16             `json:"port"`
	Proto            string             `json:"proto,omitempty"`
	Range            identity.PortClass `json:"range"`
	Service          string             `json:"service,omitempty"`
	InEphemeralRange bool               `json:"in_ephemeral_range"`
	RangeLow         uint16             `json:"range_low"`
	RangeHigh        uint16             `json:"range_high"`
	Reserved         bool               `json:"reserved"`
	NetNS            uint32             `json:"netns,omitempty"` // that the range is of, and the rules of NAT
	Cookie           uint64             `json:"netns_cookie,omitempty"`
	ForwardsTo       []Forward          `json:"forwards_to,omitempty"` // by NAT
	NATUnread        string             `json:"nat_unread,omitempty"`  // why NAT was not looked at, or not all of it
	Partial          bool               `json:"partial,omitempty"`     // as of Socket
}

// PortPlace is what is known of a port in the network namespace that an answer is about.
type PortPlace struct {
	Pool      *identity.Pool
	NetNS     identity.NetNS
	NAT       []identity.NATTarget
	NATUnread error
}

// Held tells whether any socket has the port.
func (p *Port) Held() bool { return len(p.Sockets)+len(p.More) > 0 }

// Tenancy is the time a socket held a port, now over, in JSON.
type Tenancy struct {
	Proto      string     `json:"proto"`
	LocalIP    netip.Addr `json:"local_ip"`
	LocalPort  uint16     `json:"local_port"`
	RemoteIP   netip.Addr `json:"remote_ip,omitzero"`
	RemotePort uint16     `json:"remote_port,omitempty"`
	NetNS      uint32     `json:"netns"`
	Cookie     uint64     `json:"netns_cookie,omitempty"`
	MPTCP      bool       `json:"mptcp,omitempty"`
	PID        uint32     `json:"pid,omitempty"`
	Comm       string     `json:"comm,omitempty"`
	UID        *uint32    `json:"uid,omitempty"`
	Place
	Since      Stamp  `json:"since,omitzero"`
	Until      Stamp  `json:"until,omitzero"`
	DurationNS int64  `json:"duration_ns,omitempty"`
	Error      string `json:"error,omitempty"`
	TimeWait   bool   `json:"time_wait,omitempty"`
	UntilAbout bool   `json:"until_about,omitempty"`

	// What a history on disk knows besides.
	Role       string     `json:"role,omitempty"`
	KnownSince Stamp      `json:"known_since,omitzero"` // in place of Since: when it was first seen
	UntilKnown *bool      `json:"until_known,omitempty"`
	Open       bool       `json:"open,omitempty"` // it has the port still
	Time       Stamp      `json:"time,omitzero"`  // of a refused call
	Event      string     `json:"event,omitempty"`
	HeldBy     []InTheWay `json:"held_by,omitempty"`
	HeldByMore int        `json:"held_by_more,omitempty"`
	Folded     uint32     `json:"folded,omitempty"`
	Index      uint32     `json:"device_index,omitempty"`
	NetNSName  string     `json:"netns_name,omitempty"`
	Exe        string     `json:"exe,omitempty"`
	Args       []string   `json:"args,omitempty"`
	ArgsCut    bool       `json:"args_cut,omitempty"`
	Cursor     string     `json:"cursor,omitempty"`
}

// Quote is as Socket.Quote.
func (r *Tenancy) Quote() {
	quote(&r.Proto, &r.Error, &r.Role, &r.Event)
	for i := range r.HeldBy {
		quote(&r.HeldBy[i].State, &r.HeldBy[i].Role)
	}
}

// InTheWay is a socket in the way of a bind that was refused, as a history on disk has it, in JSON.
type InTheWay struct {
	State       string        `json:"state"`
	Role        string        `json:"role"`
	LocalIP     netip.Addr    `json:"local_ip,omitzero"`
	LocalPort   uint16        `json:"local_port"`
	RemoteIP    netip.Addr    `json:"remote_ip,omitzero"`
	RemotePort  uint16        `json:"remote_port,omitempty"`
	Owner       *PastProcess  `json:"owner,omitempty"` // where observed
	Holders     []PastProcess `json:"holders"`
	HoldersMore int           `json:"holders_more,omitempty"`
}

// PastProcess is a process as it was then, in JSON.
type PastProcess struct {
	PID  uint32 `json:"pid"`
	Comm string `json:"comm"`
	UID  uint32 `json:"uid"`
	Place
	Exe     string   `json:"exe,omitempty"`
	Args    []string `json:"args,omitempty"`
	ArgsCut bool     `json:"args_cut,omitempty"`
}

// HideArgs leaves out command lines.
func (r *Tenancy) HideArgs() {
	r.Args, r.ArgsCut = nil, false
	for i := range r.HeldBy {
		in := &r.HeldBy[i]
		if in.Owner != nil {
			in.Owner.Args, in.Owner.ArgsCut = nil, false
		}
		for j := range in.Holders {
			in.Holders[j].Args, in.Holders[j].ArgsCut = nil, false
		}
	}
}

// OtherRange returns the range of a namespace where it is not that of the answer, else nil.
func OtherRange(r *tracer.Range, answer *identity.Pool) *tracer.Range {
	if r != nil && r.Low == answer.Low && r.High == answer.High {
		return nil
	}
	return r
}

// MaxShown is how many sockets of a role, and how many of those who had a port before,
// the text of who is made from.
const MaxShown = 1000

// portCount counts sockets, and those that a limit leaves out.
type portCount struct {
	limit int
	kinds []portKind // in the order of the sockets
}

type portKind struct {
	role  tracer.Role
	proto tracer.Proto
	count int
}

// add counts a socket, and tells whether it is shown. Sockets come in the order of
// SortSockets, which has those of a kind together.
func (c *portCount) add(role tracer.Role, proto tracer.Proto) bool {
	last := len(c.kinds) - 1
	if last < 0 || c.kinds[last].role != role || c.kinds[last].proto != proto {
		c.kinds = append(c.kinds, portKind{role: role, proto: proto})
		last++
	}
	c.kinds[last].count++
	return c.kinds[last].count <= c.limit
}

func (c *portCount) more() []More {
	var out []More
	for _, k := range c.kinds {
		if left := k.count - c.limit; left > 0 {
			out = append(out, More{k.role.String(), k.proto.String(), left})
		}
	}
	return out
}

// PortJSON writes the answer to a question as one JSON object: from the sockets on that
// port now and those before, of whatever protocol. Each row is made when it is written: there
// may be very many.
func (n Renderer) PortJSON(w io.Writer, q query.Port, at *PortPlace, now Sockets, before iter.Seq[tracer.Tenancy]) error {
	return n.portJSON(w, q, at, now, func(out *bufio.Writer) (int, bool, error) {
		left, err := n.portHistory(out, q, before)
		return left, false, err
	})
}

// PortPastJSON is PortJSON with rows that are made already, those asked about; cut says that there are
// others.
func (n Renderer) PortPastJSON(w io.Writer, q query.Port, at *PortPlace, now Sockets, before []Tenancy, cut bool) error {
	return n.portJSON(w, q, at, now, func(out *bufio.Writer) (int, bool, error) {
		for i := range before {
			if i > 0 {
				_ = out.WriteByte(',')
			}
			text, err := json.Marshal(&before[i])
			if err != nil {
				return 0, false, err
			}
			if _, err := out.Write(escapeControls(text)); err != nil {
				return 0, false, err
			}
		}
		return 0, cut, nil
	})
}

func (n Renderer) portJSON(w io.Writer, q query.Port, at *PortPlace, now Sockets, history func(*bufio.Writer) (left int, cut bool, err error)) error {
	head, err := json.Marshal(n.about(q, at))
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(w, 32<<10) // keeps the first error
	_, _ = out.Write(bytes.TrimSuffix(escapeControls(head), []byte("}")))
	_, _ = out.WriteString(`,"sockets":[`)
	more, err := n.portSockets(out, q, now)
	if err != nil {
		return err
	}
	_, _ = out.WriteString(`],"history":[`)
	left, cut, err := history(out)
	if err != nil {
		return err
	}
	_ = out.WriteByte(']')
	if len(more) > 0 {
		text, err := json.Marshal(more)
		if err != nil {
			return err
		}
		_, _ = out.WriteString(`,"more":`)
		_, _ = out.Write(text)
	}
	if left > 0 {
		fmt.Fprintf(out, `,"history_more":%d`, left)
	}
	if cut {
		_, _ = out.WriteString(`,"history_cut":true`)
	}
	_, _ = out.WriteString("}\n")
	return out.Flush()
}

// portSockets writes rows with commas between them.
func (n Renderer) portSockets(out *bufio.Writer, q query.Port, now Sockets) (more []More, err error) {
	count := portCount{limit: q.Limit}
	var enc Encoder
	var so tracer.Socket
	var row Socket
	var text []byte
	first := true
	seen := n.lookups()
	for i := range now.count {
		if !now.read(i, &so) || !q.Has(n.Cgroups, &so) || !count.add(so.Role, so.Proto) {
			continue
		}
		text = text[:0]
		if !first {
			text = append(text, ',')
		}
		first = false
		n.fillInFull(&row, &so, row.Holders, seen)
		text = enc.AppendSocket(text, &row)
		if _, err := out.Write(text); err != nil {
			return nil, err
		}
	}
	return count.more(), nil
}

// portHistory writes tenancies with commas between them, and tells how many it left out.
func (n Renderer) portHistory(out *bufio.Writer, q query.Port, before iter.Seq[tracer.Tenancy]) (left int, err error) {
	count := 0
	for t := range before {
		if !q.Had(n.Cgroups, &t) {
			continue
		}
		if count++; count > q.Limit {
			continue
		}
		if count > 1 {
			_ = out.WriteByte(',')
		}
		text, err := json.Marshal(n.Tenancy(&t))
		if err != nil {
			return 0, err
		}
		if _, err := out.Write(escapeControls(text)); err != nil {
			return 0, err
		}
	}
	return max(count-q.Limit, 0), nil
}

// PortInBrief is the answer for PortText alone: what that only counts has no row.
func (n Renderer) PortInBrief(q query.Port, at *PortPlace, rows *tracer.Rows) *Port {
	p := &Port{about: n.about(q, at), History: []Tenancy{}}
	shown, counted := portCount{limit: MaxShown}, portCount{}
	listening, strays := make(map[tracer.NetNS]bool), 0 // namespaces: listeners come first
	seen := n.lookups()
	for i := range rows.Len() {
		role, proto := rows.Kind(i)
		if !q.About(proto) {
			continue
		}
		var so tracer.Socket
		if q.Narrowed() {
			if rows.Read(i, &so); !q.Has(n.Cgroups, &so) {
				continue
			}
		}
		if role == tracer.RoleListener {
			listening[rows.NetNS(i)] = true
		}
		// What outlived its listener alone keeps the port.
		stray := (role == tracer.RoleServer || role == tracer.RoleTimeWait) && !listening[rows.NetNS(i)] && strays < MaxShown
		switch {
		case stray:
			strays++
		case role == tracer.RoleServer || role == tracer.RoleOrphan || role == tracer.RoleTimeWait:
			counted.add(role, proto)
			continue
		case !shown.add(role, proto):
			continue
		}
		if !q.Narrowed() {
			rows.Read(i, &so)
		}
		rows.Cut(&so)
		var row Socket
		n.fillInFull(&row, &so, []Holder{}, seen)
		p.Sockets = append(p.Sockets, row)
	}
	p.More = append(shown.more(), counted.more()...)
	return p
}

func (n Renderer) about(q query.Port, at *PortPlace) about {
	a := about{
		Port: q.Number, Range: identity.ClassOf(q.Number), Service: n.Services.Name(q.Number, q.Protos[0] == tracer.UDP),
		InEphemeralRange: at.Pool.Has(q.Number), RangeLow: at.Pool.Low, RangeHigh: at.Pool.High, Reserved: at.Pool.Reserved(q.Number),
		NetNS: at.NetNS.Inode, Cookie: at.NetNS.Cookie,
	}
	if len(q.Protos) == 1 {
		a.Proto = q.Protos[0].String()
	}
	for i := range at.NAT {
		a.ForwardsTo = append(a.ForwardsTo, n.natForward(&at.NAT[i], at.NetNS))
	}
	a.Partial = n.Partial
	if at.NATUnread != nil {
		a.NATUnread = strings.ReplaceAll(at.NATUnread.Error(), "\n", "; ")
	}
	return a
}

// Tenancy makes the row of a tenancy.
func (n Renderer) Tenancy(t *tracer.Tenancy) Tenancy {
	row := Tenancy{
		Proto: t.Proto.String(), LocalIP: t.Local.Addr(), LocalPort: t.Local.Port(),
		RemoteIP: t.Remote.Addr(), RemotePort: t.Remote.Port(), NetNS: t.NetNS, Cookie: t.NetNSCookie, MPTCP: t.MPTCP,
		Since: Stamp{t.Since}, Until: Stamp{t.Until}, Error: t.ErrnoName(), TimeWait: t.TimeWait, UntilAbout: t.About,
	}
	if !t.Since.IsZero() {
		row.DurationNS = t.Until.Sub(t.Since).Nanoseconds()
	}
	if t.Owner.PID != 0 {
		row.PID, row.Comm, row.UID = t.Owner.PID, t.Owner.Comm, &t.Owner.UID
		row.Place = n.place(&t.Owner)
	}
	return row
}
