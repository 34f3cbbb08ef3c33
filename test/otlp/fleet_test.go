//go:build fleet

package otlp

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/test/prometheus/promapi"
)

// The kernels of the machines, as -kernel of test/vm takes them, and for how long those may take: qemu without KVM is slow.
const (
	fleetKernels = "amd64/6.1,amd64/6.12,arm64/6.12"
	fleetWait    = 15 * time.Minute
)

// Each machine has a part of its own: see test/fleet.
const exhausted, strange, cutOff = "fleet-a", "fleet-b", "fleet-c"

var fleetNames = []string{exhausted, strange, cutOff}

// machines are those of test/vm -fleet.
type machines struct {
	t       *testing.T
	ended   chan struct{} // test/vm has
	mu      sync.Mutex
	text    strings.Builder
	metrics map[string]string // addresses, by machine
}

// startMachines boots the machines, and powers them off when the test ends.
func startMachines(t *testing.T, collector string) *machines {
	t.Helper()
	_, port, err := net.SplitHostPort(collector)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "vm")
	build := exec.Command("go", "build", "-o", program, "./test/vm")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := &machines{t: t, ended: make(chan struct{})}
	cmd := exec.Command(program, "-fleet", port, "-kernel", fleetKernels, "-timeout", (2 * fleetWait).String())
	cmd.Dir = build.Dir
	stdin, err := cmd.StdinPipe() // when it ends, so do the machines
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = m, m
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var failed error
	go func() {
		defer close(m.ended)
		failed = cmd.Wait()
	}()
	t.Cleanup(func() {
		stdin.Close()
		late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
		<-m.ended
		if !late.Stop() || failed != nil {
			t.Errorf("the machines: %v", failed)
		}
		t.Logf("the machines:\n%s", m)
	})
	m.metrics = make(map[string]string)
	for _, name := range fleetNames {
		m.metrics[name] = m.says(name, `metrics at (\S+)`)[1]
	}
	return m
}

// Write takes what test/vm says.
func (m *machines) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text.Write(p)
}

func (m *machines) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.text.String()
}

// says waits until a machine has said a line that matches, and returns what did.
func (m *machines) says(name, line string) (found []string) {
	m.t.Helper()
	pattern := regexp.MustCompile(`(?m)^` + name + `: ` + line + `$`)
	awaitWithin(m.t, fleetWait, func() string { return name + " says " + line }, func() bool {
		if found = pattern.FindStringSubmatch(m.String()); found != nil {
			return true
		}
		select {
		case <-m.ended:
			m.t.Fatalf("the machines ended before %s said %s", name, line)
		default:
		}
		return false
	})
	return found
}

// agent is the sum of a metric of a machine's agent, as it says.
func (m *machines) agent(name, metric string) float64 {
	return sum(get("http://"+m.metrics[name]+"/metrics"), metric)
}

// startPrometheus starts one that scrapes the machines, with the rules for many.
func startPrometheus(o *outside, m *machines) promapi.Server {
	o.Helper()
	rules, err := filepath.Abs("../../deploy/prometheus/porthole.fleet.rules.yml")
	if err != nil {
		o.Fatal(err)
	}
	config := fmt.Sprintf("global: {scrape_interval: 5s, scrape_timeout: 5s, evaluation_interval: 5s}\nrule_files: [%q]\n"+
		"scrape_configs:\n  - job_name: porthole\n    static_configs:\n", rules)
	for _, name := range fleetNames {
		config += fmt.Sprintf("      - {targets: [%q], labels: {instance: %s}}\n", m.metrics[name], name)
	}
	file := filepath.Join(o.dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		o.Fatal(err)
	}
	prom := promapi.Server{Addr: freePort(o.T)}
	s := &server{
		t: o.T, name: "prometheus", log: filepath.Join(o.dir, "prometheus.log"),
		args:  []string{"--config.file", file, "--storage.tsdb.path", filepath.Join(o.dir, "prometheus"), "--web.listen-address", prom.Addr},
		ready: func() bool { return prom.Ready() == nil },
	}
	o.killedAtEnd(s)
	s.start()
	return prom
}

