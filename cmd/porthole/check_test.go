package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// checked is the answer of check --json about a bind().
func checked(t *testing.T, args ...string) (a bindAnswer, code int) {
	t.Helper()
	out, errs, code := command(t, append([]string{"check", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &a); err != nil || errs != "" {
		t.Fatalf("check %v: %v, stderr %q, %q", args, err, errs, out)
	}
	return a, code
}

// A port that is free, one that is taken on some address, and an address that is not here.
func TestKernelCheckBind(t *testing.T) {
	ns := testutil.NewNetNS(t)
	port := fmt.Sprint(listen(t, "127.0.0.1:0").Port)
	for _, c := range []struct {
		args     string
		err      string
		inTheWay int
	}{
		{port, "EADDRINUSE", 1}, {port + " --reuseaddr", "EADDRINUSE", 1}, {port + "/udp", "", 0}, {":" + port, "EADDRINUSE", 1},
		{"127.0.0.2:" + port, "", 0}, {port + " --addr 127.0.0.1", "EADDRINUSE", 1}, {port + " --addr ::1", "", 0},
		{port + " --addr 192.0.2.1", "EADDRNOTAVAIL", 0}, {"[2001:db8::1]:" + port, "EADDRNOTAVAIL", 0}, {"http", "", 0},
	} {
		a, code := checked(t, strings.Fields(c.args)...)
		if a.Error != c.err || a.OK != (c.err == "") || code != count(!a.OK) || len(a.InTheWay) != c.inTheWay || a.NetNS != ns {
			t.Errorf("check %s: exit code %d, %+v", c.args, code, a)
		}
	}
	out, _, code := command(t, "check", port)
	if code != exitNo || !strings.Contains(out, "would fail: address already in use") || !strings.Contains(out, "127.0.0.1:"+port) ||
		!strings.Contains(out, "inside the ephemeral range 32768-60999") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	testutil.WriteSysctl(t, "ipv4/ip_unprivileged_port_start", "2000")
	if a, _ := checked(t, "1999"); !a.OK || !a.Privileged {
		t.Errorf("root and port 1999: %+v", a)
	}
	out, errs, code := asNobody(t, []string{"CAP_BPF", "CAP_PERFMON"}, "check", "1999")
	if code != exitNo || !strings.Contains(out, "ports below 2000 take CAP_NET_BIND_SERVICE") {
		t.Errorf("nobody and port 1999: exit code %d, %q, stderr %q", code, out, errs)
	}
}

// A namespace is asked about from another.
func TestKernelCheckNetNS(t *testing.T) {
	port := make(chan int)
	done := make(chan struct{})
	inode := make(chan uint32, 1)
	go func() {
		defer close(port)
		inode <- testutil.NewNetNS(t)
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		port <- l.Addr().(*net.TCPAddr).Port
		<-done
	}()
	ns := fmt.Sprint(<-inode)
	defer close(done)
	p := fmt.Sprint(<-port)
	testutil.NewNetNS(t)
	if a, code := checked(t, p, "--netns", ns); a.Error != "EADDRINUSE" || code != exitNo || fmt.Sprint(a.NetNS) != ns {
		t.Errorf("there: exit code %d, %+v", code, a)
	}
	if a, code := checked(t, p); !a.OK || code != exitDone {
		t.Errorf("here: exit code %d, %+v", code, a)
	}
	if out, errs, code := command(t, "check", "127.0.0.1", p, "--netns", ns); code != exitDone || errs != "" || !strings.Contains(out, "connected from 127.0.0.1:") {
		t.Errorf("connect there: exit code %d, %q, stderr %q", code, out, errs)
	}
}

// A connection that works, and the reasons why one does not.
func TestKernelCheckConnect(t *testing.T) {
	testutil.NewNetNS(t)
	port := listen(t, "127.0.0.1:0").Port
	connect := func(host string, port int, more ...string) (a connectAnswer, text string) {
		args := append([]string{"check", host, fmt.Sprint(port)}, more...)
		out, errs, code := command(t, append(slices.Clone(args), "--json")...)
		if err := json.Unmarshal([]byte(out), &a); err != nil || errs != "" || code != count(!a.OK) {
			t.Fatalf("%v: exit code %d, %v, stderr %q, %s", args, code, err, errs, out)
		}
		text, _, _ = command(t, args...)
		return a, text
	}
	a, text := connect("127.0.0.1", port)
	if !a.OK || a.LocalIP != netip.MustParseAddr("127.0.0.1") || a.LocalPort == 0 || a.DurationNS <= 0 || !strings.Contains(text, ": connected from 127.0.0.1:") {
		t.Errorf("%+v\n%s", a, text)
	}
	if a, text = connect("127.0.0.2", port); a.Error != "ECONNREFUSED" || !a.ToHere || len(a.Listeners) != 1 || !strings.Contains(text, "127.0.0.1:") {
		t.Errorf("refused, with a listener on another address: %+v\n%s", a, text)
	}
	if a, text = connect("127.0.0.1", 1); a.Error != "ECONNREFUSED" || len(a.Listeners) != 0 || !strings.Contains(text, "nothing listens on port 1") {
		t.Errorf("refused: %+v\n%s", a, text)
	}
	if a, text = connect("192.0.2.1", port); a.Error != "ENETUNREACH" || a.ToHere || !strings.Contains(text, "no route") {
		t.Errorf("without a route: %+v\n%s", a, text)
	}
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "20000 20001")
	for range 2 {
		dial(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	}
	if a, text = connect("127.0.0.1", port); a.Error != "EADDRNOTAVAIL" || a.Headroom == nil || a.Headroom.Capacity != 2 || a.Headroom.Free != 0 || !strings.Contains(text, "20000-20001") {
		t.Errorf("without a port left: %+v\n%s", a, text)
	}
}

// A device that is not there is an error of every command, and every failure of a connection has
// words; only what is this machine's own is called so.
func TestKernelCheckReasons(t *testing.T) {
	testutil.NewNetNS(t)
	for _, c := range []struct {
		args, want, not string
		code            int
	}{
		{"check 127.0.0.1%nodev:80", "no device nodev (ENODEV)", "", exitNo}, {"check 127.0.0.1%lo:80", "would succeed", "", exitDone},
		{"wait 127.0.0.1%nodev:80 --timeout 0", "network device nodev: no such device", "", exitUsage},
		{"free --hold --addr 127.0.0.1%nodev -- true", "network device nodev: no such device", "", exitUsage},
		{"check fe80::1 80", "a link-local address needs its device: fe80::1%eth0 (EINVAL)", "", exitNo},
		{"check fe80::1%nodev 80", "no such device (ENODEV)", "", exitNo},
		{"check 127.255.255.255 80", "ENETUNREACH", "address of this machine", exitNo}, {"check 224.0.0.1 80", "ENETUNREACH", "address of this machine", exitNo},
		{"check x\x1b[31m 80", `look up "x\x1b[31m": `, "\x1b", exitCant},
	} {
		out, errs, code := command(t, strings.Fields(c.args)...)
		if text := out + errs; code != c.code || !strings.Contains(text, c.want) || c.not != "" && strings.Contains(text, c.not) {
			t.Errorf("%q: exit code %d, %q, stderr %q", c.args, code, out, errs)
		}
	}
}

// The first of several words is a host where it is an address, even if it could be one with a port.
func TestHostAndPorts(t *testing.T) {
	for in, want := range map[string]string{
		"8080": "", "8080 9090": "", "127.0.0.1:8080": "", "db 5432": "db", "127.0.0.1 80 443": "127.0.0.1",
		"2001:db8::1 8443": "2001:db8::1", "2001:db8::1:80 8443": "2001:db8::1:80", "2001:db8::1:80": "", "http 9090": "http",
		"https://db": "db", "localhost:80": "",
	} {
		args := strings.Fields(in)
		host, words := hostAndPorts(args)
		if host != want || want == "" && len(words) != len(args) {
			t.Errorf("%q: %q, %q, want %q", in, host, words, want)
		}
	}
}
