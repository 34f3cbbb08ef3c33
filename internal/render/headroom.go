package render

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// PortUser is a process and how many ports it has, in JSON.
type PortUser struct {
	Comm  string `json:"comm"`
	PID   uint32 `json:"pid"`
	Ports int    `json:"ports"`
	Place
}

// Headroom is what one way of getting a port has left, in JSON, and a row of
// headroom.
type Headroom struct {
	NetNS         uint32     `json:"netns"`
	Cookie        uint64     `json:"netns_cookie,omitempty"`
	Proto         string     `json:"proto"`
	Op            string     `json:"op"`
	LocalIP       netip.Addr `json:"local_ip,omitzero"`
	RemoteIP      netip.Addr `json:"remote_ip,omitzero"`
	RemotePort    uint16     `json:"remote_port,omitempty"`
	Device        string     `json:"device,omitempty"`
	Index         uint32     `json:"device_index,omitempty"` // where the device's name is not known
	Scope         string     `json:"scope,omitempty"`
	RangeLow      uint16     `json:"range_low"`
	RangeHigh     uint16     `json:"range_high"`
	Reserved      int        `json:"reserved"`
	Capacity      int        `json:"capacity"`
	Used          int        `json:"used"`
	TimeWait      int        `json:"time_wait"`
	Blocked       int        `json:"blocked"`
	Free          int        `json:"free"`
	MaybeOneLess  bool       `json:"maybe_one_less,omitempty"`
	Utilization   float64    `json:"utilization"`
	Holders       []PortUser `json:"holders"`
	BlockedBy     []PortUser `json:"blocked_by,omitempty"`
	Reclaimable   int        `json:"reclaimable,omitempty"`
	ListenOn      []uint16   `json:"listen_on,omitempty"`
	ReservedPorts string     `json:"reserved_ports,omitempty"`
	// Partial: as of Socket. Ports that a bind() blocks are not known, so Blocked is at least, and Free at
	// most, what it says.
	Partial bool `json:"partial,omitempty"`
}

// Quote is as Socket.Quote.
func (h *Headroom) Quote() { quote(&h.Proto, &h.Op, &h.ReservedPorts) }

// Headrooms makes rows, in the same order.
func (n Renderer) Headrooms(all []tracer.Headroom) []Headroom {
	out := make([]Headroom, len(all))
	for i := range all {
		h := &all[i]
		out[i] = Headroom{
			NetNS: h.NetNS, Cookie: h.NetNSCookie, Proto: h.Proto.String(), Op: h.Op.String(),
			LocalIP: h.Local, RemoteIP: h.Remote.Addr(), RemotePort: h.Remote.Port(),
			RangeLow: h.Low, RangeHigh: h.High, Reserved: h.Reserved, ReservedPorts: h.ReservedPorts,
			Capacity: h.Capacity, Used: h.Used, TimeWait: h.TimeWait, Blocked: h.Blocked, Free: h.Free,
			MaybeOneLess: h.MaybeOneLess, Utilization: math.Round(h.Utilization()*1e4) / 1e4,
			Holders: n.portUsers(h.Holders), BlockedBy: n.portUsers(h.BlockedBy), Reclaimable: h.Reclaimable, ListenOn: h.ListenOn,
		}
		out[i].Partial = n.Partial
		out[i].Device, out[i].Index = n.DeviceOrIndex(h.DeviceID())
		out[i].Scope = scope(out[i].Device, h.Local, h.Remote.Addr())
	}
	return out
}

func (n Renderer) portUsers(users []tracer.PortUser) []PortUser {
	out := make([]PortUser, len(users))
	for i := range users {
		u := &users[i]
		out[i] = PortUser{u.Comm, u.PID, u.Ports, n.place(&u.Process)}
	}
	return out
}

// The text of headroom has a part for each namespace: which calls fail now and what would help, what
// is true of all of it, and the ways to get a port.