// shows waits until an expression has just the series that are wanted, sorted, each as its labels and its value; without
// one it may have any.
func shows(t *testing.T, prom promapi.Server, question, expr string, want ...string) {
	t.Helper()
	var got []string
	var err error
	awaitWithin(t, fleetWait, func() string { return fmt.Sprintf("%s\n%s is %q, %v, want %q", question, expr, got, err, want) }, func() bool {
		var found []promapi.Series
		found, err = prom.Query(expr)
		got = nil
		for _, s := range found {
			delete(s.Metric, "__name__")
			delete(s.Metric, "job")
			labels, _ := json.Marshal(s.Metric)
			got = append(got, fmt.Sprintf("%s %v", labels, s.Value[1]))
		}
		slices.Sort(got)
		return err == nil && slices.EqualFunc(got, want, func(got, want string) bool { return got == want || strings.HasPrefix(got, want+" ") })
	})
	t.Logf("%s\n\t%s\n\t%s", question, expr, strings.Join(got, "\n\t"))
}

// Three machines of different kernels, with the package installed, export to one Collector and are scraped by one Prometheus:
// both answer for all of them, and nothing is lost although one is cut off for a minute.
func TestFleet(t *testing.T) {
	begun := time.Now()
	o := newOutside(t)
	o.logs.start()
	o.collector.start()
	m := startMachines(t, o.receiver)
	prom := startPrometheus(o, m)
	since := func(what string) { t.Logf("%s after %.0fs", what, time.Since(begun).Seconds()) }
	since("built")

	m.says(cutOff, "now unplug the network")
	off := time.Now()
	shows(t, prom, "Does it answer?", `up{instance="fleet-c"}`, `{"instance":"fleet-c"} 0`)
	m.says(cutOff, "now plug the network in")
	t.Logf("%s was cut off for %.0fs", cutOff, time.Since(off).Seconds())
	for _, name := range fleetNames {
		m.says(name, "all has happened")
	}
	since("all has happened")
	shows(t, prom, "Which machines are there?", `up == 1`, `{"instance":"fleet-a"} 1`, `{"instance":"fleet-b"} 1`, `{"instance":"fleet-c"} 1`)

	rows := o.answered(whoListened, map[string]string{"host.name": strange, "porthole.comm": "stranger", "porthole.unit.name": "stranger.service", "times": "1"})
	if len(rows) != 1 {
		t.Errorf("%s %v", whoListened, rows)
	}
	rows = o.answered(outOfPorts, map[string]string{"host.name": exhausted, "porthole.comm": "batch", "failures": "20"})
	if len(rows) != 1 {
		t.Errorf("%s %v", outOfPorts, rows)
	}
	o.answered(failedBinds, map[string]string{"host.name": strange, "porthole.unit.name": "redis.service", "error.type": "EADDRINUSE", "failures": "20"})
	o.answered(failedBinds, map[string]string{"host.name": cutOff, "porthole.unit.name": "shop.service", "error.type": "EADDRINUSE", "failures": "150"})
	rows = o.answered(whatIsMissed, map[string]string{"host.name": cutOff, "porthole.lost.reason": "not_running", "records": "1"})
	if len(rows) != 1 {
		t.Errorf("%s %v", whatIsMissed, rows)
	}

	checkSent(o, m)

	shows(t, prom, "Which machine has the least headroom?", `topk(1, instance_proto:porthole_ephemeral_max_utilization_ratio:max)`, `{"instance":"fleet-a","proto":"tcp"} 1`)
	shows(t, prom, "Where do the fewest ports remain towards a destination?", `bottomk(1, instance:porthole_ephemeral_free_ports:min)`, `{"instance":"fleet-a"} 0`)
	shows(t, prom, "Which calls failed within the hour, and where?", `max_over_time(instance_op_proto_error:porthole_port_failures:rate5m{instance!="fleet-c"}[1h]) > 0`, // whose counters began again
		`{"error":"EADDRINUSE","instance":"fleet-b","op":"bind","proto":"tcp"}`, `{"error":"EADDRNOTAVAIL","instance":"fleet-a","op":"connect","proto":"tcp"}`)
	shows(t, prom, "What can be reached on one machine alone?", `unit_container:porthole_listeners_exposed:count_instances == 1`, `{"proto":"tcp","unit":"stranger.service"} 1`)
	shows(t, prom, "Where is that?", `porthole_listeners{exposure="exposed",unit="stranger.service"}`, `{"exposure":"exposed","instance":"fleet-b","netns":"host","proto":"tcp","unit":"stranger.service"} 1`)
	shows(t, prom, "What can be reached everywhere?", `unit_container:porthole_listeners_exposed:count_instances == 3`, `{"proto":"tcp","unit":"porthole.service"} 3`)
	shows(t, prom, "How much can be reached on each?", `instance:porthole_listeners_exposed:sum`, `{"instance":"fleet-a"} 1`, `{"instance":"fleet-b"} 2`, `{"instance":"fleet-c"} 1`)
	shows(t, prom, "Does any machine lose events?", `sum(instance:porthole_events_lost:rate5m)`, `{} 0`)
	since("all is answered")
}

