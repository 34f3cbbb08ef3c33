package query

import (
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/testutil/handmade"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	hostNS  = 4026531840
	otherNS = 4026532000
)

// noCgroups names none.
func noCgroups() *identity.Cgroups { return identity.NewCgroups("") }

// filterOf is the filter of a command line.
func filterOf(t *testing.T, line string) *Filter {
	t.Helper()
	values := make(url.Values)
	words := strings.Fields(strings.ReplaceAll(line, "--", ""))
	for ; len(words) > 1; words = words[2:] {
		values.Add(words[0], words[1])
	}
	given, err := Decode(values)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	f, err := ParseFilter(OfSockets|OfEvents, given)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	there := identity.FixedNetNSNames(hostNS, map[identity.NetNS]string{{Inode: otherNS}: "blue", {Inode: 8}: "4026532000"})
	if err := f.Locate(there); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return f
}

// filtered are the sockets that TestMatchSocket looks for, by a short name.
func filtered() map[string]tracer.Socket {
	web := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "0.0.0.0:80", "", handmade.HeldBy(handmade.Process(10, 0, "nginx"), handmade.Process(11, 33, "worker"))...)
	dns := handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "127.0.0.53:53", "", handmade.HeldBy(handmade.Process(20, 101, "resolved"))...)
	dns.NetNS = otherNS
	out := handmade.Socket(hostNS, tracer.TCP, tracer.RoleClient, "10.0.0.1:40000", "10.0.0.2:80", handmade.HeldBy(handmade.Process(30, 1000, "curl"))...)
	in := handmade.Socket(hostNS, tracer.TCP, tracer.RoleServer, "10.0.0.1:80", "10.0.0.3:53", handmade.HeldBy(handmade.Process(11, 33, "worker"))...)
	gone := handmade.Socket(hostNS, tracer.TCP, tracer.RoleTimeWait, "10.0.0.1:40001", "10.0.0.2:443") // uid 0, as nobody's
	return map[string]tracer.Socket{"web": web, "dns": dns, "out": out, "in": in, "gone": gone}
}

func TestMatchSocket(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"", "dns gone in out web"},
		{"--port 80", "in out web"}, // either side
		{"--port 53", "dns in"},
		{"--port 80,443", "gone in out web"},
		{"--port 80 --port 443", "gone in out web"},
		{"--lport 80", "in web"},
		{"--rport 80", "out"},
		{"--lport 80 --rport 53", "in"},
		{"--port 80 --rport 53", "in"},
		{"--lport 80 --rport 80", ""},
		{"--proto udp", "dns"},
		{"--proto TCP", "gone in out web"},
		{"--proto tcp,udp", "dns gone in out web"},
		{"--state listen", "web"},
		{"--state LISTENING", "web"},
		{"--state established,time_wait", "gone in out"},
		{"--state Time-Wait", "gone"},
		{"--state unconn", "dns"},
		{"--role client,Server", "in out"},
		{"--role time_wait", "gone"},
		{"--pid 11", "in web"}, // any holder
		{"--comm worker", "in web"},
		{"--comm nginx,curl", "out web"},
		{"--comm NGINX", ""}, // names of processes have a case
		{"--comm ngin", ""},
		{"--pid 10 --comm worker", ""}, // but all of one
		{"--pid 11 --comm worker", "in web"},
		{"--uid 0", "web"}, // not TIME_WAIT, which nobody owns
		{"--uid 33,1000", "in out"},
		{"--netns blue", "dns"},
		{"--netns 8,blue", "dns"},
		{"--netns host", "gone in out web"},
		{"--netns 4026532000", ""}, // that is the name of another
		{"--proto tcp --port 80 --pid 11 --role listener", "web"},
		{"--container 0123", ""},
	} {
		f := filterOf(t, test.line)
		var got []string
		for name, s := range filtered() {
			if f.Socket(noCgroups(), &s) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(strings.Fields(test.want), got) {
			t.Errorf("%q passes %q, want %q", test.line, got, test.want)
		}
	}
}

