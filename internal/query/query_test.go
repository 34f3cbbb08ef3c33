package query

import (
	"github.com/porthole-dev/porthole/tracer"

	"errors"
	"math"
	"strings"
	"testing"
)

func TestParseLimit(t *testing.T) {
	for in, want := range map[string]int{"0": 0, "1": 1, "2147483647": math.MaxInt32} {
		if got, err := parseLimit([]string{in}); err != nil || got != want {
			t.Errorf("%s: %d, %v", in, got, err)
		}
	}
	if got, err := parseLimit(nil); err != nil || got != Unlimited {
		t.Errorf("none: %d, %v", got, err)
	}
	for _, bad := range [][]string{{"-1"}, {"2147483648"}, {"x"}, {""}, {"1.5"}, {"1", "2"}} {
		var wrong *Wrong
		if _, err := parseLimit(bad); !errors.As(err, &wrong) || !wrong.Param || !strings.Contains(err.Error(), "limit") {
			t.Errorf("%q: error %v, want one of who asks that begins with the name", bad, err)
		}
	}
}

// What is asked through a request is what was asked.
func TestValuesOfQuestions(t *testing.T) {
	given := Values{"port": {"80", "443"}, "comm": {"a,b", `"`}, "netns": {"host"}}
	sockets, err := ParseSockets(given)
	if err != nil {
		t.Fatal(err)
	}
	events, err := ParseEvents(Values{"event": {"bind"}, "verbose": {"true"}})
	if err != nil || !events.Verbose {
		t.Fatalf("verbose is not read: %v", err)
	}
	headroom, err := ParseHeadroom(Values{"to": {"192.0.2.1:443"}})
	if err != nil {
		t.Fatal(err)
	}
	towards, err := headroom.Values(true)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := headroom.Values(false) // another machine has other namespaces
	if err != nil {
		t.Fatal(err)
	}
	port := Port{Number: 53, Protos: []tracer.Proto{tracer.UDP}, Limit: 7}
	for name, test := range map[string]struct {
		values Values
		want   string
	}{
		"sockets":  {sockets.Values(), `comm=%22a%2Cb%22&comm=%22%22%22%22&netns=host&port=80&port=443`},
		"events":   {events.Values(), "event=bind&verbose=true"},
		"headroom": {towards, "netns=" + towards["netns"][0] + "&to=192.0.2.1%3A443"},
		"far":      {elsewhere, "to=192.0.2.1%3A443"},
		"port":     {port.Values(), "limit=7&proto=udp"},
	} {
		if got := Encode(test.values).Encode(); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
	if again, err := ParsePort("53", port.Values()); err != nil || again.Number != 53 || len(again.Protos) != 1 || again.Limit != 7 {
		t.Errorf("port: read again %+v, %v", again, err)
	}
}
