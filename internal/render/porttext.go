package render

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// PortText says in words who has a port, and had it before.
func (n Renderer) PortText(out io.Writer, style Style, p *Port) error {
	w := portWriter{out: out, names: n, now: time.Now(), port: p.Port, users: make(map[uint32]string)}
	protos := []string{p.Proto}
	if p.Proto == "" {
		protos = []string{tracer.TCP.String(), tracer.UDP.String()}
	}
	all := sections(p.Sockets)
	listening := listeningIn(p.Sockets)
	for _, proto := range protos {
		w.proto(proto, all, p.More, p.Proto != "" || !p.Held())
		w.strays(all[section{tracer.RoleServer.String(), proto}], listening)
	}
	w.about(p, protos)
	w.before(p.History, p.HistoryMore)
	if w.err != nil {
		return w.err
	}
	var clients []Socket
	for _, proto := range protos {
		clients = append(clients, all[section{tracer.RoleClient.String(), proto}]...)
	}
	if len(clients) > 0 {
		fmt.Fprintf(out, "\nclients that have %d as their own port:\n", p.Port)
		if err := n.RowsText(out, style, clients); err != nil {
			return err
		}
		for _, m := range p.More {
			if m.Role == tracer.RoleClient.String() && slices.Contains(protos, m.Proto) {
				w.printf("and %d more of %s\n", m.Sockets, m.Proto)
			}
		}
	}
	return w.err
}

// section names the sockets of a role and a protocol.
type section struct{ role, proto string }

// sections takes sockets apart, which are in the order of SortSockets.
func sections(sockets []Socket) map[section][]Socket {
	out := make(map[section][]Socket)
	for len(sockets) > 0 {
		name, n := section{sockets[0].Role, sockets[0].Proto}, 1
		for n < len(sockets) && sockets[n].Role == name.role && sockets[n].Proto == name.proto {
			n++
		}
		out[name], sockets = sockets[:n:n], sockets[n:]
	}
	return out
}

// portWriter keeps the first error.
type portWriter struct {
	out   io.Writer
	names Renderer
	now   time.Time
	port  uint16
	users map[uint32]string
	err   error
}

func (w *portWriter) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format, args...)
	}
}

// proto tells of one protocol; nobody says so only where asked.
func (w *portWriter) proto(proto string, all map[section][]Socket, more []More, sayNobody bool) {
	left := make(map[section]int)
	for _, m := range more {
		left[section{m.Role, m.Proto}] = m.Sockets
	}
	held := false
	for _, role := range []tracer.Role{tracer.RoleListener, tracer.RoleBound} {
		for _, group := range groups(all[section{role.String(), proto}]) {
			w.group(group)
			held = true
		}
	}
	rest := []struct {
		role tracer.Role
		one  string
		many string
	}{
		{tracer.RoleListener, "1 more listener", "%d more listeners"},
		{tracer.RoleBound, "1 more socket that is bound to it", "%d more sockets that are bound to it"},
		{tracer.RoleServer, "1 accepted connection", "%d accepted connections"},
		{tracer.RoleOrphan, "1 connection that no process holds", "%d connections that no process holds"},
		{tracer.RoleTimeWait, "1 connection in TIME-WAIT, for up to a minute", "%d connections in TIME-WAIT, each for up to a minute"},
		{tracer.RoleClient, "1 client", "%d clients"},
	}
	var parts []string
	for _, r := range rest {
		s := section{r.role.String(), proto}
		n := left[s]
		if r.role != tracer.RoleListener && r.role != tracer.RoleBound { // else those there are have been told
			n += len(all[s])
		}
		switch {
		case n == 1:
			parts = append(parts, r.one)
		case n > 1:
			parts = append(parts, fmt.Sprintf(r.many, n))
		}
	}
	switch {
	case len(parts) > 0 && held:
		w.printf("  and by %s\n", strings.Join(parts, ",\n         "))
	case len(parts) > 0:
		w.printf("%d/%s has no listener; it is held by %s\n", w.port, proto, strings.Join(parts, ",\n  "))
	case !held && sayNobody:
		w.printf("%d/%s is held by nobody\n", w.port, proto)
	}
}

