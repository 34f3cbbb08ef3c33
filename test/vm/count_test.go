package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// old lacks a test in each tier, and a subtest in one.
var old = kernel{name: "5.10", arch: "amd64", lacks: []lack{
	{test: "TestKernelRing", reason: "no ring"},
	{test: "TestKernelBind/IPv6", tier: "fentry", reason: "no bind6"},
}}

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }

const passed = `
=== RUN   TestKernelBind
=== RUN   TestKernelBind/IPv6
=== RUN   TestKernelListen
--- PASS: TestKernelBind (1.20s)
    --- PASS: TestKernelBind/IPv6 (0.20s)
--- PASS: TestKernelListen (0.00s)
PASS`

func TestCount(t *testing.T) {
	all := suite{"x/tracer", []string{"TestKernelBind", "TestKernelListen"}}
	ring := suite{"x/tracer", []string{"TestKernelRing"}}
	for _, test := range []struct {
		name           string
		kernel         kernel
		suite          suite
		output         string
		exit           int
		cut            bool // the machine ended before the job
		passed         int
		skipped, fails []string // what each begins with
	}{
		{name: "all pass", suite: all, output: passed, passed: 2},
		{name: "none ran", suite: all, cut: true, fails: []string{"tracer did not end, 2 tests"}},
		{name: "one did not run", suite: all, output: "--- PASS: TestKernelBind (0.10s)\nPASS", passed: 1,
			fails: []string{"tracer has no result of TestKernelListen:"}},
		{name: "panic", suite: all, exit: 2, output: "=== RUN   TestKernelBind\n--- PASS: TestKernelBind (0.10s)\npanic: oh", passed: 1,
			fails: []string{"tracer has no result of TestKernelListen:"}},
		{name: "failure", suite: all, exit: 1, output: "=== RUN   TestKernelBind\n    x.go:1: no\n--- FAIL: TestKernelBind (0.10s)\n--- PASS: TestKernelListen (0.10s)", passed: 1,
			fails: []string{"TestKernelBind\n  === RUN   TestKernelBind\n      x.go:1: no\n  --- FAIL"}},
		{name: "subtest failed", suite: all, exit: 1, output: strings.NewReplacer("PASS: TestKernelBind", "FAIL: TestKernelBind").Replace(passed), passed: 1,
			fails: []string{"TestKernelBind\n"}},
		{name: "skip without reason", suite: all, output: strings.Replace(passed, "PASS: TestKernelListen", "SKIP: TestKernelListen", 1), passed: 1,
			fails: []string{"TestKernelListen\n"}},
		{name: "subtest skipped without reason", suite: all, output: strings.Replace(passed, "PASS: TestKernelBind/", "SKIP: TestKernelBind/", 1), passed: 2,
			fails: []string{"TestKernelBind/IPv6\n"}},
		{name: "passes and exits with 66", suite: all, output: passed, exit: 66, passed: 2, fails: []string{"tracer exited with 66"}},
		{name: "cut at the end", suite: all, output: passed, cut: true, passed: 2, fails: []string{"tracer did not end, 0 tests"}},
		{name: "lacks a test", kernel: old, suite: ring, output: "--- SKIP: TestKernelRing (0.00s)", skipped: []string{"TestKernelRing: no ring"}},
		{name: "lacks a test that passes", kernel: old, suite: ring, output: "--- PASS: TestKernelRing (0.00s)", passed: 1,
			fails: []string{"TestKernelRing ended with PASS, but", "TestKernelRing did not skip"}},
		{name: "lacks a subtest", kernel: old, suite: all, output: strings.Replace(passed, "PASS: TestKernelBind/", "SKIP: TestKernelBind/", 1), passed: 2,
			skipped: []string{"TestKernelBind/IPv6: no bind6"}},
		{name: "lacks a subtest that did not run", kernel: old, suite: all, output: strings.Replace(passed, "    --- PASS: TestKernelBind/IPv6", "    bind", 1), passed: 2,
			fails: []string{"TestKernelBind/IPv6 did not skip"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := &tally{}
			got.count(test.kernel, "fentry", test.suite, &outcome{ended: !test.cut, exit: test.exit, output: lines(test.output)})
			got.stale(test.kernel, "fentry", []suite{test.suite})
			if got.run != len(test.suite.tests) || got.passed != test.passed {
				t.Errorf("%d of %d passed, want %d of %d", got.passed, got.run, test.passed, len(test.suite.tests))
			}
			begin(t, "skipped", test.skipped, got.skipped)
			begin(t, "failures", test.fails, got.failures)
		})
	}
}

// begin fails the test unless every text begins with the one wanted.
func begin(t *testing.T, what string, want, got []string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := range min(len(got), len(want)) {
		ok = ok && strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		t.Errorf("%s (-want +got):\n%s", what, cmp.Diff(want, got))
	}
}

func TestLack(t *testing.T) {
	for _, test := range []struct {
		tier tier
		test string
		want string
	}{
		{"fentry", "TestKernelRing", "no ring"},
		{"tracepoint", "TestKernelRing", "no ring"},
		{"tracepoint", "TestKernelRing/sub", "no ring"},
		{"fentry", "TestKernelRingSize", ""},
		{"fentry", "TestKernelBind", ""},
		{"fentry", "TestKernelBind/IPv6", "no bind6"},
		{"fentry", "TestKernelBind/IPv6/reuse", "no bind6"},
		{"tracepoint", "TestKernelBind/IPv6", ""},
	} {
		got := ""
		if l := old.lack(test.tier, test.test); l != nil {
			got = l.reason
		}
		if got != test.want {
			t.Errorf("%s in %s: %q, want %q", test.test, test.tier, got, test.want)
		}
	}
}

func TestKernelTrouble(t *testing.T) {
	for _, test := range []struct {
		name, console, want string
	}{
		{"healthy", "[    0.0] Linux version 6.1\n[    1.0] reboot: Power down\n", ""},
		{"oops", "[    1.0] fine\n[    2.0] BUG: kernel NULL pointer dereference\n[    2.0] RIP: 0010:x\n",
			"[    2.0] BUG: kernel NULL pointer dereference\n[    2.0] RIP: 0010:x"},
		{"panic at the start", "Kernel panic - not syncing", "Kernel panic - not syncing"},
		{"warning", "[    2.0] WARNING: CPU: 0 PID: 1 at net/x.c:1\n", "[    2.0] WARNING: CPU: 0 PID: 1 at net/x.c:1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, kernelTrouble(test.console)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
