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

// The text of headroom has a part for each namespace: what is true of all of it, the
// ways to get a port, and advice.

// HeadroomText writes rows as headroom shows them, at most top of each namespace (0:
// all). Namespaces where nothing has an ephemeral port are only counted, unless it is
// the only one.
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
		t := spaceText{w: w, style: style, name: n.spaceName(ns, now, whose(of[ns])), rows: of[ns], top: top}
		if i > 0 {
			t.printf("\n")
		}
		t.write()
		if t.err != nil {
			return t.err
		}
	}
	if hidden := len(spaces) - len(shown); hidden > 0 {
		_, err := fmt.Fprintf(w, "\n%d more network namespaces, where no ephemeral port is in use\n", hidden)
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
	w     io.Writer
	style Style
	name  string
	rows  []Headroom
	top   int
	err   error
}

func (t *spaceText) printf(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format, args...)
	}
}

func (t *spaceText) write() {
	first := &t.rows[0]
	t.printf("%s\n", t.style.Bold(fmt.Sprintf("%s: ephemeral ports %d-%d, %d of them reserved", t.name, first.RangeLow, first.RangeHigh, first.Reserved)))
	for _, h := range t.rows {
		if h.Op == "connect" && h.RemotePort == 0 {
			t.printf("  tcp: %s free for a new destination, %d blocked%s\n", t.free(&h), h.Blocked, byUsers(h.BlockedBy))
		}
	}
	for _, h := range t.rows {
		if h.Op == "implicit_bind" && h.LocalIP.Is4() {
			t.printf("  udp: %s free, %d used%s\n", t.free(&h), h.Used, byUsers(h.Holders))
		}
	}
	t.table()
	for _, line := range advice(t.rows) {
		t.printf("  * %s\n", line)
	}
}

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
			names = append(names, fmt.Sprintf("%d more", len(users)-i))
			break
		}
		names = append(names, u.text())
	}
	return "\n    by " + strings.Join(names, ", ")
}

func (u PortUser) text() string {
	if u.PID == 0 {
		return fmt.Sprintf("no process %d", u.Ports)
	}
	return fmt.Sprintf("%s (pid %d) %d", identity.Safe(u.Comm), u.PID, u.Ports)
}

// table lists the ways to get a port of which some are used.
func (t *spaceText) table() {
	lines := [][]string{{"  PROTO", "FROM", "TO", "USED", "TIMEWAIT", "FREE", "FULL", "PROCESS"}}
	more := 0
	rows := slices.Clone(t.rows)
	order := []string{"connect", "bind"} // bind() is always as full, and seldom the question
	slices.SortStableFunc(rows, func(a, b Headroom) int {
		return cmp.Compare(slices.Index(order, a.Op), slices.Index(order, b.Op))
	})
	for _, h := range rows {
		if h.Used == 0 && h.RemotePort == 0 || h.Op == "implicit_bind" {
			continue
		}
		if t.top > 0 && len(lines) > t.top {
			more++
			continue
		}
		process := ""
		if len(h.Holders) > 0 {
			if process = h.Holders[0].text(); len(h.Holders) > 1 {
				process += fmt.Sprintf(" +%d", len(h.Holders)-1)
			}
		}
		lines = append(lines, []string{
			"  " + h.Proto, h.from(), h.to(), strconv.Itoa(h.Used), strconv.Itoa(h.TimeWait), t.free(&h), t.full(&h), process,
		})
	}
	if len(lines) > 1 && t.err == nil {
		t.err = Table(t.w, t.style, lines, 3, 4, 5, 6)
	}
	if more > 0 {
		t.printf("  and %d more; --top 0 shows all\n", more)
	}
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

// full is the utilization, on a terminal with a bar.
func (t *spaceText) full(h *Headroom) string {
	const width = 8
	text := fmt.Sprintf("%3.0f%%", math.Floor(h.Utilization*100))
	if !t.style.Color {
		return text
	}
	eighths := int(h.Utilization * width * 8)
	bar := strings.Repeat("\u2588", eighths/8)
	if eighths%8 > 0 {
		bar += string(rune(0x2590 - eighths%8)) // left blocks of 1 to 7 eighths
	}
	return fmt.Sprintf("%s %-*s", text, width, bar)
}

// advice says what would help, of what is true in this namespace.
func advice(rows []Headroom) []string {
	var out []string
	h := &rows[0]
	if i := slices.IndexFunc(rows, func(r Headroom) bool { return r.Op == "connect" }); i >= 0 {
		h = &rows[i]
	}
	slow, reclaimable := 0, 0
	for _, r := range rows {
		if r.Op == "connect" && r.RemotePort != 0 && 2*(r.Capacity-r.Free) >= r.Capacity {
			slow++
		}
		reclaimable += r.Reclaimable
	}
	if slow > 0 {
		out = append(out, fmt.Sprintf("%d of these destinations %s half full or more: connect() tries half of the\n"+
			"    range before it finds a port. Other addresses or ports, on either side,\n"+
			"    have a range of their own", slow, isAre(slow)))
	}
	if reclaimable > 0 {
		out = append(out, fmt.Sprintf("net.ipv4.tcp_tw_reuse=1 would free %d ports that wait in TIME-WAIT", reclaimable))
	}
	if bound := h.Blocked - len(h.ListenOn); h.Op == "connect" && bound*100 >= h.Capacity && bound > 0 {
		out = append(out, fmt.Sprintf("%d ports are blocked for every destination because of a bind(). Before a\n"+
			"    connect() IP_BIND_ADDRESS_NO_PORT, set before the bind(), avoids that", bound))
	}
	if len(h.ListenOn) > 0 && h.Op == "connect" {
		out = append(out, fmt.Sprintf("services listen inside the range: when they restart, their port may be\n"+
			"    taken. To reserve it:\n"+
			"    sysctl -w net.ipv4.ip_local_reserved_ports=%s", withPorts(h.ReservedPorts, h.ListenOn)))
	}
	if size := int(h.RangeHigh) - int(h.RangeLow) + 1; size%2 == 1 && size > 1 {
		out = append(out, fmt.Sprintf("of an odd number of ports the kernel leaves one out. An even one:\n"+
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
