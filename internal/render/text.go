package render

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

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

// Safe returns s so that it can be shown on a terminal: a name with control
// characters, escape sequences or invalid UTF-8 is quoted.
func Safe(s string) string {
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

// AddrPort is an address and port as ss(8) shows them, with * for any address
// or port.
func AddrPort(a netip.AddrPort) string {
	if !a.IsValid() {
		return "*:*"
	}
	port := "*"
	if a.Port() != 0 {
		port = strconv.Itoa(int(a.Port()))
	}
	if a.Addr().Is4() {
		return a.Addr().String() + ":" + port
	}
	return "[" + a.Addr().String() + "]:" + port
}

// Table writes lines of cells as columns, each as wide as its widest cell; the
// first line is the heading. right tells which columns are aligned to the right.
func Table(w io.Writer, style Style, lines [][]string, right ...int) error {
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	isRight := make([]bool, len(widths))
	for _, i := range right {
		isRight[i] = true
	}
	var b strings.Builder
	for n, line := range lines {
		b.Reset()
		for i, cell := range line {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			switch {
			case isRight[i]:
				b.WriteString(pad + cell)
			case i == len(line)-1:
				b.WriteString(cell)
			default:
				b.WriteString(cell + pad)
			}
			if i < len(line)-1 {
				b.WriteByte(' ')
			}
		}
		text := strings.TrimRight(b.String(), " ")
		if n == 0 {
			text = style.Bold(text)
		}
		if _, err := io.WriteString(w, text+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// SocketsText writes sockets as ls shows them.
func (n *Names) SocketsText(w io.Writer, style Style, sockets []tracer.Socket) error {
	rows := make([]Socket, len(sockets))
	for i := range sockets {
		rows[i] = n.Socket(&sockets[i])
	}
	return n.RowsText(w, style, rows)
}

// RowsText writes rows of sockets as ls shows them. The columns for namespace and
// container are there where some socket is not the host's, or in a container.
func (n *Names) RowsText(w io.Writer, style Style, rows []Socket) error {
	head := []string{"PROTO", "STATE", "LOCAL", "REMOTE", "ROLE", "PID", "COMM"}
	withNS, withContainer := false, false
	for i := range rows {
		withNS = withNS || rows[i].NetNS != n.HostNS
		withContainer = withContainer || rows[i].Container != nil
	}
	if withNS {
		head = append(head, "NETNS")
	}
	if withContainer {
		head = append(head, "CONTAINER")
	}
	lines := make([][]string, 0, len(rows)+1)
	lines = append(lines, head)
	for i := range rows {
		s := &rows[i]
		pid, comm := holderCells(s.Holders)
		line := []string{s.Proto, s.State, s.local(), s.remote(), s.Role, pid, comm}
		if s.MPTCP {
			line[0] += "+mp"
		}
		if withNS {
			line = append(line, n.NetNSName(s.NetNS))
		}
		if withContainer {
			label := ""
			if s.Container != nil {
				label = Safe(s.Container.Label())
			}
			line = append(line, label)
		}
		lines = append(lines, line)
	}
	return Table(w, style, lines, 5)
}

func (s *Socket) local() string  { return AddrPort(netip.AddrPortFrom(s.LocalIP, s.LocalPort)) }
func (s *Socket) remote() string { return AddrPort(netip.AddrPortFrom(s.RemoteIP, s.RemotePort)) }

// holderCells shows the first process that holds a socket, and how many more.
func holderCells(holders []Holder) (pid, comm string) {
	if len(holders) == 0 {
		return "-", "-"
	}
	first := holders[0]
	others := make(map[uint32]bool)
	for _, h := range holders[1:] {
		if h.PID != first.PID {
			others[h.PID] = true
		}
	}
	pid, comm = strconv.Itoa(int(first.PID)), Safe(first.Comm)
	if len(others) > 0 {
		comm += fmt.Sprintf(" +%d", len(others))
	}
	return pid, comm
}

// NetNSName is the name of a network namespace, or its inode number.
func (n *Names) NetNSName(inode uint32) string {
	if name, ok := n.NetNS[inode]; ok {
		return Safe(name)
	}
	return strconv.Itoa(int(inode))
}

// EventHead is the heading above lines of EventLine.
const EventHead = "TIME         EVENT   PRO LOCAL             REMOTE            PID COMM"

// eventPIDEnd is the column where PID ends.
const eventPIDEnd = len(EventHead) - len(" COMM")

// EventLine is one event as tail shows it, without the newline.
func (n *Names) EventLine(style Style, ev *Event) string {
	local, remote := "-", "-"
	if ev.LocalIP.IsValid() {
		local = AddrPort(netip.AddrPortFrom(ev.LocalIP, ev.LocalPort))
	}
	if ev.RemoteIP.IsValid() {
		remote = AddrPort(netip.AddrPortFrom(ev.RemoteIP, ev.RemotePort))
	}
	pid, comm := "-", "-"
	if ev.PID != 0 {
		pid, comm = strconv.Itoa(int(ev.PID)), Safe(ev.Comm)
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
	if pid, comm := holderCells(s.Holders); pid != "-" {
		return fmt.Sprintf("held by %s (%s, pid %s)", comm, s.Role, pid)
	}
	if s.Owner != nil {
		return fmt.Sprintf("held by a %s of %s (pid %d)", s.Role, Safe(s.Owner.Comm), s.Owner.PID)
	}
	return "held by a socket in " + s.State
}

// extra is what an event has to tell beyond its columns.
func (n *Names) extra(style Style, ev *Event) string {
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
	if ev.NetNS != n.HostNS {
		words = append(words, "netns="+n.NetNSName(ev.NetNS))
	}
	if ev.Container != nil {
		words = append(words, "container="+Safe(ev.Container.Label()))
	}
	return strings.Join(words, " ")
}