// maxStrays is how many processes that hold connections are named.
const maxStrays = 10

// strays names who holds accepted connections where nobody listens any more: they alone
// keep the port from others.
func (w *portWriter) strays(servers []Socket, listening map[netNS]bool) {
	var left []Socket
	for i := range servers {
		if s := &servers[i]; !listening[netNS{s.NetNS, s.Cookie}] && len(s.Holders) > 0 {
			left = append(left, *s)
		}
	}
	switch holders := w.holders(left); {
	case len(holders) == 1:
		w.printf("  accepted connections without a listener are held by %s\n", holders[0])
	case len(holders) > 1:
		w.printf("  accepted connections without a listener are held by %d processes:\n    %s\n",
			len(holders), strings.Join(holders[:min(len(holders), maxStrays)], "\n    "))
		if more := len(holders) - maxStrays; more > 0 {
			w.printf("    and %d more\n", more)
		}
	}
}

// listeningIn are the namespaces where a TCP socket listens.
func listeningIn(sockets []Socket) map[netNS]bool {
	out := make(map[netNS]bool)
	for i := range sockets {
		if s := &sockets[i]; s.Role == tracer.RoleListener.String() {
			out[netNS{s.NetNS, s.Cookie}] = true
		}
	}
	return out
}

// groups puts sockets together that share address, device, namespace and role, as those
// of SO_REUSEPORT do.
func groups(sockets []Socket) [][]Socket {
	type key struct {
		local netip.Addr
		end   end
		netns identity.NetNS
	}
	at := make(map[key]int)
	var out [][]Socket
	for _, s := range sockets {
		k := key{s.LocalIP, endOf(s.Device, s.Index, s.V6Only), s.netNS()}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], s)
	}
	return out
}

// group is one sentence: who has this address, and how.
func (w *portWriter) group(group []Socket) {
	s := &group[0]
	how := "bound to"
	if s.Role == tracer.RoleListener.String() {
		how = "listening on"
	}
	where := fmt.Sprintf("%s %s", how, address(s)) + w.where(s.netNS(), w.now, s.MPTCP)
	if !s.Since.IsZero() {
		where += " since " + date(s.Since.Time)
	}
	if len(group) > 1 {
		where += fmt.Sprintf(", %d sockets", len(group))
	}
	holders := w.holders(group)
	if creators := w.creators(group); len(creators) > 0 {
		w.printf("%d/%s, %s:\n  %s,\n  now held by ", w.port, s.Proto, where, strings.Join(creators, ",\n  "))
		switch len(holders) {
		case 0:
			w.printf("%s\n", nobody(group))
		case 1:
			w.printf("%s\n", holders[0])
		default:
			w.printf("%d processes:\n    %s\n", len(holders), strings.Join(holders, "\n    "))
		}
	} else {
		switch len(holders) {
		case 0:
			w.printf("%d/%s is held by %s, %s\n", w.port, s.Proto, nobody(group), where)
		case 1:
			w.printf("%d/%s is held by %s, %s\n", w.port, s.Proto, holders[0], where)
		default:
			w.printf("%d/%s is held by %d processes, %s:\n  %s\n", w.port, s.Proto, len(holders), where, strings.Join(holders, "\n  "))
		}
	}
	for _, why := range w.noHolder(group) {
		w.printf("  %s\n", why)
	}
}

// nobody is who holds sockets of which no process is known to.
func nobody(group []Socket) string {
	switch group[0].NoHolder {
	case byKernel:
		return "the kernel"
	case outOfSight:
		return "a process that is out of sight"
	case inFlight:
		return "no process"
	}
	return "no process that is known"
}

