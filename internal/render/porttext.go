package render

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// PortText says in words who has a port, and had it before. Its lines are broken for 80 columns where
// it is for no terminal; nothing is cut then.
func (n Renderer) PortText(out io.Writer, style Style, p *Port) error {
	w := portWriter{out: style.Wrapper(out), cuts: style.Width > 0, width: cmp.Or(style.Width, 80), names: n, now: time.Now(), port: p, users: make(map[uint32]string), left: make(map[section]int)}
	protos := []string{p.Proto}
	if p.Proto == "" {
		protos = []string{tracer.TCP.String(), tracer.UDP.String()}
	}
	for _, m := range p.More {
		w.left[section{m.Role, m.Proto}] = m.Sockets
	}
	w.all, w.listening = sections(p.Sockets), listeningIn(p.Sockets)
	var free []string
	for _, proto := range protos {
		if !w.proto(proto) {
			free = append(free, fmt.Sprintf("%d/%s", p.Port, proto))
		}
	}
	if len(free) == len(protos) && len(p.ForwardsTo) == 0 {
		w.nothing(free)
	}
	w.nat(p)
	w.about(p, protos)
	w.before(p.History, p.HistoryMore)
	if w.err != nil {
		return w.err
	}
	var clients []Socket
	for _, proto := range protos {
		clients = append(clients, w.all[section{tracer.RoleClient.String(), proto}]...)
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
	out       io.Writer
	width     int  // of a line
	cuts      bool // what is too long is cut
	names     Renderer
	now       time.Time
	port      *Port
	users     map[uint32]string
	all       map[section][]Socket
	left      map[section]int // sockets that are only counted
	listening map[netNS]bool
	err       error
}

func (w *portWriter) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format, args...)
	}
}

// phrase writes parts with commas between them, over as many lines as it takes: the first after
// first, the others after rest.
func (w *portWriter) phrase(first, rest string, parts ...string) {
	line := first
	parts = slices.DeleteFunc(parts, func(s string) bool { return s == "" })
	for i, part := range parts {
		comma := ""
		if i < len(parts)-1 {
			comma = ","
		}
		begins := line == first || line == rest
		if !begins && columnsOf([]byte(line))+1+columnsOf([]byte(part+comma)) > w.width {
			w.printf("%s\n", line)
			line, begins = rest, true
		}
		if !begins {
			line += " "
		}
		line += part + comma
	}
	w.printf("%s\n", line)
}

