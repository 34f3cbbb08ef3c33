package render

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Style says how text may look.
type Style struct {
	Color bool
	// Width is how many columns the terminal has that the text is for: what does not fit is cut,
	// or left out. 0: it is for no terminal, but for a program or a file, which get all of it.
	Width int
	// OneNetNS: all is of one network namespace, which was asked for. A terminal needs not be told.
	OneNetNS bool
}

func (s Style) paint(code, text string) string {
	if !s.Color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Red marks what failed.
func (s Style) Red(text string) string { return s.paint("31", text) }

// Bold marks headings.
func (s Style) Bold(text string) string { return s.paint("1", text) }

// AddrPort is an address and port as ss(8) shows them, with * for any address
// or port.
func AddrPort(a netip.AddrPort) string { return string(appendEnd(nil, a, end{})) }

// end is what is special about an end of a socket: zone is the device it is bound to, by
// name or number; dual, that :: takes IPv4 too.
type end struct {
	zone string
	dual bool
}

// endOf is special about the local end of a socket.
func endOf(device string, index uint32, v6only bool) end {
	if index != 0 {
		device = strconv.FormatUint(uint64(index), 10)
	}
	return end{device, !v6only}
}

// host is an address as it stands without a port.
func (e end) host(addr netip.Addr) string { return string(e.appendHost(nil, addr)) }

func (e end) appendHost(b []byte, addr netip.Addr) []byte {
	if e.isAny(addr) {
		b = append(b, '*')
	} else {
		b = addr.AppendTo(b)
	}
	if e.zone != "" {
		b = append(append(b, '%'), identity.Safe(e.zone)...)
	}
	return b
}

// isAny tells whether an address is any of IPv6 and of IPv4.
func (e end) isAny(addr netip.Addr) bool { return e.dual && addr == netip.IPv6Unspecified() }

// appendEnd appends what AddrPort is, with % and the device of an end that is bound to one,
// and * for :: that takes IPv4 too.
func appendEnd(b []byte, a netip.AddrPort, e end) []byte {
	if !a.IsValid() {
		return append(b, "*:*"...)
	}
	if a.Addr().Is4() || e.isAny(a.Addr()) {
		b = e.appendHost(b, a.Addr())
	} else {
		b = append(e.appendHost(append(b, '['), a.Addr()), ']')
	}
	if a.Port() == 0 {
		return append(b, ":*"...)
	}
	return strconv.AppendUint(append(b, ':'), uint64(a.Port()), 10)
}

// SocketsText writes sockets as ls shows them.
func (n Renderer) SocketsText(w io.Writer, style Style, sockets Sockets) error {
	return n.rowsText(w, style, sockets.count, func(i int, mem *rowMemory) *Socket { return n.rowOf(sockets, i, mem) })
}

// RowsText writes rows of sockets as ls shows them. On a terminal the columns for namespace and
// container are there where some socket is not the host's, or in a container.
func (n Renderer) RowsText(w io.Writer, style Style, rows []Socket) error {
	return n.rowsText(w, style, len(rows), func(i int, _ *rowMemory) *Socket { return &rows[i] })
}

// rowColumns are the columns of RowsText. WHERE is the container, else the namespace, for a terminal
// that has no room for both.
var rowColumns = []Column{
	{Name: "PROTO"}, {Name: "STATE"}, {Name: "LOCAL", Address: true}, {Name: "REMOTE", Address: true}, {Name: "ROLE"},
	{Name: "PID", Right: true}, {Name: "COMM"}, {Name: "NETNS"}, {Name: "CONTAINER"}, {Name: "WHERE"},
}

const (
	stateColumn, localColumn, remoteColumn, roleColumn, commColumn = 1, 2, 3, 4, 6
	netnsColumn, containerColumn, whereColumn                      = 7, 8, 9
)

// rowsSay is what some row says that others may not.
type rowsSay struct {
	netns, container bool
	remote           bool // has another end
	role             bool // has a role that does not follow from the state
}

func (say *rowsSay) add(other rowsSay) {
	say.netns = say.netns || other.netns
	say.container = say.container || other.container
	say.remote = say.remote || other.remote
	say.role = say.role || other.role
}

// fitRows makes rows fit a terminal.
func (l *layout) fitRows(style Style, say rowsSay) {
	width := style.Width
	l.hide(whereColumn)
	if width == 0 {
		return // who reads fields wants the same ones each time
	}
	if !say.netns || style.OneNetNS {
		l.hide(netnsColumn)
	}
	if !say.container {
		l.hide(containerColumn)
	}
	if !say.role {
		l.squeeze(width, Squeeze{Columns: []int{roleColumn}})
	}
	if !say.remote {
		l.squeeze(width, Squeeze{Columns: []int{remoteColumn}})
	}
	if !l.hidden[netnsColumn] && !l.hidden[containerColumn] && l.width() > width {
		l.hide(netnsColumn, containerColumn)
		l.hidden[whereColumn] = false
	}
	ends, names := []int{localColumn, remoteColumn}, []int{netnsColumn, containerColumn, whereColumn}
	const anyIPv4 = len("255.255.255.255:65535")
	comm := []int{commColumn}
	l.squeeze(width, Squeeze{Columns: []int{roleColumn}}, Squeeze{anyIPv4, ends}, Squeeze{12, names}, Squeeze{10, comm}, Squeeze{15, ends}, Squeeze{9, names},
		Squeeze{12, ends}, Squeeze{8, comm}, Squeeze{Columns: names}, Squeeze{Columns: []int{stateColumn}})
}

// rowMemory is what a row may be made in: it is needed until the next is made.
type rowMemory struct {
	socket  tracer.Socket
	row     Socket
	holders [16]Holder
}

// rowOf makes the row of a socket, nil where it is not to be listed.
func (n Renderer) rowOf(sockets Sockets, i int, mem *rowMemory) *Socket {
	if !sockets.read(i, &mem.socket) {
		return nil
	}
	n.fill(&mem.row, &mem.socket, mem.holders[:0])
	return &mem.row
}

// rowsText writes so many rows, which it makes on every processor, and leaves out those
// that are nil.
func (n Renderer) rowsText(w io.Writer, style Style, count int, row func(int, *rowMemory) *Socket) error {
	grids := make([]*grid, parts(count))
	apart := make([]rowsSay, len(grids))
	at := time.Now()
	shareRows(count, func(part, from, to int) {
		g, say := newGrid(len(rowColumns)), &apart[part]
		grids[part] = g
		mem := new(rowMemory)
		for i := from; i < to; i++ {
			s := row(i, mem)
			if s == nil {
				continue
			}
			n.appendCells(g, s, at, style.Width > 0)
			say.add(rowsSay{!n.NetNS.IsHost(s.netNS()), s.owner() != "", s.RemoteIP.IsValid(), !s.stateSaysRole()})
		}
	})
	l := newLayout(rowColumns)
	head := l.head()
	l.fit(head)
	var all rowsSay
	for i, g := range grids {
		l.fit(g)
		all.add(apart[i])
	}
	l.fitRows(style, all)
	return writeTable(w, style, l, head, grids)
}

// stateSaysRole tells whether the role follows from the state.
func (s *Socket) stateSaysRole() bool {
	switch s.State {
	case tracer.StateListen.String(), tracer.StateTimeWait.String():
		return true
	case tracer.StateUnconn.String():
		return s.Role == tracer.RoleBound.String()
	}
	return false
}

// appendCells adds the line of a socket, as things were called at a time. where: WHERE may be shown.
func (n Renderer) appendCells(g *grid, s *Socket, at time.Time, where bool) {
	g.text = append(g.text, s.Proto...)
	if s.MPTCP {
		g.text = append(g.text, "+mp"...)
	}
	g.cell()
	g.add(s.State)
	g.text = appendEnd(g.text, netip.AddrPortFrom(s.LocalIP, s.LocalPort), endOf(s.Device, s.Index, s.V6Only))
	g.cell()
	g.text = appendEnd(g.text, netip.AddrPortFrom(s.RemoteIP, s.RemotePort), end{})
	g.cell()
	g.add(s.Role)
	pid, comm := holderCells(s)
	g.add(pid)
	g.add(comm)
	space, owner := n.spaceName(s.netNS(), at, &s.Place), cmp.Or(identity.Safe(s.owner()), "-")
	g.add(space)
	g.add(owner)
	switch {
	case !where:
		g.add("")
	case owner != "-":
		g.add(owner)
	default:
		g.add(space)
	}
}

// The values of Socket.NoHolder.
var (
	byKernel   = tracer.NoHolderKernel.String()
	inFlight   = tracer.NoHolderInFlight.String()
	byIOUring  = tracer.NoHolderIOUring.String()
	outOfSight = tracer.NoHolderOutOfSight.String()
)

// holderCells shows the first process that holds a socket, and how many more, or in brackets why
// there is none.
func holderCells(s *Socket) (pid, comm string) {
	holders := s.Holders
	switch {
	case len(holders) > 0:
	case s.NoHolder == byKernel:
		return "-", "(kernel)"
	case s.NoHolder == inFlight:
		return "-", "(in flight)"
	case s.NoHolder == outOfSight:
		return "-", "(out of sight)"
	default:
		return "-", "-"
	}
	first := holders[0]
	var others map[uint32]bool
	for _, h := range holders[1:] {
		if others == nil {
			others = make(map[uint32]bool)
		}
		if h.PID != first.PID {
			others[h.PID] = true
		}
	}
	pid, comm = strconv.Itoa(int(first.PID)), identity.Safe(first.Comm)
	if len(others) > 0 {
		comm += fmt.Sprintf(" +%d", len(others))
	}
	if s.NoHolder == byIOUring {
		comm += " (io_uring)"
	}
	return pid, comm
}

// EventHead is the heading above lines of EventLine, without the newline.
func EventHead(style Style) string {
	return style.Bold(fmt.Sprintf("%-*s EVENT   PRO %-*s %-*s %*s COMM", len(style.eventTime()), "TIME",
		style.eventLocal(), "LOCAL", eventRemote, "REMOTE", eventPID, "PID"))
}

const (
	eventRemote = len("10.0.8.20:51234")
	eventPID    = len("48213")
)

// short tells whether a terminal has no room for milliseconds and for any IPv4 address of tail.
func (s Style) short() bool { return s.Width > 0 && s.Width < 70 }

// eventTime is how the time of an event is written.
func (s Style) eventTime() string {
	if s.short() {
		return time.TimeOnly
	}
	return clockFormat
}

// eventEnds is the column where LOCAL begins.
func (s Style) eventEnds() int { return len(s.eventTime()) + len(" connect tcp ") }

// eventLocal is how wide LOCAL is, so that an ordinary line fits 80 columns.
func (s Style) eventLocal() int {
	const least, ordinary, anyIPv4 = 12, 17, len("255.255.255.255:65535")
	if s.short() {
		return least
	}
	return max(ordinary, min(anyIPv4, ordinary+s.Width-80))
}

// EventLine is one event as tail shows it, without the newline. On a terminal what an event has
// to say beyond its columns, and has no room in the line, follows in others.
func (n Renderer) EventLine(style Style, ev *Event) string {
	t := eventText{local: "-", remote: "-", pid: "-", comm: "-", words: n.extra(style, ev)}
	if local, remote := ev.Ends(); local != "" || remote != "" {
		t.local, t.remote = cmp.Or(local, "-"), cmp.Or(remote, "-")
	}
	if ev.PID != 0 {
		t.pid, t.comm = strconv.Itoa(int(ev.PID)), identity.Safe(ev.Comm)
	}
	event := ev.Event
	if event == tracer.EventEstablished.String() {
		event = "estab"
	}
	return fmt.Sprintf("%s %-7s %-3s %s", ev.Time.Local().Format(style.eventTime()), event, ev.Proto, t.line(style))
}

// eventText is what an event has in columns behind its protocol, and what it has to say besides.
type eventText struct {
	local, remote, pid, comm string
	words                    []string
}

// line is the rest of the line of an event. A long address takes the room before the PID, and so
// does what there is to say besides, if it has room in the line then.
func (t *eventText) line(style Style) string {
	extra := 0 // columns of words
	for _, w := range t.words {
		extra += 1 + columnsOf([]byte(w))
	}
	besides, slack := "", math.MaxInt // slack is how many columns are left for alignment
	if extra > 0 {
		besides, extra = "  "+strings.Join(t.words, " "), extra+1
	}
	if style.Width > 0 {
		room := style.Width - style.eventEnds()
		t.fit(room, extra)
		if slack = room - t.width() - extra; slack < 0 {
			besides, slack = style.below(len(style.eventTime()+" "), t.words), slack+extra
		}
	}
	local := style.eventLocal()
	pad := max(0, min(local-columnsOf([]byte(t.local)), slack))
	ends := t.local + strings.Repeat(" ", pad) + " " + t.remote
	aligned := local + 1 + eventRemote + 1 + eventPID - columnsOf([]byte(ends+" "+t.pid))
	return ends + strings.Repeat(" ", max(0, min(aligned, slack-pad))+1) + t.pid + " " + t.comm + besides
}

func (t *eventText) width() int {
	return columnsOf([]byte(t.local + " " + t.remote + " " + t.pid + " " + t.comm))
}

// fit cuts what is in columns, so that it fits so many, with extra ones for what else there is to say
// if that leaves enough.
func (t *eventText) fit(width, extra int) {
	const most, few, least = 21, 10, 11 // any IPv4 address with its port; of the name; of an address, with five digits of a port
	room := width - len(" "+t.pid+" ")  // for both ends and the name
	name := columnsOf([]byte(t.comm))
	for _, besides := range []int{extra, 0} {
		local, remote, over := cutEnds(t.local, t.remote, room-name-besides, most)
		if over <= 0 {
			t.local, t.remote = local, remote
			return
		}
	}
	_, _, over := cutEnds(t.local, t.remote, room-name, most)
	t.comm = string(cutMiddle([]byte(t.comm), max(min(few, name), name-over), ellipsis))
	t.local, t.remote, over = cutEnds(t.local, t.remote, room-columnsOf([]byte(t.comm)), least)
	if over > 0 {
		t.comm = string(cutMiddle([]byte(t.comm), max(1, columnsOf([]byte(t.comm))-over), ellipsis))
	}
}

// cutEnds makes both ends of a socket fit into so many columns, with a space between, by making the
// longer one shorter, but neither shorter than least; over is by how much that is not enough.
func cutEnds(local, remote string, room, least int) (a, b string, over int) {
	m, n := columnsOf([]byte(local)), columnsOf([]byte(remote))
	for m+1+n > room && max(m, n) > least {
		if m >= n {
			m--
		} else {
			n--
		}
	}
	return string(cutAddress([]byte(local), m, ellipsis)), string(cutAddress([]byte(remote), n, ellipsis)), m + 1 + n - room
}

// below are words on lines of their own, that begin at a column of the terminal.
func (s Style) below(at int, words []string) string {
	var b strings.Builder
	left := 0 // columns of this line
	for _, w := range words {
		text := cutMiddle([]byte(w), max(1, s.Width-at), ellipsis)
		n := columnsOf(text)
		if left < 1+n {
			b.WriteString("\n" + strings.Repeat(" ", at))
			left = s.Width - at - n
		} else {
			b.WriteByte(' ')
			left -= 1 + n
		}
		b.Write(text)
	}
	return b.String()
}

// heldBy names the socket in the way of a bind by who holds it, or else by who
// opened it.
func heldBy(s *Socket) string {
	if pid, comm := holderCells(s); pid != "-" {
		return fmt.Sprintf("held by %s (%s, pid %s)", comm, s.Role, pid)
	}
	switch s.NoHolder {
	case byKernel:
		return fmt.Sprintf("held by the kernel (%s)", s.Role)
	case outOfSight:
		return fmt.Sprintf("held by a process out of sight (%s)", s.Role)
	}
	if s.Owner != nil {
		return fmt.Sprintf("held by a %s of %s (pid %d)", s.Role, identity.Safe(s.Owner.Comm), s.Owner.PID)
	}
	return "held by a socket in " + s.State
}

// extra is what an event has to say beyond its columns.
func (n Renderer) extra(style Style, ev *Event) []string {
	var words []string
	if ev.Error != "" {
		words = append(words, style.Red(ev.Error))
	}
	if len(ev.HeldBy) > 0 {
		words = append(words, heldBy(&ev.HeldBy[0]))
		if more := len(ev.HeldBy) - 1 + ev.HeldByMore; more > 0 {
			words = append(words, fmt.Sprintf("and %d more", more))
		}
	}
	if ev.Implicit {
		words = append(words, "implicit")
	}
	if ev.MPTCP {
		words = append(words, "mptcp")
	}
	if ev.TimeWait {
		words = append(words, "time_wait")
	}
	if ev.UntilAbout {
		words = append(words, "noticed late")
	}
	owner := identity.Safe(ev.owner())
	told := style.OneNetNS && style.Width > 0
	if id := (identity.NetNS{Inode: ev.NetNS, Cookie: ev.Cookie}); !told && !n.NetNS.IsHost(id) {
		if name := n.spaceName(id, ev.Time.Time, &ev.Place); name != owner {
			words = append(words, "netns="+name)
		}
	}
	switch {
	case ev.Pod != nil:
		words = append(words, "pod="+owner)
	case ev.Container != nil:
		words = append(words, "container="+owner)
	}
	return words
}
