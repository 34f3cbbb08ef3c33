package render

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/tracer"
)

// historyNow is when it is read, in the zone that another test may have set.
func historyNow() time.Time { return time.Date(2026, 11, 28, 3, 30, 0, 0, time.Local) }

// owner is a process with a long name, in a pod with one.
func owner(pid uint32) *store.Process {
	return &store.Process{
		Process: tracer.Process{PID: pid, UID: 33, Comm: "systemd-resolve"},
		Args:    []string{"/usr/lib/x", "--flag"},
		Place:   identity.Cgroup{Pod: &identity.Pod{Namespace: "production-eu-1", Name: "checkout-api-7d9f8b6c5d-x2lqp"}},
	}
}

// pastRows are one of each kind.
func pastRows() []store.Row {
	long := netip.MustParseAddrPort("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535")
	at := historyNow().Add(-time.Hour)
	return []store.Row{
		{Kind: store.Holding, Proto: tracer.TCP, Role: tracer.RoleListener, Local: netip.MustParseAddrPort("0.0.0.0:5000"), Since: at, Owner: owner(4194304)},
		{Kind: store.Holding, Proto: tracer.UDP, Role: tracer.RoleBound, Local: long, Since: at.Add(-100 * time.Hour), SinceUnknown: true, Owner: owner(1)},
		{Kind: store.Held, Proto: tracer.TCP, Role: tracer.RoleClient, Local: long, Remote: long, Since: at, Until: at.Add(time.Minute), Took: time.Minute, Errno: 104, Owner: owner(7)},
		{Kind: store.Held, Proto: tracer.TCP, Role: tracer.RoleServer, Local: long, Remote: long, Since: at.Add(-time.Hour), Until: at.Add(-24 * time.Hour), SinceUnknown: true, UntilUnknown: true},
		{Kind: store.Held, Proto: tracer.TCP, Role: tracer.RoleListener, Local: long, Since: at, Until: at, Took: 1500 * time.Microsecond, About: true},
		{Kind: store.Refused, Proto: tracer.TCP, Local: long, Since: at, Until: at.AddDate(-1, 0, 0), Errno: 98, Event: tracer.EventBind, Owner: owner(8)},
		{Kind: store.Folded, Proto: tracer.TCP, Role: tracer.RoleClient, Local: netip.MustParseAddrPort("192.0.2.1:0"), Remote: long, Since: at, Until: at, Count: 1234567, Owner: owner(9)},
		{Kind: store.Folded, Proto: tracer.TCP, Local: netip.MustParseAddrPort("0.0.0.0:0"), Since: at, Until: at, Count: 5},
	}
}

// No line is longer than 80 columns, and each says what it is, and what of it is not known.
func TestHistoryText(t *testing.T) {
	n := Renderer{&identity.Names{}}
	var rows []Tenancy
	for _, r := range pastRows() {
		rows = append(rows, n.Past(&r))
	}
	var b strings.Builder
	if err := HistoryText(&b, Style{Width: 80}, rows, historyNow()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != len(rows)+1 {
		t.Fatalf("%d lines:\n%s", len(lines), b.String())
	}
	var whole strings.Builder
	if err := HistoryText(&whole, Style{}, rows, historyNow()); err != nil || strings.Contains(whole.String(), "…") {
		t.Errorf("into a file: %v\n%s", err, whole.String())
	}
	for i, want := range [][]string{
		{"UNTIL", "FOR", "PROTO", "WHAT", "PROCESS"},
		{"now", "1h0m", "tcp", "listen *:5000", "syst", "(4194304)"},
		{"now", ">4d5h", "udp", "bound [2001", "(1)"},
		{"02:31:00", "1m", "65535 to [2", "(7) ECONNRESET"},
		{"Nov 27 02:30:00?", ">", "65535 from [2", "?"},
		{"~02:30:00", "2ms", "listen [2001:"},
		{"2025-11-28 02:30", "EADDRINUSE", "bind [2001:", "(8)"},
		{"1234567x", "to [2001:", "(9)"},
		{"5x", "others"},
	} {
		if columnsOf([]byte(lines[i])) > 80 {
			t.Errorf("%d columns: %s", columnsOf([]byte(lines[i])), lines[i])
		}
		for _, word := range want {
			if !strings.Contains(lines[i], word) {
				t.Errorf("line %d: %q, want %q in it", i, lines[i], word)
			}
		}
	}
}

// What is not known is absent, and says so.
func TestPastJSON(t *testing.T) {
	n := Renderer{&identity.Names{}}
	keys := func(i int) map[string]any {
		row := n.Past(&pastRows()[i])
		var b bytes.Buffer
		if err := WriteJSON(&b, &row); err != nil {
			t.Fatal(err)
		}
		var out map[string]any
		if err := json.Unmarshal(b.Bytes(), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for i, c := range []struct{ has, lacks string }{
		{"since open role pod args", "until known_since until_known duration_ns folded event time"},
		{"known_since open", "since until duration_ns"},
		{"since until duration_ns error remote_ip", "open until_known"},
		{"known_since until until_known", "since open pid uid duration_ns"},
		{"until_about", "until_known"},
		{"time event error", "since until duration_ns open"},
		{"folded since until", "open"},
	} {
		got := keys(i)
		for _, k := range strings.Fields(c.has) {
			if _, ok := got[k]; !ok {
				t.Errorf("row %d: no %s: %v", i, k, got)
			}
		}
		for _, k := range strings.Fields(c.lacks) {
			if _, ok := got[k]; ok {
				t.Errorf("row %d: %s: %v", i, k, got)
			}
		}
	}
	if keys(3)["until_known"] != false {
		t.Error("until_known is not false")
	}
}