// words writes a text over as many lines as it takes, the others after two spaces.
func (w *portWriter) words(text string) {
	line := ""
	for word := range strings.SplitSeq(text, " ") {
		if line != "" && columnsOf([]byte(line+" "+word)) > w.width {
			w.printf("%s\n", line)
			line = " "
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	w.printf("%s\n", line)
}

// cut makes a text fit into a line, behind so many columns.
func (w *portWriter) cut(s string, indent int) string {
	columns := w.width - indent
	if !w.cuts || columnsOf([]byte(s)) <= columns {
		return s
	}
	for len(s) > 0 && columnsOf([]byte(s))+1 > columns {
		r := []rune(s)
		s = string(r[:len(r)-max(1, (len(r)-columns)/2)])
	}
	return s + ellipsis
}

// proto says who has the port of one protocol; false: nobody.
func (w *portWriter) proto(proto string) bool {
	var listeners [][]Socket
	for _, role := range []tracer.Role{tracer.RoleListener, tracer.RoleBound} {
		listeners = append(listeners, groups(w.all[section{role.String(), proto}])...)
	}
	rest := w.rest(proto)
	for _, group := range listeners {
		if len(listeners) == 1 {
			w.group(group, rest)
		} else {
			w.group(group, nil)
		}
	}
	if len(listeners) > 1 && len(rest) > 0 {
		w.phrase("  and ", "      ", rest...)
	}
	strays := w.strays(proto)
	if len(listeners) == 0 && len(rest) > 0 {
		there := map[bool]string{true: "there is ", false: "there are "}[strings.HasPrefix(rest[0], "1 ")]
		if proto == tracer.TCP.String() {
			there = "nothing listens, but " + there
		}
		rest[0] = there + rest[0]
		w.phrase(fmt.Sprintf("%d/%s  ", w.port.Port, proto), "  ", rest...)
	}
	w.strayHolders(strays)
	return len(listeners)+len(rest) > 0
}

// rest counts what has the port besides listeners and what is bound to it.
func (w *portWriter) rest(proto string) []string {
	waiting := 0
	for _, s := range w.all[section{tracer.RoleListener.String(), proto}] {
		if s.Backlog != nil {
			waiting += int(*s.Backlog)
		}
	}
	var parts []string
	for _, r := range []struct {
		role tracer.Role
		one  string
		many string
	}{
		{tracer.RoleListener, "1 more listener", "%d more listeners"},
		{tracer.RoleBound, "1 more socket that is bound to it", "%d more sockets that are bound to it"},
		{tracer.RoleServer, "1 accepted connection", "%d accepted connections"},
		{tracer.RoleOrphan, "1 connection that no process holds", "%d connections that no process holds"},
		{tracer.RoleTimeWait, "1 connection in TIME-WAIT (for up to a minute)", "%d connections in TIME-WAIT (each for up to a minute)"},
		{tracer.RoleClient, "1 client", "%d clients"},
		{tracer.RoleUnknown, "1 connection of either kind", "%d connections of either kind"},
	} {
		s := section{r.role.String(), proto}
		n := w.left[s]
		if r.role != tracer.RoleListener && r.role != tracer.RoleBound { // else those there are have been told
			n += len(w.all[s])
		}
		if r.role == tracer.RoleOrphan {
			n -= min(n, waiting) // the listener tells of those
		}
		switch {
		case n == 1:
			parts = append(parts, r.one)
		case n > 1:
			parts = append(parts, fmt.Sprintf(r.many, n))
		}
	}
	return parts
}

// strays are connections where nobody listens any more: they alone keep the port from others.
func (w *portWriter) strays(proto string) []Socket {
	var left []Socket
	for _, role := range []tracer.Role{tracer.RoleServer, tracer.RoleTimeWait, tracer.RoleUnknown} {
		for _, s := range w.all[section{role.String(), proto}] {
			if !w.listening[netNS{s.NetNS, s.Cookie}] {
				left = append(left, s)
			}
		}
	}
	return left
}

// strayHolders names who has connections that nobody listens for, and says whether SO_REUSEADDR
// helps against them.
func (w *portWriter) strayHolders(strays []Socket) {
	if len(strays) == 0 {
		return
	}
	holders := holdersOf(strays)
	switch len(holders) {
	case 0:
	case 1:
		w.phrase("  ", "  ", "accepted connections without a listener: "+w.process(holders[0]))
		w.details(holders[0], "    ")
	default:
		w.printf("  accepted connections without a listener, of %d processes:\n", len(holders))
		w.list(holders, "    ")
	}
	if len(holders) > 0 {
		w.stop(holders)
	}
	without := slices.ContainsFunc(strays, func(s Socket) bool { return !s.ReuseAddr })
	if without {
		w.printf("  SO_REUSEADDR does not help a new server: not all of them were opened with it\n")
	} else {
		w.printf("  a server that sets SO_REUSEADDR can bind the port now\n")
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

// holdersOf are the processes that hold some of the sockets, each once.
func holdersOf(group []Socket) []*Holder {
	var out []*Holder
	seen := make(map[uint32]bool)
	for i := range group {
		for j := range group[i].Holders {
			if h := &group[i].Holders[j]; !seen[h.PID] {
				seen[h.PID] = true
				out = append(out, h)
			}
		}
	}
	return out
}

// group says who has an address, how, and what else has it (rest).
func (w *portWriter) group(group []Socket, rest []string) {
	s := &group[0]
	holders := holdersOf(group)
	who, one := nobody(group), true
	switch n := len(holders); {
	case n == 1:
		who = w.process(holders[0])
	case n > 1:
		who, one = fmt.Sprintf("%d processes", n), false
	}
	verb := map[bool]string{true: "is bound to", false: "are bound to"}[one]
	if s.Role == tracer.RoleListener.String() {
		verb = map[bool]string{true: "listens on", false: "listen on"}[one]
	}
	parts := []string{fmt.Sprintf("%s %s", verb, address(s))}
	if s.MPTCP {
		parts[0] += " (MPTCP)"
	}
	if s.Container == nil && s.Pod == nil { // else those name it
		parts = append(parts, w.where(s.netNS(), w.now))
	}
	if !s.Since.IsZero() {
		parts = append(parts, "since "+w.when(s.Since.Time))
	}
	if len(group) > 1 {
		parts = append(parts, fmt.Sprintf("%d sockets", len(group)))
	}
	head := fmt.Sprintf("%d/%s  %s ", w.port.Port, s.Proto, who)
	if columnsOf([]byte(head+parts[0]))+1 > w.width {
		w.printf("%s\n", strings.TrimSuffix(head, " "))
		head = "  "
	}
	w.phrase(head, "  ", append(parts, rest...)...)
	w.backlog(group)
	if len(holders) == 1 {
		w.details(holders[0], "  ")
	} else {
		w.list(holders, "  ")
	}
	for _, c := range w.creators(group) {
		w.printf("  %s\n", c)
	}
	for _, why := range w.noHolder(group) {
		w.printf("  %s\n", why)
	}
	for i := range s.ForwardsTo {
		w.forward(&s.ForwardsTo[i])
	}
	w.stopGroup(s, holders)
}

// backlog says how many connections wait to be accepted.
func (w *portWriter) backlog(group []Socket) {
	for i := range group {
		s := &group[i]
		if s.Backlog == nil || *s.Backlog == 0 || s.BacklogMax == nil {
			continue
		}
		text := fmt.Sprintf("%s for accept(), %d may", count(int(*s.Backlog), "connection waits", "connections wait"), *s.BacklogMax+1)
		if *s.Backlog > *s.BacklogMax {
			text = fmt.Sprintf("%s for accept(), the queue (%d) is full: more get no answer",
				count(int(*s.Backlog), "connection waits", "connections wait"), *s.BacklogMax)
		}
		w.printf("  %s\n", text)
	}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// nobody is who holds sockets of which no process is known to.
func nobody(group []Socket) string {
	switch group[0].NoHolder {
	case byKernel:
		return "the kernel itself"
	case outOfSight:
		if group[0].Partial {
			return "a process of another user"
		}
		return "a process that is out of sight"
	case inFlight:
		return "a socket of no process"
	}
	return "a socket of no known process"
}

// noHolder says why no process has a descriptor of some of the sockets, each reason once.
func (w *portWriter) noHolder(group []Socket) []string {
	words := map[string]string{
		byKernel:   "made by the kernel for VXLAN, WireGuard, NFS or the like: no process to stop",
		inFlight:   "its file is in a message between processes that nobody has received, or the\n  kernel keeps it: no process has it",
		byIOUring:  "no process has a descriptor of it: it is registered with an io_uring",
		outOfSight: "holders outside this container's pid namespace are not visible (run with\n  --pid=host), nor those that a hardened kernel hides from BPF programs",
	}
	var out []string
	for i := range group {
		if group[i].Partial {
			words[outOfSight] = "only root or an agent can say which (it may be one that cannot be inspected, or none)"
		}
		if why := words[group[i].NoHolder]; why != "" && !slices.Contains(out, why) {
			out = append(out, why)
		}
	}
	return out
}

// address is where a socket listens or is bound, in words where that has a catch.
func address(s *Socket) string {
	text := string(appendEnd(nil, netip.AddrPortFrom(s.LocalIP, s.LocalPort), endOf(s.Device, s.Index, s.V6Only)))
	switch {
	case s.LocalIP != netip.IPv6Unspecified():
		return text
	case s.V6Only:
		return text + " (IPv6 only)"
	}
	return text + " (IPv4 and IPv6)"
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

// where names a network namespace other than the host's.
func (w *portWriter) where(id identity.NetNS, at time.Time) string {
	if w.names.NetNS.IsHost(id) {
		return ""
	}
	return "in network namespace " + w.names.NetNSName(id, at)
}

// process names a process.
func (w *portWriter) process(h *Holder) string {
	text := fmt.Sprintf("%s (pid %d", identity.Safe(h.Comm), h.PID)
	if h.UID != nil {
		text += ", user " + w.user(*h.UID)
	}
	return text + ")"
}

func (w *portWriter) user(uid uint32) string {
	if name, ok := w.users[uid]; ok {
		return name
	}
	name := w.names.UserName(uid)
	w.users[uid] = name
	return name
}

// nothing says that nobody has the port.
func (w *portWriter) nothing(what []string) {
	text := "nothing uses " + strings.Join(what, " or ")
	if w.port.Where != "" {
		text += " " + w.port.Where
	} else if w.port.Partial {
		text += " in this network namespace"
	}
	w.printf("%s\n", text)
}

// nat says where NAT leads the port.
func (w *portWriter) nat(p *Port) {
	const most = 5
	told := p.ForwardsTo[:min(len(p.ForwardsTo), most)]
	for i := 0; i < len(told); {
		n := 1
		if told[i].byChance() {
			for i+n < len(told) && told[i+n].byChance() && told[i+n].By == told[i].By && told[i+n].Proto == told[i].Proto && told[i+n].From == told[i].From {
				n++
			}
		}
		w.sends(told[i : i+n])
		i += n
	}
	if more := len(p.ForwardsTo) - most; more > 0 {
		w.printf("  and to %d more, see --json\n", more)
	}
	if p.NATUnread != "" {
		w.printf("  %s\n", w.cut(identity.Safe(p.NATUnread), 2))
	}
}

// byChance tells whether this is one of several, of which one is taken.
func (f *Forward) byChance() bool { return slices.Contains(f.When, "random") }

// sends says where rules of NAT lead, to one of several.
func (w *portWriter) sends(several []Forward) {
	f := &several[0]
	where := "here"
	if w.names.Elsewhere != "" {
		where = "there"
	}
	head := fmt.Sprintf("nothing listens on %d/%s %s, but ", w.port.Port, f.Proto, where)
	if w.heldHere(f.Proto) {
		head = fmt.Sprintf("%d/%s  ", w.port.Port, f.Proto)
	}
	if len(several) > 1 {
		w.words(fmt.Sprintf("%s%s sends %s to one of %d:", head, f.By, f.what("it"), len(several)))
		for i := range several {
			w.phrase("  ", "    ", several[i].target(), natWhen(several[i].When), "chain "+identity.Safe(several[i].Chain))
			w.behind(&several[i])
		}
		return
	}
	w.words(head + f.sends("it"))
	w.behind(f)
	if command := w.stopPlace(&f.Place); command != "" && !w.heldHere(f.Proto) {
		w.advise(command)
	}
}

// what says what a rule of NAT sends elsewhere; all is the word for all of it.
func (f *Forward) what(all string) string {
	what := map[string]string{"": all, "outside": "what comes from outside", "here": "what is sent from here"}[f.From]
	if len(f.LocalIPs) > 0 {
		what += fmt.Sprintf(" for %s", joinAddrs(f.LocalIPs))
	}
	return what
}

func (f *Forward) sends(all string) string {
	text := fmt.Sprintf("%s sends %s to %s", f.By, f.what(all), f.target())
	if when := natWhen(f.When); when != "" {
		text += ", " + when
	}
	return text + ", chain " + identity.Safe(f.Chain)
}

// Sends says what a rule of NAT sends where, and on which conditions; all is the word for
// everything that is sent to the port.
func (f *Forward) Sends(all string) string {
	if f.byChance() {
		return f.sends(all) + ", one of several at random"
	}
	return f.sends(all)
}

// heldHere tells whether somebody has the port in the namespace that NAT is of.
func (w *portWriter) heldHere(proto string) bool {
	for _, role := range []tracer.Role{tracer.RoleListener, tracer.RoleBound} {
		for _, s := range w.all[section{role.String(), proto}] {
			if s.netNS().Is(identity.NetNS{Inode: w.port.NetNS, Cookie: w.port.Cookie}) {
				return true
			}
		}
	}
	return false
}

// natWhen says what else decides.
func natWhen(when []string) string {
	words := map[string]string{
		"source": "from some addresses", "device": "through some devices", "random": "", "other": "under further conditions",
	}
	var out []string
	for _, w := range when {
		if words[w] != "" {
			out = append(out, words[w])
		}
	}
	return strings.Join(out, ", ")
}

func joinAddrs(addrs []netip.Addr) string {
	const most = 3
	var out []string
	for _, a := range addrs[:min(len(addrs), most)] {
		out = append(out, a.String())
	}
	text := strings.Join(out, ", ")
	if more := len(addrs) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// target is where a forward leads.
func (f *Forward) target() string {
	ports := strconv.Itoa(int(f.Port))
	if f.PortLast != 0 {
		ports += "-" + strconv.Itoa(int(f.PortLast))
	}
	switch {
	case !f.IP.IsValid() && f.Port == 0:
		return "somewhere that its arguments do not tell"
	case !f.IP.IsValid():
		return "port " + ports
	case f.IPLast.IsValid():
		return f.IP.String() + "-" + f.IPLast.String() + ", port " + ports
	case f.IP.Is6():
		return "[" + f.IP.String() + "]:" + ports
	}
	return f.IP.String() + ":" + ports
}

// forward says where a process leads the connections.
func (w *portWriter) forward(f *Forward) {
	text := fmt.Sprintf("%s leads to %s", f.By, f.target())
	place := w.place(&f.Place)
	switch {
	case f.By == "conmon" && f.Container != nil:
		text = "conmon only keeps the port for its container, NAT leads there"
	case !f.IP.IsValid() && f.Port == 0 && f.By != "docker-proxy":
		w.phrase("  "+f.By+" leads to ", "    ", cmp.Or(place, "a container"))
		return
	case !f.IP.IsValid() && f.NetNS != 0:
		text += " of another network namespace"
	}
	w.printf("  %s\n", text)
	w.behind(f)
}

// behind says who has the port where it is led.
func (w *portWriter) behind(f *Forward) {
	place := w.place(&f.Place)
	switch len(f.Holders) {
	case 0:
		if place != "" {
			w.phrase("  ", "  ", place)
		}
		return
	case 1:
		w.phrase("  there: ", "    ", w.process(&f.Holders[0]), place)
	default:
		w.phrase("  there: ", "    ", fmt.Sprintf("%s and %d more", w.process(&f.Holders[0]), len(f.Holders)-1), place)
	}
	if line := w.args(&f.Holders[0], 4); line != "" {
		w.printf("    %s\n", line)
	}
}

// details tells of one process: its command line, where it belongs, and since when.
func (w *portWriter) details(h *Holder, indent string) {
	if line := w.args(h, len(indent)); line != "" {
		w.printf("%s%s\n", indent, line)
	}
	var parts []string
	if place := w.place(&h.Place); place != "" {
		parts = append(parts, place)
	}
	if h.Process != nil && !h.Started.IsZero() {
		started := "started " + w.when(h.Started.Time)
		parents := parentWords(h.Parents)
		if len(parents) > 0 {
			started += " by " + parents[0]
			parents = parents[1:]
			if h.Container != nil || h.Pod != nil || isService(h.Unit) {
				parents = nil // its unit tells more
			}
		}
		parts = append(append(parts, started), parents...)
	}
	if len(parts) > 0 {
		w.phrase(indent, indent+"  ", parts...)
	}
}

// maxParentWords is how many parents are named.
const maxParentWords = 6

func parentWords(parents []identity.Parent) []string {
	var out []string
	for _, p := range parents[:min(len(parents), maxParentWords)] {
		out = append(out, fmt.Sprintf("%s (pid %d)", identity.Safe(p.Comm), p.PID))
	}
	return out
}

func isService(unit string) bool { return strings.HasSuffix(unit, ".service") }

// args is the command line of a process, or its program, on one line behind so many columns.
func (w *portWriter) args(h *Holder, indent int) string {
	p := h.Process
	switch {
	case p == nil:
		return ""
	case p.ArgsUnread:
		return "its command line cannot be read: it, or its file system, does not answer"
	case len(p.Args) == 0:
		return w.cut(identity.Safe(p.Exe), indent)
	}
	words := make([]string, 0, len(p.Args))
	for _, a := range p.Args {
		words = append(words, ShownWord(a))
	}
	if len(p.Args) == 1 {
		words[0] = identity.Safe(p.Args[0]) // what a process wrote over it is no word
	}
	line := strings.Join(words, " ")
	if p.ArgsCut {
		line += " …"
	}
	return w.cut(line, indent)
}

// place says what a process belongs to.
func (w *portWriter) place(p *Place) string {
	switch {
	case p.Pod != nil:
		text := "pod " + identity.Safe(p.Pod.Label())
		if p.Pod.Container != "" {
			text += ", container " + identity.Safe(p.Pod.Container)
		}
		return text
	case p.Container != nil:
		text := "container " + identity.Safe(p.Container.Label())
		if p.Container.Runtime != "" {
			text += " (" + p.Container.Runtime + ")"
		}
		return text
	case p.Unit == "" || p.Unit == "init.scope":
		return ""
	case p.UnitUser != nil:
		return fmt.Sprintf("unit %s of user %s", identity.Safe(p.Unit), w.user(*p.UnitUser))
	}
	return "unit " + identity.Safe(p.Unit)
}

// maxList is how many processes are listed.
const maxList = 8

// list tells of several processes, a line each.
func (w *portWriter) list(holders []*Holder, indent string) {
	shared := ""
	if len(holders) > 0 {
		shared = w.args(holders[0], len(indent))
		if slices.ContainsFunc(holders, func(h *Holder) bool { return w.args(h, len(indent)) != shared }) {
			shared = ""
		}
	}
	if shared != "" {
		w.printf("%s%s\n", indent, shared)
	}
	for _, h := range holders[:min(len(holders), maxList)] {
		line := indent + w.process(h)
		if args := w.args(h, 0); args != "" && shared == "" {
			line += "  " + args
		} else if label := h.Label(); label != "" && args == "" {
			line += "  " + identity.Safe(label)
		}
		w.printf("%s\n", w.cut(line, 0))
	}
	if more := len(holders) - maxList; more > 0 {
		w.printf("%sand %d more\n", indent, more)
	}
	for i, h := range holders {
		place := w.place(&h.Place)
		if place == "" || slices.ContainsFunc(holders[:i], func(o *Holder) bool { return w.place(&o.Place) == place }) {
			continue
		}
		w.phrase(indent, indent+"  ", place)
	}
}

// about tells what is known of the number itself.
func (w *portWriter) about(p *Port, protos []string) {
	ranges := map[identity.PortClass]string{
		identity.SystemPort: "system (0-1023)", identity.RegisteredPort: "registered (1024-49151)", identity.DynamicPort: "dynamic (49152-65535)",
	}
	text := fmt.Sprintf("%d: %s", p.Port, ranges[p.Range])
	for i, proto := range protos {
		name := w.names.Services.Name(p.Port, proto == tracer.UDP.String())
		if w.names.Elsewhere != "" && i == 0 {
			name = p.Service // as it is called there
		}
		if name != "" {
			text += fmt.Sprintf("; %s/%s", identity.Safe(name), proto)
		}
	}
	w.printf("%s\n", text)
	in := "outside"
	if p.InEphemeralRange {
		in = "inside"
	}
	whose := "this machine's ephemeral range"
	if w.names.Elsewhere != "" {
		whose = "that machine's ephemeral range"
	}
	if id := (identity.NetNS{Inode: p.NetNS, Cookie: p.Cookie}); p.Where != "" && p.NetNS != 0 && !w.names.NetNS.IsHost(id) {
		whose = "the ephemeral range of network namespace " + w.names.NetNSName(id, w.now) + ","
	}
	text = fmt.Sprintf("%s %s %d-%d", in, whose, p.RangeLow, p.RangeHigh)
	if p.Reserved {
		text += ", and reserved"
	}
	w.printf("  %s\n", text)
	w.otherRanges(p)
	if w.port.OnHost {
		w.printf("  it may be held by processes outside this pid namespace, too, which are not\n  visible here\n")
	}
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

// before tells who had the port, the latest first, each process once. The connections of one that
// listened, or does still, are no times that it had the port. earlier is how many tenancies there were
// before the history begins.
func (w *portWriter) before(history []Tenancy, earlier int) {
	type who struct {
		pid       uint32
		comm      string
		proto     string
		connected bool
	}
	listened := make(map[who]bool)
	for i := range w.port.Sockets {
		s := &w.port.Sockets[i]
		for j := range s.Holders {
			if h := &s.Holders[j]; !s.RemoteIP.IsValid() {
				listened[who{h.PID, h.Comm, s.Proto, false}] = true
			}
		}
	}
	for i := range history {
		if t := &history[i]; !t.RemoteIP.IsValid() {
			listened[who{t.PID, t.Comm, t.Proto, false}] = true
		}
	}
	times := make(map[who]int)
	var latest []*Tenancy
	for i := range history {
		t := &history[i]
		k := who{t.PID, t.Comm, t.Proto, t.RemoteIP.IsValid()}
		if k.connected && k.pid != 0 && listened[who{k.pid, k.comm, k.proto, false}] {
			continue
		}
		if times[k]++; times[k] == 1 {
			latest = append(latest, t)
		}
	}
	if len(latest) == 0 {
		return
	}
	w.printf("previously:\n")
	for _, t := range latest[:min(maxBefore, len(latest))] {
		w.tenancy(t, times[who{t.PID, t.Comm, t.Proto, t.RemoteIP.IsValid()}])
	}
	if more := len(latest) - maxBefore; more > 0 {
		w.printf("  and %d more\n", more)
	}
	if earlier > 0 {
		w.printf("  that is of the latest %d times; there were %d before\n", len(history), earlier)
	}
}

// tenancy tells who had the port the last of so many times.
func (w *portWriter) tenancy(t *Tenancy, times int) {
	text := "a process that is not known"
	if t.PID != 0 {
		text = w.process(&Holder{PID: t.PID, Comm: t.Comm, UID: t.UID})
		if label := t.Place.Label(); label != "" {
			text += " of " + identity.Safe(label)
		}
	}
	text += fmt.Sprintf(" on %s (%s)", t.LocalIP, t.Proto)
	if t.RemoteIP.IsValid() {
		text += " to " + AddrPort(netip.AddrPortFrom(t.RemoteIP, t.RemotePort))
	}
	if t.MPTCP {
		text += " (MPTCP)"
	}
	parts := []string{text, w.where(identity.NetNS{Inode: t.NetNS, Cookie: t.Cookie}, t.Until.Time)}
	ended, held := "ended ", "for "
	if t.UntilAbout {
		ended, held = "ended about ", "for at most "
	}
	if t.UntilKnown != nil { // the agent ended first
		ended, held = "last seen ", "for at least "
	}
	if !t.Since.IsZero() {
		parts = append(parts, held+duration(time.Duration(t.DurationNS)))
	}
	parts = append(parts, ended+w.ago(t.Until.Time))
	if times > 1 && t.RemoteIP.IsValid() {
		parts = append(parts, fmt.Sprintf("the last of %d connections", times))
	} else if times > 1 {
		parts = append(parts, fmt.Sprintf("%d times in all", times))
	}
	w.phrase("  ", "    ", parts...)
}

// when is a point in time for people: of today its time, else with the date, and how long ago.
func (w *portWriter) when(t time.Time) string {
	t, now := t.Local(), w.now.Local()
	layout := "2006-01-02 15:04"
	if y, m, d := t.Date(); now.Sub(t) < 24*time.Hour {
		if ny, nm, nd := now.Date(); y == ny && m == nm && d == nd {
			layout = "15:04"
		}
	}
	return fmt.Sprintf("%s (%s)", t.Format(layout), w.ago(t))
}

// ago is how long ago something was.
func (w *portWriter) ago(t time.Time) string {
	switch d := w.now.Sub(t); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", max(0, int(d.Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}

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

// stopGroup says how to stop who holds a listener: the container behind a forwarder, if that is
// known.
func (w *portWriter) stopGroup(s *Socket, holders []*Holder) {
	for i := range s.ForwardsTo {
		f := &s.ForwardsTo[i]
		if command := w.stopPlace(&f.Place); command != "" {
			w.advise(command)
			return
		}
		if f.By == "docker-proxy" || f.By == "dockerd" {
			w.printf("  stop it%s: stop its container, see docker ps --filter publish=%d\n", w.onWhich(), w.port.Port)
			return
		}
	}
	w.stop(holders, w.socketUnit(s, holders)...)
}

// socketUnit names the unit for which systemd listens, and returns the command that stops that.
func (w *portWriter) socketUnit(s *Socket, holders []*Holder) []string {
	if s.SocketUnit == "" {
		return nil
	}
	w.printf("  of socket unit %s: systemd starts its service when somebody connects\n", identity.Safe(s.SocketUnit))
	var user *uint32
	if len(holders) > 0 {
		user = holders[0].UnitUser
	}
	return []string{w.stopUnit(s.SocketUnit, user)}
}

// stop says how to stop processes, besides what is stopped by commands.
func (w *portWriter) stop(holders []*Holder, commands ...string) {
	var pids []string
	for _, h := range holders {
		switch command := w.stopPlace(&h.Place); {
		case command != "":
			if !slices.Contains(commands, command) {
				commands = append(commands, command)
			}
		case h.Comm == "systemd" && len(commands) > 0: // which listens for the unit
		case h.Comm == "systemd" && h.PID == 1:
			w.printf("  systemd listens for a socket unit; which one%s: systemctl list-sockets\n", w.onWhich())
		default:
			pids = append(pids, strconv.Itoa(int(h.PID)))
		}
	}
	if len(pids) > maxList { // no line has room for those
		parent := commonParent(holders)
		if parent == 0 {
			return
		}
		pids = []string{strconv.Itoa(int(parent))}
	}
	if len(pids) > 0 {
		commands = append(commands, "kill "+strings.Join(pids, " "))
	}
	if len(commands) <= 3 {
		w.advise(commands...)
	}
}

// commonParent is the one of the holders that all others descend from, 0: none is.
func commonParent(holders []*Holder) uint32 {
	for _, p := range holders {
		all := !slices.ContainsFunc(holders, func(h *Holder) bool {
			return h != p && (h.Process == nil || !slices.ContainsFunc(h.Parents, func(a identity.Parent) bool { return a.PID == p.PID }))
		})
		if all {
			return p.PID
		}
	}
	return 0
}

// onWhich says on which machine a command is to be given, where that is not the one where it is read.
func (w *portWriter) onWhich() string {
	switch {
	case w.names.Elsewhere != "":
		return ", on " + w.names.Elsewhere
	case w.port.OnHost:
		return ", on the host"
	}
	return ""
}

func (w *portWriter) advise(commands ...string) {
	if len(commands) == 0 {
		return
	}
	w.printf("  stop it%s: %s\n", w.onWhich(), strings.Join(commands, "; "))
}

// stopPlace is the command that stops what a process belongs to, and who has to give it; "" where none
// is known.
func (w *portWriter) stopPlace(p *Place) string {
	switch {
	case p.Pod != nil && p.Pod.UID != "" && !strings.Contains(p.Pod.UID, "-"): // the hash of a file
		return "remove its manifest (by default in /etc/kubernetes/manifests)"
	case p.Pod != nil:
		return fmt.Sprintf("kubectl -n %s delete pod %s", ShownWord(p.Pod.Namespace), ShownWord(p.Pod.Name))
	case p.Container != nil:
		name := ShownWord(p.Container.Label())
		switch p.Container.Runtime {
		case "docker", "podman":
			return p.Container.Runtime + " stop " + name + w.asUser(p.Container.User)
		case "lxc":
			return "lxc-stop -n " + name
		case "nspawn", "machined":
			return "machinectl stop " + name
		case "cri-o":
			return "crictl stop " + ShownWord(p.Container.ID[:min(13, len(p.Container.ID))])
		}
		return ""
	case !isService(p.Unit):
		return ""
	}
	return w.stopUnit(p.Unit, p.UnitUser)
}

// StopCommands are the commands that stop who has a socket, as far as it is known what it belongs to; else
// those that end its holders, if they are few.
func (n Renderer) StopCommands(s *Socket) []string {
	w := portWriter{names: n, users: make(map[uint32]string)}
	if s.SocketUnit != "" {
		return []string{w.stopUnit(s.SocketUnit, s.UnitUser)}
	}
	if command := w.stopPlace(&s.Place); command != "" {
		return []string{command}
	}
	var pids []string
	for i := range s.Holders {
		if pid := strconv.Itoa(int(s.Holders[i].PID)); s.Holders[i].PID > 1 && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 || len(pids) > maxList {
		return nil
	}
	return []string{"kill " + strings.Join(pids, " ")}
}

func (w *portWriter) stopUnit(unit string, user *uint32) string {
	if user != nil {
		return "systemctl --user stop " + ShownWord(unit) + w.asUser(user)
	}
	return "systemctl stop " + ShownWord(unit)
}

// asUser says whose command it is, where it is not the system's.
func (w *portWriter) asUser(user *uint32) string {
	if user == nil {
		return ""
	}
	return " (as user " + w.user(*user) + ")"
}
