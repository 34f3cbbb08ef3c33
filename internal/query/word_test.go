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
		"http": {Port: 80, Protos: both}, "SSH/tcp": {Port: 22, Protos: tcp}, "127.0.0.1:domain/udp": {Addr: four, Port: 53, Protos: udp},
	} {
		got, err := ParseEndWord(in)
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got):\n%s", in, err, d)
		}
	}
	for _, in := range []string{"", ":", "0", "65536", "-1", "80/sctp", "80/", "/tcp", "1.2.3:80", "no-such-service", "::1", "80:", "8 0"} {
		var wrong *Wrong
		if got, err := ParseEndWord(in); !errors.As(err, &wrong) {
			t.Errorf("%q: %+v, %v; want it refused", in, got, err)
		}
	}
}
