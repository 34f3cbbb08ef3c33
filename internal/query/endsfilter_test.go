package query

import (
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil/handmade"
	"github.com/porthole-dev/porthole/tracer"
)

// A socket passes by either of its ends, whose address, port, protocol and device all must match.
func TestFilterEnds(t *testing.T) {
	conn := handmade.Socket(hostNS, tracer.TCP, tracer.RoleClient, "10.1.2.3:40000", "192.0.2.1:443")
	any := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "0.0.0.0:443", "")
	dns := handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "127.0.0.53:53", "")
	dns.Device = 7
	local := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "[fe80::1]:80", "")
	local.Device = 7
	for _, c := range []struct {
		line string
		want []*tracer.Socket
	}{
		{"--end 443", []*tracer.Socket{&conn, &any}},
		{"--end 192.0.2.1:443", []*tracer.Socket{&conn}},
		{"--end 10.1.2.3:443", nil}, // the address of one end, the port of the other
		{"--end 10.1.2.3:1-65535", []*tracer.Socket{&conn}},
		{"--end 443/udp", nil},
		{"--end 53,80", []*tracer.Socket{&dns, &local}},
		{"--end 127.0.0.53%lan:53", []*tracer.Socket{&dns}},
		{"--end 127.0.0.53%wan:53", nil},
		{"--end 0.0.0.0:443", []*tracer.Socket{&any}},
		{"--addr 192.0.2.1", []*tracer.Socket{&conn}},
		{"--addr 10.0.0.0/8", []*tracer.Socket{&conn}},
		{"--addr ::ffff:10.0.0.0/104", []*tracer.Socket{&conn}},
		{"--addr 0.0.0.0/0", []*tracer.Socket{&conn, &any, &dns}},
		{"--addr 0.0.0.0", []*tracer.Socket{&any}},
		{"--addr fe80::/10", []*tracer.Socket{&local}},
		{"--addr fe80::1%lan", []*tracer.Socket{&local}},
		{"--addr [fe80::1%wan]", nil},
		{"--addr 127.0.0.53,192.0.2.0/24 --end 443", []*tracer.Socket{&conn}},
	} {
		f := filterOf(t, c.line)
		f.NameDevices(func(tracer.DeviceID) string { return "lan" })
		var got []*tracer.Socket
		for _, s := range []*tracer.Socket{&conn, &any, &dns, &local} {
			if f.Socket(noCgroups(), s) {
				got = append(got, s)
			}
			ev := tracer.Event{Proto: s.Proto, Local: s.Local, Remote: s.Remote, NetNS: hostNS, Device: s.Device}
			if f.Event(noCgroups(), &ev) != f.Socket(noCgroups(), s) {
				t.Errorf("%s: an event of %v %v is not as the socket", c.line, s.Local, s.Remote)
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: %d pass, want %d", c.line, len(got), len(c.want))
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: %v passes, want %v", c.line, got[i].Local, c.want[i].Local)
			}
		}
	}
	for name, values := range map[string][]string{
		"addr": {"nope", "10.0.0.0/33", "::ffff:10.0.0.0/90", "10.0.0", "/8"}, "end": {"nope", "example.com:80", "90-80"},
		"since": {"soon", "-1h", "0s", "1w", "-3d"},
	} {
		for _, value := range values {
			if _, err := ParseFilter(OfSockets, Values{name: {value}}); err == nil {
				t.Errorf("--%s %s is taken", name, value)
			}
		}
	}
}

// Only what took its port within the time passes; where that is not known it is counted, if all else
// matches.
func TestSocketsSince(t *testing.T) {
	q, err := ParseSockets(Values{"since": {"1d"}, "lport": {"80"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Locate(nil); err != nil {
		t.Fatal(err)
	}
	at := func(port string, age time.Duration) bool {
		s := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "0.0.0.0:"+port, "")
		s.Since = time.Time{}
		if age > 0 {
			s.Since = time.Now().Add(-age)
		}
		return q.Socket(noCgroups(), &s)
	}
	if !at("80", 23*time.Hour) || at("80", 25*time.Hour) || at("80", 0) || at("81", 0) || at("81", time.Minute) {
		t.Error("other sockets pass")
	}
	if q.Undated() != 1 {
		t.Errorf("%d sockets of an unknown time, want 1", q.Undated())
	}
	if _, err := ParseSockets(Values{"since": {"1h", "2h"}}); err == nil {
		t.Error("two times are taken")
	}
}
