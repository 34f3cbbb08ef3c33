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
	"slices"
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
	awaitWithin(t, wait, what, holds)
}

// awaitWithin is await with another limit.
func awaitWithin(t *testing.T, limit time.Duration, what func() string, holds func() bool) {
	t.Helper()
	for begun := time.Now(); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > limit {
			t.Fatalf("not within %v: %s", limit, what())
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

// listens tells whether somebody can be connected to.
func listens(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		conn.Close()
	}
	return err == nil
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
	stdin *os.File // nil: nothing
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
	if s.stdin != nil {
		s.cmd.Stdin = s.stdin
	}
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

// outside is a Collector and a VictoriaLogs, wherever the agents are.
type outside struct {
	*testing.T
	dir             string
	collector, logs *server
	store, receiver string // the URL of VictoriaLogs, the address of the Collector
}

// quiet has a Collector serve no metrics of its own.
var quiet = []string{"--config", "testdata/quiet.yaml"}

func newOutside(t *testing.T) *outside {
	t.Helper()
	dir := t.TempDir()
	store, receiver := freePort(t), freePort(t)
	o := &outside{T: t, dir: dir, store: "http://" + store, receiver: receiver}
	o.logs = &server{
		t: t, name: bin(t, "bin/victoria-logs"), log: filepath.Join(dir, "victoria-logs.log"),
		args:  []string{"-storageDataPath=" + filepath.Join(dir, "logs"), "-httpListenAddr=" + store, "-retentionPeriod=30d", "-inmemoryDataFlushInterval=1s"},
		ready: func() bool { return get(o.store+"/health") != "" },
	}
	o.collector = &server{
		t: t, name: bin(t, "bin/collector"), log: filepath.Join(dir, "collector.log"), args: append([]string{"--config", "../../deploy/collector/victorialogs.yaml"}, quiet...),
		env:   []string{"COLLECTOR_LISTEN=" + receiver, "COLLECTOR_STORAGE=" + filepath.Join(dir, "queue"), "VICTORIALOGS_URL=" + o.store},
		ready: func() bool { return listens(receiver) },
	}
	o.killedAtEnd(o.collector, o.logs)
	return o
}

// killedAtEnd kills servers when the test ends, and shows the end of their logs where it failed.
func (o *outside) killedAtEnd(servers ...*server) {
	o.Cleanup(func() {
		for _, s := range servers {
			s.kill()
			if text, err := os.ReadFile(s.log); err == nil && o.Failed() {
				o.Logf("%s:\n%s", s.log, text[max(0, len(text)-5000):])
			}
		}
	})
}

// pipeline is an agent besides.
type pipeline struct {
	*outside
	agent   *server
	metrics string  // URL
	history string  // directory
	sent    float64 // before what is waited for happened
}

func newPipeline(t *testing.T) *pipeline {
	if os.Getuid() != 0 {
		t.Fatal("the agent has to be root: run make test-otlp")
	}
	metrics := freePort(t)
	p := &pipeline{outside: newOutside(t), metrics: "http://" + metrics + "/metrics"}
	p.history = filepath.Join(p.dir, "history")
	p.agent = &server{
		t: t, name: bin(t, "../../porthole"), log: filepath.Join(p.dir, "agent.log"),
		args: []string{
			"agent", "--socket", filepath.Join(p.dir, "porthole.sock"), "--web.listen-address", metrics, "--history.dir", p.history,
			"--otlp.endpoint", "http://" + p.receiver,
		},
		ready: func() bool { return get("http://"+metrics+"/readyz") != "" },
	}
	p.killedAtEnd(p.agent)
	return p
}

// ask asks VictoriaLogs, and returns the rows.
func (o *outside) ask(query string) []map[string]string {
	o.Helper()
	text := get(o.store + "/select/logsql/query?query=" + url.QueryEscape(query))
	var rows []map[string]string
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		row := make(map[string]string)
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			o.Fatalf("%s: %v", lines.Text(), err)
		}
		rows = append(rows, row)
	}
	return rows
}

