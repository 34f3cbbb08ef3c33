package query

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/porthole-dev/porthole/tracer"
)

func TestParseEndWord(t *testing.T) {
	both, tcp, udp := protos(), []tracer.Proto{tracer.TCP}, []tracer.Proto{tracer.UDP}
	four, six := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	for in, want := range map[string]End{
		"8080": {Port: 8080, Protos: both}, ":8080": {Port: 8080, Protos: both}, "*:8080": {Port: 8080, Protos: both},
		"127.0.0.1:8080": {Addr: four, Port: 8080, Protos: both}, "[::1]:8080": {Addr: six, Port: 8080, Protos: both},
		"[::ffff:127.0.0.1]:1/tcp": {Addr: four, Port: 1, Protos: tcp},
		"fe80::1%eth0:53/udp":      {Addr: netip.MustParseAddr("fe80::1"), Device: "eth0", Port: 53, Protos: udp},
		"tcp/8080":                 {Port: 8080, Protos: tcp}, "udp/53": {Port: 53, Protos: udp}, "53/UDP": {Port: 53, Protos: udp},
		"0008080": {Port: 8080, Protos: both}, "tcp:8080": {Port: 8080, Protos: tcp}, "UDP:53": {Port: 53, Protos: udp},
		"localhost:80": {Localhost: true, Port: 80, Protos: both}, "db-1.example.com:5432": {Host: "db-1.example.com", Port: 5432, Protos: both},
		":::8080":                     {Addr: netip.IPv6Unspecified(), Port: 8080, Protos: both}, // netstat(8)
		"http://localhost:8080/x?y#z": {Localhost: true, Port: 8080, Protos: tcp}, "https://example.com": {Host: "example.com", Port: 443, Protos: tcp},
		"postgres://me:secret@[::1]:5433/db": {Addr: six, Port: 5433, Protos: tcp}, "postgres://db/x": {Host: "db", Port: 5432, Protos: tcp},
		"udp://127.0.0.1:53": {Addr: four, Port: 53, Protos: udp}, "redis://127.0.0.1": {Addr: four, Port: 6379, Protos: tcp},
		"http": {Port: 80, Protos: both}, "SSH/tcp": {Port: 22, Protos: tcp}, "127.0.0.1:domain/udp": {Addr: four, Port: 53, Protos: udp},
	} {
		got, err := ParseEndWord(in)
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got):\n%s", in, err, d)
		}
	}
	for _, in := range []string{"", ":", "0", "65536", "-1", "80/sctp", "80/", "/tcp", "1.2.3:80", "no-such-service", "::1", "80:", "8 0",
		"80-90", "nosuch://localhost/", "http://[::1/", "http://localhost:99999/", "tcp:", "a b:80", "80/tcp/udp"} {
		var wrong *Wrong
		if got, err := ParseEndWord(in); !errors.As(err, &wrong) {
			t.Errorf("%q: %+v, %v; want it refused", in, got, err)
		}
	}
}

// What is meant is told where it can be seen.
func TestParseEndWordSays(t *testing.T) {
	for in, want := range map[string]string{
		"::1":             `"::1": want a port after the address, as [::1]:8080`,
		"[2001:db8::1]":   `"[2001:db8::1]": want a port after the address, as [2001:db8::1]:8080`,
		"2001:db8::1/tcp": `"2001:db8::1/tcp": want a port after the address, as [2001:db8::1]:8080`,
		"fe80::a:b":       `"fe80::a:b": want a port after the address, as [fe80::a:b]:8080`,
		"::":              `"::": want a port after the address, as [::]:8080`,
		"8080:":           `"8080:": want the port after the colon, as :8080, or alone`,
		"80,443":          `"80,443": want several ports as words of their own, as 80 443`,
		"90-80":           `ports "90-80": want the smaller one first, as 80-90; before it an address if need be, and after it /tcp or /udp`,
	} {
		if _, err := ParseEndsWord(in); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

func TestParseEndsWord(t *testing.T) {
	tcp := []tracer.Proto{tracer.TCP}
	for in, want := range map[string]Ends{
		"80-90": {End{Port: 80, Protos: protos()}, 90}, "80": {End{Port: 80, Protos: protos()}, 80},
		"127.0.0.1:80-80/tcp": {End{Addr: netip.MustParseAddr("127.0.0.1"), Port: 80, Protos: tcp}, 80},
		"tcp/1-65535":         {End{Port: 1, Protos: tcp}, 65535}, "http-alt": {End{Port: 8080, Protos: protos()}, 8080},
	} {
		got, err := ParseEndsWord(in)
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got):\n%s", in, err, d)
		}
	}
	for _, in := range []string{"90-80", "0-80", "80-", "-80", "80-65536", "80-90-100"} {
		if got, err := ParseEndsWord(in); err == nil {
			t.Errorf("%q: %+v; want it refused", in, got)
		}
	}
}
