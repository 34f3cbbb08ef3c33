package metrics

import (
	"cmp"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/porthole-dev/porthole/internal/export"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// sample is every number of one scrape, with the words of its labels. It does not
// change once made. What could not be read is nil.
type sample struct {
	version, goVersion string
	started            time.Time // when counting began

	hooks    []tracer.HookStatus
	stats    *tracer.Stats
	history  *store.Stats  // nil: none is kept on disk
	export   *export.Stats // nil: nothing is exported
	events   map[tracer.EventKey]uint64
	failures map[tracer.Failure]uint64
	programs []tracer.ProgramStats // nil while the kernel does not count
	errors   map[string]uint64     // by what could not be read

	searches      bool // whether a hook sees them
	searchBuckets map[int]int64
	searchCount   uint64
	searchSum     time.Duration

	sockets   map[socketKind]int
	processes map[processKey]int

	walk            time.Duration // what it took to read the following
	spaces          map[string]space
	utilization     shares
	bindUtilization shares
	destinations    map[destinationKey]usage
	listening       map[listenerKey]int

	listeners map[listenersKey]int
	queues    map[queueKey]float64
	changes   map[string]uint64 // of listeners

	violations map[string]int // of a policy, by rule
}

type socketKind struct {
	proto tracer.Proto
	role  tracer.Role
}

// actor is what a process is known by: its name, and where it runs, as far as that is known; unit only
// of what is in no container.
type actor struct{ comm, unit, container, pod string }

type processKey struct {
	actor
	proto tracer.Proto
}

type listenerKey struct {
	netns string
	actor
}

type destinationKey struct{ netns, localIP, remote string }

// destination is the same before all of it is words: there may be very many.
type destination struct {
	netns  string
	local  netip.Addr
	remote netip.AddrPort
}

// space is the ephemeral ports of the namespaces of one name.
type space struct{ capacity, blocked int }

// usage is the ephemeral ports of the destinations of one name.
type usage struct{ used, timeWait, free int }

// shares is the greatest share in use by name of namespace and protocol.
type shares map[shareKey]float64

type shareKey struct {
	netns string
	proto tracer.Proto
}

func (s shares) raise(netns string, h *tracer.Headroom) {
	k := shareKey{netns, h.Proto}
	s[k] = max(s[k], h.Utilization())
}

func (s shares) each(e emitter) {
	for k, v := range s {
		e.put(v, k.netns, k.proto.String())
	}
}

// stat puts one of the tracer's counters, if they could be read.
func (s *sample) stat(e emitter, of func(*tracer.Stats) uint64, labels ...string) {
	if s.stats != nil {
		e.put(float64(of(s.stats)), labels...)
	}
}

// past puts one of the history's counters, if there is one.
func (s *sample) past(e emitter, of func(*store.Stats) uint64, labels ...string) {
	if s.history != nil {
		e.put(float64(of(s.history)), labels...)
	}
}

// exported puts one of the export's numbers, if there is one.
func (s *sample) exported(e emitter, of func(*export.Stats) float64, labels ...string) {
	if s.export != nil {
		e.put(of(s.export), labels...)
	}
}

// other is the label of what has no series of its own.
const other = "other"

// shared returns a function that calls read, and gives its result to every caller
// until it is older than d. Callers wait for each other.
func shared(d time.Duration, now func() time.Time, read func() *sample) func() *sample {
	var mu sync.Mutex
	var last *sample
	var at time.Time
	return func() *sample {
		mu.Lock()
		defer mu.Unlock()
		if last == nil || now().Sub(at) >= d {
			last = read()
			at = now()
		}
		return last
	}
}

// sampler reads a tracer. What it remembers from one sample to the next keeps
// series from coming and going. Not safe for concurrent use.
type sampler struct {
	Sources
	started time.Time

	netns        *namer
	destinations top[destination]
	processes    top[processKey]
	listeners    top[listenerKey]
	homes        *listenerPlaces
	rules        top[string]
	errors       map[string]uint64
}

func newSampler(of Sources) *sampler {
	return &sampler{
		Sources: of, started: time.Now(), netns: newNamer(), homes: newListenerPlaces(), rules: top[string]{most: mostListeners},
		errors: map[string]uint64{"counters": 0, "devices": 0, "ports": 0, "programs": 0},
	}
}

// read reads everything now.
func (r *sampler) read() *sample {
	s := &sample{version: r.Version, goVersion: runtime.Version(), started: r.started, hooks: r.Tracer.Hooks()}
	if stats, err := r.Tracer.Stats(); r.ok("counters", err) {
		s.stats = &stats
	}
	if programs, err := r.Tracer.Programs(); r.ok("programs", err) && slices.ContainsFunc(programs, func(p tracer.ProgramStats) bool { return p.Runs > 0 }) {
		s.programs = programs
	}
	if r.History != nil {
		stats := r.History.Stats()
		s.history = &stats
	}
	if r.Export != nil {
		stats := r.Export.Stats()
		s.export = &stats
	}
	s.count(r.Tracer.Counts())
	c := newCensus()
	reach, err := r.Tracer.Reach()
	reached := r.ok("devices", err)
	r.Tracer.Table().Each(func(so *tracer.Socket) {
		c.add(so)
		c.addListener(so, reach)
	})
	now := time.Now()
	s.sockets = c.sockets
	s.processes = r.processes.sum(c.byPlace(r.Names.Cgroups), byProcess, func(k processKey) processKey { return processKey{rest, k.proto} }, now)
	ports, err := r.Tracer.Ports(false)
	if r.ok("ports", err) {
		s.walk = time.Since(now)
		spaces := ports.Spaces()
		named := func(id identity.NetNS) string {
			if name := r.Names.NetNS.Name(id, now); !identity.IsRandom(name) {
				return name
			}
			return ""
		}
		r.netns.update(spaces, named, c.containers(r.Names.Cgroups), now)
		r.ports(s, spaces, ports.All(), now)
		if reached {
			r.homes.fill(s, c, r.netns.name, r.Names.Cgroups, now)
		}
	}
	if r.Violations != nil {
		violations := make(map[string]int)
		for rule, n := range r.Violations() {
			violations[identity.Safe(rule)] += n
		}
		s.violations = r.rules.sum(violations, strings.Compare, func(string) string { return other }, now)
	}
	s.errors = maps.Clone(r.errors)
	return s
}

// ports takes what was read of the ephemeral ports.
func (r *sampler) ports(s *sample, spaces []tracer.PortSpace, all []tracer.Headroom, now time.Time) {
	s.fill(spaces, all, r.netns.name)
	s.listening = r.listeners.sum(listening(spaces, r.netns.name, r.Names.Cgroups), byListener, func(k listenerKey) listenerKey { return listenerKey{k.netns, rest} }, now)
	nameScopes(all, r.Names)
	s.destinations = destinations(all, &r.destinations, r.netns.name, now)
}

// ok counts and logs an error.
func (r *sampler) ok(what string, err error) bool {
	if err != nil {
		r.errors[what]++
		r.Log.Error("read for metrics", "what", what, "error", err)
	}
	return err == nil
}

// count takes what the events told. What is zero until it happens is there from
// the start where a rule or a sum needs it: the first failure must be a rise.
func (s *sample) count(c tracer.Counts) {
	s.events = make(map[tracer.EventKey]uint64)
	for _, typ := range tracer.EventTypes() {
		s.events[tracer.EventKey{Type: typ, Proto: tracer.TCP}] = 0
	}
	for _, typ := range []tracer.EventType{tracer.EventBind, tracer.EventConnect, tracer.EventClose} {
		s.events[tracer.EventKey{Type: typ, Proto: tracer.UDP}] = 0
	}
	maps.Copy(s.events, c.Events)
	s.failures = map[tracer.Failure]uint64{
		{Op: tracer.OpConnect, Proto: tracer.TCP, Errno: syscall.EADDRNOTAVAIL}: 0,
		{Op: tracer.OpImplicitBind, Proto: tracer.UDP, Errno: syscall.EAGAIN}:   0,
		{Op: tracer.OpBind, Proto: tracer.TCP, Errno: syscall.EADDRINUSE}:       0,
		{Op: tracer.OpBind, Proto: tracer.UDP, Errno: syscall.EADDRINUSE}:       0,
		{Op: tracer.OpListen, Proto: tracer.TCP, Errno: syscall.EADDRINUSE}:     0,
	}
	maps.Copy(s.failures, c.Failures)
	s.changes = map[string]uint64{"added": c.ListenersAdded, "removed": c.ListenersRemoved}
	s.searches = slices.ContainsFunc(s.hooks, func(h tracer.HookStatus) bool {
		return h.Attached && (h.Hook == "fexit/inet_hash_connect" || h.Hook == "fexit/inet6_hash_connect")
	})
	s.searchBuckets, s.searchSum = c.Searches, c.SearchSum
	for _, n := range c.Searches {
		s.searchCount += uint64(n)
	}
}

// fill takes what was read of each namespace. name gives it its label.
func (s *sample) fill(spaces []tracer.PortSpace, all []tracer.Headroom, name func(identity.NetNS) string) {
	s.spaces, s.utilization, s.bindUtilization = make(map[string]space), make(shares), make(shares)
	for _, sp := range spaces {
		if sp.Proto != tracer.TCP {
			continue // the same range; nothing is blocked
		}
		ns := name(idOf(&sp))
		sum := s.spaces[ns]
		s.spaces[ns] = space{sum.capacity + sp.Capacity, sum.blocked + sp.Blocked}
		// Towards a destination without a connection.
		s.utilization.raise(ns, &tracer.Headroom{PortSpace: sp, Free: sp.Capacity - sp.Blocked})
	}
	for i := range all {
		h := &all[i]
		if h.Op == tracer.OpBind {
			s.bindUtilization.raise(name(idOf(&h.PortSpace)), h)
		} else {
			s.utilization.raise(name(idOf(&h.PortSpace)), h)
		}
	}
}

// isDestination: All has what is left towards any other as well, and of one that is not
// link-local also what is left for sockets of a device, who share its ports with the others.
func isDestination(h *tracer.Headroom) bool {
	return h.Op == tracer.OpConnect && h.Remote.IsValid() && (h.Device == 0 || tracer.IsScoped(h.Local) || tracer.IsScoped(h.Remote.Addr()))
}

// nameScopes adds the device to link-local destinations, which else would be one.
func nameScopes(all []tracer.Headroom, names *identity.Names) {
	for i := range all {
		if h := &all[i]; h.Device != 0 && h.Remote.Addr().Is6() && isDestination(h) {
			h.Remote = netip.AddrPortFrom(h.Remote.Addr().WithZone(names.DeviceName(h.DeviceID())), h.Remote.Port())
		}
	}
}

// destinations are the ports of each destination that has a series of its own, and
// of the rest of each namespace.
func destinations(all []tracer.Headroom, top *top[destination], name func(identity.NetNS) string, now time.Time) map[destinationKey]usage {
	ranked := make([]counted[destination], 0, len(all))
	for i := range all {
		if h := &all[i]; isDestination(h) {
			ranked = append(ranked, counted[destination]{destination{name(idOf(&h.PortSpace)), h.Local, h.Remote}, h.Used})
		}
	}
	chosen := top.choose(ranked, now)
	sums := make(map[destinationKey]usage)
	for i := range all {
		h := &all[i]
		if !isDestination(h) {
			continue
		}
		k := destinationKey{name(idOf(&h.PortSpace)), other, other}
		if chosen[destination{k.netns, h.Local, h.Remote}] {
			k.localIP, k.remote = h.Local.String(), h.Remote.String()
		}
		sum, ok := sums[k]
		if !ok {
			sum.free = h.Free
		}
		sums[k] = usage{sum.used + h.Used, sum.timeWait + h.TimeWait, min(sum.free, h.Free)}
	}
	return sums
}

// listening adds up the ports of the ephemeral ranges that are listened on.
func listening(spaces []tracer.PortSpace, name func(identity.NetNS) string, cgroups *identity.Cgroups) map[listenerKey]int {
	sums := make(map[listenerKey]int)
	for _, sp := range spaces {
		for _, u := range sp.Listeners {
			by := actor{comm: "unknown"}
			if u.PID != 0 {
				by = actorOf(u.Comm, cgroups.Resolve(u.Cgroup))
			}
			sums[listenerKey{name(idOf(&sp)), by}] += u.Ports
		}
	}
	return sums
}

func byListener(a, b listenerKey) int {
	return cmp.Or(strings.Compare(a.netns, b.netns), a.actor.compare(b.actor))
}

func byProcess(a, b processKey) int {
	return cmp.Or(a.actor.compare(b.actor), cmp.Compare(a.proto, b.proto))
}

// rest is those that have no series of their own.
var rest = actor{comm: other}

func (a actor) compare(b actor) int {
	return cmp.Or(strings.Compare(a.comm, b.comm), strings.Compare(a.unit, b.unit), strings.Compare(a.container, b.container), strings.Compare(a.pod, b.pod))
}

// actorOf is what a process with a name is known by, in a cgroup.
func actorOf(comm string, in identity.Cgroup) actor {
	a := actor{comm: identity.Safe(comm), container: identity.Safe(in.ContainerName()), pod: identity.Safe(in.PodName())}
	if in.Container == nil {
		a.unit = identity.Safe(in.Unit)
	}
	return a
}

// census adds up the sockets of the table, while the table is locked: it looks nothing up.
type census struct {
	sockets   map[socketKind]int
	processes map[processIn]int
	cgroups   map[cgroupIn]bool
	listeners map[listenersIn]int
	queues    map[cgroupIn]float64 // how full the fullest accept queue is
}

// processIn is a name that processes in a cgroup have.
type processIn struct {
	comm   string
	cgroup uint64
	proto  tracer.Proto
}

// cgroupIn is a cgroup of which a process has a socket in a network namespace.
type cgroupIn struct {
	netns  identity.NetNS
	cgroup uint64
}

func newCensus() *census {
	c := &census{make(map[socketKind]int), make(map[processIn]int), make(map[cgroupIn]bool), make(map[listenersIn]int), make(map[cgroupIn]float64)}
	for _, role := range tracer.Roles() {
		if role != tracer.RoleTimeWait { // nothing tells its end: the table has none
			c.sockets[socketKind{tracer.TCP, role}] = 0
		}
	}
	for _, role := range []tracer.Role{tracer.RoleClient, tracer.RoleBound, tracer.RoleOrphan} {
		c.sockets[socketKind{tracer.UDP, role}] = 0
	}
	return c
}

func (c *census) add(s *tracer.Socket) {
	c.sockets[socketKind{s.Proto, s.Role}]++
	p := &s.Owner
	if p.PID == 0 && len(s.Holders) > 0 {
		p = &s.Holders[0].Process
	}
	if p.PID == 0 {
		return
	}
	c.processes[processIn{p.Comm, p.Cgroup, s.Proto}]++
	c.cgroups[cgroupIn{identity.NetNS{Inode: s.NetNS, Cookie: s.NetNSCookie}, p.Cgroup}] = true
}

// byPlace are the processes by where they run.
func (c *census) byPlace(cgroups *identity.Cgroups) map[processKey]int {
	out := make(map[processKey]int)
	for in, n := range c.processes {
		out[processKey{actorOf(in.comm, cgroups.Resolve(in.cgroup)), in.proto}] += n
	}
	return out
}

// containers returns of each namespace the pod or container in it; of several the first by name.
func (c *census) containers(cgroups *identity.Cgroups) map[identity.NetNS]string {
	out := make(map[identity.NetNS]string)
	for in := range c.cgroups {
		if found := cgroups.Resolve(in.cgroup); found.Container != nil {
			if label := identity.Safe(found.Label()); out[in.netns] == "" || label < out[in.netns] {
				out[in.netns] = label
			}
		}
	}
	return out
}
