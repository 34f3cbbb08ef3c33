package export

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/slim/otlp/logs/v1"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// fact is an event, or what the history has of one.
type fact struct {
	ev    tracer.Event
	boot  time.Duration // CLOCK_BOOTTIME of the event
	taken time.Duration // as tracer.Event.Taken
	role  tracer.Role
	asked bool // as tracer.Event.Asked
	where identity.Cgroup
	space string // name of the network namespace; "": none
	// The device the socket is bound to: its name, else its index.
	device string
	index  uint32

	stored bool   // read from the history
	folded uint32 // how many events this is, which the history does not keep one by one; 0: it is one
	exe    string // of the process; only what the history tells. Not its command line, which can hold secrets

	lost *loss // it tells of a loss, and has no event
}

// loss is some events that are not exported.
type loss struct {
	reason Reason
	count  uint64 // 0: not known
	since  time.Time
}

// isOfPort tells whether the event is of the default selection: what happens to ports that somebody asked for, and
// calls that were refused.
func (f *fact) isOfPort() bool {
	switch f.ev.Type {
	case tracer.EventClose:
		return f.role == tracer.RoleListener || f.role == tracer.RoleBound && (f.asked || f.taken == 0)
	case tracer.EventBind:
		return !f.ev.Implicit || f.ev.Errno != 0
	case tracer.EventListen:
		return true
	}
	return f.ev.Errno != 0
}

// storable tells whether the history has enough to tell the event from it.
func (f *fact) storable() bool {
	switch {
	case f.ev.Errno != 0 && f.ev.Type != tracer.EventClose:
		return true
	case f.ev.Type == tracer.EventBind:
		return !f.ev.Implicit
	case f.ev.Type == tracer.EventConnect:
		return f.ev.Proto == tracer.TCP && f.boot == f.taken // else it had its port before
	case f.ev.Type == tracer.EventAccept:
		return f.boot == f.taken
	}
	return f.ev.Type != tracer.EventEstablished
}

// hasLocal tells whether there is a local end worth telling: a socket without a port has none, unless it was
// asked for.
func (f *fact) hasLocal() bool {
	return f.ev.Local.Addr().IsValid() && (f.ev.Local.Port() != 0 || f.ev.Type == tracer.EventBind && !f.ev.Implicit)
}

