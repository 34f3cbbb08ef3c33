package prometheus

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

const (
	rulesFile   = "../../deploy/prometheus/porthole.rules.yml"
	unitTests   = "../../deploy/prometheus/porthole.rules.test.yml"
	fleetRules  = "../../deploy/prometheus/porthole.fleet.rules.yml"
	fleetTests  = "../../deploy/prometheus/porthole.fleet.rules.test.yml"
	metricsFile = "../../docs/metrics.md"
)

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRules(t *testing.T) {
	promtool(t, "check", "rules", rulesFile, fleetRules)
	promtool(t, "test", "rules", unitTests, fleetTests)
}

// Each series that is recorded has a case, and those that the dashboard shows are recorded.
func TestRulesAllRecorded(t *testing.T) {
	units, shown := read(t, fleetTests), read(t, fleetDashboard)
	for _, m := range regexp.MustCompile(`record: (\S+)`).FindAllStringSubmatch(read(t, fleetRules), -1) {
		if !strings.Contains(units, "expr: "+m[1]+"\n") || !strings.Contains(shown, m[1]) {
			t.Errorf("%s has no case in %s, or no panel in %s", m[1], fleetTests, fleetDashboard)
		}
	}
}

// Each alert has a case in which it fires.
func TestRulesAllTested(t *testing.T) {
	units := read(t, unitTests)
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(read(t, rulesFile), -1) {
		if !strings.Contains(units, `{alertname="`+m[1]+`"`) && !strings.Contains(units, "alertname: "+m[1]) {
			t.Errorf("%s never fires in %s", m[1], unitTests)
		}
	}
}

// unknownMetrics are the metrics of a text that docs/metrics.md does not have.
func unknownMetrics(t *testing.T, text string) []string {
	t.Helper()
	known := read(t, metricsFile)
	var out []string
	for _, m := range regexp.MustCompile(`(?:^|[^:\w])(porthole_\w+)`).FindAllStringSubmatch(text, -1) { // what is recorded has colons
		if name := m[1]; !strings.Contains(known, "| `"+name+"` |") && name != "porthole_fleet" { // a group of rules
			out = append(out, name)
		}
	}
	return out
}

func TestRulesOfKnownMetrics(t *testing.T) {
	for _, file := range []string{rulesFile, unitTests, fleetRules, fleetTests} {
		for _, name := range unknownMetrics(t, read(t, file)) {
			t.Errorf("%s: no metric %s in %s", file, name, metricsFile)
		}
	}
}

// What a scrape returns is as Prometheus wants it.
func TestMetricsText(t *testing.T) {
	text, err := os.Open("../../internal/metrics/testdata/metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer text.Close()
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = text
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
