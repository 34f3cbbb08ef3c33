package render

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// space is the ports of a namespace, TCP.
func space(ns uint32, blocked int) tracer.PortSpace {
	return tracer.PortSpace{NetNS: ns, Proto: tracer.TCP, Low: 32768, High: 60999, Reserved: 2, Capacity: 28230, ReservedPorts: "40000,50000", Blocked: blocked}
}

func towards(s tracer.PortSpace, remote string, used, timeWait int, holders ...tracer.PortUser) tracer.Headroom {
	h := tracer.Headroom{
		PortSpace: s, Op: tracer.OpConnect, Used: used, TimeWait: timeWait, Free: s.Capacity - s.Blocked - used, Holders: holders,
	}
	if remote != "" {
		h.Local, h.Remote = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddrPort(remote)
	}
	return h
}

func portUser(comm string, pid uint32, ports int) tracer.PortUser {
	return tracer.PortUser{Process: tracer.Process{PID: pid, Comm: comm}, Ports: ports}
}

func implicitUDP(s tracer.PortSpace, used int) tracer.Headroom {
	s.Proto, s.Blocked, s.BlockedBy, s.ListenOn = tracer.UDP, 0, nil, nil
	return tracer.Headroom{PortSpace: s, Op: tracer.OpImplicitBind, Local: netip.IPv4Unspecified(), Used: used, Free: s.Capacity - used}
}

func headroomText(t *testing.T, n Renderer, style Style, top int, all ...tracer.Headroom) string {
	t.Helper()
	var out bytes.Buffer
	if err := n.HeadroomText(&out, style, n.Headrooms(all), top); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > terminal {
			t.Errorf("%d columns, want 80: %s", n, line)
		}
	}
	return out.String()
}

func TestHeadroomText(t *testing.T) {
	n := New(&identity.Names{NetNS: identity.FixedNetNSNames(1, map[identity.NetNS]string{{Inode: 2}: "blue"})})
	host := space(1, 3)
	host.BlockedBy = []tracer.PortUser{portUser("sshd", 12, 2), portUser("na\x1bme", 13, 1)}
	host.ListenOn = []uint16{35432}
	bind := towards(space(1, 0), "", 14213, 120)
	bind.Op, bind.Local = tracer.OpBind, netip.MustParseAddr("10.0.0.1")
	got := headroomText(t, n, Style{Width: terminal}, 20,
		bind, towards(host, "10.0.0.9:443", 14210, 120, portUser("nginx", 22, 14090), portUser("", 0, 120)),
		towards(host, "10.0.0.8:5432", 5, 0, portUser("app", 23, 5)), towards(host, "", 0, 0), implicitUDP(host, 7),
		towards(space(2, 0), "", 0, 0), implicitUDP(space(2, 0), 0))
	want := `host: ephemeral ports 32768-60999, 2 of them reserved
  tcp: 28227 free for a new destination, 3 blocked: sshd (pid 12) 2, "na\x1bme"
    (pid 13) 1
  udp: 28223 free, 7 used
  PROTO FROM     TO             USED TIMEWAIT  FREE FULL PID COMM     PORTS
  tcp   10.0.0.1 10.0.0.9:443  14210      120 14017  50%  22 nginx +1 14090
  tcp   10.0.0.1 bind(port 0)  14213      120 14017  50%   - -            -
  tcp   10.0.0.1 10.0.0.8:5432     5        0 28222   0%  23 app          5
  * 1 of these destinations is half full or more: connect() tries half of the
    range before it finds a port. Other addresses or ports, on either side, have
    a range of their own
  * services listen inside the range: when they restart, their port may be
    taken. To reserve it:
    sysctl -w net.ipv4.ip_local_reserved_ports=35432,40000,50000

1 more network namespace, where no ephemeral port is in use
`
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("text (-want +got):\n%s", d)
	}
}

func TestHeadroomTextTop(t *testing.T) {
	n := New(&identity.Names{NetNS: identity.FixedNetNSNames(1, nil)})
	all := []tracer.Headroom{towards(space(1, 0), "10.0.0.9:1", 3, 0), towards(space(1, 0), "10.0.0.9:2", 2, 0), towards(space(1, 0), "10.0.0.9:3", 1, 0)}
	for top, want := range map[int]string{0: "", 2: "and 1 more", 3: ""} {
		got := headroomText(t, n, Style{Width: terminal}, top, all...)
		if lines := strings.Count(got, "10.0.0.9"); top > 0 && lines != top || top == 0 && lines != 3 {
			t.Errorf("--top %d shows %d lines:\n%s", top, lines, got)
		}
		if strings.Contains(got, "and ") != (want != "") || !strings.Contains(got, want) {
			t.Errorf("--top %d: want %q in\n%s", top, want, got)
		}
	}
}

// Advice is given where it is true, and nowhere else.
func TestHeadroomAdvice(t *testing.T) {
	plain := space(1, 0)
	odd := plain
	odd.High--
	listening := space(1, 1)
	listening.ListenOn = []uint16{45000}
	waiting := towards(plain, "10.0.0.9:1", 300, 200)
	waiting.Reclaimable = 150
	for name, tc := range map[string]struct {
		h    tracer.Headroom
		want string
	}{
		"nothing":     {towards(plain, "10.0.0.9:1", 100, 0), ""},
		"half full":   {towards(plain, "10.0.0.9:1", 14115, 0), "half full or more"},
		"not half":    {towards(plain, "10.0.0.9:1", 14114, 0), ""},
		"odd":         {towards(odd, "10.0.0.9:1", 1, 0), `ip_local_port_range="32768 60997"`},
		"listens":     {towards(listening, "10.0.0.9:1", 1, 0), "ip_local_reserved_ports=40000,45000,50000"},
		"bound":       {towards(space(1, 300), "10.0.0.9:1", 1, 0), "300 ports are blocked"},
		"few bound":   {towards(space(1, 100), "10.0.0.9:1", 1, 0), ""},
		"reclaimable": {waiting, "tcp_tw_reuse=1 would free 150 ports"},
	} {
		rows := New(new(identity.Names)).Headrooms([]tracer.Headroom{tc.h})
		got := strings.Join(append(remedies(rows), advice(rows)...), "\n")
		if got != "" && tc.want == "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: advice %q, want %q", name, got, tc.want)
		}
	}
}

