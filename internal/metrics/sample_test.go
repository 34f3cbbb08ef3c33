package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

func TestSharedWithinASecond(t *testing.T) {
	reads := 0
	now := time.Unix(1_700_000_000, 0)
	get := shared(time.Second, func() time.Time { return now }, func() *sample { reads++; return &sample{} })
	first := get()
	now = now.Add(999 * time.Millisecond)
	if get() != first || reads != 1 {
		t.Errorf("%d reads within a second, want 1", reads)
	}
	now = now.Add(time.Millisecond)
	if get() == first || reads != 2 {
		t.Errorf("%d reads after a second, want 2", reads)
	}
}

func TestSharedAtOnce(t *testing.T) {
	reads := 0 // the race detector sees a read that is not alone
	get := shared(time.Hour, time.Now, func() *sample { reads++; return fullSample() })
	c := newCollector(get)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { gather(t, c.sample()) })
	}
	wg.Wait()
	if reads != 1 {
		t.Errorf("%d reads, want 1", reads)
	}
}

// idFor is the namespace of an inode number; its cookie is another number.
func idFor(inode uint32) identity.NetNS {
	return identity.NetNS{Inode: inode, Cookie: uint64(inode) << 32}
}

func spacesOf(ids ...identity.NetNS) []tracer.PortSpace {
	var spaces []tracer.PortSpace
	for _, id := range ids {
		for _, proto := range []tracer.Proto{tracer.TCP, tracer.UDP} {
			spaces = append(spaces, tracer.PortSpace{NetNS: id.Inode, NetNSCookie: id.Cookie, Proto: proto})
		}
	}
	return spaces
}

func spacesFrom(first, n uint32) []tracer.PortSpace {
	var ids []identity.NetNS
	for i := range n {
		ids = append(ids, idFor(first+i))
	}
	return spacesOf(ids...)
}

// named are names by inode number.
func named(names map[uint32]string) func(identity.NetNS) string {
	return func(id identity.NetNS) string { return names[id.Inode] }
}

func containersOf(names map[uint32]string) map[identity.NetNS]string {
	out := make(map[identity.NetNS]string)
	for inode, name := range names {
		out[idFor(inode)] = name
	}
	return out
}

var noon = time.Unix(1_700_000_000, 0)

func TestNamer(t *testing.T) {
	for _, c := range []struct {
		what              string
		inodes            []uint32
		named, containers map[uint32]string
		want              map[uint32]string
	}{
		{"nothing", nil, nil, nil, map[uint32]string{}},
		{
			"each source", []uint32{1, 2, 3, 4}, map[uint32]string{1: "host", 2: "blue", 9: "gone"}, map[uint32]string{1: "sidecar", 2: "web", 3: "db"},
			map[uint32]string{1: "host", 2: "blue", 3: "db", 4: "4"},
		},
		{
			"the same twice", []uint32{1, 2, 3}, map[uint32]string{3: "host", 1: "other"}, map[uint32]string{1: "host", 2: "host"},
			map[uint32]string{3: "host", 1: "1", 2: "2"},
		},
		{"a container called host", []uint32{7}, nil, map[uint32]string{7: "host"}, map[uint32]string{7: "7"}},
		{"not for a terminal", []uint32{5}, map[uint32]string{5: "a\x1bb"}, nil, map[uint32]string{5: `"a\x1bb"`}},
	} {
		n := newNamer()
		var ids []identity.NetNS
		for _, inode := range c.inodes {
			ids = append(ids, idFor(inode))
		}
		n.update(spacesOf(ids...), named(c.named), containersOf(c.containers), noon)
		got := make(map[uint32]string)
		for id, name := range n.byID {
			got[id.Inode] = name
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, d)
		}
	}
}

// The sockets that show which container it is come and go.
func TestNamerKeepsContainer(t *testing.T) {
	n := newNamer()
	for _, step := range []struct {
		containers map[uint32]string
		want       string
	}{{nil, "5"}, {map[uint32]string{5: "web"}, "web"}, {map[uint32]string{5: "proxy"}, "web"}, {nil, "web"}} {
		n.update(spacesFrom(5, 1), named(nil), containersOf(step.containers), noon)
		if got := n.name(idFor(5)); got != step.want {
			t.Errorf("with containers %v: name %q, want %q", step.containers, got, step.want)
		}
	}
}

