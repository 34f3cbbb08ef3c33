package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// twoLinks makes two devices with the same link-local address.
func twoLinks(t *testing.T) {
	t.Helper()
	commands := "link add left type veth peer name right\n"
	for _, dev := range []string{"left", "right"} {
		commands += fmt.Sprintf("link set %[1]s addrgenmode none\nlink set %[1]s up\naddr add fe80::1/64 dev %[1]s nodad\n", dev)
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
}

// with opens a socket, TCP listening, after a system call on it.
func with(t *testing.T, network, addr string, control func(fd int) error) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = control(int(fd)) }), err)
	}}
	config.SetMultipathTCP(false)
	if strings.HasPrefix(network, "udp") {
		c, err := config.ListenPacket(context.Background(), network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return
	}
	l, err := config.Listen(context.Background(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func plain(int) error { return nil }

func on(dev string) func(int) error {
	return func(fd int) error {
		return syscall.SetsockoptString(fd, syscall.SOL_SOCKET, syscall.SO_BINDTODEVICE, dev)
	}
}

// What decides whether sockets can have the same port is shown, by commands that ask the
// kernel and by an agent that may not enter their namespace.
func TestKernelConflictFacts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	agentProcess(t, socket) // in the namespace of the machine
	ns := fmt.Sprint(testutil.NewNetNS(t))
	twoLinks(t)
	tail, err := overUnix(socket).Get("http://porthole/v1/events?event=bind&netns=" + ns)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Body.Close()
	for _, dev := range []string{"left", "right"} {
		with(t, "tcp6", "[fe80::1%"+dev+"]:7001", plain)
		with(t, "udp4", "0.0.0.0:7002", on(dev))
	}
	with(t, "tcp", ":7003", plain)
	with(t, "tcp6", "[::]:7004", plain)
	events := bufio.NewReader(tail.Body)
	for _, want := range []string{
		`"local_ip":"fe80::1","local_port":7001,"device":"left","scope":"left",`, `"local_ip":"0.0.0.0","local_port":7002,"device":"left",`,
		`"local_ip":"fe80::1","local_port":7001,"device":"right","scope":"right",`, `"local_ip":"0.0.0.0","local_port":7002,"device":"right",`,
	} {
		if line, err := events.ReadString('\n'); err != nil || !strings.Contains(line, want) {
			t.Errorf("%v, %s\nwant %s in it", err, line, want)
		}
	}
	conflictFacts(t, ns)
	conflictFacts(t, ns, "--agent", "--socket", socket)
}

func conflictFacts(t *testing.T, ns string, from ...string) {
	t.Helper()
	out, errs, code := command(t, append([]string{"ls", "--netns", ns}, from...)...)
	var got []string
	for _, line := range strings.Split(strings.TrimSpace(out), "\n")[1:] {
		got = append(got, strings.Fields(line)[2])
	}
	slices.Sort(got)
	want := []string{"*:7003", "0.0.0.0%left:7002", "0.0.0.0%right:7002", "[::]:7004", "[fe80::1%left]:7001", "[fe80::1%right]:7001"}
	if d := gocmp.Diff(want, got); d != "" || code != exitDone {
		t.Errorf("ls: exit code %d, %s, -want +got:\n%s", code, errs, d)
	}
	out, _, _ = command(t, append([]string{"ls", "--json", "--netns", ns}, from...)...)
	got = nil
	for line := range strings.Lines(out) {
		var s render.Socket
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d device %q scope %q v6_only %t reuse_addr %t", s.LocalIP, s.LocalPort, s.Device, s.Scope, s.V6Only, s.ReuseAddr))
	}
	slices.Sort(got)
	want = []string{
		`0.0.0.0 7002 device "left" scope "" v6_only false reuse_addr false`, `0.0.0.0 7002 device "right" scope "" v6_only false reuse_addr false`,
		`:: 7003 device "" scope "" v6_only false reuse_addr true`, `:: 7004 device "" scope "" v6_only true reuse_addr true`,
		`fe80::1 7001 device "left" scope "left" v6_only true reuse_addr true`, `fe80::1 7001 device "right" scope "right" v6_only true reuse_addr true`,
	}
	if d := gocmp.Diff(want, got); d != "" {
		t.Errorf("ls --json, -want +got:\n%s", d)
	}
	for port, want := range map[string][]string{
		"7001": {"listens on [fe80::1%left]:7001", "listens on [fe80::1%right]:7001"}, "7002": {"is bound to 0.0.0.0%left:7002", "is bound to 0.0.0.0%right:7002"},
		"7003": {"listens on *:7003 (IPv4 and IPv6)"}, "7004": {"listens on [::]:7004 (IPv6 only)"},
	} {
		out, errs, code := command(t, append([]string{"who", port}, from...)...)
		for _, part := range want {
			if !strings.Contains(out, part) || code != exitDone {
				t.Errorf("who %s: exit code %d, %s%s\nwant %q in it", port, code, out, errs, part)
			}
		}
	}
}

// A link-local destination is one of each device.
func TestKernelHeadroomScopes(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "40000 40063")
	twoLinks(t)
	for _, dev := range []string{"left", "right"} {
		with(t, "tcp6", "[fe80::1%"+dev+"]:9000", plain)
	}
	for range 3 {
		c, err := net.Dial("tcp", "[fe80::1%left]:9000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for to, used := range map[string]int{"[fe80::1%left]:9000": 3, "[fe80::1]%left:9000": 3, "[fe80::1]:9000%left": 3, "[fe80::1%right]:9000": 0} {
		rows := headroomRows(t, "--to", to)
		if len(rows) != 1 || rows[0].Used != used || rows[0].Free != 64-used || rows[0].LocalIP.String() != "fe80::1" || !strings.Contains(to, rows[0].Device) || rows[0].Scope == "" {
			t.Errorf("--to %s: %+v, want %d used", to, rows, used)
		}
	}
	if rows := headroomRows(t, "--to", "[fe80::1%left]:9000", "--from", "fe80::1%left"); len(rows) != 1 || rows[0].Used != 3 {
		t.Errorf("with --from: %+v, want 3 used", rows)
	}
	rows := headroomRows(t, "--netns", ns, "--op", "connect", "--rport", "9000")
	if len(rows) != 1 || rows[0].Used != 3 || rows[0].Device != "left" {
		t.Errorf("all destinations: %+v, want one, on left, with 3 used", rows)
	}
	out, _, _ := command(t, "headroom", "--netns", ns)
	if !strings.Contains(out, " [fe80::1%left]:9000 ") {
		t.Errorf("text: %s", out)
	}
	for _, c := range []struct{ line, want string }{
		{"--to [fe80::1%none]:9000", `no such network device: "none"`},
		{"--to [fe80::1]:9000", "--to: [fe80::1]:9000: want the device of a link-local address too"},
		{"--to [fe80::1%left]:9000 --from fe80::1%right", `--from: device "right": the destination is on "left"`},
	} {
		out, errs, code := command(t, append([]string{"headroom"}, strings.Fields(c.line)...)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("headroom %s: exit code %d, %s%s\nwant %d and %q", c.line, code, out, errs, exitUsage, c.want)
		}
	}
}
