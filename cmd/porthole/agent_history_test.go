package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// Who had a port is told after it is free again.
func TestKernelAgentHistory(t *testing.T) {
	ns := testutil.NewNetNS(t)
	socket, _ := startAgent(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	var row render.Tenancy
	for row.Until.IsZero() { // until the close has come through
		code, body := get(t, socket, "GET", fmt.Sprintf("/v1/history?port=%d", port))
		if code != 200 || body != "" && json.Unmarshal([]byte(body), &row) != nil {
			t.Fatalf("history: %d %s", code, body)
		}
	}
	if row.NetNS != ns || int(row.PID) != os.Getpid() || row.DurationNS <= 0 || row.Since.Add(-1).After(row.Until.Time) {
		t.Errorf("history: %+v", row)
	}
	out, errs, code := command(t, "who", fmt.Sprint(port), "--agent", "--socket", socket)
	want := fmt.Sprintf("\npreviously:\n  %s (pid %d, user root) on 127.0.0.1 (tcp)", row.Comm, row.PID)
	if code != exitNo || errs != "" || !strings.Contains(out, want) {
		t.Errorf("who: exit code %d, stderr %q, %q, want %q in it", code, errs, out, want)
	}
	var answer render.Port
	out, _, _ = command(t, "who", fmt.Sprint(port), "--json", "--agent", "--socket", socket)
	if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.History) != 1 || answer.History[0].PID != row.PID {
		t.Errorf("who --json: %v, %s", err, out)
	}
}
