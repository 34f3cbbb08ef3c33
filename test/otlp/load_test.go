//go:build load

package otlp

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// usage is what a process has used.
type usage struct {
	cpu    time.Duration
	memory float64 // MB, the most it had
}

// used reads what a server has used so far.
func (s *server) used() (u usage) {
	s.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	const user, system, ticks = 11, 12, 100 // fields after the name; a second
	for _, i := range []int{user, system} {
		n, err := strconv.ParseInt(strings.Fields(rest)[i], 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		u.cpu += time.Duration(n) * time.Second / ticks
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	if found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status); found != nil {
		kB, _ := strconv.ParseFloat(string(found[1]), 64)
		u.memory = kB / 1000
	}
	return u
}

// progress is what the exporters of internal/export's TestLoad say each second.
type progress struct {
	made, sent, lost, retried, queue int
	behind                           float64 // seconds
}

func (s *server) progress() (p progress) {
	text, _ := os.ReadFile(s.log)
	for line := range strings.Lines(string(text)) {
		var now progress
		if n, _ := fmt.Sscanf(line, "made=%d sent=%d lost=%d retried=%d queue_bytes=%d behind=%f", &now.made, &now.sent, &now.lost, &now.retried, &now.queue, &now.behind); n == 6 {
			p = now
		}
	}
	return p
}

// A thousand exporters, each with an event a second, send to one Collector: for a minute, then for half a minute while it does
// not run, and all they have when it runs again. All of it is stored.
func TestLoad(t *testing.T) {
	const steady, down = 60 * time.Second, 30 * time.Second
	o := newOutside(t)
	o.logs.start()
	o.collector.start()
	stdin, stop, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	load := &server{
		t: t, name: bin(t, "bin/exporters"), args: []string{"-test.run", "^TestLoad$", "-test.timeout", "15m"}, log: o.dir + "/exporters.log", stdin: stdin,
		env: []string{"PORTHOLE_LOAD_ENDPOINT=http://" + o.receiver},
	}
	load.ready = func() bool { return true }
	o.killedAtEnd(load)
	load.start()
	stdin.Close()
	caughtUp := func() bool { p := load.progress(); return p.behind < 3 }

	awaitWithin(t, 3*time.Minute, func() string { return fmt.Sprintf("all exporters send: %+v", load.progress()) }, func() bool { return load.progress().made > 2000 && caughtUp() })
	first, collector, logs, begun := load.progress(), o.collector.used(), o.logs.used(), time.Now()
	<-time.After(steady)
	last, now, nowLogs, took := load.progress(), o.collector.used(), o.logs.used(), time.Since(begun)
	sent := float64(last.sent - first.sent)
	t.Logf("for %.0fs: %.0f events a second; the Collector takes %.0f us of CPU for each (%.1f%% of one) and at most %.0f MB, VictoriaLogs %.0f us and %.0f MB; oldest that waits %.1fs",
		took.Seconds(), sent/took.Seconds(), float64((now.cpu-collector.cpu).Microseconds())/sent, 100*(now.cpu-collector.cpu).Seconds()/took.Seconds(), now.memory,
		float64((nowLogs.cpu-logs.cpu).Microseconds())/sent, nowLogs.memory, last.behind)

	o.collector.kill()
	<-time.After(down)
	storm := load.progress()
	backlog, begun := storm.made-storm.sent, time.Now()
	o.collector.start()
	most := 0
	awaitWithin(t, 5*time.Minute, func() string { return fmt.Sprintf("the backlog is sent: %+v", load.progress()) }, func() bool {
		most = max(most, load.progress().sent-storm.sent)
		return caughtUp()
	})
	took = time.Since(begun)
	after, now := load.progress(), o.collector.used()
	t.Logf("after %v without a Collector %d events wait in %.1f MB; they and what happens meanwhile are sent within %.0fs, %d events, %d of them retried; the Collector takes %.0f%% of a CPU and at most %.0f MB",
		down, backlog, float64(storm.queue)/1e6, took.Seconds(), after.sent-storm.sent, after.retried, 100*now.cpu.Seconds()/took.Seconds(), now.memory)

	stop.Close()
	done := make(chan error, 1)
	cmd := load.cmd
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		load.cmd = nil
		if err != nil {
			t.Errorf("the exporters: %v", err)
		}
	case <-time.After(wait):
		t.Fatalf("the exporters did not end within %v", wait)
	}
	p, ended := load.progress(), time.Now()
	var records, events, hosts string
	await(t, func() string {
		return fmt.Sprintf("%+v: stored are %s records, %s events of %s machines", p, records, events, hosts)
	}, func() bool {
		for _, row := range o.ask("_time:1h | stats count() records, count_uniq(log.record.uid) events, count_uniq(host.name) hosts") {
			records, events, hosts = row["records"], row["events"], row["hosts"]
		}
		return events == strconv.Itoa(p.made)
	})
	t.Logf("made %d, sent %d, lost %d, retried %d; %.0fs later stored %s records, %s events of %s machines", p.made, p.sent, p.lost, p.retried, time.Since(ended).Seconds(), records, events, hosts)
	if p.lost != 0 || p.sent != p.made || hosts != "1000" {
		t.Errorf("%+v, %s machines", p, hosts)
	}
}