// stored is how many events of a network namespace are in VictoriaLogs, and how many records of them.
func (p *pipeline) stored(netns uint64) (events, records int) {
	p.Helper()
	for _, row := range p.ask(fmt.Sprintf("_time:1h porthole.netns.inode:=%d | stats count() records, count_uniq(log.record.uid) events", netns)) {
		events, _ = strconv.Atoi(row["events"])
		records, _ = strconv.Atoi(row["records"])
	}
	return events, records
}

// holds waits until VictoriaLogs has so many events of a network namespace.
func (p *pipeline) holds(after string, netns uint64, want int) {
	p.Helper()
	var events, records int
	await(p.T, func() string { return fmt.Sprintf("%s: %d events are stored, want %d", after, events, want) }, func() bool {
		events, records = p.stored(netns)
		return events >= want
	})
	p.Logf("%s: %d events happened, %d are stored, %d records more have the id of another", after, want, events, records-events)
	if events != want {
		p.Errorf("%s: %d events are stored, want %d", after, events, want)
	}
}

// flushed waits until all that VictoriaLogs has taken is on its disk: what it holds in memory it loses.
func (p *pipeline) flushed() {
	p.Helper()
	inMemory := regexp.MustCompile(`(?m)^vl_storage_rows\{type="storage/inmemory"\} 0$`)
	await(p.T, func() string { return "VictoriaLogs has everything on disk" }, func() bool { return inMemory.MatchString(get(p.store + "/metrics")) })
}

// kept waits until so many rows of a network namespace are on the disk of the agent.
func (p *pipeline) kept(netns uint64, rows int) {
	p.Helper()
	var have int
	await(p.T, func() string { return fmt.Sprintf("%d rows are in the history on disk, want %d", have, rows) }, func() bool {
		out, _ := exec.Command(p.agent.name, "history", "--local", "--history.dir", p.history, "--netns", strconv.FormatUint(netns, 10),
			"--listeners", "--failures", "--json", "-n", "0").Output()
		have = strings.Count(string(out), "\n")
		return have >= rows
	})
}

// taken waits until the Collector has taken all that there was up to now.
func (p *pipeline) taken() {
	p.Helper()
	await(p.T, func() string { return "the Collector has taken everything" }, func() bool {
		text := get(p.metrics)
		return text != "" && sum(text, "porthole_export_queue_bytes") == 0 && sum(text, "porthole_export_sent_total") > p.sent
	})
}

func (p *pipeline) count(metric string) float64 { return sum(get(p.metrics), metric) }

// All that happens is stored, whichever of the three is killed meanwhile and started again; what is stored twice has the
// same id.
func TestNothingIsLost(t *testing.T) {
	p := newPipeline(t)
	p.logs.start()
	p.collector.start()
	p.agent.start()
	w := newWorld(t)
	const n = 100 // sockets, of which each has four events: bind, listen, a bind that is refused, close
	happened := 0
	happen := func() {
		t.Helper()
		w.sockets(n)
		happened += 4 * n
	}
	happen()
	p.holds("all run", w.netns, happened)

	p.flushed()
	p.logs.kill()
	happen()
	p.logs.start()
	p.holds("VictoriaLogs killed", w.netns, happened)

	p.collector.kill()
	happen()
	await(t, func() string { return "the agent has tried again" }, func() bool { return p.count("porthole_export_retried_total") > 0 })
	p.collector.start()
	p.holds("Collector killed", w.netns, happened)

	// What the Collector has taken is on its disk.
	p.flushed()
	p.logs.kill()
	p.sent = p.count("porthole_export_sent_total") + 4*n - 1
	happen()
	p.taken()
	p.collector.kill()
	p.logs.start()
	p.collector.start()
	p.holds("Collector killed with what VictoriaLogs had not got", w.netns, happened)

	// What the agent has not sent is in its history.
	p.collector.kill()
	happen()
	p.kept(w.netns, happened/2)
	p.agent.kill()
	p.agent.start()
	p.collector.start()
	p.holds("agent killed without a Collector", w.netns, happened)

	happen()
	p.kept(w.netns, happened/2)
	p.agent.kill()
	p.agent.start()
	p.holds("agent killed", w.netns, happened)

	// Every kind of event, once.
	for _, row := range p.ask(fmt.Sprintf("_time:1h porthole.netns.inode:=%d | stats by (event_name, error.type) count_uniq(log.record.uid) events", w.netns)) {
		if row["events"] != strconv.Itoa(happened/4) {
			t.Errorf("%s %s: %s events, want %d", row["event_name"], row["error.type"], row["events"], happened/4)
		}
	}
	if lost := p.ask("_time:1h event_name:=porthole.lost porthole.lost.reason:!=not_running"); len(lost) > 0 {
		t.Errorf("lost: %v", lost)
	}
	await(t, func() string { return "two records tell that no agent ran" }, func() bool {
		return len(p.ask("_time:1h event_name:=porthole.lost porthole.lost.reason:=not_running")) == 2
	})
}