func TestMatchEvent(t *testing.T) {
	bind := tracer.Event{Type: tracer.EventBind, Proto: tracer.UDP, Local: netip.MustParseAddrPort("0.0.0.0:53"), NetNS: otherNS, Process: handmade.Process(20, 101, "resolved")}
	connect := tracer.Event{
		Type: tracer.EventConnect, Proto: tracer.TCP, NetNS: hostNS, Process: handmade.Process(30, 0, "curl"),
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:80"),
	}
	closed := connect // by nobody known
	closed.Type, closed.Process = tracer.EventClose, tracer.Process{}
	events := map[string]tracer.Event{"bind": bind, "connect": connect, "close": closed}
	for _, test := range []struct{ line, want string }{
		{"", "bind close connect"},
		{"--event bind,CONNECT", "bind connect"},
		{"--event listen", ""},
		{"--port 80", "close connect"},
		{"--port 53,40000", "bind close connect"},
		{"--lport 40000 --event close", "close"},
		{"--rport 80", "close connect"},
		{"--rport 40000", ""},
		{"--proto udp", "bind"},
		{"--pid 30", "connect"},
		{"--pid 30 --pid 20", "bind connect"},
		{"--uid 0", "connect"}, // not the event of a process that is not known
		{"--comm curl,resolved", "bind connect"},
		{"--comm Curl", ""},
		{"--pid 30 --comm resolved", ""},
		{"--netns blue", "bind"},
		{"--container abc", ""},
	} {
		f := filterOf(t, test.line)
		var got []string
		for name, ev := range events {
			if f.Event(noCgroups(), &ev) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(strings.Fields(test.want), got) {
			t.Errorf("%q passes %q, want %q", test.line, got, test.want)
		}
	}
}

func TestParseState(t *testing.T) {
	for in, want := range map[string]tracer.State{
		"ESTAB": tracer.StateEstablished, "established": tracer.StateEstablished, "listening": tracer.StateListen,
		"fin_wait_1": tracer.StateFinWait1, "Fin-Wait-2": tracer.StateFinWait2, "last-ack": tracer.StateLastAck,
	} {
		if got, err := parseState(in); err != nil || got != want {
			t.Errorf("%q is %s, %v; want %s", in, got, err, want)
		}
	}
	for _, want := range tracer.States() {
		if got, err := parseState(want.String()); err != nil || got != want {
			t.Errorf("%q is %s, %v", want, got, err)
		}
	}
}

// The filters that ls has of ss(8).
func TestLikeSS(t *testing.T) {
	six := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "[::]:80", "")
	peer := handmade.Socket(hostNS, tracer.UDP, tracer.RoleClient, "10.0.0.1:5000", "10.0.0.2:53")
	for _, test := range []struct{ line, want string }{
		{"", "dns gone in out peer six web"},
		{"--tcp true", "gone in out six web"},
		{"--tcp false", "dns gone in out peer six web"},
		{"--udp true", "dns peer"},
		{"--tcp true --udp true", "dns gone in out peer six web"},
		{"--tcp true --proto udp", ""},
		{"--listening true", "dns six web"},
		{"--listening true --udp true", "dns"},
		{"--ipv6 true", "six"},
		{"--ipv4 true --listening true", "dns web"},
		{"--ipv4 true --ipv6 true", "dns gone in out peer six web"},
	} {
		all := filtered()
		all["six"], all["peer"] = six, peer
		f := filterOf(t, test.line)
		var got []string
		for name, s := range all {
			if f.Socket(noCgroups(), &s) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(strings.Fields(test.want), got) {
			t.Errorf("%q passes %q, want %q", test.line, got, test.want)
		}
	}
}

// What a query says is what was meant, commas and all.
func TestValues(t *testing.T) {
	values := map[string][]string{"comm": {"a,b", `"c"`, "", " d ", "&=%"}, "port": {"80", "443"}}
	got, err := Decode(Encode(values))
	if d := cmp.Diff(values, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if got, err = Decode(url.Values{"port": {"80,443", "53"}}); err != nil || !slices.Equal(got["port"], []string{"80", "443", "53"}) {
		t.Errorf("with commas: %q, %v", got, err)
	}
	for _, bad := range []string{"", `"80`, `8"0`} {
		if got, err := Decode(url.Values{"port": {bad}}); err == nil || !strings.Contains(err.Error(), "port") {
			t.Errorf("%q: %q, error %v; want one that names the parameter", bad, got, err)
		}
	}
}

// However many values a filter has, in whatever order, each of them passes and no other;
// more than there may be are refused, by name and number.
func TestManyValues(t *testing.T) {
	list := func(n, step int) (out []string) {
		for i := range n {
			out = append(out, strconv.Itoa((i*7919%n)*step+step)) // in no order
		}
		return out
	}
	for _, n := range []int{1, 8, 9, 1000} {
		f, err := ParseFilter(OfEvents, map[string][]string{"lport": list(n, 2), "pid": list(n, 3), "comm": list(n, 5)})
		if err != nil {
			t.Fatal(err)
		}
		for port := 1; port <= 2*n+3; port++ {
			pid, comm := min(3*((port+1)/2), 3*n), strconv.Itoa(min(5*((port+1)/2), 5*n))
			ev := tracer.Event{Type: tracer.EventBind, Local: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port)), Process: tracer.Process{PID: uint32(pid), Comm: comm}}
			if got, want := f.Event(noCgroups(), &ev), port%2 == 0 && port <= 2*n; got != want {
				t.Errorf("%d values: port %d passes: %t, want %t", n, port, got, want)
			}
		}
	}
	for name, n := range map[string]int{"lport": 1001, "comm": 5000, "container": 101} {
		_, err := ParseFilter(OfEvents, map[string][]string{name: list(n, 1)})
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), strconv.Itoa(n)+" values") {
			t.Errorf("%d values of %s: error %v", n, name, err)
		}
	}
}

func TestParseUnknown(t *testing.T) {
	for _, name := range []string{"event", "nope"} {
		if _, err := ParseFilter(OfSockets, map[string][]string{name: {"bind"}}); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "lport") {
			t.Errorf("%s: error %v, want one that names it and what there is", name, err)
		}
	}
}
