package query

import (
	"cmp"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Kind is what a filter looks at.
type Kind uint8

// The kinds.
const (
	OfSockets Kind = 1 << iota
	OfEvents
	OfHeadroom
	OfPort
	OfHistory
)

// Param is one filter. Its values are those of ParseFilter; a Bool has "true" or none, and One has
// one at most.
type Param struct {
	Name, Short, Usage string
	Bool, One          bool
	Accepts            []string // every value there is, where they can be listed
	kind               Kind
}

// Params returns the filters for a kind.
func Params(kind Kind) []Param {
	roles, events, ops := names(tracer.Roles()), names(tracer.EventTypes()), names(ops())
	both, all := OfSockets|OfEvents|OfHistory, OfSockets|OfEvents|OfHeadroom|OfHistory
	params := []Param{
		{Name: "port", Usage: "local or remote `PORT`, such as 80, 80-90 or http", kind: both},
		{Name: "lport", Usage: "local `PORT`", kind: both},
		{Name: "rport", Usage: "remote `PORT`", kind: all},
		{Name: "addr", Usage: "local or remote `ADDRESS`, such as 192.0.2.1, or network, such as 10.0.0.0/8", kind: both},
		{Name: "end", Usage: "local or remote `END`, such as 8080, 127.0.0.1:8080 or 53/udp", kind: both},
		{Name: "proto", Usage: "`PROTOCOL`: tcp or udp", Accepts: names(protos()), kind: all},
		{Name: "pid", Usage: "`PID` of a process", kind: all},
		{Name: "comm", Usage: "`NAME` of a process, cut to 15 bytes by the kernel, such as nginx or kworker*", kind: all},
		{Name: "uid", Usage: "`USER`, by name or number", kind: both},
		{Name: "netns", Usage: "network `NAMESPACE`: host, a name in /run/netns, or an inode number", kind: all | OfPort},
		{Name: "unit", Usage: "systemd `UNIT`, such as shop.service or shop*", kind: all | OfPort},
		{Name: "container", Usage: "container `NAME`, such as web or web*, or the start of its id", kind: all | OfPort},
		{Name: "pod", Usage: "`POD`, such as shop/api-* or api-*", kind: all | OfPort},
		{Name: "role", Usage: "`ROLE`: " + strings.Join(roles, ", "), Accepts: roles, kind: OfSockets | OfHistory},
		{Name: "state", Usage: "`STATE`, as ss(8) names it, such as LISTEN or TIME-WAIT", Accepts: names(tracer.States()), kind: OfSockets},
		{Name: "event", Usage: "`EVENT`: " + strings.Join(events, ", "), Accepts: events, kind: OfEvents},
		{Name: "op", Usage: "`WAY` to get a port: " + strings.Join(ops, ", "), Accepts: ops, kind: OfHeadroom},
		{Name: "tcp", Short: "t", Usage: "only TCP; with -u both", Bool: true, kind: OfSockets},
		{Name: "udp", Short: "u", Usage: "only UDP; with -t both", Bool: true, kind: OfSockets},
		{Name: "listening", Short: "l", Usage: "only TCP listeners and UDP sockets without a peer", Bool: true, kind: OfSockets},
		{Name: "ipv4", Short: "4", Usage: "only IPv4 addresses", Bool: true, kind: OfSockets},
		{Name: "ipv6", Short: "6", Usage: "only IPv6 addresses", Bool: true, kind: OfSockets},
		{Name: "since", Usage: "only sockets that took their port within this `TIME`, such as 90s, 1h or 7d", One: true, kind: OfSockets},
		{Name: "exposed", Usage: "only what others can reach: not loopback, and not where no other interface is up; firewalls are not considered", Bool: true, kind: OfSockets},
	}
	return slices.DeleteFunc(params, func(p Param) bool { return p.kind&kind == 0 })
}

// Filter lets pass what every list has a value for; an empty list lets everything
// pass.
type Filter struct {
	port, lport, rport []uint16
	ends               []Ends
	addr               []network
	proto              []tracer.Proto
	state              []tracer.State
	role               []tracer.Role
	event              []tracer.EventType
	op                 []tracer.PortOp
	pid, uid           []uint32
	comm               commFilter
	Places
	netNS                           []string
	tcp, udp, listening, ipv4, ipv6 bool
	exposed                         bool
	since                           time.Duration // 0: whenever
	// Reach is which namespaces can be reached; nil: not known.
	Reach *tracer.Reach

	device  func(tracer.DeviceID) string // nil: no names are known
	wanted  []identity.WantedNetNS       // netNS, once located
	located time.Time
}

// ParseFilter reads the values of filters by their names. The error names the filter,
// the value and what is accepted. Before the Filter is asked, Locate looks for the
// namespaces.
func ParseFilter(kind Kind, values map[string][]string) (*Filter, error) {
	p := parser{values: values}
	if p.known(Params(kind)); p.err != nil {
		return nil, wrongParam(p.err)
	}
	f := &Filter{
		port: eachPort(&p, "port"), lport: eachPort(&p, "lport"), rport: eachPort(&p, "rport"),
		proto: each(&p, "proto", parseProto), state: each(&p, "state", parseState),
		role: each(&p, "role", oneOf(tracer.Roles())), event: each(&p, "event", oneOf(tracer.EventTypes())),
		op:  each(&p, "op", oneOf(ops())),
		pid: each(&p, "pid", parseID), uid: each(&p, "uid", parseUID), netNS: each(&p, "netns", parseNetNS),
		comm: parseComm(&p), Places: parsePlaces(&p),
		tcp: p.isTrue("tcp"), udp: p.isTrue("udp"), listening: p.isTrue("listening"),
		ipv4: p.isTrue("ipv4"), ipv6: p.isTrue("ipv6"), exposed: p.isTrue("exposed"),
		ends: each(&p, "end", parseEndFilter), addr: each(&p, "addr", parseNetwork),
	}
	if ages := each(&p, "since", parseAge); len(ages) > 1 {
		p.fail("since", fmt.Errorf("%q: want one", strings.Join(values["since"], ",")))
	} else if len(ages) == 1 {
		f.since = ages[0]
	}
	sortAll(f.port, f.lport, f.rport)
	sortAll(f.pid, f.uid)
	return f, wrongParam(p.err)
}

const (
	// maxValues is how many values a filter may have: each event is looked up among them,
	// for every client of an agent.
	maxValues = 1000
	// maxCompared is how many of those there may be that are compared one by one.
	maxCompared = 100
)

// sortAll sorts lists, for has.
func sortAll[T cmp.Ordered](lists ...[]T) {
	for _, list := range lists {
		slices.Sort(list)
	}
}

// has tells whether a sorted list has a value.
func has[T cmp.Ordered](list []T, v T) bool {
	if len(list) <= 8 {
		return slices.Contains(list, v)
	}
	_, ok := slices.BinarySearch(list, v)
	return ok
}

// Locate looks for the network namespaces that pass, on the machine whose events and
// sockets they are. Of a number the namespace that has it is meant from now on, of a name
// whichever has it. The error names the filter and the value; where there is none of
// that number it is a *Wrong and wraps identity.ErrNoNetNS.
func (f *Filter) Locate(names *identity.NetNSNames) error {
	f.wanted = nil
	for _, word := range f.netNS {
		w, err := names.Want(word)
		if err != nil {
			return notThere(fmt.Errorf("netns: %w", err), true, identity.ErrNoNetNS, identity.ErrNotPermitted)
		}
		f.wanted = append(f.wanted, w)
	}
	f.located = time.Now()
	return nil
}

// ByProcess tells whether only sockets of some processes pass.
func (f *Filter) ByProcess() bool { return len(f.pid) > 0 || f.comm.any() }

func (f *Filter) inNetNS(id identity.NetNS, at time.Time) bool {
	return len(f.netNS) == 0 || slices.ContainsFunc(f.wanted, func(w identity.WantedNetNS) bool { return w.Is(id, at) })
}

// parser keeps the first error.
type parser struct {
	values map[string][]string
	err    error
}

func (p *parser) fail(name string, err error) {
	if p.err == nil {
		p.err = fmt.Errorf("%s: %w", name, err)
	}
}

// known refuses names that are of no filter.
func (p *parser) known(params []Param) {
	want := make([]string, len(params))
	for i := range params {
		want[i] = params[i].Name
	}
	for name, values := range p.values {
		most := maxValues
		if slices.Contains([]string{"unit", "container", "pod", "netns", "addr", "end"}, name) {
			most = maxCompared
		}
		switch {
		case !slices.Contains(want, name):
			p.err = fmt.Errorf("parameter %q: want one of %s", name, strings.Join(want, ", "))
		case len(values) > most:
			p.fail(name, fmt.Errorf("%d values: want at most %d", len(values), most))
		}
	}
}

func (p *parser) isTrue(name string) bool {
	set := each(p, name, parseBool)
	return len(set) > 0 && set[len(set)-1]
}

func each[T any](p *parser, name string, parse func(string) (T, error)) []T {
	var out []T
	for _, s := range p.values[name] {
		v, err := parse(s)
		if err != nil {
			p.fail(name, err)
			return nil
		}
		out = append(out, v)
	}
	return out
}

// eachPort returns the ports given, as numbers, ranges and names, each once.
func eachPort(p *parser, name string) []uint16 {
	given := each(p, name, parsePorts)
	if len(given) == 0 {
		return nil
	}
	var set [1 << 16]bool // there may be many ranges
	for _, r := range given {
		for port := int(r.low); port <= int(r.high); port++ {
			set[port] = true
		}
	}
	var out []uint16
	for port, is := range set {
		if is {
			out = append(out, uint16(port))
		}
	}
	return out
}

// ports are all from low to high.
type ports struct{ low, high uint16 }

// parsePorts accepts 80, 80-90 and http.
func parsePorts(s string) (ports, error) { return parsePortsOf(s, protos()) }

// parsePortsOf is parsePorts of services of some protocols.
func parsePortsOf(s string, of []tracer.Proto) (ports, error) {
	if port, err := parsePort(s); err == nil {
		return ports{port, port}, nil
	}
	if from, to, ok := strings.Cut(s, "-"); ok {
		low, lowErr := parsePort(from)
		high, highErr := parsePort(to)
		if lowErr == nil && highErr == nil {
			if low > high {
				return ports{}, fmt.Errorf("ports %q: want the smaller one first, as %d-%d", s, high, low)
			}
			return ports{low, high}, nil
		}
	}
	for _, proto := range of {
		if port, ok := numberOf(s, proto == tracer.UDP); ok {
			return ports{port, port}, nil
		}
	}
	return ports{}, fmt.Errorf("port %q: want a number from 1 to 65535, a range as 80-90, or a service as http", s)
}

// numberOf is the port of a service by its name, which begins with a letter.
func numberOf(name string, udp bool) (uint16, bool) {
	if name == "" || strings.ContainsAny(name[:1], "0123456789-+") {
		return 0, false
	}
	return identity.LoadServices().Number(name, udp)
}

// parseBool accepts true and false.
func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q: want true or false", s)
}

