package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// headroomRows runs headroom --json.
func headroomRows(t *testing.T, args ...string) []render.Headroom {
	t.Helper()
	out, errs, code := command(t, append([]string{"headroom", "--json"}, args...)...)
	if code != exitDone || errs != "" {
		t.Fatalf("headroom %q: exit code %d, stderr %q", args, code, errs)
	}
	var rows []render.Headroom
	for line := range strings.Lines(out) {
		var row render.Headroom
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		rows = append(rows, row)
	}
	return rows
}

// smallRange gives the namespace 64 ephemeral ports and a server outside of them.
func smallRange(t *testing.T) (ns string, server *net.TCPAddr) {
	t.Helper()
	ns = fmt.Sprint(testutil.NewNetNS(t))
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "40000 40063")
	testutil.WriteSysctl(t, "ipv4/ip_local_reserved_ports", "40060-40070")
	testutil.WriteSysctl(t, "ipv4/tcp_tw_reuse", "0")
	return ns, listen(t, "127.0.0.1:9000")
}

func dial(t *testing.T, addr *net.TCPAddr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestKernelHeadroom(t *testing.T) {
	ns, server := smallRange(t)
	thief := listen(t, "127.0.0.1:40010") // before a client could have the port
	for range 3 {
		dial(t, server)
	}
	rows := headroomRows(t, "--netns", ns, "--op", "connect", "--rport", "9000")
	self := []render.PortUser{{Comm: comm(t), PID: uint32(os.Getpid()), Ports: 3}}
	want := render.Headroom{
		NetNS: rows[0].NetNS, Cookie: rows[0].Cookie, Proto: "tcp", Op: "connect",
		LocalIP: netip.MustParseAddr("127.0.0.1"), RemoteIP: netip.MustParseAddr("127.0.0.1"), RemotePort: 9000,
		RangeLow: 40000, RangeHigh: 40063, Reserved: 4, ReservedPorts: "40060-40070", Capacity: 60, Used: 3, Blocked: 1, Free: 56,
		Utilization: 0.0667, Holders: self, BlockedBy: []render.PortUser{{Comm: comm(t), PID: uint32(os.Getpid()), Ports: 1}},
		ListenOn: []uint16{uint16(thief.Port)},
	}
	if d := cmp.Diff([]render.Headroom{want}, rows, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("headroom --json (-want +got):\n%s", d)
	}
	out, errs, code := command(t, "headroom", "--netns", ns)
	for _, want := range []string{
		"ephemeral ports 40000-40063, 4 of them reserved\n", fmt.Sprintf("tcp: 59 free for a new destination, 1 blocked: %s (pid %d) 1\n", comm(t), os.Getpid()),
		"udp: 60 free, none used\n", "127.0.0.1:9000", "ip_local_reserved_ports=40010,40060-40070",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("headroom: want %q in\n%s", want, out)
		}
	}
	if code != exitDone || errs != "" {
		t.Errorf("headroom: exit code %d, stderr %q", code, errs)
	}
}