// The kernel gives the number of a namespace that is gone to the next, here between two scrapes.
func TestNamerNumberUsedAgain(t *testing.T) {
	n := newNamer()
	old, next := identity.NetNS{Inode: 5, Cookie: 10}, identity.NetNS{Inode: 5, Cookie: 11}
	n.update(spacesOf(old), named(nil), map[identity.NetNS]string{old: "web"}, noon)
	n.update(spacesOf(next), named(nil), map[identity.NetNS]string{next: "db"}, noon)
	if got := n.name(next); got != "db" {
		t.Errorf("the new namespace is called %q, want db", got)
	}
	if got := n.name(old); got != other {
		t.Errorf("the one that is gone is called %q", got)
	}
	n.update(spacesOf(old, next), named(nil), nil, noon) // one going away, in the same walk
	if a, b := n.name(old), n.name(next); a == b {
		t.Errorf("both are called %q", a)
	}
}

func TestNamerBound(t *testing.T) {
	n := newNamer()
	const host = 100_000
	spaces := append(spacesFrom(1000, 3*maxNetNS), spacesFrom(host, 1)...)
	n.update(spacesFrom(1000+maxNetNS, 2*maxNetNS), named(nil), nil, noon)
	first := idFor(1000 + maxNetNS)
	if n.name(first) == other {
		t.Error("the first namespace has no name")
	}
	n.update(spaces, named(map[uint32]string{host: "host"}), nil, noon)
	if len(n.byID) != maxNetNS/2+1 || n.name(idFor(host)) != "host" || n.name(idFor(1000)) != other {
		t.Errorf("%d names, the host's is %q, that of a late one %q", len(n.byID), n.name(idFor(host)), n.name(idFor(1000)))
	}
	if n.name(first) == other {
		t.Error("a namespace lost its name to an older number")
	}
	names := map[uint32]string{1000: "blue"}
	n.update(spaces, named(names), nil, noon)
	if got := n.name(idFor(1000)); got != "blue" {
		t.Errorf("a name finds no place beside numbers: %q", got)
	}
	for i := range uint32(3 * maxNetNS) {
		names[1000+i] = fmt.Sprintf("name%d", i)
	}
	n.update(spaces, named(names), nil, noon)
	if len(n.held) != maxNetNS {
		t.Errorf("%d labels within an hour, want %d", len(n.held), maxNetNS)
	}
}

// Every user can make namespaces, of other numbers at every scrape.
func TestNamerBoundOverTime(t *testing.T) {
	n := newNamer()
	seen := make(map[string]bool)
	for scrape := range uint32(30) {
		now := noon.Add(time.Duration(scrape) * time.Minute)
		n.update(spacesFrom(1000+100*scrape, 100), named(nil), nil, now)
		for _, label := range n.byID {
			seen[label] = true
		}
	}
	if len(seen) != maxNetNS/2 {
		t.Errorf("%d labels within half an hour, want %d", len(seen), maxNetNS/2)
	}
	n.update(spacesFrom(100_000, 1), named(nil), containersOf(map[uint32]string{100_000: "web"}), noon.Add(30*time.Minute))
	if got := n.name(idFor(100_000)); got != "web" {
		t.Errorf("a container finds no place beside numbers: %q", got)
	}
	n.update(spacesFrom(200_000, 1), named(nil), nil, noon.Add(2*time.Hour))
	if got := n.name(idFor(200_000)); got == other {
		t.Error("a namespace finds no place an hour after the others were last seen")
	}
}

func destinationTo(i, used, free int) tracer.Headroom {
	return tracer.Headroom{
		PortSpace: tracer.PortSpace{NetNS: 1, Proto: tracer.TCP, Capacity: used + free}, Op: tracer.OpConnect, Used: used, Free: free,
		Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 443),
	}
}