// idOf is the id of an event: the same whenever it is exported, and wherever it was read from, and no other event's
// of this boot or of another.
func idOf(boot [16]byte, f *fact) string {
	h := fnv.New128a()
	var b [16 + 8 + 4 + 4]byte
	copy(b[:], boot[:])
	binary.LittleEndian.PutUint64(b[16:], uint64(f.boot))
	b[24], b[25] = byte(f.ev.Type), byte(f.ev.Proto)
	binary.LittleEndian.PutUint16(b[26:], f.ev.Local.Port())
	binary.LittleEndian.PutUint32(b[28:], f.ev.NetNS)
	h.Write(b[:])
	if f.folded > 0 || f.lost != nil {
		fmt.Fprintf(h, "%d %v %s %v", f.folded, f.ev.Remote, f.ev.Process.Comm, f.lost)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// field is an attribute of records.
type field struct {
	name, kind string // kind: string, int, boolean, list of strings
	what       string
	put        func(f *fact, to *attributes)
}

// fields lists every attribute, in the order of the documentation.
var fields = []field{
	{"log.record.uid", "string", "id of the event: the same each time it is sent, for it can be sent twice; of other events another", nil},
	{"network.transport", "string", "`tcp`, `udp`", func(f *fact, to *attributes) {
		if f.lost == nil {
			to.str(f.ev.Proto.String())
		}
	}},
	{"network.type", "string", "`ipv4`, `ipv6`: of the addresses; IPv4 on an IPv6 socket is `ipv4`", func(f *fact, to *attributes) {
		a := f.ev.Remote.Addr()
		if !a.IsValid() {
			a = f.ev.Local.Addr()
		}
		switch {
		case a.Is4():
			to.str("ipv4")
		case a.IsValid():
			to.str("ipv6")
		}
	}},
	{"network.local.address", "string", "as `local_ip` of `tail --json`", func(f *fact, to *attributes) {
		if f.hasLocal() {
			to.addr(f.ev.Local.Addr())
		}
	}},
	{"network.local.port", "int", "as `local_port`", func(f *fact, to *attributes) {
		if f.hasLocal() {
			to.optInt(int64(f.ev.Local.Port()))
		}
	}},
	{"network.peer.address", "string", "as `remote_ip`", func(f *fact, to *attributes) { to.addr(f.ev.Remote.Addr()) }},
	{"network.peer.port", "int", "as `remote_port`", func(f *fact, to *attributes) { to.optInt(int64(f.ev.Remote.Port())) }},
	{"error.type", "string", "name of the errno, as `EADDRINUSE`; as `error`", func(f *fact, to *attributes) { to.optStr(f.ev.ErrnoName()) }},
	{"process.pid", "int", "the process that acted, in the initial pid namespace; as `pid`", func(f *fact, to *attributes) { to.optInt(int64(f.ev.Process.PID)) }},
	{"process.real_user.id", "int", "as `uid`", func(f *fact, to *attributes) {
		if f.ev.Process.PID != 0 {
			to.int(int64(f.ev.Process.UID))
		}
	}},
	{"process.executable.path", "string", "path of the program, where the history has it", func(f *fact, to *attributes) { to.optStr(f.exe) }},
	{"process.linux.cgroup", "string", "as in /proc/PID/cgroup: `0::` and the cgroup v2 path", func(f *fact, to *attributes) {
		if f.where.Path != "" {
			to.str("0::" + f.where.Path)
		}
	}},
	{"container.id", "string", "where the process runs, as in `container`", ofContainer(func(c *identity.Container) string { return c.ID })},
	{"container.name", "string", "", ofContainer(func(c *identity.Container) string { return c.Name })},
	{"container.image.name", "string", "without the tag", ofContainer(func(c *identity.Container) string { name, _ := imageOf(c.Image); return name })},
	{"container.image.tags", "list of strings", "the tag", func(f *fact, to *attributes) {
		if f.where.Container != nil {
			if _, tag := imageOf(f.where.Container.Image); tag != "" {
				to.list([]string{tag})
			}
		}
	}},
	{"container.runtime.name", "string", "`docker`, `podman`, `containerd` ...", ofContainer(func(c *identity.Container) string { return c.Runtime })},
	{"k8s.namespace.name", "string", "as in `pod`", ofPod(func(p *identity.Pod) string { return p.Namespace })},
	{"k8s.pod.name", "string", "", ofPod(func(p *identity.Pod) string { return p.Name })},
	{"k8s.pod.uid", "string", "", ofPod(func(p *identity.Pod) string { return p.UID })},
	{"k8s.container.name", "string", "", ofPod(func(p *identity.Pod) string { return p.Container })},
	{"k8s.pod.label.NAME", "string", "a label of the pod, of an agent with `--kubelet`", nil},
	{"porthole.comm", "string", "name of the process, up to 15 bytes; as `comm`", func(f *fact, to *attributes) { to.optStr(f.ev.Process.Comm) }},
	{"porthole.unit.name", "string", "systemd's unit; as `unit`", func(f *fact, to *attributes) { to.optStr(f.where.Unit) }},
	{"porthole.unit.user_id", "int", "the unit is of this user's service manager; as `unit_user`", func(f *fact, to *attributes) {
		if f.where.UnitUser != nil {
			to.int(int64(*f.where.UnitUser))
		}
	}},
	{"porthole.role", "string", "what the socket is there for since the event, of a close what it was: `listener`, `client`, `server`, `bound`", func(f *fact, to *attributes) {
		if f.role != 0 && f.role != tracer.RoleUnknown {
			to.str(f.role.String())
		}
	}},
	{"porthole.netns.inode", "int", "the network namespace; as `netns`", func(f *fact, to *attributes) { to.optInt(int64(f.ev.NetNS)) }},
	{"porthole.netns.cookie", "int", "as `netns_cookie`", func(f *fact, to *attributes) { to.optInt(int64(f.ev.NetNSCookie)) }},
	{"porthole.netns.name", "string", "`host`, or its name in /run/netns, then", func(f *fact, to *attributes) { to.optStr(f.space) }},
	{"porthole.device.name", "string", "the network device that the socket is bound to; as `device`", func(f *fact, to *attributes) { to.optStr(f.device) }},
	{"porthole.device.index", "int", "its index, where the name is not known", func(f *fact, to *attributes) { to.optInt(int64(f.index)) }},
	{"porthole.requested_port", "int", "bind: the port asked for, 0: any; not of what was read from the history", func(f *fact, to *attributes) {
		if f.ev.Type == tracer.EventBind && !f.ev.Implicit && !f.stored {
			to.int(int64(f.ev.RequestedPort))
		}
	}},
	{"porthole.implicit", "boolean", "the kernel bound without bind()", func(f *fact, to *attributes) { to.optTrue(f.ev.Implicit) }},
	{"porthole.held_by", "list of strings", "of EADDRINUSE: who was in the way, as `nginx (pid 812)`, one each; not of what was read from the history", func(f *fact, to *attributes) {
		if len(f.ev.HeldBy) > 0 {
			to.list(f.heldBy())
		}
	}},
	{"porthole.duration_ns", "int", "close: how long the port was held; as `duration_ns`", func(f *fact, to *attributes) { to.optInt(f.ev.Duration.Nanoseconds()) }},
	{"porthole.time_wait", "boolean", "close: the port stays taken in TIME-WAIT", func(f *fact, to *attributes) { to.optTrue(f.ev.TimeWait) }},
	{"porthole.until_about", "boolean", "close: it was not seen; the time is when it was at the latest", func(f *fact, to *attributes) { to.optTrue(f.ev.About) }},
	{"porthole.search_ns", "int", "connect: how long the kernel looked for a port; as `search_ns`", func(f *fact, to *attributes) { to.optInt(f.ev.Search.Nanoseconds()) }},
	{"porthole.mptcp", "boolean", "an MPTCP socket", func(f *fact, to *attributes) { to.optTrue(f.ev.MPTCP) }},
	{"porthole.v6_only", "boolean", "IPV6_V6ONLY is set", func(f *fact, to *attributes) { to.optTrue(f.ev.V6Only) }},
	{"porthole.from_history", "boolean", "the event could not be sent when it happened, and was read from the history on disk", func(f *fact, to *attributes) { to.optTrue(f.stored) }},
	{"porthole.folded.count", "int", "of `porthole.folded`: how many events this is, which the history only counts", func(f *fact, to *attributes) { to.optInt(int64(f.folded)) }},
	{"porthole.folded.event", "string", "of `porthole.folded`: which", func(f *fact, to *attributes) {
		if f.folded > 0 {
			to.str(f.ev.Type.String())
		}
	}},
	{"porthole.lost.reason", "string", "of `porthole.lost`: as the label `reason` of `porthole_export_lost_total`", func(f *fact, to *attributes) {
		if f.lost != nil {
			to.str(f.lost.reason.String())
		}
	}},
	{"porthole.lost.count", "int", "of `porthole.lost`: how many events; absent: not known", func(f *fact, to *attributes) {
		if f.lost != nil {
			to.optInt(int64(f.lost.count))
		}
	}},
	{"porthole.lost.since", "string", "of `porthole.lost`: since when, where that is known", func(f *fact, to *attributes) {
		if f.lost != nil && !f.lost.since.IsZero() {
			to.str(f.lost.since.UTC().Format(time.RFC3339Nano))
		}
	}},
}

func ofContainer(get func(*identity.Container) string) func(*fact, *attributes) {
	return func(f *fact, to *attributes) {
		if f.where.Container != nil {
			to.optStr(get(f.where.Container))
		}
	}
}

func ofPod(get func(*identity.Pod) string) func(*fact, *attributes) {
	return func(f *fact, to *attributes) {
		if f.where.Pod != nil {
			to.optStr(get(f.where.Pod))
		}
	}
}

// imageOf is the name of an image and its tag: what follows the last colon, unless that is of a host's port. A digest
// is part of neither.
func imageOf(image string) (name, tag string) {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return image[:i], image[i+1:]
	}
	return image, ""
}

// attributes makes those of one record after the other in the same memory.
type attributes struct {
	all   []*commonpb.KeyValue
	spare []*slot
	used  int
	name  string
}

// slot is the memory of an attribute.
type slot struct {
	kv    commonpb.KeyValue
	value commonpb.AnyValue
	s     commonpb.AnyValue_StringValue
	i     commonpb.AnyValue_IntValue
	b     commonpb.AnyValue_BoolValue
}

func (a *attributes) next() *slot {
	if a.used == len(a.spare) {
		s := &slot{}
		s.kv.Value = &s.value
		a.spare = append(a.spare, s)
	}
	s := a.spare[a.used]
	a.used++
	s.kv.Key = a.name
	a.all = append(a.all, &s.kv)
	return s
}

func (a *attributes) str(v string) {
	s := a.next()
	s.s.StringValue = valid(v)
	s.value.Value = &s.s
}

func (a *attributes) optStr(v string) {
	if v != "" {
		a.str(v)
	}
}

func (a *attributes) int(v int64) {
	s := a.next()
	s.i.IntValue = v
	s.value.Value = &s.i
}

func (a *attributes) optInt(v int64) {
	if v != 0 {
		a.int(v)
	}
}

func (a *attributes) optTrue(v bool) {
	if v {
		s := a.next()
		s.b.BoolValue = true
		s.value.Value = &s.b
	}
}

func (a *attributes) addr(v netip.Addr) {
	if v.IsValid() {
		a.str(v.String())
	}
}

func (a *attributes) list(v []string) {
	if len(v) == 0 {
		return
	}
	values := make([]*commonpb.AnyValue, len(v))
	for i := range v {
		values[i] = &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: valid(v[i])}}
	}
	a.next().value.Value = &commonpb.AnyValue_ArrayValue{ArrayValue: &commonpb.ArrayValue{Values: values}}
}

