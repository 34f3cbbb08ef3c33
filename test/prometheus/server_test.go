package prometheus

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/test/prometheus/promapi"
)

const (
	// pollEvery is how often a condition is looked at.
	pollEvery = 100 * time.Millisecond
	// window is how far back the rules look here.
	window = 10 * time.Second
)

// await waits until check returns nil, or the test's time is up.
func await(t *testing.T, ctx context.Context, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v; %v", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// output collects what a program writes.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// startProgram runs a program until the test ends; if it ends before, so does the
// test. What it wrote is shown when the test failed.
func startProgram(t *testing.T, fail context.CancelCauseFunc, name string, args ...string) {
	t.Helper()
	var out output
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := cmd.Wait()
		fail(fmt.Errorf("%s ended: %v", filepath.Base(name), err))
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		<-ended
		if !late.Stop() {
			t.Errorf("%s did not end on SIGTERM", name)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(name), out.String())
		}
	})
}

// freeAddr is an address nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// server is a Prometheus that scrapes an agent.
type server struct{ promapi.Server }

// startPrometheus starts one with the shipped rules, in which every time is short.
func startPrometheus(t *testing.T, ctx context.Context, fail context.CancelCauseFunc, target string) *server {
	t.Helper()
	dir := t.TempDir()
	short := func(rules string) string {
		rules = regexp.MustCompile(`for: \w+`).ReplaceAllString(rules, "for: 1s")
		return regexp.MustCompile(`\[\dm\]`).ReplaceAllString(rules, fmt.Sprintf("[%s]", window))
	}
	config := fmt.Sprintf(`global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [porthole.rules.yml, porthole.fleet.rules.yml]
scrape_configs: [{job_name: porthole, static_configs: [{targets: [%q]}]}]
`, target)
	for name, text := range map[string]string{"porthole.rules.yml": short(read(t, rulesFile)), "porthole.fleet.rules.yml": short(read(t, fleetRules)), "prometheus.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{promapi.Server{Addr: freeAddr(t)}}
	startProgram(t, fail, "prometheus", "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", s.Addr, "--enable-feature", "native-histograms", "--log.level", "warn")
	await(t, ctx, "prometheus is ready", s.Ready)
	return s
}

// is checks that an expression has one value, and which.
func (s *server) is(expr, want string) error {
	found, err := s.Query(expr)
	if err != nil {
		return err
	}
	if len(found) != 1 || found[0].Value[1] != want {
		return fmt.Errorf("%s is %v, want one value of %s", expr, found, want)
	}
	return nil
}

type alert struct {
	Labels, Annotations map[string]string
	State               string
}

// firing returns the alerts that fire.
func (s *server) firing() ([]alert, error) {
	var data struct{ Alerts []alert }
	if err := s.Get("alerts", nil, &data); err != nil {
		return nil, err
	}
	var out []alert
	for _, a := range data.Alerts {
		if a.State == "firing" {
			out = append(out, a)
		}
	}
	return out, nil
}

// fires returns the alert with these labels ("name=value"), or an error that says
// which fire.
func (s *server) fires(name string, labels ...string) (alert, error) {
	firing, err := s.firing()
	if err != nil {
		return alert{}, err
	}
next:
	for _, a := range firing {
		for _, l := range append([]string{"alertname=" + name}, labels...) {
			if k, v, _ := strings.Cut(l, "="); a.Labels[k] != v {
				continue next
			}
		}
		return a, nil
	}
	return alert{}, fmt.Errorf("%s %v does not fire; these do: %v", name, labels, firing)
}