// Link-local destinations are those of a device each; of others the ports are counted once.
func TestDestinationsOfDevices(t *testing.T) {
	names := &identity.Names{Device: func(id tracer.DeviceID) string { return map[uint32]string{2: "eth0"}[id.Index] }}
	scoped := func(device uint32, used int) tracer.Headroom {
		h := destinationTo(1, used, 10)
		h.Local, h.Remote, h.Device = netip.MustParseAddr("fe80::1"), netip.MustParseAddrPort("[fe80::2]:443"), device
		return h
	}
	sub := destinationTo(1, 5, 5)
	sub.Device = 2
	all := []tracer.Headroom{scoped(2, 3), scoped(3, 4), destinationTo(1, 2, 8), sub}
	nameScopes(all, names)
	got := destinations(all, new(top[destination]), func(identity.NetNS) string { return "host" }, time.Time{})
	want := map[destinationKey]usage{
		{"host", "fe80::1", "[fe80::2%eth0]:443"}: {used: 3, free: 10}, {"host", "fe80::1", "[fe80::2%3]:443"}: {used: 4, free: 10},
		{"host", "192.0.2.1", "198.51.0.1:443"}: {used: 2, free: 8},
	}
	if !maps.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestDestinationsTopAndOther(t *testing.T) {
	var all []tracer.Headroom
	for i := range 30 {
		all = append(all, destinationTo(i, 100-i, i))
	}
	all = append(all, tracer.Headroom{PortSpace: tracer.PortSpace{NetNS: 1}, Op: tracer.OpBind, Used: 100})
	all = append(all, tracer.Headroom{PortSpace: tracer.PortSpace{NetNS: 1}, Op: tracer.OpConnect, Used: 0}) // towards any other
	got := destinations(all, new(top[destination]), func(identity.NetNS) string { return "host" }, time.Time{})
	if len(got) != topK+1 {
		t.Errorf("%d destinations, want %d and the rest", len(got), topK)
	}
	for i := range topK {
		k := destinationKey{"host", "192.0.2.1", fmt.Sprintf("198.51.0.%d:443", i)}
		if want := (usage{used: 100 - i, free: i}); got[k] != want {
			t.Errorf("%v: %+v, want %+v", k, got[k], want)
		}
	}
	rest := usage{free: 20}
	for i := topK; i < 30; i++ {
		rest.used += 100 - i
	}
	if k := (destinationKey{"host", other, other}); got[k] != rest {
		t.Errorf("rest: %+v, want %+v", got[k], rest)
	}
}

// A crawler has a few connections to other hosts at every scrape.
func TestTopBoundOverTime(t *testing.T) {
	for _, c := range []struct {
		name        string
		ports, want int
	}{{"small ones", 1, topK}, {"great ones", fewPorts, maxPlaces}} {
		t.Run(c.name, func(t *testing.T) {
			var tp top[int]
			seen := make(map[int]bool)
			for scrape := range 120 { // 30 minutes
				var ranked []counted[int]
				for i := range 100 {
					ranked = append(ranked, counted[int]{1000*scrape + i, c.ports})
				}
				chosen := tp.choose(ranked, noon.Add(time.Duration(scrape)*15*time.Second))
				if len(chosen) > topK {
					t.Fatalf("%d chosen", len(chosen))
				}
				for k := range chosen {
					seen[k] = true
				}
			}
			if len(seen) != c.want {
				t.Errorf("%d values had a series within half an hour, want %d", len(seen), c.want)
			}
			if chosen := tp.choose([]counted[int]{{1, c.ports}, {-1, c.ports}}, noon.Add(30*time.Minute)); !chosen[1] || chosen[-1] {
				t.Errorf("%v chosen, want the one that had a place", chosen)
			}
			if chosen := tp.choose([]counted[int]{{-1, c.ports}}, noon.Add(2*time.Hour)); !chosen[-1] {
				t.Error("one has to wait although the places are free again")
			}
		})
	}
}

// A great one does not wait for small ones.
func TestTopSmallLeaveRoom(t *testing.T) {
	var tp top[int]
	var ranked []counted[int]
	for i := range 100 {
		ranked = append(ranked, counted[int]{i, 1})
	}
	tp.choose(ranked, noon)
	if chosen := tp.choose([]counted[int]{{-1, fewPorts}, {99, fewPorts}, {0, fewPorts}}, noon); len(chosen) != 3 {
		t.Errorf("%v chosen", chosen)
	}
	if chosen := tp.choose([]counted[int]{{-2, 1}}, noon); !chosen[-2] {
		t.Error("one that grew keeps the place of a small one")
	}
}

// Every process may call itself what it likes.
func TestSumOfOther(t *testing.T) {
	counts := map[processKey]int{{rest, tracer.TCP}: 1000}
	for i := range 30 {
		counts[processKey{actor{comm: fmt.Sprintf("p%02d", i)}, tracer.TCP}] = 100 - i
	}
	var tp top[processKey]
	got := tp.sum(counts, byProcess, func(k processKey) processKey { return processKey{rest, k.proto} }, time.Time{})
	if len(got) != topK {
		t.Errorf("%d series, want %d", len(got), topK)
	}
	sum, want := 0, 0
	for _, n := range got {
		sum += n
	}
	for _, n := range counts {
		want += n
	}
	if sum != want {
		t.Errorf("the series add up to %d, want %d", sum, want)
	}
}

func TestCensus(t *testing.T) {
	c := newCensus()
	for _, s := range []tracer.Socket{
		{Proto: tracer.TCP, Role: tracer.RoleClient, Owner: tracer.Process{PID: 1, Comm: "curl"}, Holders: []tracer.Holder{{Process: tracer.Process{PID: 2, Comm: "sh"}}}},
		{Proto: tracer.TCP, Role: tracer.RoleClient, Holders: []tracer.Holder{{Process: tracer.Process{PID: 2, Comm: "s\xffh"}}}},
		{Proto: tracer.UDP, Role: tracer.RoleOrphan},
	} {
		c.add(&s)
	}
	if d := cmp.Diff(map[processKey]int{{actor{comm: "curl"}, tracer.TCP}: 1, {actor{comm: `"s\xffh"`}, tracer.TCP}: 1}, c.byPlace(nil), cmp.AllowUnexported(processKey{}, actor{})); d != "" {
		t.Errorf("processes (-want +got):\n%s", d)
	}
	if c.sockets[socketKind{tracer.TCP, tracer.RoleClient}] != 2 || c.sockets[socketKind{tracer.UDP, tracer.RoleOrphan}] != 1 || len(c.sockets) != 8 {
		t.Errorf("sockets: %v", c.sockets)
	}
}

// startTracer runs a tracer until the test ends, and returns when it knows every socket.
func startTracer(t *testing.T) *tracer.Tracer {
	t.Helper()
	tr, err := tracer.Open(tracer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx, nil) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, tr.Close()); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-tr.Ready():
	case err := <-done:
		done <- err
		t.Fatal("the tracer ended before it was ready")
	}
	return tr
}