// valid is a string as protobuf takes it: processes are called by any bytes.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// Severities, by their numbers.
const (
	severityInfo = logspb.SeverityNumber_SEVERITY_NUMBER_INFO
	severityWarn = logspb.SeverityNumber_SEVERITY_NUMBER_WARN
)

// eventName is what happened, as records have it.
func (f *fact) eventName() string {
	switch {
	case f.lost != nil:
		return "porthole.lost"
	case f.folded > 0:
		return "porthole.folded"
	}
	return "porthole." + f.ev.Type.String()
}

// encoder makes records in memory of its own.
type encoder struct {
	boot  [16]byte
	attrs attributes
	body  commonpb.AnyValue
	text  commonpb.AnyValue_StringValue
	rec   logspb.LogRecord
}

// record makes the record of a fact. It is the caller's until the next is made.
func (e *encoder) record(f *fact, now time.Time) *logspb.LogRecord {
	a := &e.attrs
	a.all, a.used = a.all[:0], 0
	a.name = fields[0].name
	a.str(idOf(e.boot, f))
	for i := range fields {
		if fields[i].put != nil {
			a.name = fields[i].name
			fields[i].put(f, a)
		}
	}
	if p := f.where.Pod; p != nil {
		for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
			a.name = "k8s.pod.label." + valid(k)
			a.str(p.Labels[k])
		}
	}
	e.text.StringValue = valid(f.line())
	e.body.Value = &e.text
	r := &e.rec
	r.TimeUnixNano, r.ObservedTimeUnixNano = uint64(f.ev.Time.UnixNano()), uint64(now.UnixNano())
	r.SeverityNumber, r.SeverityText = severityInfo, "INFO"
	if f.ev.Errno != 0 || f.lost != nil {
		r.SeverityNumber, r.SeverityText = severityWarn, "WARN"
	}
	r.Body, r.Attributes, r.EventName = &e.body, a.all, f.eventName()
	return r
}