// noHolder says why no process has a descriptor of some of the sockets, each reason once.
func (w *portWriter) noHolder(group []Socket) []string {
	words := map[string]string{
		byKernel:   "a socket of the kernel itself (VXLAN, WireGuard, NFS ...): no process has it",
		inFlight:   "its file is in a message between processes that nobody has received, or the\n  kernel keeps it: no process has it",
		byIOUring:  "no process has a descriptor of it: it is registered with an io_uring",
		outOfSight: "holders outside this container's pid namespace are not visible (run with\n  --pid=host), nor those that a hardened kernel hides from BPF programs",
	}
	var out []string
	for i := range group {
		if why := words[group[i].NoHolder]; why != "" && !slices.Contains(out, why) {
			out = append(out, why)
		}
	}
	return out
}

// address is where a socket listens or is bound, in words where that has a catch.
func address(s *Socket) string {
	host := endOf(s.Device, s.Index, s.V6Only).host(s.LocalIP)
	switch {
	case s.LocalIP != netip.IPv6Unspecified():
		return host
	case s.V6Only:
		return host + " (IPv6 only)"
	}
	return host + " (IPv4 and IPv6)"
}

// holders names every process that holds one of the sockets, once.
func (w *portWriter) holders(group []Socket) []string {
	var out []string
	seen := make(map[uint32]bool)
	for i := range group {
		for _, h := range group[i].Holders {
			if !seen[h.PID] {
				seen[h.PID] = true
				out = append(out, w.process(h.PID, h.Comm, h.UID, h.Container))
			}
		}
	}
	return out
}

// creators tells of those who are known not to hold what they created.
func (w *portWriter) creators(group []Socket) []string {
	count := make(map[Owner]int)
	var owners []Owner
	for i := range group {
		o := group[i].Owner
		if o == nil || o.Status != tracer.OwnerGone.String() && o.Status != tracer.OwnerAlive.String() {
			continue
		}
		if count[*o]++; count[*o] == 1 {
			owners = append(owners, *o)
		}
	}
	var out []string
	for _, o := range owners {
		text := fmt.Sprintf("created by %s (pid %d", identity.Safe(o.Comm), o.PID)
		if o.Status == tracer.OwnerGone.String() {
			text += ", gone)"
		} else {
			text += "), which does not hold it"
		}
		if len(group) > 1 {
			text = fmt.Sprintf("%d of them ", count[o]) + text
		}
		out = append(out, text)
	}
	return out
}

// where is what is special about an address.
func (w *portWriter) where(id identity.NetNS, at time.Time, mptcp bool) string {
	text := ""
	if mptcp {
		text += " (MPTCP)"
	}
	if !w.names.NetNS.IsHost(id) {
		text += " in network namespace " + w.names.NetNSName(id, at)
	}
	return text
}

func (w *portWriter) process(pid uint32, comm string, uid *uint32, c *identity.Container) string {
	text := fmt.Sprintf("%s (pid %d", identity.Safe(comm), pid)
	if uid != nil {
		text += ", user " + w.user(*uid)
	}
	if c != nil {
		text += ", container " + identity.Safe(c.Label())
	}
	return text + ")"
}

func (w *portWriter) user(uid uint32) string {
	if name, ok := w.users[uid]; ok {
		return name
	}
	name := identity.UserName(uid)
	w.users[uid] = name
	return name
}

// about tells what is known of the number itself.
func (w *portWriter) about(p *Port, protos []string) {
	ranges := map[identity.PortClass]string{
		identity.SystemPort: "system (0-1023)", identity.RegisteredPort: "registered (1024-49151)", identity.DynamicPort: "dynamic (49152-65535)",
	}
	text := fmt.Sprintf("%d: %s", p.Port, ranges[p.Range])
	for _, proto := range protos {
		if name := w.names.Services.Name(p.Port, proto == tracer.UDP.String()); name != "" {
			text += fmt.Sprintf("; %s/%s", identity.Safe(name), proto)
		}
	}
	w.printf("%s\n", text)
	in := "outside"
	if p.InEphemeralRange {
		in = "inside"
	}
	text = fmt.Sprintf("%s this machine's ephemeral range %d-%d", in, p.RangeLow, p.RangeHigh)
	if p.Reserved {
		text += ", and reserved"
	}
	w.printf("  %s\n", text)
	w.otherRanges(p)
}

