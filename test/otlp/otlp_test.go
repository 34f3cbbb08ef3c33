// Package otlp has an agent send events to a real OpenTelemetry Collector, and that to a real VictoriaLogs. It is a module of
// its own, so that what those need is nothing that porthole needs.
package otlp

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wait is how long anything may take to come true.
const wait = 90 * time.Second

// await waits for a condition; what says which, where it does not come true.
func await(t *testing.T, what func() string, holds func() bool) {
	t.Helper()
	for begun := time.Now(); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > wait {
			t.Fatalf("not within %v: %s", wait, what())
		}
	}
}

// freePort is one that nobody has now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// get asks by HTTP; "": there is no answer.
func get(address string) string {
	client := http.Client{Timeout: 10 * time.Second}
	resp, err := client.Get(address)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// sum adds up the values of a metric, of whatever labels but those that match.
func sum(text, name string) (total float64) {
	for line := range strings.Lines(text) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if metric, _, _ := strings.Cut(series, "{"); !ok || metric != name {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err == nil {
			total += v
		}
	}
	return total
}

// server is a program that runs, is killed, and is run again.
type server struct {
	t     *testing.T
	name  string
	args  []string
	env   []string
	ready func() bool
	log   string // path
	cmd   *exec.Cmd
}

// bin is a program that make test-otlp has built.
func bin(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: run make test-otlp", err)
	}
	return path
}

func (s *server) start() {
	s.t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.name, s.args...)
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	await(s.t, func() string {
		text, _ := os.ReadFile(s.log)
		return s.name + " is ready:\n" + string(text)
	}, s.ready)
}

// kill is kill -9.
func (s *server) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// fleet is an agent, a Collector and a VictoriaLogs.
type fleet struct {
	*testing.T
	agent, collector, logs   *server
	metrics, store, receiver string  // URLs
	history                  string  // directory
	sent                     float64 // before what is waited for happened
}

func newFleet(t *testing.T) *fleet {
	if os.Getuid() != 0 {
		t.Fatal("the agent has to be root: run make test-otlp")
	}
	dir := t.TempDir()
	metrics, store, receiver := freePort(t), freePort(t), freePort(t)
	f := &fleet{T: t, history: filepath.Join(dir, "history"), metrics: "http://" + metrics + "/metrics", store: "http://" + store, receiver: receiver}
	f.logs = &server{
		t: t, name: bin(t, "bin/victoria-logs"), log: filepath.Join(dir, "victoria-logs.log"),
		args:  []string{"-storageDataPath=" + filepath.Join(dir, "logs"), "-httpListenAddr=" + store, "-retentionPeriod=30d", "-inmemoryDataFlushInterval=1s"},
		ready: func() bool { return get(f.store+"/health") != "" },
	}
	f.collector = &server{
		t: t, name: bin(t, "bin/collector"), log: filepath.Join(dir, "collector.log"), args: []string{"--config", "../../deploy/collector/victorialogs.yaml"},
		env: []string{"COLLECTOR_LISTEN=" + receiver, "COLLECTOR_STORAGE=" + filepath.Join(dir, "queue"), "VICTORIALOGS_URL=" + f.store, "OTEL_METRICS_EXPORTER=none"},
		ready: func() bool {
			conn, err := net.Dial("tcp", receiver)
			if err == nil {
				conn.Close()
			}
			return err == nil
		},
	}
	f.agent = &server{
		t: t, name: bin(t, "../../porthole"), log: filepath.Join(dir, "agent.log"),
		args: []string{
			"agent", "--socket", filepath.Join(dir, "porthole.sock"), "--web.listen-address", metrics, "--history.dir", f.history,
			"--otlp.endpoint", "http://" + receiver,
		},
		ready: func() bool { return get("http://"+metrics+"/readyz") != "" },
	}
	t.Cleanup(func() {
		for _, s := range []*server{f.agent, f.collector, f.logs} {
			s.kill()
			if text, err := os.ReadFile(s.log); err == nil && t.Failed() {
				t.Logf("%s:\n%s", s.log, text[max(0, len(text)-5000):])
			}
		}
	})
	return f
}

// ask asks VictoriaLogs, and returns the rows.
func (f *fleet) ask(query string) []map[string]string {
	f.Helper()
	text := get(f.store + "/select/logsql/query?query=" + url.QueryEscape(query))
	var rows []map[string]string
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		row := make(map[string]string)
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			f.Fatalf("%s: %v", lines.Text(), err)
		}
		rows = append(rows, row)
	}
	return rows
}

