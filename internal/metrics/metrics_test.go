package metrics

import (
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	promtest "github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/porthole-dev/porthole/internal/export"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// fullSample has a value for every metric: a namespace of 64 ports, nearly full.
func fullSample() *sample {
	s := &sample{
		version: "v1.2.3", goVersion: "go1.26", started: time.Unix(1_700_000_000, 0),
		hooks: []tracer.HookStatus{
			{Hook: "tp_btf/inet_sock_set_state", Attached: true},
			{Hook: "fexit/inet_hash_connect", Tier: tracer.TierFentry, Attached: true},
			{Hook: "fexit/__inet_bind", Tier: tracer.TierFentry, Reason: "not in this kernel"},
			{Hook: "cgroup/bind4", Tier: tracer.TierTracepoint, Attached: true},
		},
		stats:    &tracer.Stats{Submitted: 1000, LostRing: 3, LostState: 1, LostNested: 2, Decoded: 990, Bad: 4, Resyncs: 2, Reconciles: 9, ResyncErrors: 5},
		programs: []tracer.ProgramStats{{Hook: "tp_btf/inet_sock_set_state", Runs: 4000, Time: 1500 * time.Microsecond}},
		errors:   map[string]uint64{"counters": 0, "devices": 0, "ports": 1, "programs": 0},
		walk:     12 * time.Millisecond,
		history:  &store.Stats{Records: 500, Folded: 70, Bytes: 1 << 20, Lost: map[store.Reason]uint64{store.LostFull: 6}},
		export: &export.Stats{
			Sent: 400, Lost: map[export.Reason]uint64{export.LostRejected: 3}, Retried: map[export.Retry]uint64{export.RetryThrottled: 8}, QueueBytes: 4096, Behind: 1500 * time.Millisecond,
		},
	}
	s.count(tracer.Counts{
		Events: map[tracer.EventKey]uint64{{Type: tracer.EventConnect, Proto: tracer.TCP}: 640, {Type: tracer.EventEstablished, Proto: tracer.TCP}: 600},
		Failures: map[tracer.Failure]uint64{
			{Op: tracer.OpConnect, Proto: tracer.TCP, Errno: syscall.EADDRNOTAVAIL}: 7,
			{Op: tracer.OpBind, Proto: tracer.TCP, Errno: syscall.EACCES}:           1,
		},
		Searches: map[int]int64{-70: 630, -40: 10}, SearchSum: 13 * time.Millisecond,
		ListenersAdded: 12, ListenersRemoved: 9,
	})
	r := sampler{netns: newNamer(), Sources: Sources{Names: new(identity.Names)}}
	spaces := []tracer.PortSpace{
		{NetNS: 1, Proto: tracer.TCP, Low: 32768, High: 60999, Capacity: 28230, Reserved: 2, Blocked: 100},
		{NetNS: 1, Proto: tracer.UDP, Low: 32768, High: 60999, Capacity: 28230, Reserved: 2},
		{
			NetNS: 2, Proto: tracer.TCP, Low: 40000, High: 40063, Capacity: 64, Blocked: 2,
			Listeners: []tracer.PortUser{{Process: tracer.Process{PID: 7, Comm: "thief"}, Ports: 2}},
		},
	}
	bank := netip.MustParseAddrPort("192.0.2.7:443")
	r.netns.update(spaces, named(map[uint32]string{1: "host", 2: "shop"}), nil, s.started)
	r.ports(s, spaces, []tracer.Headroom{
		{PortSpace: spaces[2], Op: tracer.OpConnect, Local: netip.MustParseAddr("192.0.2.1"), Remote: bank, Used: 60, TimeWait: 5, Free: 2},
		{PortSpace: spaces[2], Op: tracer.OpBind, Local: netip.MustParseAddr("192.0.2.1"), Used: 63, Free: 1},
		{PortSpace: spaces[1], Op: tracer.OpImplicitBind, Used: 2823, Free: 25407},
		{PortSpace: spaces[0], Op: tracer.OpConnect, Local: netip.MustParseAddr("2001:db8::1"), Remote: netip.MustParseAddrPort("[2001:db8::2]:80"), Used: 9, Free: 28121},
	}, s.started)
	s.sockets = newCensus().sockets
	s.sockets[socketKind{tracer.TCP, tracer.RoleClient}] = 69
	s.processes = map[processKey]int{
		{actor{comm: "curl"}, tracer.TCP}: 69, {rest, tracer.UDP}: 3, {actor{comm: `"a\x1bb"`}, tracer.TCP}: 1,
		{actor{comm: "node", unit: "shop.service"}, tracer.TCP}: 5, {actor{comm: "node", container: "api", pod: "shop/api-6d5f"}, tracer.TCP}: 2,
	}
	web := home{container: "web", pod: "shop/web-0"}
	s.listeners = map[listenersKey]int{
		{"host", tracer.TCP, true, home{unit: "ssh.service"}}: 2, {"host", tracer.UDP, false, home{unit: "dns.service"}}: 1,
		{"shop", tracer.TCP, true, web}: 1, {"host", tracer.TCP, true, elsewhere}: 3,
	}
	s.queues = map[queueKey]float64{{"host", home{unit: "ssh.service"}}: 0, {"shop", web}: 0.75}
	s.violations = map[string]int{"none": 2, "web": 0}
	return s
}

func fixed(s *sample) *collector { return newCollector(func() *sample { return s }) }

// What a scrape returns is what people write rules against.
func TestMetricsText(t *testing.T) {
	var names []string
	for _, m := range metrics {
		names = append(names, m.name)
	}
	got, err := promtest.CollectAndFormat(fixed(fullSample()), expfmt.TypeTextPlain, names...)
	if err != nil {
		t.Fatal(err)
	}
	testutil.Golden(t, "testdata/metrics.txt", string(got))
}

func TestMetricsLint(t *testing.T) {
	problems, err := promtest.CollectAndLint(fixed(fullSample()))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// gather scrapes once, as the pedantic registry allows it.
func gather(t *testing.T, s *sample) map[string]int {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(fixed(s))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := make(map[string]int)
	for _, f := range families {
		series[f.GetName()] = len(f.GetMetric())
	}
	return series
}

// The table of metrics and a sample that has everything belong together: a metric
// that nothing shows is a mistake in one of them.
func TestMetricsAllShown(t *testing.T) {
	series := gather(t, fullSample())
	for _, m := range metrics {
		if series[m.name] == 0 {
			t.Errorf("%s has no value in fullSample", m.name)
		}
	}
}

// What cannot be read or does not exist here is absent, and fails nothing.
func TestMetricsAbsent(t *testing.T) {
	series := gather(t, &sample{hooks: []tracer.HookStatus{{Hook: "sockops", Tier: tracer.TierTracepoint, Attached: true}}})
	for name := range series {
		if !slices.Contains([]string{"porthole_build_info", "porthole_probe_attached"}, name) {
			t.Errorf("%s has %d values of an empty sample", name, series[name])
		}
	}
}

func TestMetricsSearches(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(fixed(fullSample()))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "porthole_connect_port_search_seconds" {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		if h.GetSchema() != 2 || h.GetSampleCount() != 640 || h.GetSampleSum() != 0.013 || len(h.GetPositiveSpan()) != 2 || h.GetPositiveSpan()[0].GetOffset() != -70 {
			t.Errorf("histogram is %v", h)
		}
		return
	}
	t.Error("no porthole_connect_port_search_seconds")
}

func TestDocs(t *testing.T) {
	testutil.Golden(t, "../../docs/metrics.md", metricsDoc())
	known := make(map[string]bool)
	for _, l := range labels {
		known[l.name] = false
	}
	for _, m := range metrics {
		for _, l := range m.labels {
			if _, ok := known[l]; !ok {
				t.Errorf("%s: label %s is not told of in labels", m.name, l)
			}
			known[l] = true
		}
	}
	for l, used := range known {
		if !used {
			t.Errorf("label %s is of no metric", l)
		}
	}
}
