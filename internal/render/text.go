package render

import (
	"fmt"
	"io"
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

// RowsText writes rows of sockets as ls shows them. The columns for namespace and
// container are there where some socket is not the host's, or in a container.
func (n Renderer) RowsText(w io.Writer, style Style, rows []Socket) error {
	return n.rowsText(w, style, len(rows), func(i int, _ *rowMemory) *Socket { return &rows[i] })
}

// The columns of RowsText.
var rowsHead = []string{"PROTO", "STATE", "LOCAL", "REMOTE", "ROLE", "PID", "COMM", "NETNS", "CONTAINER"}

const pidColumn, netnsColumn, containerColumn = 5, 7, 8

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
	head := newGrid(len(rowsHead))
	for _, name := range rowsHead {
		head.add(name)
	}
	grids := make([]*grid, parts(count))
	apart := make([]struct{ netns, container bool }, len(grids)) // is there any
	at := time.Now()
	shareRows(count, func(part, from, to int) {
		g, some := newGrid(len(rowsHead)), &apart[part]
		grids[part] = g
		mem := new(rowMemory)
		for i := from; i < to; i++ {
			s := row(i, mem)
			if s == nil {
				continue
			}
			n.appendCells(g, s, at)
			some.netns = some.netns || !n.NetNS.IsHost(s.netNS())
			some.container = some.container || s.owner() != ""
		}
	})
	l := newLayout(len(rowsHead), pidColumn)
	l.fit(head)
	l.hidden[netnsColumn], l.hidden[containerColumn] = true, true
	for i, g := range grids {
		l.fit(g)
		l.hidden[netnsColumn] = l.hidden[netnsColumn] && !apart[i].netns
		l.hidden[containerColumn] = l.hidden[containerColumn] && !apart[i].container
	}
	return writeTable(w, style, l, head, grids)
}

// appendCells adds the line of a socket, as things were called at a time.
func (n Renderer) appendCells(g *grid, s *Socket, at time.Time) {
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
	g.add(n.spaceName(s.netNS(), at, &s.Place))
	g.text = append(g.text, identity.Safe(s.owner())...)
	g.cell()
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

// EventHead is the heading above lines of EventLine.
const EventHead = "TIME         EVENT   PRO LOCAL             REMOTE            PID COMM"

// eventPIDEnd is the column where PID ends.
const eventPIDEnd = len(EventHead) - len(" COMM")

// EventLine is one event as tail shows it, without the newline.
func (n Renderer) EventLine(style Style, ev *Event) string {
	local, remote := "-", "-"
	at := endOf(ev.Device, ev.Index, ev.V6Only)
	if ev.LocalIP.IsValid() {
		local = string(appendEnd(nil, netip.AddrPortFrom(ev.LocalIP, ev.LocalPort), at))
		at = end{} // told
	}
	if ev.RemoteIP.IsValid() {
		remote = string(appendEnd(nil, netip.AddrPortFrom(ev.RemoteIP, ev.RemotePort), end{zone: at.zone}))
	}
	pid, comm := "-", "-"
	if ev.PID != 0 {
		pid, comm = strconv.Itoa(int(ev.PID)), identity.Safe(ev.Comm)
	}
	event := ev.Event
	if event == tracer.EventEstablished.String() {
		event = "estab"
	}
	line := fmt.Sprintf("%s %-7s %-3s %-17s %s", clock(ev.Time.Time), event, ev.Proto, local, remote)
	// A long address takes the room before the PID, so that an ordinary line fits 80 columns.
	line = fmt.Sprintf("%s %*s %s", line, max(0, eventPIDEnd-len(line)-1), pid, comm)
	if extra := n.extra(style, ev); extra != "" {
		line += "  " + extra
	}
	return line
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

// extra is what an event has to tell beyond its columns.
func (n Renderer) extra(style Style, ev *Event) string {
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
	if id := (identity.NetNS{Inode: ev.NetNS, Cookie: ev.Cookie}); !n.NetNS.IsHost(id) {
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
	return strings.Join(words, " ")
}