// comm is this process's name as the kernel has it.
func comm(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// A destination without a connection is answered by the route to it.
func TestKernelHeadroomTo(t *testing.T) {
	_, server := smallRange(t)
	dial(t, server)
	for to, want := range map[string]struct {
		from string
		used int
	}{"127.0.0.1:9000": {"127.0.0.1", 1}, "127.0.0.1:9001": {"127.0.0.1", 0}, "127.0.0.7:9000": {"127.0.0.1", 0}, "[::1]:9000": {"::1", 0}} {
		rows := headroomRows(t, "--to", to)
		if len(rows) != 1 || rows[0].LocalIP.String() != want.from || rows[0].Used != want.used || rows[0].Free != 60-want.used {
			t.Errorf("--to %s: %+v, want from %s, %d used", to, rows, want.from, want.used)
		}
	}
	if rows := headroomRows(t, "--to", "127.0.0.1:9000", "--from", "127.0.0.2"); len(rows) != 1 || rows[0].Used != 0 || rows[0].LocalIP.String() != "127.0.0.2" {
		t.Errorf("--from: %+v", rows)
	}
	for _, c := range []struct{ line, want string }{
		{"--to 192.0.2.1:80", "no route to 192.0.2.1"},
		{"--to 127.0.0.1:80 --from 10.1.2.3", "no route from 10.1.2.3 to 127.0.0.1"},
		{"--to nowhere", `--to: "nowhere": want an address and a port`},
		{"--to 127.0.0.1:70000", `"127.0.0.1:70000"`},
		{"--from 127.0.0.1", "--from: wants to"},
		{"--netns 4026539999", "no such network namespace: inode number 4026539999"},
		{"--netns 4026539999 --to 127.0.0.1:80", "no such network namespace"},
		{"--netns no-such", `network namespace "no-such"`},
		{"--top -1", "--top: -1"},
		{"--rport 0", `--rport: port "0"`},
	} {
		out, errs, code := command(t, append([]string{"headroom"}, strings.Fields(c.line)...)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit code %d, %q, stderr %q, want %q in it", c.line, code, out, errs, c.want)
		}
	}
}

// The namespace of another process, that no name leads to.
func TestKernelHeadroomToElsewhere(t *testing.T) {
	own := fmt.Sprint(testutil.NewNetNS(t))
	var rows []render.Headroom
	elsewhere(t, func() { rows = headroomRows(t, "--netns", own, "--to", "127.0.0.1:80") })
	if len(rows) != 1 || rows[0].LocalIP.String() != "127.0.0.1" {
		t.Errorf("headroom of a namespace found by its number: %+v", rows)
	}
}

// elsewhere runs f on a thread that is in the namespace the tests were started in.
func elsewhere(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// A sysctl that changes counts from the next answer on.
func TestKernelHeadroomSysctl(t *testing.T) {
	ns, server := smallRange(t)
	dial(t, server)
	for _, c := range []struct {
		name, value string
		capacity    int
	}{
		{"ip_local_port_range", "40000 40009", 10}, {"ip_local_reserved_ports", "40001", 9}, {"ip_local_reserved_ports", "\n", 10},
		{"ip_local_port_range", "50000 50001", 2},
	} {
		testutil.WriteSysctl(t, "ipv4/"+c.name, c.value)
		for _, row := range headroomRows(t, "--netns", ns) {
			if row.Capacity != c.capacity || row.Used+row.Blocked+row.Free != row.Capacity || row.Free < 0 {
				t.Errorf("%s = %q: %+v, want a capacity of %d", c.name, c.value, row, c.capacity)
			}
		}
	}
}

// holders matches who has ports: of those in TIME_WAIT the agent alone knows it.
var holders = regexp.MustCompile(`"holders":\[[^]]*\]|(?m: +PID COMM .*$|% .*$)`)

// Through the agent the answer is the same, but that it knows who left TIME_WAIT.
func TestKernelHeadroomAgent(t *testing.T) {
	ns, server := smallRange(t)
	dial(t, server)
	socket, _ := startAgent(t)
	dial(t, server).Close() // the agent sees its end
	for _, line := range []string{"--netns " + ns + " --op connect", "--netns " + ns + " --json", "--to 127.0.0.1:9001"} {
		args := append([]string{"headroom"}, strings.Fields(line)...)
		want, _, _ := command(t, args...)
		got, errs, code := command(t, append(args, "--agent", "--socket", socket)...)
		if code != exitDone || errs != "" {
			t.Errorf("%s: exit code %d, stderr %q", line, code, errs)
		}
		if d := cmp.Diff(holders.ReplaceAllString(want, ""), holders.ReplaceAllString(got, "")); d != "" {
			t.Errorf("%s (-own +agent):\n%s", line, d)
		}
	}
	for deadline := time.Now().Add(patience); ; { // its server side is not closed: FIN_WAIT2
		rows := headroomRows(t, "--to", "127.0.0.1:9000", "--agent", "--socket", socket)
		if len(rows) == 1 && rows[0].Used == 2 && rows[0].TimeWait == 1 {
			if len(rows[0].Holders) != 1 || rows[0].Holders[0].Ports != 2 || int(rows[0].Holders[0].PID) != os.Getpid() {
				t.Errorf("holders %+v, want this process with both, that in TIME_WAIT too", rows[0].Holders)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no connection in TIME_WAIT: %+v", rows)
		}
	}
	for path, want := range map[string]string{
		"/v1/headroom?to=nowhere":                       `to: \"nowhere\": want an address and a port`,
		"/v1/headroom?to=127.0.0.1:70000":               "70000",
		"/v1/headroom?netns=4026539999":                 "no such network namespace",
		"/v1/headroom?netns=" + ns + "&to=192.0.2.1:80": "no route",
		"/v1/headroom?state=LISTEN":                     `parameter \"state\"`,
		"/v1/headroom?from=127.0.0.1":                   "from: wants to",
		"/v1/headroom?to=1.2.3.4:5&to=:::":              "want one",
	} {
		code, body := get(t, socket, "GET", path)
		var refused struct{ Error string }
		if err := json.Unmarshal([]byte(body), &refused); err != nil || code != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s, want 400 and %q", path, code, body, want)
		}
	}
}
