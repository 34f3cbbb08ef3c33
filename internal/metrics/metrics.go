// Package metrics is what Prometheus is told: a table of metrics, each of which reads a sample of
// what a tracer counts and of what the kernel's tables have then. Every label is bounded.
package metrics

import (
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/porthole-dev/porthole/internal/export"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// metric is one metric: what is written of it, and how it follows from a sample.
// A new one is a row of metrics and its lines in testdata/metrics.txt.
type metric struct {
	name   string
	kind   prometheus.ValueType // Untyped: a native histogram
	labels []string             // each is told of in labels
	help   string
	emit   func(s *sample, e emitter)
}

const (
	counter   = prometheus.CounterValue
	gauge     = prometheus.GaugeValue
	histogram = prometheus.UntypedValue
)

// label is what the values of a label are, and what bounds them.
type label struct{ name, values string }

// labels lists every label, in the order of the documentation.
var labels = []label{
	{"version", "the version of porthole"},
	{"goversion", "the version of Go it was built with"},
	{"probe", "a hook of the kernel, as `porthole doctor` lists them"},
	{"tier", "`fentry`, `tracepoint`, or `any`: it belongs to both"},
	{"event", "`bind`, `listen`, `connect`, `accept`, `close`; `established` is seen and counted only while a client follows events with `verbose`"},
	{"proto", "`tcp`, `udp`"},
	{"reason", "of a loss: `ring` (the ring buffer was full), `state` (the kernel had no memory to remember a socket's state), " +
		"`nested` (a hook fired while its program ran on the same processor); of a resync: `loss`, `interval`; " +
		"of the history: `full` (the disk), `read_only` (the file system), `gone` (the directory), `slow` (the disk takes less than there is), " +
		"`io` (any other error of the file system), `events` (the agent had too little time for the events there were); " +
		"of the export, lost: `queue` (it was full, and the history does not have them), `refused` (the endpoint said several times that the request is wrong), " +
		"`rejected` (it took the others of the request), `events`, `history` (it could not keep them until they were sent), `kernel` (events of the machine, as in porthole_events_lost_total), " +
		"`stopped` (the agent ended); retried: `network`, `timeout`, `tls`, `throttled` (429), `unavailable` (502, 503, 504), `denied` (401, 403), `endpoint` (it takes no OTLP), `other`"},
	{"role", "`listener`, `client`, `server`, `bound`, `orphan`; sockets in TIME-WAIT are not followed, and not counted"},
	{"exposure", "`exposed`: others can reach it, as `porthole ls --exposed` has it, firewalls not considered; `local`: on loopback, or in a namespace that nothing leads to"},
	{"change", "`added`, `removed`"},
	{"op", "`connect` (TCP), `bind`, `listen`, `implicit_bind` (the first datagram or connect() of a UDP socket without a port), " +
		"`connect_bound` (TCP, with EADDRNOTAVAIL alone: the socket had its port, and a connection with the same two ends exists)"},
	{"error", "the name of the errno, as `EADDRNOTAVAIL`"},
	{"netns", "a network namespace: `host`, its name in /run/netns unless a program made that up at random, else the pod or container first seen in it, else its inode number. " +
		"At most 256 names within an hour, of them at most 128 numbers; `other` is the rest"},
	{"local_ip", "an address of this machine; `other` where `remote` is"},
	{"remote", "a destination, ip:port, of the 20 fullest on the machine, and at most 60 within an hour, of which at most 20 with fewer than 8 ports; `other` is the rest of the namespace"},
	{"comm", "the name of a process, quoted where it has characters that do not print, of the 20 with most, bounded as `remote` is; `other` is the rest"},
	{"unit", "the systemd unit that the process runs in, empty where there is none or it runs in a container; quoted and bounded with `comm`. Of listeners scopes of systemd are none, for each login has another, " +
		"and of each exposure the 200 with most have series, and as many of accept queues, at most 600 within an hour; `other` is the rest"},
	{"container", "the name of its container, or the start of the id, else empty; quoted and bounded with `comm`"},
	{"pod", "its pod, `NAMESPACE/NAME`, else empty; quoted and bounded with `comm`"},
	{"rule", "the rule of the policy that has the listener's protocol and port, and differs in another field, by its name or else its number; `none`: no rule has the port. " +
		"At most 200 rules at once and 600 within an hour have series of their own, those with most violations first; `other` is the rest"},
	{"program", "the hook a BPF program is attached to, as in `probe`"},
	{"what", "`counters`, `devices`, `ports`, `programs`, `table`"},
}

// metrics lists every metric, in the order of the documentation.
var metrics = []metric{
	{
		"porthole_ephemeral_max_utilization_ratio", gauge, []string{"netns", "proto"},
		"Share of the ephemeral ports that the next connect() to the fullest destination cannot use (tcp), or the next implicit bind (udp); " +
			"1: it fails. Above 0.5 every connect() to that destination takes the kernel much longer.",
		func(s *sample, e emitter) { s.utilization.each(e) },
	},
	{
		"porthole_ephemeral_bind_max_utilization_ratio", gauge, []string{"netns", "proto"},
		"Share of the ephemeral ports that bind() to port 0 of the fullest local address, any address included, cannot use; 1: it fails.",
		func(s *sample, e emitter) { s.bindUtilization.each(e) },
	},
	{
		"porthole_ephemeral_capacity_ports", gauge, []string{"netns"},
		"Ports of net.ipv4.ip_local_port_range that net.ipv4.ip_local_reserved_ports does not take away.",
		func(s *sample, e emitter) {
			for name, sp := range s.spaces {
				e.put(float64(sp.capacity), name)
			}
		},
	},
	{
		"porthole_ephemeral_blocked_ports", gauge, []string{"netns"},
		"TCP ports of the capacity that connect() cannot use for any destination, because a socket is bound to them or listens there.",
		func(s *sample, e emitter) {
			for name, sp := range s.spaces {
				e.put(float64(sp.blocked), name)
			}
		},
	},
	{
		"porthole_ephemeral_used_ports", gauge, []string{"netns", "local_ip", "remote"},
		"Ephemeral ports in use for TCP connections to one destination, including those in TIME-WAIT that cannot be reused; " +
			"for remote=\"other\", a port counts once for each destination.",
		func(s *sample, e emitter) {
			for to, n := range s.destinations {
				e.put(float64(n.used), to.netns, to.localIP, to.remote)
			}
		},
	},
	{
		"porthole_ephemeral_time_wait_ports", gauge, []string{"netns", "local_ip", "remote"},
		"Those of porthole_ephemeral_used_ports that are in TIME-WAIT and have no other user.",
		func(s *sample, e emitter) {
			for to, n := range s.destinations {
				e.put(float64(n.timeWait), to.netns, to.localIP, to.remote)
			}
		},
	},
	{
		"porthole_ephemeral_free_ports", gauge, []string{"netns", "local_ip", "remote"},
		"How many connect() calls in a row to one destination would succeed now; for remote=\"other\", the least. " +
			"capacity = used + blocked + free, for each destination.",
		func(s *sample, e emitter) {
			for to, n := range s.destinations {
				e.put(float64(n.free), to.netns, to.localIP, to.remote)
			}
		},
	},
	{
		"porthole_ephemeral_listening_ports", gauge, []string{"netns", "comm", "unit", "container", "pod"},
		"Ports of the ephemeral range that a process listens on: lost to connect(), and the listener cannot start again while a connection has its port.",
		func(s *sample, e emitter) {
			for l, n := range s.listening {
				e.put(float64(n), l.netns, l.comm, l.unit, l.container, l.pod)
			}
		},
	},
	{
		"porthole_port_failures_total", counter, []string{"op", "proto", "error"},
		"Refused calls; for connect, those refused before anything was sent. Exhaustion is EADDRNOTAVAIL of connect and EAGAIN of implicit_bind; but connect " +
			"says EADDRNOTAVAIL also where no address of this machine fits the destination. EADDRINUSE of bind is exhaustion if any port was requested, " +
			"and a conflict if a specific one was: both count here.",
		func(s *sample, e emitter) {
			for f, n := range s.failures {
				e.put(float64(n), f.Op.String(), f.Proto.String(), f.ErrnoName())
			}
		},
	},
	{
		"porthole_process_ports", gauge, []string{"comm", "unit", "container", "pod", "proto"},
		"Sockets that have a local port, by the process that bound, connected or accepted them, or else the first that holds them. " +
			"Accepted connections count, though they share their listener's port.",
		func(s *sample, e emitter) {
			for p, n := range s.processes {
				e.put(float64(n), p.comm, p.unit, p.container, p.pod, p.proto.String())
			}
		},
	},
	{
		"porthole_sockets", gauge, []string{"proto", "role"},
		"Sockets that have a local port.",
		func(s *sample, e emitter) {
			for k, n := range s.sockets {
				e.put(float64(n), k.proto.String(), k.role.String())
			}
		},
	},
	{
		"porthole_listeners", gauge, []string{"netns", "proto", "exposure", "unit", "container", "pod"},
		"Sockets that others can start to talk to: TCP listeners, and UDP sockets without a peer that were bound to a port by number; " +
			"other UDP sockets mostly belong to clients.",
		func(s *sample, e emitter) {
			for k, n := range s.listeners {
				e.put(float64(n), k.netns, k.proto.String(), exposure(k.exposed), k.unit, k.container, k.pod)
			}
		},
	},
	{
		"porthole_listener_changes_total", counter, []string{"change"},
		"Times a socket became a listener, as porthole_listeners counts them, or stopped being one.",
		func(s *sample, e emitter) {
			for change, n := range s.changes {
				e.put(float64(n), change)
			}
		},
	},
	{
		"porthole_listener_backlog_ratio", gauge, []string{"netns", "unit", "container", "pod"},
		"How full the fullest accept queue of a TCP listener is; 1: no connection is accepted until the service calls accept(). Read twice a minute.",
		func(s *sample, e emitter) {
			for k, share := range s.queues {
				e.put(share, k.netns, k.unit, k.container, k.pod)
			}
		},
	},
	{
		"porthole_connect_port_search_seconds", histogram, nil,
		"How long the kernel looked for the port of a TCP connect(), as a native histogram. Absent where no hook of the fentry tier sees connects.",
		func(s *sample, e emitter) {
			if s.searches {
				e.histogram(s)
			}
		},
	},
	{
		"porthole_events_total", counter, []string{"event", "proto"},
		"Events: what happened to sockets, as `porthole tail` shows it.",
		func(s *sample, e emitter) {
			for k, n := range s.events {
				e.put(float64(n), k.Type.String(), k.Proto.String())
			}
		},
	},
	{
		"porthole_events_submitted_total", counter, nil,
		"Events the kernel handed over. What the hooks saw is these and those lost for reason=\"ring\".",
		func(s *sample, e emitter) { s.stat(e, func(st *tracer.Stats) uint64 { return st.Submitted }) },
	},
	{
		"porthole_events_decoded_total", counter, nil,
		"Events read and understood. Once all are read, submitted = decoded + bad.",
		func(s *sample, e emitter) { s.stat(e, func(st *tracer.Stats) uint64 { return st.Decoded }) },
	},
	{
		"porthole_events_bad_total", counter, nil,
		"Events read and not understood.",
		func(s *sample, e emitter) { s.stat(e, func(st *tracer.Stats) uint64 { return st.Bad }) },
	},
	{
		"porthole_events_lost_total", counter, []string{"reason"},
		"Events the kernel could not hand over. The sockets are read again after each loss; the other counters stay too low.",
		func(s *sample, e emitter) {
			s.stat(e, func(st *tracer.Stats) uint64 { return st.LostRing }, "ring")
			s.stat(e, func(st *tracer.Stats) uint64 { return st.LostState }, "state")
			s.stat(e, func(st *tracer.Stats) uint64 { return st.LostNested }, "nested")
		},
	},
	{
		"porthole_resyncs_total", counter, []string{"reason"},
		"Times the sockets were compared with the kernel's own tables.",
		func(s *sample, e emitter) {
			s.stat(e, func(st *tracer.Stats) uint64 { return st.Resyncs }, "loss")
			s.stat(e, func(st *tracer.Stats) uint64 { return st.Reconciles }, "interval")
		},
	},
	{
		"porthole_snapshot_duration_seconds", gauge, nil,
		"How long it took to read every use of an ephemeral port for this scrape. Scrapes within one second share one reading.",
		func(s *sample, e emitter) {
			if s.walk > 0 {
				e.put(s.walk.Seconds())
			}
		},
	},
	{
		"porthole_read_errors_total", counter, []string{"what"},
		"Times something could not be read: for a scrape, whose metrics are then absent; `table`: to compare the table of sockets with the kernel's, which is tried again a second later.",
		func(s *sample, e emitter) {
			s.stat(e, func(st *tracer.Stats) uint64 { return st.ResyncErrors }, "table")
			for what, n := range s.errors {
				e.put(float64(n), what)
			}
		},
	},
	{
		"porthole_probe_attached", gauge, []string{"probe", "tier"},
		"Whether a hook is attached. If not, others may do its part: see `porthole doctor`.",
		func(s *sample, e emitter) {
			for _, h := range s.hooks {
				e.put(float64(oneIf(h.Attached)), h.Hook, tierLabel(h.Tier))
			}
		},
	},
	{
		"porthole_bpf_program_run_seconds_total", counter, []string{"program"},
		"Time a BPF program took. Absent while the kernel does not count it (sysctl kernel.bpf_stats_enabled=0).",
		func(s *sample, e emitter) {
			for _, p := range s.programs {
				e.put(p.Time.Seconds(), p.Hook)
			}
		},
	},
	{
		"porthole_bpf_program_runs_total", counter, []string{"program"},
		"Times a BPF program ran. Absent while the kernel does not count it (sysctl kernel.bpf_stats_enabled=0).",
		func(s *sample, e emitter) {
			for _, p := range s.programs {
				e.put(float64(p.Runs), p.Hook)
			}
		},
	},
	{
		"porthole_history_records_total", counter, nil,
		"Records that the history has on disk: tenancies, refused calls, and counts of what is not kept one by one. Absent without --history.dir, as are the next three.",
		func(s *sample, e emitter) { s.past(e, func(st *store.Stats) uint64 { return st.Records }) },
	},
	{
		"porthole_history_folded_total", counter, nil,
		"Tenancies and refused calls beyond what the history keeps one by one: they are only counted.",
		func(s *sample, e emitter) { s.past(e, func(st *store.Stats) uint64 { return st.Folded }) },
	},
	{
		"porthole_history_lost_total", counter, []string{"reason"},
		"Tenancies and refused calls that could not be written and are not in the history.",
		func(s *sample, e emitter) {
			for _, why := range store.Reasons() {
				s.past(e, func(st *store.Stats) uint64 { return st.Lost[why] }, why.String())
			}
		},
	},
	{
		"porthole_history_size_bytes", gauge, nil,
		"What the history takes on disk, as of the last minute.",
		func(s *sample, e emitter) { s.past(e, func(st *store.Stats) uint64 { return uint64(st.Bytes) }) },
	},
	{
		"porthole_policy_violations", gauge, []string{"rule"},
		"Listeners that no rule of --policy allows. Absent without it.",
		func(s *sample, e emitter) {
			for rule, n := range s.violations {
				e.put(float64(n), rule)
			}
		},
	},
	{
		"porthole_export_sent_total", counter, nil,
		"Records of events that the OTLP endpoint took. Absent without --otlp.endpoint, as are the next four.",
		func(s *sample, e emitter) { s.exported(e, func(st *export.Stats) float64 { return float64(st.Sent) }) },
	},
	{
		"porthole_export_lost_total", counter, []string{"reason"},
		"Events that should have been exported but were lost.",
		func(s *sample, e emitter) {
			for _, why := range export.Reasons() {
				s.exported(e, func(st *export.Stats) float64 { return float64(st.Lost[why]) }, why.String())
			}
		},
	},
	{
		"porthole_export_retried_total", counter, []string{"reason"},
		"Records that were sent again because the endpoint did not accept them. A record whose answer was lost is sent twice, with the same id.",
		func(s *sample, e emitter) {
			for _, why := range export.Retries() {
				s.exported(e, func(st *export.Stats) float64 { return float64(st.Retried[why]) }, why.String())
			}
		},
	},
	{
		"porthole_export_queue_bytes", gauge, nil,
		"Records that wait in memory to be sent, compressed. Beyond 4 MB they are read from the history later, where there is one, else lost.",
		func(s *sample, e emitter) {
			s.exported(e, func(st *export.Stats) float64 { return float64(st.QueueBytes) })
		},
	},
	{
		"porthole_export_delay_seconds", gauge, nil,
		"Age of the oldest event that waits to be sent, in memory or in the history.",
		func(s *sample, e emitter) {
			s.exported(e, func(st *export.Stats) float64 { return st.Behind.Seconds() })
		},
	},
	{
		"porthole_build_info", gauge, []string{"version", "goversion"},
		"Always 1.",
		func(s *sample, e emitter) { e.put(1, s.version, s.goVersion) },
	},
}

func oneIf(b bool) int {
	if b {
		return 1
	}
	return 0
}

func tierLabel(t tracer.Tier) string {
	if t == "" {
		return "any"
	}
	return string(t)
}

// Sources is what the metrics of an agent are read from.
type Sources struct {
	Tracer  *tracer.Tracer
	History *store.Store     // on disk; nil: there is none
	Export  *export.Exporter // nil: events are sent nowhere
	Names   *identity.Names
	Version string // of porthole
	// Violations is how many listeners a policy does not allow, by its rules; nil: there is none.
	Violations func() map[string]int
	Log        *slog.Logger
}

// New returns the metrics of a running tracer, and of what else there is. What cannot be read is logged, and is
// absent. Scrapes may come at once; those within one second share one reading of the kernel.
func New(of Sources) prometheus.Collector {
	return newCollector(shared(time.Second, time.Now, newSampler(of).read))
}

// collector shows samples as metrics. It keeps no number.
type collector struct {
	sample func() *sample
	descs  []*prometheus.Desc // of metrics
}

func newCollector(sample func() *sample) *collector {
	c := &collector{sample: sample}
	for _, m := range metrics {
		c.descs = append(c.descs, prometheus.NewDesc(m.name, m.help, m.labels, nil))
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.sample()
	for i, m := range metrics {
		m.emit(s, emitter{c.descs[i], m.kind, ch})
	}
}

// emitter takes the values of one metric.
type emitter struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	ch   chan<- prometheus.Metric
}

// put takes the value of one combination of labels.
func (e emitter) put(value float64, labels ...string) {
	e.send(prometheus.NewConstMetric(e.desc, e.kind, value, labels...))
}

// histogram takes the searches of a sample: buckets of schema 2, each four times as many
// as powers of two.
func (e emitter) histogram(s *sample) {
	const schema = 2
	e.send(prometheus.NewConstNativeHistogram(e.desc, s.searchCount, s.searchSum.Seconds(), s.searchBuckets, nil, 0, schema, 0, s.started))
}

// send fails the scrape on an error, which is a mistake in metrics.
func (e emitter) send(m prometheus.Metric, err error) {
	if err != nil {
		m = prometheus.NewInvalidMetric(e.desc, err)
	}
	e.ch <- m
}

// metricsDoc is docs/metrics.md.
func metricsDoc() string {
	var b strings.Builder
	b.WriteString("# Metrics\n\n" +
		"What `porthole agent` serves at /metrics. Written by `go test ./internal/metrics -run Docs -update`; names and labels are a contract.\n" +
		"Ready alerts: [deploy/prometheus](../deploy/prometheus); a dashboard: [deploy/grafana](../deploy/grafana).\n\n" +
		"| metric | type | labels | what it is |\n|---|---|---|---|\n")
	kinds := map[prometheus.ValueType]string{counter: "counter", gauge: "gauge", histogram: "native histogram"}
	for _, m := range metrics {
		names := slices.Clone(m.labels)
		for i := range names {
			names[i] = "`" + names[i] + "`"
		}
		b.WriteString("| `" + m.name + "` | " + kinds[m.kind] + " | " + strings.Join(names, " ") + " | " + m.help + " |\n")
	}
	b.WriteString("\n## Labels\n\n" +
		"Every set of values is closed or has a bound; no label is a pid or an ephemeral port. What a Prometheus has to keep is bounded too: " +
		"a name keeps its place for an hour after it was last shown, and newcomers that find no place are part of `other` meanwhile.\n\n" +
		"| label | values |\n|---|---|\n")
	for _, l := range labels {
		b.WriteString("| `" + l.name + "` | " + l.values + " |\n")
	}
	return b.String()
}