// The Collector's port for gRPC is told from the one for HTTP, and so is one that takes no logs.
func TestWrongPort(t *testing.T) {
	p := newPipeline(t)
	grpc := freePort(t)
	p.collector.args = append([]string{"--config", "testdata/grpc.yaml"}, quiet...)
	p.collector.env = append(p.collector.env, "COLLECTOR_LISTEN="+grpc)
	p.collector.ready = func() bool { return listens(grpc) }
	p.collector.start()
	p.agent.args[len(p.agent.args)-1] = "http://" + grpc
	p.agent.start()
	w := newWorld(t)
	w.sockets(1)
	var text []byte
	await(t, func() string { return "the agent says that the port speaks gRPC:\n" + string(text) }, func() bool {
		text, _ = os.ReadFile(p.agent.log)
		return strings.Contains(string(text), "it speaks gRPC: want the port that takes OTLP over HTTP, as 4318")
	})
	if get(p.metrics) == "" {
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

// answer is what VictoriaLogs says to a question of docs/otlp.md, with changes of old and new text by turns.
func (o *outside) answer(question string, change ...string) []map[string]string {
	o.Helper()
	questions := recipes(o.T)
	query, ok := questions[question]
	if !ok {
		o.Fatalf("docs/otlp.md does not ask %q, but %v", question, questions)
	}
	return o.ask(strings.NewReplacer(change...).Replace(query))
}

// answered waits until the answer has a row with what is wanted, and returns all of it.
func (o *outside) answered(question string, want map[string]string, change ...string) []map[string]string {
	o.Helper()
	var rows []map[string]string
	await(o.T, func() string { return fmt.Sprintf("%s\n%v\nwant a row with %v", question, rows, want) }, func() bool {
		rows = o.answer(question, change...)
		return slices.ContainsFunc(rows, func(row map[string]string) bool {
			for k, v := range want {
				if row[k] != v {
					return false
				}
			}
			return true
		})
	})
	text, _ := json.Marshal(rows)
	o.Logf("%s\n\t%s", question, text)
	return rows
}

// Questions of docs/otlp.md.
const (
	whoListened  = "Who listened on port 6379, anywhere, within the last week?"
	outOfPorts   = "Which pods ran out of ports towards 192.0.2.10:5432?"
	failedBinds  = "Which units fail to bind?"
	whatIsMissed = "Is anything missing?"
)

// The questions of docs/otlp.md have answers.
func TestRecipes(t *testing.T) {
	p := newPipeline(t)
	p.logs.start()
	p.collector.start()
	p.agent.start()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.listen(6379)
	p.answered(whoListened, map[string]string{"host.name": host, "porthole.comm": "otlp.test", "times": "1"})

	inUnit(t, "porthole-test-shop.service", "binds", "3")
	p.answered(failedBinds, map[string]string{"host.name": host, "porthole.unit.name": "porthole-test-shop.service", "error.type": "EADDRINUSE", "failures": "3"})

	inPod(t, "shop", "api-6d5f", "exhaust", "127.0.0.2:5432", "5")
	p.answered(outOfPorts, map[string]string{"host.name": host, "k8s.namespace.name": "shop", "k8s.pod.name": "api-6d5f", "failures": "5"}, "192.0.2.10", "127.0.0.2")

	if rows := p.answer(whatIsMissed); len(rows) != 0 {
		t.Errorf("%s %v", whatIsMissed, rows)
	}
}