// Busy is the number of lines of HeadroomText that shows 20, and none where every way to get a port
// is less than 1 % full.
const Busy = -1

// HeadroomText writes rows as headroom shows them, at most top of each namespace (0: all; or Busy).
// Namespaces where nothing has an ephemeral port are only counted, unless it is the only one.
func (n Renderer) HeadroomText(w io.Writer, style Style, rows []Headroom, top int) error {
	var spaces []identity.NetNS
	of := make(map[identity.NetNS][]Headroom)
	for _, r := range rows {
		id := identity.NetNS{Inode: r.NetNS, Cookie: r.Cookie}
		if of[id] == nil {
			spaces = append(spaces, id) // the fullest first, as rows are
		}
		of[id] = append(of[id], r)
	}
	now := time.Now()
	idle := func(ns identity.NetNS) bool { return !slices.ContainsFunc(of[ns], Headroom.inUse) }
	shown := slices.DeleteFunc(slices.Clone(spaces), func(ns identity.NetNS) bool { return len(spaces) > 1 && !n.NetNS.IsHost(ns) && idle(ns) })
	for i, ns := range shown {
		t := spaceText{out: w, w: style.Wrapper(w), style: style, elsewhere: n.Elsewhere, name: n.spaceName(ns, now, whose(of[ns])), rows: of[ns], top: top}
		if i > 0 {
			t.printf("\n")
		}
		t.write()
		if t.err != nil {
			return t.err
		}
	}
	if hidden := len(spaces) - len(shown); hidden > 0 {
		_, err := fmt.Fprintf(w, "\n%s, where no ephemeral port is in use\n", count(hidden, "more network namespace", "more network namespaces"))
		return err
	}
	return nil
}

// whose is the place of the first that has ports and is in a pod or container.
func whose(rows []Headroom) *Place {
	for i := range rows {
		for _, users := range [][]PortUser{rows[i].Holders, rows[i].BlockedBy} {
			for j := range users {
				if p := &users[j].Place; p.owner() != "" {
					return p
				}
			}
		}
	}
	return &Place{}
}

func (h Headroom) inUse() bool { return h.Used > 0 || h.Blocked > 0 || h.RemotePort != 0 }

// spaceText writes what there is to say of one namespace.
type spaceText struct {
	out   io.Writer
	w     io.Writer // out, for lines that can be wrapped
	style Style
	name  string
	rows  []Headroom
	top   int
	err   error

	elsewhere string // as of identity.Names
}

func (t *spaceText) printf(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format, args...)
	}
}

func (t *spaceText) write() {
	quiet := t.top == Busy && !slices.ContainsFunc(t.rows, func(h Headroom) bool { return h.percent() > 0 })
	failing := t.failing()
	first := &t.rows[0]
	reserved := ""
	if first.Reserved > 0 {
		reserved = fmt.Sprintf(", %d of them reserved", first.Reserved)
	}
	t.printf("%s\n", t.style.Bold(fmt.Sprintf("%s: ephemeral ports %d-%d%s", t.name, first.RangeLow, first.RangeHigh, reserved)))
	for i := range t.rows {
		if h := &t.rows[i]; h.Op == "connect" && h.RemotePort == 0 {
			t.summary(quiet, fmt.Sprintf("  tcp: %s free for a new destination, %s", t.free(h), number(h.Blocked, "blocked")), h.BlockedBy)
		}
	}
	for i := range t.rows {
		if h := &t.rows[i]; h.Op == "implicit_bind" && h.LocalIP.Is4() {
			t.summary(quiet, fmt.Sprintf("  udp: %s free, %s", t.free(h), number(h.Used, "used")), h.Holders)
		}
	}
	if quiet {
		return
	}
	t.table()
	lines := advice(t.rows)
	if !failing {
		lines = append(remedies(t.rows), lines...)
	}
	t.advise(lines)
}

