//go:build systemd

package systemd

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// capabilityNames are those that occur here, by number.
var capabilityNames = map[int]string{
	0: "cap_chown", 2: "cap_dac_read_search", 12: "cap_net_admin", 38: "cap_perfmon", 39: "cap_bpf",
}

// capabilities are those of one set of a process.
func capabilities(t *testing.T, pid, set string) string {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), set+":")
	line, _, _ := strings.Cut(rest, "\n")
	bits, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		t.Fatalf("%s of process %s: %v", set, pid, err)
	}
	var names []string
	for i := range 64 {
		if bits&(1<<i) == 0 {
			continue
		}
		name := capabilityNames[i]
		if name == "" {
			name = strconv.Itoa(i)
		}
		names = append(names, name)
	}
	return strings.Join(names, ",")
}
