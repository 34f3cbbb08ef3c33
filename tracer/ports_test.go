package tracer

import (
	"net/netip"
	"testing"
)

// boundRow is a TCP listener on a port of a namespace.
func boundRow(ns NetNS, port uint16, sock uint64) *bpfRow {
	row := &bpfRow{Sock: sock, Proto: uint8(TCP), State: uint8(StateListen)}
	row.Flow.LocalIp = netip.MustParseAddr("127.0.0.1").As16()
	row.Flow.LocalPort, row.Flow.Netns, row.Flow.NetnsCookie = port, ns.Inode, ns.Cookie
	return row
}

// The kernel gives the number of a namespace that is gone to the next, also while its
// tables are walked: what is of the one is not of the other.
func TestPortsOfOneNumber(t *testing.T) {
	gone, now := NetNS{5, 50}, NetNS{5, 51}
	p := newPorts()
	for _, ns := range []NetNS{gone, now} {
		p.addSpace(&bpfNetnsRow{Netns: ns.Inode, Cookie: ns.Cookie, Low: 40000, High: 40009})
	}
	for i, ns := range []NetNS{gone, gone, now, {5, 52}} { // the last was made after the namespaces were read
		p.addOwner(boundRow(ns, uint16(40000+i), uint64(i+1)), nil)
	}
	blocked := make(map[NetNS]int)
	for _, s := range p.Spaces() {
		if s.Proto == TCP {
			blocked[NetNS{s.NetNS, s.NetNSCookie}] = s.Blocked
		}
	}
	if len(blocked) != 2 || blocked[gone] != 2 || blocked[now] != 1 {
		t.Errorf("blocked ports by namespace: %v", blocked)
	}
	if all := p.NetNamespaces(); len(all) != 2 || all[1] != now {
		t.Errorf("namespaces %v, want %v last", all, now)
	}
	local := netip.MustParseAddr("127.0.0.1")
	h, err := p.Connect(5, local, netip.MustParseAddrPort("127.0.0.2:80"), 0)
	if err != nil || h.NetNSCookie != now.Cookie || h.Blocked != 1 || h.Free != 9 {
		t.Errorf("asked by its number: %+v, %v; want that of the namespace there is now", h, err)
	}
	if h, err := p.Bind(5, TCP, OpBind, local, 0); err != nil || h.Used != 1 {
		t.Errorf("asked by its number: %+v, %v; want that of the namespace there is now", h, err)
	}
}