// parsePort accepts 1-65535.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q: want a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// parseProto accepts tcp and udp.
func parseProto(s string) (tracer.Proto, error) { return oneOf(protos())(s) }

// protos returns every protocol there is.
func protos() []tracer.Proto { return []tracer.Proto{tracer.TCP, tracer.UDP} }

func ops() []tracer.PortOp {
	return []tracer.PortOp{tracer.OpConnect, tracer.OpBind, tracer.OpImplicitBind}
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q: want a number from 0 to 4294967295", s)
	}
	return uint32(n), nil
}

// parseUID takes a number, or the name of a user of this machine.
func parseUID(s string) (uint32, error) {
	id := s
	if u, err := user.Lookup(s); err == nil {
		id = u.Uid
	}
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q: want a user of this machine, or a number from 0 to 4294967295", s)
	}
	return uint32(n), nil
}

func oneOf[T fmt.Stringer](values []T) func(string) (T, error) {
	return func(s string) (T, error) {
		for _, v := range values {
			if strings.EqualFold(v.String(), s) {
				return v, nil
			}
		}
		var none T
		return none, fmt.Errorf("%q: want one of %s%s", s, strings.Join(names(values), ", "), Meant(s, names(values)))
	}
}

func parseNetNS(word string) (string, error) { return word, identity.CheckNetNS(word) }