// stored is how many events of a network namespace are in VictoriaLogs, and how many records of them.
func (f *fleet) stored(netns uint64) (events, records int) {
	f.Helper()
	for _, row := range f.ask(fmt.Sprintf("_time:1h porthole.netns.inode:=%d | stats count() records, count_uniq(log.record.uid) events", netns)) {
		events, _ = strconv.Atoi(row["events"])
		records, _ = strconv.Atoi(row["records"])
	}
	return events, records
}

// holds waits until VictoriaLogs has so many events of a network namespace.
func (f *fleet) holds(after string, netns uint64, want int) {
	f.Helper()
	var events, records int
	await(f.T, func() string { return fmt.Sprintf("%s: %d events are stored, want %d", after, events, want) }, func() bool {
		events, records = f.stored(netns)
		return events >= want
	})
	f.Logf("%s: %d events happened, %d are stored, %d records more have the id of another", after, want, events, records-events)
	if events != want {
		f.Errorf("%s: %d events are stored, want %d", after, events, want)
	}
}

// flushed waits until all that VictoriaLogs has taken is on its disk: what it holds in memory it loses.
func (f *fleet) flushed() {
	f.Helper()
	inMemory := regexp.MustCompile(`(?m)^vl_storage_rows\{type="storage/inmemory"\} 0$`)
	await(f.T, func() string { return "VictoriaLogs has everything on disk" }, func() bool { return inMemory.MatchString(get(f.store + "/metrics")) })
}

// kept waits until so many rows of a network namespace are on the disk of the agent.
func (f *fleet) kept(netns uint64, rows int) {
	f.Helper()
	var have int
	await(f.T, func() string { return fmt.Sprintf("%d rows are in the history on disk, want %d", have, rows) }, func() bool {
		out, _ := exec.Command(f.agent.name, "history", "--local", "--history.dir", f.history, "--netns", strconv.FormatUint(netns, 10),
			"--listeners", "--failures", "--json", "-n", "0").Output()
		have = strings.Count(string(out), "\n")
		return have >= rows
	})
}

// taken waits until the Collector has taken all that there was up to now.
func (f *fleet) taken() {
	f.Helper()
	await(f.T, func() string { return "the Collector has taken everything" }, func() bool {
		text := get(f.metrics)
		return text != "" && sum(text, "porthole_export_queue_bytes") == 0 && sum(text, "porthole_export_sent_total") > f.sent
	})
}

func (f *fleet) count(metric string) float64 { return sum(get(f.metrics), metric) }

// All that happens is stored, whichever of the three is killed meanwhile and started again; what is stored twice has the
// same id.
func TestNothingIsLost(t *testing.T) {
	f := newFleet(t)
	f.logs.start()
	f.collector.start()
	f.agent.start()
	w := newWorld(t)
	const n = 100 // sockets, of which each has four events: bind, listen, a bind that is refused, close
	happened := 0
	happen := func() {
		t.Helper()
		w.sockets(n)
		happened += 4 * n
	}
	happen()
	f.holds("all run", w.netns, happened)

	f.flushed()
	f.logs.kill()
	happen()
	f.logs.start()
	f.holds("VictoriaLogs killed", w.netns, happened)

	f.collector.kill()
	happen()
	await(t, func() string { return "the agent has tried again" }, func() bool { return f.count("porthole_export_retried_total") > 0 })
	f.collector.start()
	f.holds("Collector killed", w.netns, happened)

	// What the Collector has taken is on its disk.
	f.flushed()
	f.logs.kill()
	f.sent = f.count("porthole_export_sent_total") + 4*n - 1
	happen()
	f.taken()
	f.collector.kill()
	f.logs.start()
	f.collector.start()
	f.holds("Collector killed with what VictoriaLogs had not got", w.netns, happened)

	// What the agent has not sent is in its history.
	f.collector.kill()
	happen()
	f.kept(w.netns, happened/2)
	f.agent.kill()
	f.agent.start()
	f.collector.start()
	f.holds("agent killed without a Collector", w.netns, happened)

	happen()
	f.kept(w.netns, happened/2)
	f.agent.kill()
	f.agent.start()
	f.holds("agent killed", w.netns, happened)

	// Every kind of event, once.
	for _, row := range f.ask(fmt.Sprintf("_time:1h porthole.netns.inode:=%d | stats by (event_name, error.type) count_uniq(log.record.uid) events", w.netns)) {
		if row["events"] != strconv.Itoa(happened/4) {
			t.Errorf("%s %s: %s events, want %d", row["event_name"], row["error.type"], row["events"], happened/4)
		}
	}
	if lost := f.ask("_time:1h event_name:=porthole.lost porthole.lost.reason:!=not_running"); len(lost) > 0 {
		t.Errorf("lost: %v", lost)
	}
	await(t, func() string { return "two records tell that no agent ran" }, func() bool {
		return len(f.ask("_time:1h event_name:=porthole.lost porthole.lost.reason:=not_running")) == 2
	})
}

