package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// Whoever holds accepted connections is named where nobody listens any more, and the range is
// that of the namespace: by who itself, and by an agent elsewhere.
func TestKernelWhoElsewhere(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	agentProcess(t, socket)
	testutil.NewNetNS(t)
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "18080 18081")
	l, err := net.Listen("tcp", "127.0.0.1:18081")
	if err != nil {
		t.Fatal(err)
	}
	client := dial(t, l.Addr().(*net.TCPAddr)) // has the other port
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if got := client.LocalAddr().(*net.TCPAddr).Port; got != 18080 {
		t.Fatalf("port %d, want 18080", got)
	}
	l.Close()
	for _, from := range [][]string{nil, {"--agent", "--socket", socket}} {
		var out, errs string
		var code int
		elsewhere(t, func() { out, errs, code = command(t, append([]string{"who", "18081"}, from...)...) })
		for _, want := range []string{
			"18081/tcp  nothing listens, but there is 1 accepted connection\n",
			fmt.Sprintf("  accepted connections without a listener: %s (pid %d, user root)\n", comm(t), os.Getpid()),
			"  inside the ephemeral range 18080-18081 of network namespace ",
		} {
			if !strings.Contains(out, want) || code != exitDone {
				t.Errorf("who %q: exit code %d, %s%s\nwant %q in it", from, code, out, errs, want)
			}
		}
		elsewhere(t, func() { out, _, _ = command(t, append([]string{"who", "18080", "--json"}, from...)...) })
		if !strings.Contains(out, `"range_low":18080,"range_high":18081`) {
			t.Errorf("who --json %q: %s\nwant the range of the namespace", from, out)
		}
	}
}
