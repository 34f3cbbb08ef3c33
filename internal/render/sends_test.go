package render

import (
	"net/netip"
	"testing"
)

// A rule of NAT is told with all that decides whether it applies.
func TestForwardSends(t *testing.T) {
	addr := netip.MustParseAddr("192.0.2.1")
	for want, f := range map[string]Forward{
		"nftables sends connections to port 80, chain c":                                         {By: "nftables", Port: 80, Chain: "c"},
		"nftables sends what is sent from here to 192.0.2.1:80-89, from some addresses, chain c": {By: "nftables", From: "here", IP: addr, Port: 80, PortLast: 89, When: []string{"source"}, Chain: "c"},
		"iptables sends what comes from outside for 192.0.2.1 to port 80, through some devices, chain c, one of several at random": {
			By: "iptables", From: "outside", LocalIPs: []netip.Addr{addr}, Port: 80, When: []string{"random", "device"}, Chain: "c",
		},
	} {
		if got := f.Sends("connections"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