func TestHeadroomMaybeOneLess(t *testing.T) {
	n := New(&identity.Names{NetNS: identity.FixedNetNSNames(1, nil)})
	h := towards(space(1, 0), "10.0.0.9:1", 28000, 0)
	h.MaybeOneLess = true
	if got := headroomText(t, n, Style{Width: terminal}, 20, h); !strings.Contains(got, " 229 or 230 ") {
		t.Errorf("want both numbers in\n%s", got)
	}
}

func TestHeadroomBar(t *testing.T) {
	s := spaceText{style: Style{Width: 200}}
	for used, want := range map[int]string{
		0: "        ", 28230: "\u2588\u2588\u2588\u2588\u2588\u2588\u2588\u2588", 14115: "\u2588\u2588\u2588\u2588    ", 500: "\u258f       ", 3500: "\u2589       ",
	} {
		row := New(new(identity.Names)).Headrooms([]tracer.Headroom{towards(space(1, 0), "10.0.0.9:1", used, 0)})[0]
		if got := s.bar(&row); got != want {
			t.Errorf("%d used: %q, want %q", used, got, want)
		}
	}
}

// The keys are a contract, and what is read back is what was written.
func TestHeadroomJSON(t *testing.T) {
	h := towards(space(1, 3), "10.0.0.9:443", 10, 4, portUser("nginx", 22, 10))
	h.BlockedBy = []tracer.PortUser{portUser("sshd", 12, 3)}
	row := New(new(identity.Names)).Headrooms([]tracer.Headroom{h})[0]
	got, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"netns":1,"proto":"tcp","op":"connect","local_ip":"10.0.0.1","remote_ip":"10.0.0.9","remote_port":443,` +
		`"range_low":32768,"range_high":60999,"reserved":2,"capacity":28230,"used":10,"time_wait":4,"blocked":3,"free":28217,` +
		`"utilization":0.0005,"holders":[{"comm":"nginx","pid":22,"ports":10}],"blocked_by":[{"comm":"sshd","pid":12,"ports":3}],` +
		`"reserved_ports":"40000,50000"}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	var back Headroom
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(row, back, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("read back (-want +got):\n%s", d)
	}
}

// Where nothing is 1 % full three lines say so; whoever asks for lines gets them.
func TestHeadroomIdle(t *testing.T) {
	n := New(&identity.Names{NetNS: identity.FixedNetNSNames(1, nil)})
	host := space(1, 3)
	host.BlockedBy, host.ListenOn = []tracer.PortUser{portUser("a-service-with-a", 12, 2), portUser("another-service", 4194304, 1)}, []uint16{35432}
	rows := []tracer.Headroom{towards(host, "10.0.0.9:443", 20, 0, portUser("nginx", 22, 20)), towards(host, "", 0, 0), implicitUDP(host, 7)}
	if got := headroomText(t, n, Style{Width: terminal}, Busy, rows...); strings.Count(got, "\n") != 3 {
		t.Errorf("want three lines, got\n%s", got)
	}
	if got := headroomText(t, n, Style{Width: terminal}, 20, rows...); !strings.Contains(got, "10.0.0.9:443") {
		t.Errorf("--top 20 does not list the destination:\n%s", got)
	}
	rows[0].Used, rows[0].Free = 300, 27927
	if got := headroomText(t, n, Style{Width: terminal}, Busy, rows...); !strings.Contains(got, "10.0.0.9:443") {
		t.Errorf("a destination that is 1 %% full is not listed:\n%s", got)
	}
}

// The fullest comes first, of whatever protocol and namespace; connect() before bind() that is as full.
func TestHeadroomOrder(t *testing.T) {
	n := New(&identity.Names{NetNS: identity.FixedNetNSNames(1, map[identity.NetNS]string{{Inode: 2}: "blue"})})
	udp := implicitUDP(space(1, 0), 20000)
	udp.Op = tracer.OpBind
	bind := towards(space(1, 0), "", 10003, 0)
	bind.Op, bind.Local = tracer.OpBind, netip.MustParseAddr("10.0.0.1")
	full := towards(space(2, 0), "10.0.0.7:1", 28230, 0, portUser("curl", 9, 28230))
	got := headroomText(t, n, Style{Width: terminal}, Busy, full, udp, bind, towards(space(1, 0), "10.0.0.9:443", 10000, 0), towards(space(1, 0), "10.0.0.8:443", 100, 0))
	at := -1
	for _, want := range []string{
		"blue: connect() fails now (EADDRNOTAVAIL) to 10.0.0.7:1 from 10.0.0.1", "all 28230 used: curl (pid 9) 28230", "* keep connections", "blue: ephemeral ports",
		"host: ephemeral ports", "udp   0.0.0.0", "10.0.0.9:443", "tcp   10.0.0.1 bind(port 0)", "10.0.0.8:443",
	} {
		next := strings.Index(got, want)
		if next <= at {
			t.Errorf("%q is not there, or not behind what comes before it, in\n%s", want, got)
		}
		at = next
	}
}
