package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/services"
	"github.com/porthole-dev/porthole/tracer"
)

func newWho(e *env) *cobra.Command {
	var jsonRow bool
	cmd := &cobra.Command{
		Use:   "who PORT[/tcp|/udp]",
		Short: "Say who has a port",
		Long: "Say who has a local port, in every network namespace: listeners first, clients\n" +
			"apart. Exits with 1 when nobody has it.",
		Example: "  porthole who 8080\n  porthole who 53/udp --json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("want one port, as 8080 or 53/udp; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return who(e, args[0], jsonRow) },
	}
	cmd.Flags().BoolVar(&jsonRow, "json", false, "one JSON object")
	return cmd
}

// answer is the JSON of who.
type answer struct {
	Port             uint16          `json:"port"`
	Proto            string          `json:"proto,omitempty"`
	Range            services.Class  `json:"range"`
	Service          string          `json:"service,omitempty"`
	InEphemeralRange bool            `json:"in_ephemeral_range"`
	Reserved         bool            `json:"reserved"`
	Sockets          []render.Socket `json:"sockets"`
	History          []struct{}      `json:"history"`
}

// question is a parsed PORT[/PROTO]; protos is what it asks about.
type question struct {
	port   uint16
	protos []tracer.Proto
}

func parseQuestion(s string) (question, error) {
	number, proto, given := strings.Cut(s, "/")
	port, err := parsePort(number)
	if err != nil {
		return question{}, usagef("%w, alone or followed by /tcp or /udp", err)
	}
	q := question{port: port, protos: protos}
	if given {
		p, err := oneOf(protos)(proto)
		if err != nil {
			return question{}, usagef("protocol %w", err)
		}
		q.protos = []tracer.Proto{p}
	}
	return q, nil
}

func who(e *env, arg string, jsonRow bool) error {
	q, err := parseQuestion(arg)
	if err != nil {
		return err
	}
	pool, err := readPool()
	if err != nil {
		return err
	}
	snap, err := takeSnapshot(e, q.port)
	if err != nil {
		return err
	}
	names := newNames(e)
	defer names.Cgroups.Close()
	sockets := slices.DeleteFunc(snap.Sockets, func(s tracer.Socket) bool { return !pass(q.protos, s.Proto) })
	out := bufio.NewWriter(e.stdout)
	if jsonRow {
		err = whoJSON(out, names, q, pool, sockets)
	} else {
		err = whoText(out, e.style, names, q, pool, sockets)
	}
	if err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if len(sockets) == 0 {
		return errNo
	}
	return nil
}

func whoJSON(out io.Writer, names *render.Names, q question, pool pool, sockets []tracer.Socket) error {
	a := answer{
		Port: q.port, Range: services.ClassOf(q.port), InEphemeralRange: pool.has(q.port), Reserved: pool.reserved(q.port),
		Service: names.Services.Name(q.port, q.protos[0] == tracer.UDP),
		Sockets: make([]render.Socket, len(sockets)), History: []struct{}{},
	}
	if len(q.protos) == 1 {
		a.Proto = q.protos[0].String()
	}
	for i := range sockets {
		a.Sockets[i] = names.Socket(&sockets[i])
	}
	return json.NewEncoder(out).Encode(a)
}

func whoText(out io.Writer, style render.Style, names *render.Names, q question, pool pool, sockets []tracer.Socket) error {
	w := whoWriter{out: out, names: names, port: q.port, users: make(map[uint32]string)}
	for _, proto := range q.protos {
		w.proto(proto, sockets, len(q.protos) == 1 || len(sockets) == 0)
	}
	w.about(q, pool)
	if w.err != nil {
		return w.err
	}
	if clients := section(sockets, tracer.RoleClient); len(clients) > 0 {
		fmt.Fprintf(out, "\nclients that have %d as their own port:\n", q.port)
		return names.Sockets(out, style, clients)
	}
	return nil
}

// section returns those sockets of a role, and of a protocol where protos has one
// only. sockets is ordered as tracer.SortSockets does, so they stand together.
func section(sockets []tracer.Socket, role tracer.Role, protos ...tracer.Proto) []tracer.Socket {
	match := func(s tracer.Socket) bool { return s.Role == role && pass(protos, s.Proto) }
	from := slices.IndexFunc(sockets, match)
	if from < 0 {
		return nil
	}
	to := from
	for to < len(sockets) && match(sockets[to]) {
		to++
	}
	return sockets[from:to]
}

// whoWriter says in words who has a port.
type whoWriter struct {
	out   io.Writer
	names *render.Names
	port  uint16
	users map[uint32]string
	err   error
}

func (w *whoWriter) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format, args...)
	}
}

