package identity

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRanges(t *testing.T) {
	for in, want := range map[string][]portRange{
		"":                   nil,
		"8080":               {{8080, 8080}},
		"8080,9000-9010":     {{8080, 8080}, {9000, 9010}},
		"1-65535":            {{1, 65535}},
		"0-5":                {{0, 5}},
		"50000-50000,50002,": {{50000, 50000}, {50002, 50002}},
	} {
		got, err := parseRanges(in)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(portRange{})); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got):\n%s", in, err, d)
		}
	}
	for _, in := range []string{"x", "1-", "-1", "1-2-3", "65536", "1 2", "1-65536"} {
		if got, err := parseRanges(in); err == nil || !strings.Contains(err.Error(), in) {
			t.Errorf("%q: %v, error %v; want an error that names it", in, got, err)
		}
	}
}

func FuzzParseRanges(f *testing.F) {
	f.Add("8080,9000-9010")
	f.Fuzz(func(t *testing.T, s string) {
		ranges, err := parseRanges(s)
		if err == nil && len(ranges) > strings.Count(s, ",")+1 {
			t.Errorf("%q has %d ranges", s, len(ranges))
		}
	})
}
