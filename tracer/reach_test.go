package tracer_test

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// A namespace can be reached once a device other than loopback is up in it.
func TestReach(t *testing.T) {
	inode := testutil.NewNetNS(t)
	s, err := tracer.NewSnapshotter(tracer.ReadsPorts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.NetNamespaces()
	if err != nil {
		t.Fatal(err)
	}
	var own tracer.NetNS
	for _, ns := range all {
		if ns.Inode == inode {
			own = ns // the last is the newest
		}
	}
	reachable := func() bool {
		t.Helper()
		r, err := s.Reach()
		if err != nil {
			t.Fatal(err)
		}
		if r.Host.Inode == 0 || r.Host == own || !r.FromOutside(tracer.NetNS{Inode: 1}) {
			t.Errorf("the machine's own namespace is %+v, this one %+v", r.Host, own)
		}
		return r.FromOutside(own)
	}
	if reachable() {
		t.Error("a namespace with loopback alone can be reached")
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	if reachable() {
		t.Error("a namespace whose device is down can be reached")
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		t.Fatal(err)
	}
	if !reachable() {
		t.Error("a namespace with a device that is up cannot be reached")
	}
}