// advise writes what helps, and where commands are to be given, if not here.
func (t *spaceText) advise(lines []string) {
	if len(lines) > 0 && t.elsewhere != "" {
		t.printf("  on %s:\n", t.elsewhere)
	}
	for _, line := range lines {
		t.printf("  * %s\n", line)
	}
}

// summary is a line about a protocol, and who has the other ports, in brief if there is room for them.
func (t *spaceText) summary(brief bool, line string, users []PortUser) {
	whole := line + byUsers(users)
	if brief && t.style.Width > 0 && columnsOf([]byte(whole)) > t.style.Width {
		whole = line
	}
	t.printf("%s\n", whole)
}

// number is how many ports are something, in words.
func number(n int, what string) string {
	if n == 0 {
		return "none " + what
	}
	return fmt.Sprintf("%d %s", n, what)
}

// maxFailing is how many of the calls that fail are named.
const maxFailing = 3

// failing says which calls fail now, and because of whom, and what helps against that; false: none
// does. That bind() to port 0 fails besides connect() is said in a word.
func (t *spaceText) failing() bool {
	rows := slices.DeleteFunc(slices.Clone(t.rows), func(h Headroom) bool { return h.Free > 0 || h.Op == "implicit_bind" && !h.LocalIP.Is4() })
	if len(rows) == 0 {
		return false
	}
	slices.SortStableFunc(rows, byOp)
	binds := 0
	if rows[0].Op != "bind" {
		all := len(rows)
		rows = slices.DeleteFunc(rows, func(h Headroom) bool { return h.Op == "bind" })
		binds = all - len(rows)
	}
	for i := range rows[:min(len(rows), maxFailing)] {
		h := &rows[i]
		t.printf("%s\n", t.style.Bold(t.name+": ")+t.style.Red(h.fails()))
		t.printf("  %s\n", h.taken())
	}
	if more := len(rows) - maxFailing; more > 0 {
		t.printf("  and %s, see below\n", count(more, "more such call", "more such calls"))
	}
	if binds > 0 {
		t.printf("  bind() to port 0 fails, too (EADDRINUSE)\n")
	}
	t.advise(remedies(t.rows))
	t.printf("\n")
	return true
}

// taken says who has the ports.
func (h *Headroom) taken() string {
	var parts []string
	if h.Used > 0 {
		parts = append(parts, number(h.Used, "used")+byUsers(h.Holders))
	}
	if h.Blocked > 0 {
		parts = append(parts, number(h.Blocked, "blocked")+byUsers(h.BlockedBy))
	}
	switch len(parts) {
	case 0:
		return "every port of the range is reserved"
	case 1:
		return "all " + parts[0]
	}
	return strings.Join(parts, "; ")
}

// fails says which call gets no port.
func (h *Headroom) fails() string {
	switch {
	case h.Op == "bind":
		return fmt.Sprintf("bind() to port 0 of %s, %s, fails now (EADDRINUSE)", h.from(), h.Proto)
	case h.Op == "implicit_bind":
		return "connect() and sendto() of new UDP sockets fail now (EAGAIN)"
	case h.RemotePort == 0:
		return "connect() fails now (EADDRNOTAVAIL) to every new destination"
	}
	return fmt.Sprintf("connect() fails now (EADDRNOTAVAIL) to %s from %s", h.to(), h.from())
}

// byOp orders ways to get a port by how likely they are what is asked about.
func byOp(a, b Headroom) int {
	order := []string{"connect", "implicit_bind", "bind"}
	return cmp.Compare(slices.Index(order, a.Op), slices.Index(order, b.Op))
}

// percent is how full it is, as it is shown.
func (h Headroom) percent() int { return int(math.Floor(h.Utilization * 100)) }

// free is the number of free ports; where the kernel may not find the last, both.
func (t *spaceText) free(h *Headroom) string {
	if h.MaybeOneLess {
		return fmt.Sprintf("%d or %d", max(0, h.Free-1), h.Free)
	}
	return strconv.Itoa(h.Free)
}

