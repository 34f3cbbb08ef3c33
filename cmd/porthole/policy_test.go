package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// What init writes allows what listens; what it does not have is told with who it is, from the kernel and
// from an agent, and a UDP socket whose port the kernel picked is none.
func TestPolicyOfKernel(t *testing.T) {
	ns := testutil.NewNetNS(t)
	listen := func(addr string) uint16 {
		t.Helper()
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return uint16(l.Addr().(*net.TCPAddr).Port)
	}
	for _, addr := range []string{"127.0.0.1:53", "127.0.0.1:0"} {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	port := listen("127.0.0.1:0")
	file := filepath.Join(t.TempDir(), "policy.yml")
	out, errs, code := command(t, "policy", "init", "--local")
	if code != exitDone || !strings.Contains(out, fmt.Sprintf("port: %d\n", port)) {
		t.Fatalf("init: exit code %d, %s\n%s", code, errs, out)
	}
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, _ := startAgent(t)
	second := listen("127.0.0.2:0")
	for _, from := range [][]string{{"--local"}, {"--agent", "--socket", socket}} {
		// Other tests listen meanwhile, and the agent on the machine.
		var mine []violation
		out, errs, code := command(t, append([]string{"policy", "check", "--json", file}, from...)...)
		for line := range strings.Lines(out) {
			var v violation
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatal(err)
			}
			if v.Socket.NetNS == ns {
				mine = append(mine, v)
			}
		}
		if code != exitNo || len(mine) != 1 || mine[0].Socket.LocalPort != second || mine[0].Rule != "none" || mine[0].Exposure != "local" || len(mine[0].Stop) != 1 {
			t.Errorf("check %v: exit code %d, %s\n%+v", from, code, errs, mine)
		}
		out, errs, code = command(t, append([]string{"policy", "check", file}, from...)...)
		want := fmt.Sprintf("%d/tcp on 127.0.0.2, local: not allowed: no rule has the port\n", second)
		if code != exitNo || !strings.Contains(out, want) || strings.Contains(out, fmt.Sprintf("%d/tcp on 127.0.0.1,", port)) {
			t.Errorf("check %v: exit code %d, %s\n%s", from, code, errs, out)
		}
	}
}

func TestPolicyWrong(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policy.yml")
	if err := os.WriteFile(file, []byte("allow:\n  - proto: tcp\n    prot: 80\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs, code := command(t, "policy", "check", file)
	if code != exitUsage || !strings.Contains(errs, "line 3: field prot: there is no such field") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if _, _, code := command(t, "policy", "check", file+".gone"); code != exitCant {
		t.Errorf("of a file that is not there: exit code %d", code)
	}
}
