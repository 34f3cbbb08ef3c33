package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// outcome is what a job printed and how it ended.
type outcome struct {
	ended   bool
	exit    int
	seconds float64
	output  []string // lines
}

func (o *outcome) text() string { return strings.Join(o.output, "\n") }

// tally is the result of the tests of a tier.
type tally struct {
	run, passed int
	skipped     []string // of each test its name and the reason
	seconds     float64
	failures    []string
}

func (t *tally) fail(format string, args ...any) {
	t.failures = append(t.failures, fmt.Sprintf(format, args...))
}

// resultLine is how a test or a subtest reports its end.
var resultLine = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) \([0-9.]+s\)$`)

// results returns how each test and subtest ended, PASS, FAIL or SKIP.
func results(output []string) map[string]string {
	ends := make(map[string]string)
	for _, line := range output {
		if m := resultLine.FindStringSubmatch(line); m != nil {
			ends[m[2]] = m[1]
		}
	}
	return ends
}

// count adds the outcome of a suite's job: every test must have passed, but for
// what the kernel lacks, which must have been skipped.
func (t *tally) count(k kernel, in tier, s suite, o *outcome) {
	t.run += len(s.tests)
	t.seconds += o.seconds
	before := len(t.failures)
	ends := results(o.output)
	var silent []string
	for _, test := range s.tests {
		end, ok := ends[test]
		if !ok {
			silent = append(silent, test)
			continue
		}
		if end == "PASS" {
			t.passed++
		}
		t.check(k, in, test, end, o)
	}
	for _, sub := range slices.Sorted(maps.Keys(ends)) {
		if strings.Contains(sub, "/") && ends[sub] != "FAIL" { // that is its test's failure too
			t.check(k, in, sub, ends[sub], o)
		}
	}
	tail := func() string { return indent(lastLines(o.text(), 40)) }
	switch {
	case !o.ended:
		t.fail("%s did not end, %d tests have no result:\n%s", s.name(), len(silent), tail())
	case len(silent) > 0:
		t.fail("%s has no result of %s:\n%s", s.name(), strings.Join(silent, ", "), tail())
	case o.exit != 0 && len(t.failures) == before:
		t.fail("%s exited with %d:\n%s", s.name(), o.exit, tail())
	}
}

// check looks at how one test or subtest ended.
func (t *tally) check(k kernel, in tier, test, end string, o *outcome) {
	lack := k.lack(in, test)
	switch {
	case end == "SKIP" && lack != nil:
		t.skipped = append(t.skipped, test+": "+lack.reason)
	case lack != nil:
		t.fail("%s ended with %s, but is said to skip: %s", test, end, lack.reason)
	case end != "PASS":
		t.fail("%s\n%s", test, indent(excerpt(o.output, test)))
	}
}

// stale adds a failure for each thing a kernel lacks by the table that nothing
// was skipped for.
func (t *tally) stale(k kernel, in tier, suites []suite) {
	for _, l := range k.lacks {
		top, _, _ := strings.Cut(l.test, "/")
		runs := slices.ContainsFunc(suites, func(s suite) bool { return slices.Contains(s.tests, top) })
		skips := slices.ContainsFunc(t.skipped, func(s string) bool {
			name, _, _ := strings.Cut(s, ":")
			return l.covers(name)
		})
		if runs && l.in(in) && !skips {
			t.fail("%s did not skip, but is said to: %s", l.test, l.reason)
		}
	}
}

// excerpt is what was printed between the start of a test, which may be a
// subtest, and that of the next one.
func excerpt(output []string, test string) string {
	start := slices.IndexFunc(output, func(line string) bool { return line == "=== RUN   "+test })
	if start < 0 {
		return "it did not start"
	}
	lines := output[start:]
	if end := slices.IndexFunc(lines[1:], func(line string) bool {
		return strings.HasPrefix(line, "=== RUN ") && !strings.HasPrefix(line, "=== RUN   "+test+"/")
	}); end >= 0 {
		lines = lines[:end+1]
	}
	return firstLines(strings.Join(lines, "\n"), 40)
}
