package top

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// The words of roles.
var (
	listener   = tracer.RoleListener.String()
	bound      = tracer.RoleBound.String()
	server     = tracer.RoleServer.String()
	clientRole = tracer.RoleClient.String()
	timeWait   = tracer.RoleTimeWait.String()
	orphan     = tracer.RoleOrphan.String()
)

// process is one that has a port.
type process struct {
	pid  uint32
	comm string
	unit string // "": not known
}

// portRow is all sockets with a port, an address and a protocol in a network namespace.
type portRow struct {
	portKey
	proto   string // with MPTCP
	host    string // the address as it is shown
	role    string // the most telling
	sockets int    // folded
	conns   int    // of them and of what was accepted from them, those with a peer
	full    bool   // the accept queue

	holders []process // each once
	more    int       // that are not in holders
	note    string    // why there is none
	where   string
	since   time.Time
}

// portKey is what a portRow is told apart by.
type portKey struct {
	netns identity.NetNS
	udp   bool
	port  uint16
	ip    netip.Addr
	dev   string
}

// maxHolders is how many processes of a row have a name.
const maxHolders = 64

// folder folds sockets into rows.
type folder struct {
	render.Renderer
	all  bool // clients too, and what nobody holds any more
	rows map[portKey]*portRow
	// Accepted connections have a row of their own only where nothing listens on their port.
	accepted map[portKey]*portRow
}

func newFolder(n render.Renderer, all bool) *folder {
	return &folder{n, all, make(map[portKey]*portRow), make(map[portKey]*portRow)}
}

// add adds a socket, whose memory may be used again.
func (f *folder) add(s *render.Socket) {
	rows := f.rows
	switch s.Role {
	case listener, bound:
	case server:
		rows = f.accepted
	default:
		if !f.all {
			return
		}
	}
	dev := s.Device
	if s.Index != 0 {
		dev = strconv.FormatUint(uint64(s.Index), 10)
	}
	key := portKey{s.Namespace(), s.Proto == tracer.UDP.String(), s.LocalPort, s.LocalIP, dev}
	row := rows[key]
	if row == nil {
		row = &portRow{portKey: key, proto: strings.Clone(s.Proto), host: s.Host(), role: strings.Clone(s.Role), where: f.Where(key.netns, &s.Place)}
		if s.SocketUnit != "" {
			row.where = identity.Safe(s.SocketUnit)
		}
		rows[key] = row
	}
	row.add(s)
}

// ranks are the roles, the most telling first.
var ranks = []string{listener, bound, server, clientRole, timeWait, orphan}

func (r *portRow) add(s *render.Socket) {
	r.sockets++
	if s.MPTCP && !strings.Contains(r.proto, "+") {
		r.proto += "+mp"
	}
	if slices.Index(ranks, s.Role) < slices.Index(ranks, r.role) {
		r.role = strings.Clone(s.Role)
	}
	if s.RemotePort != 0 && s.Role != timeWait {
		r.conns++
	}
	if s.Backlog != nil && s.BacklogMax != nil && *s.BacklogMax > 0 && *s.Backlog > *s.BacklogMax {
		r.full = true
	}
	if since := s.Since.Time; !since.IsZero() && (r.since.IsZero() || since.Before(r.since)) {
		r.since = since
	}
	r.more += s.HoldersMore
	for i := range s.Holders {
		r.hold(process{s.Holders[i].PID, s.Holders[i].Comm, s.Unit})
	}
	switch {
	case len(r.holders) > 0:
		r.note = ""
	case s.NoHolder != "" && r.note == "":
		r.note = "(" + strings.ReplaceAll(s.NoHolder, "_", " ") + ")"
	}
}

// hold adds a process, once.
func (r *portRow) hold(p process) {
	if slices.ContainsFunc(r.holders, func(h process) bool { return h.pid == p.pid }) {
		return
	}
	if len(r.holders) >= maxHolders {
		r.more++
		return
	}
	p.comm, p.unit = identity.Safe(strings.Clone(p.comm)), identity.Safe(strings.Clone(p.unit))
	r.holders = append(r.holders, p)
}

// fold returns the rows.
func (f *folder) fold() []portRow {
	for key, row := range f.accepted {
		if l := f.listenerOf(key); l != nil {
			l.conns += row.conns
			continue
		}
		if own := f.rows[key]; own != nil { // with all, something else has it too
			own.conns += row.conns
			own.sockets += row.sockets
			for _, p := range row.holders {
				own.hold(p)
			}
			continue
		}
		f.rows[key] = row
	}
	out := make([]portRow, 0, len(f.rows))
	for _, row := range f.rows {
		out = append(out, *row)
	}
	return out
}

