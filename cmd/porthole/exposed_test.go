package main

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// What listens on every address of a namespace that nobody can reach is not exposed, until somebody
// can; the agent says the same.
func TestKernelExposed(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	socket, _ := startAgent(t)
	exposed := func() (listed []bool) {
		t.Helper()
		for _, more := range [][]string{{"--local"}, {"--agent", "--socket", socket}} {
			out, errs, code := command(t, append([]string{"ls", "--exposed", "--json", "--netns", ns}, more...)...)
			if code != exitDone {
				t.Fatalf("ls --exposed %v: exit code %d, %s", more, code, errs)
			}
			listed = append(listed, strings.Count(out, "\n") == 1)
		}
		return listed
	}
	if got := exposed(); got[0] || got[1] {
		t.Errorf("with loopback alone exposed, as the kernel and as an agent says: %v", got)
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		t.Fatal(err)
	}
	if got := exposed(); !got[0] || !got[1] {
		t.Errorf("with a device that is up not exposed, as the kernel and as an agent says: %v", got)
	}
}
