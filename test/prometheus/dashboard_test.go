package prometheus

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	nodeDashboard  = "../../deploy/grafana/porthole.json"
	fleetDashboard = "../../deploy/grafana/porthole-fleet.json"
)

// dashboard is what is looked at of a dashboard.
type dashboard struct {
	UID           string `json:"uid"`
	Title         string `json:"title"`
	SchemaVersion int    `json:"schemaVersion"`
	Annotations   struct {
		List []struct{ Expr string }
	}
	Templating struct {
		List []variable
	}
	Panels []panel
}

type variable struct {
	Name, Type string
	Definition string
}

type datasource struct{ Type, UID string }

type panel struct {
	ID         int
	Type       string
	Title      string
	Datasource datasource
	GridPos    struct{ H, W, X, Y int }
	Targets    []struct {
		Datasource datasource
		Expr       string
		RefID      string
	}
}

// query is one thing the dashboard asks Prometheus, with its variables put in.
type query struct{ from, expr string }

func loadDashboard(t *testing.T, file string) *dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, file)), &d); err != nil {
		t.Fatal(err)
	}
	return &d
}

// queries are those of the panels, of the annotations, and of the variables: of
// label_values(SELECTOR, label) the selector.
func (d *dashboard) queries() []query {
	put := strings.NewReplacer("$instance", ".*", "$netns", ".*", "$__rate_interval", "15s")
	var out []query
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			out = append(out, query{p.Title, put.Replace(target.Expr)})
		}
	}
	for _, v := range d.Templating.List {
		if inner, ok := strings.CutPrefix(v.Definition, "label_values("); ok {
			out = append(out, query{"$" + v.Name, put.Replace(inner[:strings.LastIndex(inner, ",")])})
		}
	}
	for _, a := range d.Annotations.List {
		out = append(out, query{"annotations", a.Expr})
	}
	return out
}

// Grafana loads it: it has what Grafana asks for, and no two panels in one place.
func TestDashboardLoads(t *testing.T) {
	for _, file := range []string{nodeDashboard, fleetDashboard} {
		t.Run(filepath.Base(file), func(t *testing.T) { loadDashboard(t, file).loads(t) })
	}
}

func (d *dashboard) loads(t *testing.T) {
	t.Helper()
	if d.UID == "" || d.Title == "" || d.SchemaVersion < 36 || len(d.Panels) == 0 {
		t.Errorf("uid %q, title %q, schema %d, %d panels", d.UID, d.Title, d.SchemaVersion, len(d.Panels))
	}
	if !slices.ContainsFunc(d.Templating.List, func(v variable) bool { return v.Name == "datasource" && v.Type == "datasource" }) {
		t.Error("no variable datasource")
	}
	want := datasource{"prometheus", "${datasource}"}
	ids := make(map[int]bool)
	taken := make(map[[2]int]string)
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" || p.Type == "" {
			t.Errorf("panel %d %q of type %q: want an id of its own, a title and a type", p.ID, p.Title, p.Type)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok || x >= 24 {
					t.Fatalf("panel %q: column %d, line %d is that of %q, or outside", p.Title, x, y, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if len(p.Targets) == 0 || p.Datasource != want {
			t.Errorf("panel %q has %d targets, data source %v", p.Title, len(p.Targets), p.Datasource)
		}
		for _, target := range p.Targets {
			if target.RefID == "" || target.Expr == "" || target.Datasource != want {
				t.Errorf("panel %q: target %+v", p.Title, target)
			}
		}
	}
}

func TestDashboardOfKnownMetrics(t *testing.T) {
	for _, file := range []string{nodeDashboard, fleetDashboard} {
		for _, q := range loadDashboard(t, file).queries() {
			for _, name := range unknownMetrics(t, q.expr) {
				t.Errorf("%s: no metric %s in %s", q.from, name, metricsFile)
			}
			if strings.Contains(q.expr, "$") {
				t.Errorf("%s: variable left in %s", q.from, q.expr)
			}
		}
	}
}

// Every metric is on the dashboard: what nobody looks at is not worth a scrape.
func TestDashboardHasEveryMetric(t *testing.T) {
	shown := read(t, nodeDashboard)
	for line := range strings.Lines(read(t, metricsFile)) {
		if name, ok := strings.CutPrefix(line, "| `porthole_"); ok {
			name = "porthole_" + name[:strings.Index(name, "`")]
			if !strings.Contains(shown, name) {
				t.Errorf("%s is on no panel", name)
			}
		}
	}
}