// listenerOf is the row that accepted a connection: on its very address, else on all.
func (f *folder) listenerOf(key portKey) *portRow {
	for _, ip := range []netip.Addr{key.ip, netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for _, dev := range []string{key.dev, ""} {
			k := key
			k.ip, k.dev = ip, dev
			if row := f.rows[k]; row != nil && row.role == listener {
				return row
			}
		}
	}
	return nil
}

func (r *portRow) comm() string {
	if len(r.holders) == 0 {
		return r.note
	}
	if others := len(r.holders) - 1 + r.more; others > 0 {
		return r.holders[0].comm + " +" + strconv.Itoa(others)
	}
	return r.holders[0].comm
}

func (r *portRow) pid() uint32 {
	if len(r.holders) == 0 {
		return 0
	}
	return r.holders[0].pid
}

func (r *portRow) text() []string {
	words := []string{r.host, r.where, r.note}
	for i := range r.holders {
		words = append(words, r.holders[i].comm, r.holders[i].unit)
	}
	return words
}

func (r *portRow) numbers() []uint32 {
	numbers := []uint32{uint32(r.port)}
	for i := range r.holders {
		numbers = append(numbers, r.holders[i].pid)
	}
	return numbers
}

func (r *portRow) tint() tint {
	switch {
	case r.full:
		return alarm
	case r.role == timeWait, r.role == orphan:
		return dim
	}
	return plain
}

// dash is a number, - where it is 0.
func dash(n uint32) string {
	if n == 0 {
		return "-"
	}
	return number(n)
}

// newPorts is the table of ports; now is when its rows were read.
func newPorts(now func() time.Time) *table[portRow, portKey] {
	byPort := func(a, b *portRow) int {
		return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.proto, b.proto), a.ip.Compare(b.ip),
			cmp.Compare(a.netns.Cookie, b.netns.Cookie), cmp.Compare(a.netns.Inode, b.netns.Inode), cmp.Compare(a.dev, b.dev))
	}
	return &table[portRow, portKey]{
		columns: []column[portRow]{
			{title: "PORT", width: 5, right: true, cell: func(r *portRow) string { return strconv.Itoa(int(r.port)) }, compare: byPort},
			{title: "PROTO", width: 6, cell: func(r *portRow) string { return r.proto }, compare: func(a, b *portRow) int { return cmp.Or(cmp.Compare(a.proto, b.proto), byPort(a, b)) }},
			{title: "ADDRESS", weight: 6, cell: func(r *portRow) string { return r.host }, compare: func(a, b *portRow) int { return cmp.Or(a.ip.Compare(b.ip), byPort(a, b)) }},
			{title: "ROLE", width: 9, least: wide, cell: func(r *portRow) string { return r.role }, compare: func(a, b *portRow) int {
				return cmp.Or(cmp.Compare(slices.Index(ranks, a.role), slices.Index(ranks, b.role)), byPort(a, b))
			}},
			{title: "CONNS", width: 6, right: true, down: true, cell: func(r *portRow) string { return render.Number(uint64(r.conns)) }, compare: func(a, b *portRow) int { return cmp.Or(cmp.Compare(a.conns, b.conns), -byPort(a, b)) }},
			{title: "PID", width: 7, right: true, cell: func(r *portRow) string { return dash(r.pid()) }, compare: func(a, b *portRow) int { return cmp.Or(cmp.Compare(a.pid(), b.pid()), byPort(a, b)) }},
			{title: "COMM", weight: 5, cut: render.CutEnd, cell: (*portRow).comm, compare: func(a, b *portRow) int { return cmp.Or(cmp.Compare(a.comm(), b.comm()), byPort(a, b)) }},
			{title: "WHERE", weight: 5, cell: func(r *portRow) string { return r.where }, compare: func(a, b *portRow) int { return cmp.Or(cmp.Compare(a.where, b.where), byPort(a, b)) }},
			{title: "SINCE", width: 7, right: true, down: true, cell: func(r *portRow) string { return age(now(), r.since) }, compare: func(a, b *portRow) int { return cmp.Or(a.since.Compare(b.since), -byPort(a, b)) }},
		},
		key: func(r *portRow) portKey { return r.portKey }, words: (*portRow).text, numbers: (*portRow).numbers, tint: (*portRow).tint,
	}
}

// age is how long ago something was, in at most seven columns; - where that is not known.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(now.Sub(t))
}

func span(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return strconv.Itoa(max(0, int(d.Microseconds()))) + " us"
	case d < time.Second:
		return strconv.Itoa(int(d.Milliseconds())) + " ms"
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + " s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	}
	return strconv.Itoa(int(d.Hours()/24)) + " d"
}