// byUsers names the first few of those who have ports.
func byUsers(users []PortUser) string {
	if len(users) == 0 {
		return ""
	}
	var names []string
	for i, u := range users {
		if i == 2 {
			names = append(names, count(len(users)-i, "more process", "more processes"))
			break
		}
		names = append(names, u.text())
	}
	return ": " + strings.Join(names, ", ")
}

func (u PortUser) text() string {
	if u.PID == 0 {
		return fmt.Sprintf("no known process %d", u.Ports)
	}
	return fmt.Sprintf("%s (pid %d) %d", identity.Safe(u.Comm), u.PID, u.Ports)
}

// headroomColumns are the columns of the ways to get a port. The bar is a column of its own, which
// has room last.
var headroomColumns = []Column{
	{Name: "  PROTO"}, {Name: "FROM"}, {Name: "TO", Address: true}, {Name: "USED", Right: true}, {Name: "TIMEWAIT", Right: true},
	{Name: "FREE", Right: true}, {Name: "FULL", Right: true}, {Name: ""}, {Name: "PID", Right: true}, {Name: "COMM"}, {Name: "PORTS", Right: true},
}

// table lists the ways to get a port of which some are used, the fullest first.
func (t *spaceText) table() {
	rows := slices.DeleteFunc(slices.Clone(t.rows), func(h Headroom) bool { return h.Used == 0 && h.RemotePort == 0 || h.Op == "implicit_bind" })
	// One destination can be what makes bind() to port 0 as full, and is what is asked about.
	slices.SortStableFunc(rows, func(a, b Headroom) int { return cmp.Or(cmp.Compare(b.percent(), a.percent()), byOp(a, b)) })
	top := t.top
	if top == Busy {
		top = 20
	}
	more := 0
	if top > 0 && len(rows) > top {
		rows, more = rows[:top], len(rows)-top
	}
	var lines [][]string
	for i := range rows {
		h := &rows[i]
		pid, comm, ports := most(h.Holders)
		lines = append(lines, []string{
			"  " + h.Proto, h.from(), h.to(), strconv.Itoa(h.Used), strconv.Itoa(h.TimeWait), t.free(h), fmt.Sprintf("%d%%", h.percent()), t.bar(h), pid, comm, ports,
		})
	}
	if len(lines) > 0 && t.err == nil {
		const from, to, used, timeWait, bar, comm, ports = 1, 2, 3, 4, 7, 9, 10
		steps := []Squeeze{
			{0, []int{bar}}, {0, []int{ports}}, {21, []int{from, to}}, {0, []int{timeWait}}, {12, []int{comm}}, {12, []int{from, to}},
			{0, []int{used}}, {10, []int{comm, from, to}}, {0, []int{from}},
		}
		t.err = Table(t.out, t.style, headroomColumns, lines, steps...)
	}
	if more > 0 {
		t.printf("  and %d more; --top 0 shows all\n", more)
	}
}

// most is who has the most ports, and how many more have some.
func most(users []PortUser) (pid, comm, ports string) {
	if len(users) == 0 {
		return "-", "-", "-"
	}
	first := &users[0]
	pid, comm = "-", "(no known process)"
	if first.PID != 0 {
		pid, comm = strconv.Itoa(int(first.PID)), identity.Safe(first.Comm)
	}
	if more := len(users) - 1; more > 0 {
		comm += fmt.Sprintf(" +%d", more)
	}
	return pid, comm, strconv.Itoa(first.Ports)
}

// from has the device of bind(), to that of connect(): as --to takes it.
func (h *Headroom) from() string {
	if h.Op == "bind" {
		return end{zone: h.end().zone}.host(h.LocalIP)
	}
	return h.LocalIP.String()
}

func (h *Headroom) to() string {
	if h.Op == "bind" {
		return "bind(port 0)"
	}
	return string(appendEnd(nil, netip.AddrPortFrom(h.RemoteIP, h.RemotePort), end{zone: h.end().zone}))
}

func (h *Headroom) end() end { return endOf(h.Device, h.Index, true) }