// parseState accepts the names of ss(8), in either case, with - or _.
func parseState(s string) (tracer.State, error) {
	switch name := strings.ReplaceAll(strings.ToUpper(s), "_", "-"); name {
	case "ESTABLISHED":
		return tracer.StateEstablished, nil
	case "LISTENING":
		return tracer.StateListen, nil
	default:
		v, err := oneOf(tracer.States())(name)
		if err != nil {
			return 0, fmt.Errorf("%q: want one of %s%s", s, strings.Join(names(tracer.States()), ", "), Meant(s, names(tracer.States())))
		}
		return v, nil
	}
}

func names[T fmt.Stringer](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}

// LocalPort is the local port that everything passed has; 0: not just one.
func (f *Filter) LocalPort() uint16 {
	if len(f.lport) != 1 {
		return 0
	}
	return f.lport[0]
}

func pass[T cmp.Ordered](list []T, v T) bool { return len(list) == 0 || has(list, v) }

func (f *Filter) ports(local, remote uint16) bool {
	return pass(f.lport, local) && pass(f.rport, remote) &&
		(len(f.port) == 0 || has(f.port, local) || has(f.port, remote))
}

// Event tells whether an event passes.
func (f *Filter) Event(cgroups *identity.Cgroups, ev *tracer.Event) bool {
	return f.happened(ev) && f.match(cgroups, &ev.Process)
}

