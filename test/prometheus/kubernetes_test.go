package prometheus

import (
	"os"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// The PrometheusRule has the rules of the file for Prometheus, and nothing else.
func TestKubernetesRules(t *testing.T) {
	text, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	out.WriteString("# Of deploy/prometheus/porthole.rules.yml: go test ./test/prometheus -run Kubernetes -update writes it.\n" +
		"apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: porthole\nspec:\n")
	_, groups, ok := strings.Cut(string(text), "\ngroups:\n")
	if !ok {
		t.Fatalf("%s has no groups", rulesFile)
	}
	out.WriteString("  groups:\n")
	for line := range strings.Lines(groups) {
		if strings.TrimSpace(line) != "" {
			out.WriteString("  ")
		}
		out.WriteString(line)
	}
	testutil.Golden(t, "../../deploy/kubernetes/prometheus/prometheusrule.yaml", out.String())
}
