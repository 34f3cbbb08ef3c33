package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// What init writes is what is read of it, in whatever pieces it comes.
func TestReadMessages(t *testing.T) {
	exit := 1
	sent := []guest.Message{
		{Kernel: "6.1.0-56"},
		{Job: "fentry tracer", Output: "--- PASS: TestKernelBind (0.10s)"},
		{Job: "fentry tracer", Output: ""},
		{Job: "fentry tracer", Output: "\"<\x00>\" \u2028"},
		{Job: "fentry tracer", Exit: &exit, Seconds: 1.5},
	}
	var wire strings.Builder
	out := json.NewEncoder(&wire)
	for _, m := range sent {
		if err := out.Encode(m); err != nil {
			t.Fatal(err)
		}
	}
	var got []guest.Message
	each := func(m guest.Message) { got = append(got, m) }
	if err := (&vm{}).read(strings.NewReader(wire.String()+`{"job":"cut`), each); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(sent, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	if err := (&vm{}).read(strings.NewReader("oh\n"), each); err == nil || !strings.Contains(err.Error(), `"oh\n"`) {
		t.Errorf("error %v, want one with the line", err)
	}
}

func TestPlan(t *testing.T) {
	m := &runner{suites: []suite{{"x/cmd/porthole", []string{"TestKernelLs"}}, {"x/tracer", []string{"TestKernelBind"}}}}
	for _, test := range []struct {
		missing, untested map[tier]string
		want              [][]string
	}{
		{nil, nil, [][]string{
			{"fentry doctor", "fentry porthole", "fentry tracer"},
			{"tracepoint doctor", "tracepoint porthole", "tracepoint tracer"},
		}},
		{map[tier]string{"fentry": "too old"}, nil, [][]string{{"fentry doctor", "tracepoint doctor", "tracepoint porthole", "tracepoint tracer"}}},
		{nil, map[tier]string{"tracepoint": "lossy"}, [][]string{{"tracepoint doctor", "fentry doctor", "fentry porthole", "fentry tracer"}}},
	} {
		plans, err := m.plans(kernel{missing: test.missing, untested: test.untested})
		if err != nil {
			t.Fatal(err)
		}
		var names [][]string
		for _, plan := range plans {
			names = append(names, nil)
			for _, j := range plan.Jobs {
				names[len(names)-1] = append(names[len(names)-1], j.Name)
			}
		}
		if diff := cmp.Diff(test.want, names); diff != "" {
			t.Errorf("jobs of each machine (-want +got):\n%s", diff)
		}
	}
}

func TestReadDoctor(t *testing.T) {
	for _, test := range []struct {
		name, missing string
		outcome       outcome
		want          string // the error
	}{
		{"traces", "", outcome{ended: true, output: []string{`{"tier":"fentry"}`}}, ""},
		{"does not", "", outcome{ended: true, exit: 3, output: []string{"no BTF"}}, "exit code 3, want 0:\n  no BTF"},
		{"was not run", "", outcome{}, "did not end"},
		{"is no JSON", "", outcome{ended: true, output: []string{"tier"}}, "invalid character"},
		{"says nothing", "", outcome{ended: true}, "unexpected end"},
		{"refuses", "too old", outcome{ended: true, exit: 3}, ""},
		{"traces, but should not", "too old", outcome{ended: true}, "exit code 0, want 3"},
		{"crashes", "too old", outcome{ended: true, exit: 2}, "exit code 2, want 3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, err := readDoctor(&test.outcome, test.missing)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if (d != nil) != (test.want == "" && test.missing == "") {
				t.Errorf("doctor %+v", d)
			}
		})
	}
}