// maxRanges is how many ranges of other namespaces are told in words.
const maxRanges = 5

// otherRanges tells of the other namespaces that have the port and another ephemeral range.
func (w *portWriter) otherRanges(p *Port) {
	seen := make(map[netNS]bool)
	for i := range p.Sockets {
		s := &p.Sockets[i]
		if k := (netNS{s.NetNS, s.Cookie}); s.RangeHigh == 0 || s.RangeLow == p.RangeLow && s.RangeHigh == p.RangeHigh || seen[k] {
			continue
		} else if seen[k] = true; len(seen) > maxRanges {
			w.printf("  and more network namespaces have ranges of their own\n")
			return
		}
		in := "outside"
		if s.RangeLow <= p.Port && p.Port <= s.RangeHigh {
			in = "inside"
		}
		w.printf("  %s the ephemeral range %d-%d of network namespace %s\n", in, s.RangeLow, s.RangeHigh, w.names.NetNSName(identity.NetNS{Inode: s.NetNS, Cookie: s.Cookie}, w.now))
	}
}

// maxBefore is how many of those who had the port before are told in words.
const maxBefore = 5

// before tells who had the port, the latest first, each process once. earlier is how
// many tenancies there were before the history begins.
func (w *portWriter) before(history []Tenancy, earlier int) {
	type who struct {
		pid   uint32
		comm  string
		proto string
	}
	times := make(map[who]int)
	var latest []*Tenancy
	for i := range history {
		t := &history[i]
		k := who{t.PID, t.Comm, t.Proto}
		if times[k]++; times[k] == 1 {
			latest = append(latest, t)
		}
	}
	if len(latest) == 0 {
		return
	}
	w.printf("held before by sockets of\n")
	for _, t := range latest[:min(maxBefore, len(latest))] {
		w.printf("  %s\n", w.tenancy(t, times[who{t.PID, t.Comm, t.Proto}]))
	}
	if more := len(latest) - maxBefore; more > 0 {
		w.printf("  and %d more\n", more)
	}
	if earlier > 0 {
		w.printf("  that is of the latest %d times; there were %d before\n", len(history), earlier)
	}
}

// tenancy is one line: who had the port the last of so many times.
func (w *portWriter) tenancy(t *Tenancy, times int) string {
	text := "a process that is not known"
	if t.PID != 0 {
		text = w.process(t.PID, t.Comm, t.UID, t.Container)
	}
	text += fmt.Sprintf(", %s %s", t.Proto, t.LocalIP)
	if t.RemoteIP.IsValid() {
		text += " to " + AddrPort(netip.AddrPortFrom(t.RemoteIP, t.RemotePort))
	}
	until, held := ", until ", ", for "
	if t.UntilAbout {
		until, held = ", until about ", ", for at most "
	}
	text += w.where(identity.NetNS{Inode: t.NetNS, Cookie: t.Cookie}, t.Until.Time, t.MPTCP) + until + date(t.Until.Time)
	if !t.Since.IsZero() {
		text += held + duration(time.Duration(t.DurationNS))
	}
	if times > 1 {
		text += fmt.Sprintf("; %d times in all", times)
	}
	return text
}

func date(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// duration is a time as people say it: to a second, or where that says nothing to
// a millisecond, or a microsecond.
func duration(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, time.Millisecond} {
		if d >= unit {
			return d.Round(unit).String()
		}
	}
	return d.Round(time.Microsecond).String()
}