// linkUp gives the goroutine's network namespace a device that leads to another one, with an address.
func linkUp(t *testing.T, addr string) {
	t.Helper()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	at, err := netlink.ParseAddr(addr)
	if err == nil {
		err = errors.Join(netlink.AddrAdd(link, at), netlink.LinkSetUp(link))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What the kernel has shows in a scrape, by the names of this machine.
func TestMetricsOfTracer(t *testing.T) {
	testutil.NewNetNS(t)
	l, err := net.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tr := startTracer(t)
	names := &identity.Names{Cgroups: identity.NewCgroups(""), NetNS: identity.NewNetNSNames(nil)}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(New(Sources{Tracer: tr, Names: names, Version: "v0", Log: slog.New(slog.DiscardHandler)}))
	values, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := make(map[string]float64)
	for _, f := range values {
		for _, m := range f.GetMetric() {
			sum[f.GetName()] += m.GetGauge().GetValue()
		}
	}
	for _, name := range []string{"porthole_build_info", "porthole_probe_attached", "porthole_sockets", "porthole_process_ports", "porthole_snapshot_duration_seconds"} {
		if sum[name] == 0 {
			t.Errorf("%s is 0 or absent", name)
		}
	}
}

// exposed and local listeners, an accept queue that is full, and what is no listener, of one network
// namespace with a link to another; and they are gone from the next sample once they are closed.
func TestMetricsOfListeners(t *testing.T) {
	ns := testutil.NewNetNS(t)
	linkUp(t, "192.0.2.1/24")
	open := func(network, addr string) io.Closer {
		t.Helper()
		var l io.Closer
		var err error
		if network == "udp" {
			l, err = net.ListenPacket(network, addr)
		} else {
			l, err = net.Listen(network, addr)
		}
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	listeners := []io.Closer{
		open("tcp", "127.0.0.1:80"), open("tcp", "192.0.2.1:80"), open("tcp", "[::]:81"), open("udp", "0.0.0.0:53"), open("udp", "127.0.0.1:54"),
	}
	defer open("udp", "0.0.0.0:0").Close() // as a client's
	tr := startTracer(t)
	r := newSampler(Sources{Tracer: tr, Names: &identity.Names{Cgroups: identity.NewCgroups(""), NetNS: identity.NewNetNSNames(nil)}, Version: "v0", Log: slog.New(slog.DiscardHandler)})
	of := func(s *sample) map[string]int {
		out := make(map[string]int)
		for k, n := range s.listeners {
			if k.netns == strconv.Itoa(int(ns)) {
				out[k.proto.String()+" "+exposure(k.exposed)] += n
			}
		}
		return out
	}
	if d := cmp.Diff(map[string]int{"tcp local": 1, "tcp exposed": 2, "udp exposed": 1, "udp local": 1}, of(r.read())); d != "" {
		t.Errorf("listeners (-want +got):\n%s", d)
	}
	before := tr.Counts()
	for _, l := range listeners {
		l.Close()
	}
	open("tcp", "127.0.0.1:82").Close()
	testutil.Await(t, "the ends of the listeners", func() bool {
		now := tr.Counts()
		return now.ListenersRemoved-before.ListenersRemoved >= 6 && now.ListenersAdded-before.ListenersAdded >= 1
	})
	if got := of(r.read()); len(got) != 0 {
		t.Errorf("listeners that were closed: %v", got)
	}
}

// Who listens on loopback, or runs a service that comes and goes, takes no place of what others reach, and
// the fullest queue is told whoever has it.
func TestListenersBound(t *testing.T) {
	p, s := newListenerPlaces(), new(sample)
	k := func(i int, exposed bool) listenersKey {
		return listenersKey{"host", tracer.TCP, exposed, home{unit: fmt.Sprintf("u%04d.service", i)}}
	}
	series := make(map[listenersKey]bool)
	for scrape := range 20 {
		local, exposed := make(map[listenersKey]int), map[listenersKey]int{k(1, true): 1}
		for i := range 2 * mostListeners {
			local[k(scrape*1000+i, false)] = 1
		}
		at := noon.Add(time.Duration(scrape) * time.Minute)
		rest := func(k listenersKey) listenersKey { k.home = elsewhere; return k }
		got := p.local.sum(local, byListeners, rest, at)
		if n := got[rest(k(0, false))]; len(got) > mostListeners+1 || n < mostListeners {
			t.Fatalf("%d series, %d listeners in the rest", len(got), n)
		}
		for k := range got {
			series[k] = true
		}
		if got := p.exposed.sum(exposed, byListeners, rest, at); got[k(1, true)] != 1 {
			t.Fatalf("exposed: %v", got)
		}
	}
	if len(series) != mostListeners+1 {
		t.Errorf("%d series of local listeners within the hour, want %d", len(series), mostListeners+1)
	}
	c := newCensus()
	for i := range 3 * mostListeners {
		c.queues[cgroupIn{idFor(uint32(i)), 0}] = 0.5
	}
	c.queues[cgroupIn{idFor(9999), 0}] = 1
	s.queues = p.fullest(c, func(ns identity.NetNS) string { return strconv.Itoa(int(ns.Inode)) }, new(identity.Cgroups), noon)
	if s.queues[queueKey{"9999", home{}}] != 1 || len(s.queues) > 3*mostListeners+1 {
		t.Errorf("the queue that is full is not told: %v of %d", s.queues[queueKey{"9999", home{}}], len(s.queues))
	}
}
