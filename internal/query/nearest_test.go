package query

import (
	"slices"
	"strings"
	"testing"
)

func TestMeant(t *testing.T) {
	words := []string{"tail", "ls", "who", "headroom", "LISTEN", "TIME-WAIT"}
	for in, want := range map[string]string{
		"tial": "tail", "head": "headroom", "whoo": "who", "listne": "LISTEN", "TIMEWAIT": "TIME-WAIT", "l": "", "x": "", "banana": "", "": "",
	} {
		if want != "" {
			want = "; did you mean " + want + "?"
		}
		if got := Meant(in, words); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := Meant(strings.Repeat("x", 300), words); got != "" {
		t.Errorf("a long word: %q", got)
	}
}

// A port filter takes numbers, ranges and names of services.
func TestFilterPorts(t *testing.T) {
	f := filterOf(t, "--lport 80-82 --lport 443 --lport ssh --rport 1-65535")
	if want := []uint16{22, 80, 81, 82, 443}; !slices.Equal(f.lport, want) || len(f.rport) != 65535 {
		t.Errorf("%v, want %v; %d of --rport", f.lport, want, len(f.rport))
	}
	for _, bad := range []string{"0-5", "80-", "-80", "1-65536", "no-such-service", ""} {
		if _, err := ParseFilter(OfSockets, Values{"lport": {bad}}); err == nil || !strings.Contains(err.Error(), "1 to 65535") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
