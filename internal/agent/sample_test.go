package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/porthole-dev/porthole/internal/container"
	"github.com/porthole-dev/porthole/internal/render"
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

func spacesOf(inodes ...uint32) []tracer.PortSpace {
	var spaces []tracer.PortSpace
	for _, inode := range inodes {
		spaces = append(spaces, tracer.PortSpace{NetNS: inode, Proto: tracer.TCP}, tracer.PortSpace{NetNS: inode, Proto: tracer.UDP})
	}
	return spaces
}

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
		{"not for a terminal", []uint32{5}, map[uint32]string{5: "a\x1bb"}, nil, map[uint32]string{5: `"a\x1bb"`}},
	} {
		n := newNamer()
		n.update(spacesOf(c.inodes...), c.named, c.containers)
		if d := cmp.Diff(c.want, n.byInode); d != "" {
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
		n.update(spacesOf(5), nil, step.containers)
		if got := n.name(5); got != step.want {
			t.Errorf("with containers %v: name %q, want %q", step.containers, got, step.want)
		}
	}
	n.update(spacesOf(6), nil, nil)
	n.update(spacesOf(5), nil, nil) // a new one, of the same number
	if got := n.name(5); got != "5" {
		t.Errorf("the name of one that is gone is %q", got)
	}
}

func TestNamerBound(t *testing.T) {
	var inodes []uint32
	for i := range uint32(3 * maxNetNS) {
		inodes = append(inodes, 1000+i)
	}
	n := newNamer()
	n.update(spacesOf(inodes[maxNetNS:]...), nil, nil)
	n.update(spacesOf(inodes...), map[uint32]string{inodes[3*maxNetNS-1]: "host"}, nil)
	if len(n.byInode) != maxNetNS || n.name(inodes[3*maxNetNS-1]) != "host" || n.name(inodes[0]) != other {
		t.Errorf("%d names, the host's is %q, that of a late one %q", len(n.byInode), n.name(inodes[3*maxNetNS-1]), n.name(inodes[0]))
	}
	if got := n.name(inodes[maxNetNS]); got == other {
		t.Error("a namespace lost its name to an older number")
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
	names := &render.Names{Device: func(id tracer.DeviceID) string { return map[uint32]string{2: "eth0"}[id.Index] }}
	scoped := func(device uint32, used int) tracer.Headroom {
		h := destinationTo(1, used, 10)
		h.Local, h.Remote, h.Device = netip.MustParseAddr("fe80::1"), netip.MustParseAddrPort("[fe80::2]:443"), device
		return h
	}
	sub := destinationTo(1, 5, 5)
	sub.Device = 2
	all := []tracer.Headroom{scoped(2, 3), scoped(3, 4), destinationTo(1, 2, 8), sub}
	nameScopes(all, names)
	got := destinations(all, new(top[destination]), func(uint32) string { return "host" }, time.Time{})
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
	got := destinations(all, new(top[destination]), func(uint32) string { return "host" }, time.Time{})
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
func TestTopHoldsSmall(t *testing.T) {
	var tp top[int]
	now := time.Unix(1_700_000_000, 0)
	seen := make(map[int]bool)
	const scrapes = 120 // 30 minutes
	for scrape := range scrapes {
		var ranked []counted[int]
		for i := range 100 {
			ranked = append(ranked, counted[int]{1000*scrape + i, 1})
		}
		chosen := tp.choose(ranked, now.Add(time.Duration(scrape)*15*time.Second))
		if len(chosen) > topK {
			t.Fatalf("%d chosen", len(chosen))
		}
		for k := range chosen {
			seen[k] = true
		}
	}
	if len(seen) != 3*topK {
		t.Errorf("%d values had a series within half an hour, want %d", len(seen), 3*topK)
	}
	// One that is not small does not wait.
	if chosen := tp.choose([]counted[int]{{-1, fewPorts}}, now.Add(scrapes*15*time.Second)); !chosen[-1] {
		t.Error("a great one has to wait")
	}
}

// Every process may call itself what it likes.
func TestSumOfOther(t *testing.T) {
	counts := map[processKey]int{{other, tracer.TCP}: 1000}
	for i := range 30 {
		counts[processKey{fmt.Sprintf("p%02d", i), tracer.TCP}] = 100 - i
	}
	var tp top[processKey]
	got := tp.sum(counts, byProcess, func(k processKey) processKey { return processKey{other, k.proto} }, time.Time{})
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
	names := &render.Names{Cgroups: container.NewResolver("")}
	c := newCensus(names)
	for _, s := range []tracer.Socket{
		{Proto: tracer.TCP, Role: tracer.RoleClient, Owner: tracer.Process{PID: 1, Comm: "curl"}, Holders: []tracer.Holder{{Process: tracer.Process{PID: 2, Comm: "sh"}}}},
		{Proto: tracer.TCP, Role: tracer.RoleClient, Holders: []tracer.Holder{{Process: tracer.Process{PID: 2, Comm: "s\xffh"}}}},
		{Proto: tracer.UDP, Role: tracer.RoleOrphan},
	} {
		c.add(&s)
	}
	if d := cmp.Diff(map[processKey]int{{"curl", tracer.TCP}: 1, {`"s\xffh"`, tracer.TCP}: 1}, c.processes, cmp.AllowUnexported(processKey{})); d != "" {
		t.Errorf("processes (-want +got):\n%s", d)
	}
	if c.sockets[socketKind{tracer.TCP, tracer.RoleClient}] != 2 || c.sockets[socketKind{tracer.UDP, tracer.RoleOrphan}] != 1 || len(c.sockets) != 8 {
		t.Errorf("sockets: %v", c.sockets)
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
	tr, err := tracer.Open(tracer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- tr.Run(ctx, func(*tracer.Snapshot) { close(ready) }) }()
	defer func() {
		stop()
		if err := errors.Join(<-done, tr.Close()); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal("the tracer ended before it was ready")
	}
	names := &render.Names{Cgroups: container.NewResolver("")}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newMetrics(tr, names, "v0", slog.New(slog.DiscardHandler)))
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