// bar shows how full it is, on a terminal.
func (t *spaceText) bar(h *Headroom) string {
	const width = 8
	if t.style.Width == 0 {
		return ""
	}
	eighths := int(h.Utilization * width * 8)
	bar := strings.Repeat("\u2588", eighths/8)
	if eighths%8 > 0 {
		bar += string(rune(0x2590 - eighths%8)) // left blocks of 1 to 7 eighths
	}
	return fmt.Sprintf("%-*s", width, bar)
}

// remedies say what helps once ports are short, of what is true in this namespace.
func remedies(rows []Headroom) []string {
	var out []string
	full, reclaimable := 0, 0
	for _, r := range rows {
		if r.Op == "connect" && r.RemotePort != 0 && r.Free == 0 {
			full++
		}
		reclaimable += r.Reclaimable
	}
	if reclaimable > 0 {
		out = append(out, fmt.Sprintf("sysctl -w net.ipv4.tcp_tw_reuse=1 would free %s in TIME-WAIT", count(reclaimable, "port that is", "ports that are")))
	}
	if full > 0 {
		out = append(out, "keep connections and use them again, or use more addresses or ports, on either side: each pair of ends has a range of its own. "+
			"A wider range:\n    sysctl -w net.ipv4.ip_local_port_range=\"LOW HIGH\"")
	}
	h := connectOf(rows)
	if bound := h.Blocked - len(h.ListenOn); h.Op == "connect" && bound*100 >= h.Capacity && bound > 0 {
		out = append(out, fmt.Sprintf("%s blocked for every destination by bind(). Set IP_BIND_ADDRESS_NO_PORT before a bind() that comes before connect()", count(bound, "port is", "ports are")))
	}
	return out
}

// connectOf is a row about connect(), all of which tell the same of a namespace, or if there is none
// the first one.
func connectOf(rows []Headroom) *Headroom {
	return &rows[max(0, slices.IndexFunc(rows, func(r Headroom) bool { return r.Op == "connect" }))]
}

// advice says what would help before ports are short.
func advice(rows []Headroom) []string {
	var out []string
	slow := 0
	for _, r := range rows {
		if r.Op == "connect" && r.RemotePort != 0 && r.Free > 0 && 2*(r.Capacity-r.Free) >= r.Capacity {
			slow++
		}
	}
	if slow > 0 {
		out = append(out, fmt.Sprintf("%d of these destinations %s half full or more: connect() tries half of the range before it finds a port. "+
			"Other addresses or ports, on either side, have a range of their own", slow, isAre(slow)))
	}
	h := connectOf(rows)
	if len(h.ListenOn) > 0 && h.Op == "connect" {
		out = append(out, fmt.Sprintf("services listen inside the range: when they restart, their port may be taken. To reserve it:\n"+
			"    sysctl -w net.ipv4.ip_local_reserved_ports=%s", withPorts(h.ReservedPorts, h.ListenOn)))
	}
	if size := int(h.RangeHigh) - int(h.RangeLow) + 1; size%2 == 1 && size > 1 {
		out = append(out, fmt.Sprintf("the range has an odd number of ports, of which the kernel skips one. An even one:\n"+
			"    sysctl -w net.ipv4.ip_local_port_range=\"%d %d\"", h.RangeLow, h.RangeHigh-1))
	}
	return out
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// withPorts adds ports to a list as "8080,9000-9010".
func withPorts(list string, ports []uint16) string {
	parts := strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
	for _, p := range ports {
		parts = append(parts, strconv.Itoa(int(p)))
	}
	slices.SortStableFunc(parts, func(a, b string) int { return cmp.Compare(firstPort(a), firstPort(b)) })
	return strings.Join(parts, ",")
}

func firstPort(s string) int {
	first, _, _ := strings.Cut(s, "-")
	n, err := strconv.Atoi(first)
	if err != nil {
		return 0 // the kernel's list has nothing but numbers
	}
	return n
}
