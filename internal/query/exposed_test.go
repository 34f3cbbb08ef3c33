package query

import (
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil/handmade"
	"github.com/porthole-dev/porthole/tracer"
)

// Exposed is what waits for others than this machine: not a connection, and nothing of loopback, by
// address or by device.
func TestExposed(t *testing.T) {
	f := filterOf(t, "--exposed true")
	onLo := handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "0.0.0.0:80", "")
	onLo.Device = 1
	onEth := onLo
	onEth.Device = 2
	for _, c := range []struct {
		what string
		s    tracer.Socket
		want bool
	}{
		{"every IPv4 address", handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "0.0.0.0:80", ""), true},
		{"every address", handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "[::]:80", ""), true},
		{"one address", handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "192.0.2.1:53", ""), true},
		{"loopback", handmade.Socket(hostNS, tracer.TCP, tracer.RoleListener, "127.0.0.53:53", ""), false},
		{"IPv6 loopback", handmade.Socket(hostNS, tracer.UDP, tracer.RoleBound, "[::1]:53", ""), false},
		{"every address of lo", onLo, false},
		{"every address of eth0", onEth, true},
		{"a connection", handmade.Socket(hostNS, tracer.TCP, tracer.RoleServer, "192.0.2.1:80", "192.0.2.2:5000"), false},
		{"a TCP socket that does not listen", handmade.Socket(hostNS, tracer.TCP, tracer.RoleBound, "0.0.0.0:80", ""), false},
	} {
		if got := f.Socket(noCgroups(), &c.s); got != c.want {
			t.Errorf("%s: %t, want %t", c.what, got, c.want)
		}
	}
}