// happened tells whether an event passes, wherever its process runs.
func (f *Filter) happened(ev *tracer.Event) bool {
	p := &ev.Process
	return pass(f.event, ev.Type) && pass(f.proto, ev.Proto) && f.inNetNS(identity.NetNS{Inode: ev.NetNS, Cookie: ev.NetNSCookie}, ev.Time) &&
		f.ports(ev.Local.Port(), ev.Remote.Port()) && f.touches(ev.Proto, ev.Local, ev.Remote, ev.DeviceID()) &&
		(len(f.pid) == 0 || has(f.pid, p.PID)) &&
		(len(f.uid) == 0 || p.PID != 0 && has(f.uid, p.UID)) &&
		f.comm.pass(p.Comm)
}

// Socket tells whether a socket passes. Filters of processes pass when any holder
// does; uid is the socket's own.
func (f *Filter) Socket(cgroups *identity.Cgroups, s *tracer.Socket) bool {
	if !f.likeSS(s) || !pass(f.proto, s.Proto) || !pass(f.state, s.State) || !pass(f.role, s.Role) ||
		!f.ports(s.Local.Port(), s.Remote.Port()) || !f.touches(s.Proto, s.Local, s.Remote, s.DeviceID()) || !f.inNetNS(identity.NetNS{Inode: s.NetNS, Cookie: s.NetNSCookie}, f.located) {
		return false
	}
	if len(f.uid) > 0 && (s.Role == tracer.RoleTimeWait || !has(f.uid, s.UID)) {
		return false
	}
	if len(f.pid) == 0 && !f.comm.any() && !f.Any() {
		return true
	}
	return slices.ContainsFunc(s.Holders, func(h tracer.Holder) bool {
		return pass(f.pid, h.PID) && f.comm.pass(h.Comm) && f.match(cgroups, &h.Process)
	})
}

// likeSS applies the filters that ls has of ss(8).
func (f *Filter) likeSS(s *tracer.Socket) bool {
	if f.tcp != f.udp && (s.Proto == tracer.TCP) != f.tcp {
		return false
	}
	if f.ipv4 != f.ipv6 && s.Local.Addr().Is4() != f.ipv4 {
		return false
	}
	if f.exposed && !f.Reach.Exposed(s) {
		return false
	}
	return !f.listening && !f.exposed || s.State == tracer.StateListen || s.Proto == tracer.UDP && s.State == tracer.StateUnconn
}

// Exposed tells whether the filter has to know which namespaces can be reached: Reach.
func (f *Filter) Exposed() bool { return f.exposed }

// Headroom tells whether a way to get a port passes. Filters of processes pass when
// any that has its ports does.
func (f *Filter) Headroom(cgroups *identity.Cgroups, h *tracer.Headroom) bool {
	if !pass(f.op, h.Op) || !pass(f.proto, h.Proto) || !f.inNetNS(identity.NetNS{Inode: h.NetNS, Cookie: h.NetNSCookie}, f.located) || !pass(f.rport, h.Remote.Port()) {
		return false
	}
	if len(f.pid) == 0 && !f.comm.any() && !f.Any() {
		return true
	}
	uses := func(u tracer.PortUser) bool {
		return u.PID != 0 && pass(f.pid, u.PID) && f.comm.pass(u.Comm) && f.match(cgroups, &u.Process)
	}
	return slices.ContainsFunc(h.Holders, uses) || slices.ContainsFunc(h.BlockedBy, uses)
}

// NetNS are the namespaces that pass; none: all.
func (f *Filter) NetNS() []identity.WantedNetNS { return slices.Clone(f.wanted) }
