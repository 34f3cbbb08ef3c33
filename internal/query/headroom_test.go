package query

import (
	"errors"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

type params map[string][]string

func TestParseHeadroom(t *testing.T) {
	for _, v := range []params{
		{}, {"netns": {"host", "5"}, "proto": {"tcp"}, "op": {"bind", "connect"}, "rport": {"443"}, "comm": {"x"}, "pid": {"1"}},
		{"to": {"192.0.2.1:443"}}, {"to": {"[2001:db8::1]:443"}, "from": {"2001:db8::2"}, "netns": {"5"}},
		{"to": {"[::ffff:192.0.2.1]:443"}, "from": {"192.0.2.2"}},
		{"to": {"[fe80::1%eth0]:443"}}, {"to": {"[fe80::1]:443"}, "from": {"fe80::2%eth0"}}, {"to": {"192.0.2.1%eth0:443"}},
	} {
		if _, err := ParseHeadroom(v); err != nil {
			t.Errorf("%v: %v", v, err)
		}
	}
}

func TestParseHeadroomRefuses(t *testing.T) {
	for _, c := range []struct {
		v    params
		want string
	}{
		{params{"to": {"192.0.2.1"}}, `to: "192.0.2.1": want an address and a port`},
		{params{"to": {"192.0.2.1:0"}}, `to: "192.0.2.1:0": want an address and a port`},
		{params{"to": {"192.0.2.1:70000"}}, `to: "192.0.2.1:70000": want an address and a port`},
		{params{"to": {"0.0.0.0:80"}}, `to: "0.0.0.0:80": want an address and a port`},
		{params{"to": {"[fe80::1%]:80"}}, `to: "[fe80::1%]:80": want an address and a port`},
		{params{"to": {"[fe80::1]:80"}}, `to: [fe80::1]:80: want the device of a link-local address too`},
		{params{"to": {"[2001:db8::1]:80"}, "from": {"fe80::1"}}, `want the device of a link-local address too`},
		{params{"to": {"[fe80::2%a]:80"}, "from": {"fe80::1%b"}}, `from: device "b": the destination is on "a"`},
		{params{"to": {"host:80"}}, `to: "host:80": want an address and a port`},
		{params{"to": {"192.0.2.1:1", "192.0.2.1:2"}}, "want one"},
		{params{"to": {"192.0.2.1:1"}, "from": {"::1"}}, "want an address of the family of 192.0.2.1"},
		{params{"to": {"192.0.2.1:1"}, "from": {"x"}}, `from: "x": want an address`},
		{params{"from": {"192.0.2.1"}}, "from: wants to"},
		{params{"to": {"192.0.2.1:1"}, "proto": {"udp"}}, "proto: a destination has one answer"},
		{params{"to": {"192.0.2.1:1"}, "netns": {"1", "2"}}, "netns: "},
		{params{"rport": {"70000"}}, `rport: port "70000": want a number from 1 to 65535`},
		{params{"op": {"accept"}}, `op: "accept": want one of connect, bind, implicit_bind`},
		{params{"state": {"LISTEN"}}, `parameter "state": want one of`},
		{params{"netns": {"no/such"}}, `netns: network namespace "no/such": want host`},
	} {
		if _, err := ParseHeadroom(c.v); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q in it", c.v, err, c.want)
		}
	}
}

// A namespace that is not there, or not any more, is told.
func TestAnswerNoNetNS(t *testing.T) {
	there := identity.FixedNetNSNames(0, map[identity.NetNS]string{{Inode: 5, Cookie: 50}: "blue"})
	for _, c := range []struct {
		v    params
		want error
	}{
		{params{"netns": {"4"}}, identity.ErrNoNetNS},
		{params{"netns": {"red"}}, identity.ErrNoNetNS},
		{params{"netns": {"5"}}, tracer.ErrNoNetNS}, // went away since
		{params{"netns": {"blue"}}, tracer.ErrNoNetNS},
		{params{"netns": {"5"}, "to": {"192.0.2.1:443"}}, tracer.ErrNoNetNS},
	} {
		q, err := ParseHeadroom(c.v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := q.Answer(&tracer.Ports{}, &identity.Names{NetNS: there}); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.v, err, c.want)
		}
	}
}

func TestParseHeadroomOwnNetNS(t *testing.T) {
	q, err := ParseHeadroom(params{"to": {"192.0.2.1:443"}})
	if err != nil {
		t.Fatal(err)
	}
	own, err := identity.NetNSOfThread()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := q.among(&tracer.Ports{}); err != nil || len(got) != 1 || got[0] != own {
		t.Errorf("netns %d (%v), want that of this process, %d", got, err, own)
	}
}