// line is a record for people.
func (f *fact) line() string {
	if f.lost != nil {
		n := "events"
		if f.lost.count > 0 {
			n = plural(f.lost.count, "event")
		}
		return n + " lost: " + reasons[f.lost.reason].what
	}
	who := "a process that is not known"
	if p := &f.ev.Process; p.PID != 0 {
		who = identity.Safe(p.Comm) + " (pid " + strconv.FormatUint(uint64(p.PID), 10)
		if label := f.where.Label(); label != "" {
			who += ", " + identity.Safe(label)
		}
		who += ")"
	}
	proto := "/" + f.ev.Proto.String()
	local, remote := end(f.ev.Local)+proto, end(f.ev.Remote)+proto
	if f.folded > 0 {
		return who + ": " + plural(uint64(f.folded), f.ev.Type.String()+" event") + " that the history only counts"
	}
	failed := f.ev.Errno != 0
	var what string
	switch f.ev.Type {
	case tracer.EventBind:
		if what = "bound " + local; failed {
			what = "could not bind " + local
		}
	case tracer.EventListen:
		if what = "listens on " + local; failed {
			what = "could not listen on " + local
		}
	case tracer.EventConnect:
		switch {
		case failed:
			what = "could not connect to " + remote
		case f.hasLocal():
			what = "connects to " + remote + " from " + end(f.ev.Local)
		default:
			what = "connects to " + remote
		}
	case tracer.EventAccept:
		if what = "accepted " + end(f.ev.Remote) + " on " + local; failed {
			what = "could not accept on " + local
		}
	case tracer.EventClose:
		what = "closed " + local
		if f.ev.Remote.IsValid() {
			what += " with " + end(f.ev.Remote)
		}
		if f.ev.Duration > 0 {
			what += " after " + briefly(f.ev.Duration)
		}
	default:
		what = f.ev.Type.String() + " " + local
	}
	if failed {
		what += ": " + f.ev.ErrnoName()
	}
	if held := f.heldBy(); len(held) > 0 {
		what += ", held by " + strings.Join(held, ", ")
	}
	return who + " " + what
}

// end is an address and port; one that is not known is *.
func end(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return "*"
	}
	return a.String()
}

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.FormatUint(n, 10) + " " + what + "s"
}

// briefly is a time without more digits than matter.
func briefly(d time.Duration) string {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

// heldBy is who was in the way of a refused bind, each once.
func (f *fact) heldBy() []string {
	var out []string
	for i := range f.ev.HeldBy {
		s := &f.ev.HeldBy[i]
		who := "a socket in " + s.State.String()
		if len(s.Holders) > 0 {
			h := &s.Holders[0]
			who = identity.Safe(h.Comm) + " (pid " + strconv.FormatUint(uint64(h.PID), 10) + ")"
		} else if s.Owner.PID != 0 {
			who += " of " + identity.Safe(s.Owner.Comm) + " (pid " + strconv.FormatUint(uint64(s.Owner.PID), 10) + ")"
		}
		if !slices.Contains(out, who) {
			out = append(out, who)
		}
	}
	return out
}