// The Collector's port for gRPC is told from the one for HTTP, and so is one that takes no logs.
func TestWrongPort(t *testing.T) {
	f := newFleet(t)
	grpc := freePort(t)
	f.collector.args = []string{"--config", "testdata/grpc.yaml"}
	f.collector.env = append(f.collector.env, "COLLECTOR_LISTEN="+grpc)
	f.collector.ready = func() bool {
		conn, err := net.Dial("tcp", grpc)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	f.collector.start()
	f.agent.args[len(f.agent.args)-1] = "http://" + grpc
	f.agent.start()
	w := newWorld(t)
	w.sockets(1)
	var text []byte
	await(t, func() string { return "the agent says that the port speaks gRPC:\n" + string(text) }, func() bool {
		text, _ = os.ReadFile(f.agent.log)
		return strings.Contains(string(text), "it speaks gRPC: want the port that takes OTLP over HTTP, as 4318")
	})
	if get(f.metrics) == "" {
		t.Error("the agent does not answer any more")
	}
}

// The Collector accepts every configuration that is shipped.
func TestConfigurations(t *testing.T) {
	files, err := filepath.Glob("../../deploy/collector/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d configurations: %v", len(files), err)
	}
	for _, file := range files {
		cmd := exec.Command(bin(t, "bin/collector"), "validate", "--config", file)
		cmd.Env = append(os.Environ(), "COLLECTOR_STORAGE="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
}

// recipes are the queries of docs/otlp.md, by the question before each.
func recipes(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/otlp.md")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^([A-Z][^\n]*\\?)\n\n```logsql\n([^`]*)```").FindAllStringSubmatch(string(text), -1) {
		out[m[1]] = strings.TrimSpace(m[2])
	}
	return out
}

// The questions of docs/otlp.md have answers.
func TestRecipes(t *testing.T) {
	f := newFleet(t)
	f.logs.start()
	f.collector.start()
	f.agent.start()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	questions := recipes(t)
	answer := func(question string, change ...string) func() []map[string]string {
		query, ok := questions[question]
		if !ok {
			t.Fatalf("docs/otlp.md does not ask %q, but %v", question, questions)
		}
		return func() []map[string]string { return f.ask(strings.NewReplacer(change...).Replace(query)) }
	}
	check := func(question string, ask func() []map[string]string, want map[string]string) {
		t.Helper()
		want["host.name"] = host
		var rows []map[string]string
		await(t, func() string { return fmt.Sprintf("%s\n%v\nwant a row with %v", question, rows, want) }, func() bool {
			rows = ask()
			for _, row := range rows {
				ok := true
				for k, v := range want {
					ok = ok && row[k] == v
				}
				if ok {
					text, _ := json.Marshal(row)
					t.Logf("%s\n\t%s", question, text)
					return true
				}
			}
			return false
		})
	}
	w := newWorld(t)
	w.listen(6379)
	const listened = "Who listened on port 6379, anywhere, within the last week?"
	check(listened, answer(listened), map[string]string{"porthole.comm": "otlp.test", "times": "1"})

	inUnit(t, "porthole-test-shop.service", "binds", "3")
	const binds = "Which units fail to bind?"
	check(binds, answer(binds), map[string]string{"porthole.unit.name": "porthole-test-shop.service", "error.type": "EADDRINUSE", "failures": "3"})

	inPod(t, "shop", "api-6d5f", "exhaust", "127.0.0.2:5432", "5")
	const exhausted = "Which pods ran out of ports towards 192.0.2.10:5432?"
	check(exhausted, answer(exhausted, "192.0.2.10", "127.0.0.2"), map[string]string{"k8s.namespace.name": "shop", "k8s.pod.name": "api-6d5f", "failures": "5"})

	const missing = "Is anything missing?"
	if rows := answer(missing)(); len(rows) != 0 {
		t.Errorf("%s %v", missing, rows)
	}
}