// counts are of what is stored of a machine.
type counts struct{ records, events int }

func (o *outside) count(host string) (c counts) {
	o.Helper()
	return o.counted(fmt.Sprintf("host.name:=%q", host))
}

// counted counts what a filter lets pass.
func (o *outside) counted(filter string) (c counts) {
	o.Helper()
	for _, row := range o.ask("_time:1h " + filter + " | stats count() records, count_uniq(log.record.uid) events") {
		c.records, _ = strconv.Atoi(row["records"])
		c.events, _ = strconv.Atoi(row["events"])
	}
	return c
}

// checkSent waits until what each agent has sent is stored, and nothing waits. That of the machine that was cut off was
// restarted meanwhile, so that of its events some may be stored twice, and a request may have arrived whose answer did not:
// but all of them are there.
func checkSent(o *outside, m *machines) {
	o.Helper()
	found := m.says(cutOff, `happened=(\d+) sent_before=(\d+)`)
	happened, _ := strconv.Atoi(found[1])
	before, _ := strconv.ParseFloat(found[2], 64)
	for _, name := range fleetNames {
		var sent float64
		var c counts
		await(o.T, func() string { return fmt.Sprintf("%s: all that was sent, %.0f, is stored: %+v", name, sent, c) }, func() bool {
			sent = m.agent(name, "porthole_export_sent_total")
			if name == cutOff {
				sent += before
			}
			c = o.count(name)
			return sent > 0 && m.agent(name, "porthole_export_queue_bytes") == 0 && (c.records == int(sent) || name == cutOff && c.records > int(sent))
		})
		o.Logf("%s, Linux %s: sent %.0f, stored %d, events %d, lost %.0f, retried %.0f", name, m.says(name, `Linux (\S+)`)[1], sent, c.records, c.events,
			m.agent(name, "porthole_export_lost_total"), m.agent(name, "porthole_export_retried_total"))
		if lost := m.agent(name, "porthole_export_lost_total"); lost != 0 || name != cutOff && c.events != c.records {
			o.Errorf("%s: lost %.0f, stored %+v", name, lost, c)
		}
	}
	c := o.counted(fmt.Sprintf("host.name:=%q porthole.netns.name:=shop", cutOff))
	o.Logf("%s: of the namespace in which it worked, %d events happened and %d are stored", cutOff, happened, c.events)
	if c.events != happened {
		o.Errorf("%s: %d events happened, %+v are stored", cutOff, happened, c)
	}
	from := o.counted(fmt.Sprintf("host.name:=%q porthole.from_history:=true", cutOff))
	o.Logf("%s: %d of them from the history on disk", cutOff, from.events)
	if from.events == 0 {
		o.Error("nothing came from the history")
	}
}