// proto tells of one protocol; nobody says so only where asked.
func (w *whoWriter) proto(proto tracer.Proto, sockets []tracer.Socket, sayNobody bool) {
	held := false
	for _, role := range []tracer.Role{tracer.RoleListener, tracer.RoleBound} {
		for _, group := range groups(section(sockets, role, proto)) {
			w.group(group)
			held = true
		}
	}
	rest := []struct {
		role tracer.Role
		one  string
		many string
	}{
		{tracer.RoleServer, "1 accepted connection", "%d accepted connections"},
		{tracer.RoleOrphan, "1 connection that no process holds", "%d connections that no process holds"},
		{tracer.RoleTimeWait, "1 connection in TIME-WAIT, for up to a minute", "%d connections in TIME-WAIT, each for up to a minute"},
		{tracer.RoleClient, "1 client", "%d clients"},
	}
	var parts []string
	for _, r := range rest {
		switch n := len(section(sockets, r.role, proto)); {
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

// groups puts sockets together that share address, namespace and role, as those
// of SO_REUSEPORT do.
func groups(sockets []tracer.Socket) [][]tracer.Socket {
	type key struct {
		local netip.AddrPort
		netns uint32
	}
	at := make(map[key]int)
	var out [][]tracer.Socket
	for _, s := range sockets {
		k := key{s.Local, s.NetNS}
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
func (w *whoWriter) group(group []tracer.Socket) {
	s := &group[0]
	how := "bound to"
	if s.Role == tracer.RoleListener {
		how = "listening on"
	}
	where := fmt.Sprintf("%s %s", how, s.Local.Addr())
	if s.MPTCP {
		where += " (MPTCP)"
	}
	if s.NetNS != w.names.HostNS {
		where += " in network namespace " + w.names.NetNSName(s.NetNS)
	}
	if !s.Since.IsZero() {
		where += " since " + s.Since.Local().Format("2006-01-02 15:04:05")
	}
	if len(group) > 1 {
		where += fmt.Sprintf(", %d sockets", len(group))
	}
	var holders []string
	seen := make(map[uint32]bool)
	for i := range group {
		for _, h := range group[i].Holders {
			if !seen[h.PID] {
				seen[h.PID] = true
				holders = append(holders, w.holder(&h))
			}
		}
	}
	switch len(holders) {
	case 0:
		w.printf("%d/%s is held by no process, %s (a socket of the kernel, or one on its way between processes)\n", w.port, s.Proto, where)
	case 1:
		w.printf("%d/%s is held by %s, %s\n", w.port, s.Proto, holders[0], where)
	default:
		w.printf("%d/%s is held by %d processes, %s:\n  %s\n", w.port, s.Proto, len(holders), where, strings.Join(holders, "\n  "))
	}
}

func (w *whoWriter) holder(h *tracer.Holder) string {
	text := fmt.Sprintf("%s (pid %d, user %s", render.Safe(h.Comm), h.PID, w.user(h.UID))
	if c := w.names.Cgroups.Resolve(h.Cgroup).Container; c != nil {
		text += ", container " + render.Safe(c.Label())
	}
	return text + ")"
}

func (w *whoWriter) user(uid uint32) string {
	if name, ok := w.users[uid]; ok {
		return name
	}
	name := strconv.Itoa(int(uid))
	if u, err := user.LookupId(name); err == nil {
		name = render.Safe(u.Username)
	}
	w.users[uid] = name
	return name
}

// about tells what is known of the number itself.
func (w *whoWriter) about(q question, pool pool) {
	ranges := map[services.Class]string{
		services.System: "system (0-1023)", services.Registered: "registered (1024-49151)", services.Dynamic: "dynamic (49152-65535)",
	}
	text := fmt.Sprintf("%d: %s", q.port, ranges[services.ClassOf(q.port)])
	for _, p := range q.protos {
		if name := w.names.Services.Name(q.port, p == tracer.UDP); name != "" {
			text += fmt.Sprintf("; %s/%s", render.Safe(name), p)
		}
	}
	w.printf("%s\n", text)
	in := "outside"
	if pool.has(q.port) {
		in = "inside"
	}
	text = fmt.Sprintf("%s this machine's ephemeral range %d-%d", in, pool.low, pool.high)
	if pool.reserved(q.port) {
		text += ", and reserved"
	}
	w.printf("  %s\n", text)
}

// pool is the range the kernel picks ports from, both ends included, and the
// ports it leaves out, of this process's network namespace.
type pool struct {
	low, high uint16
	out       []portRange
}

type portRange struct{ low, high uint16 }

func (p pool) has(port uint16) bool { return port >= p.low && port <= p.high }

func (p pool) reserved(port uint16) bool {
	for _, r := range p.out {
		if port >= r.low && port <= r.high {
			return true
		}
	}
	return false
}

func readPool() (pool, error) {
	const dir = "/proc/sys/net/ipv4/"
	var p pool
	b, err := os.ReadFile(dir + "ip_local_port_range")
	if err != nil {
		return p, fmt.Errorf("read ephemeral range: %w", err)
	}
	if _, err := fmt.Sscan(string(b), &p.low, &p.high); err != nil {
		return p, fmt.Errorf("read ephemeral range %q: %w", b, err)
	}
	if b, err = os.ReadFile(dir + "ip_local_reserved_ports"); err != nil {
		return p, fmt.Errorf("read reserved ports: %w", err)
	}
	p.out, err = parseRanges(strings.TrimSpace(string(b)))
	return p, err
}

// parseRanges reads "8080,9000-9010".
func parseRanges(s string) ([]portRange, error) {
	var out []portRange
	for part := range strings.SplitSeq(s, ",") {
		if part == "" {
			continue
		}
		low, high, ranged := strings.Cut(part, "-")
		if !ranged {
			high = low
		}
		l, errLow := strconv.ParseUint(low, 10, 16)
		h, errHigh := strconv.ParseUint(high, 10, 16)
		if errLow != nil || errHigh != nil {
			return nil, fmt.Errorf("read reserved ports: %q", part)
		}
		out = append(out, portRange{uint16(l), uint16(h)})
	}
	return out, nil
}
