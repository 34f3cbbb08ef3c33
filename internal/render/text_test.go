package render

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// terminal is the width that ordinary lines must fit.
const terminal = 80

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "",
		"nginx":              "nginx",
		"tmux: server":       "tmux: server",
		"日本語":                "日本語",
		"\x1b[31mred\x1b[0m": `"\x1b[31mred\x1b[0m"`,
		"a\nb":               `"a\nb"`,
		"a\tb":               `"a\tb"`,
		"\xff":               `"\xff"`,
		"\u202eevil":         `"\u202eevil"`, // would turn the line round
		"nbsp\u00a0":         `"nbsp\u00a0"`, // would look as a space
		"\u2028":             `"\u2028"`,
		"\x7f":               `"\x7f"`,
		"\u009b31m":          `"\u009b31m"`, // CSI in one character
	} {
		if got := identity.Safe(in); got != want {
			t.Errorf("identity.Safe(%q) = %s, want %s", in, got, want)
		}
	}
}

func FuzzSafe(f *testing.F) {
	for _, comm := range hostileComms() {
		f.Add(comm)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := identity.Safe(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("identity.Safe(%q) = %q can do things to a terminal", s, got)
		}
		if got == s {
			return
		}
		if back, err := strconv.Unquote(got); err != nil || back != s {
			t.Errorf("identity.Safe(%q) = %s, which means %q (%v)", s, got, back, err)
		}
	})
}

func TestAddrPort(t *testing.T) {
	for in, want := range map[netip.AddrPort]string{
		{}:                                        "*:*",
		netip.MustParseAddrPort("10.0.0.1:80"):    "10.0.0.1:80",
		netip.MustParseAddrPort("0.0.0.0:0"):      "0.0.0.0:*",
		netip.MustParseAddrPort("[::]:443"):       "[::]:443",
		netip.MustParseAddrPort("[2001:db8::]:0"): "[2001:db8::]:*",
	} {
		if got := AddrPort(in); got != want {
			t.Errorf("AddrPort(%v) = %q, want %q", in, got, want)
		}
	}
}

// Ends are written as by ss(8), but that a device stands inside the brackets, where other programs
// accept it too.
func TestAppendEnd(t *testing.T) {
	for _, test := range []struct {
		addr string
		end  end
		want string
	}{
		{"10.0.0.1:80", end{}, "10.0.0.1:80"},
		{"127.0.0.53:53", end{zone: "lo", dual: true}, "127.0.0.53%lo:53"},
		{"0.0.0.0:53", end{zone: "lo", dual: true}, "0.0.0.0%lo:53"},
		{"[fe80::1]:443", end{zone: "eth0"}, "[fe80::1%eth0]:443"},
		{"[fe80::1]:443", end{zone: "7"}, "[fe80::1%7]:443"},
		{"[::1]:443", end{dual: true}, "[::1]:443"},
		{"[::]:80", end{dual: true}, "*:80"},
		{"[::]:80", end{}, "[::]:80"},
		{"[::]:80", end{zone: "eth0", dual: true}, "*%eth0:80"},
		{"[::]:80", end{zone: "eth0"}, "[::%eth0]:80"},
		{"[fe80::1]:0", end{zone: "a\x1bb"}, `[fe80::1%"a\x1bb"]:*`},
	} {
		if got := string(appendEnd(nil, netip.MustParseAddrPort(test.addr), test.end)); got != test.want {
			t.Errorf("%s, %+v: %s, want %s", test.addr, test.end, got, test.want)
		}
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	err := Table(&b, Style{}, []Column{{Name: "NAME"}, {Name: "PID", Right: true}, {Name: "X"}, {Name: "LAST"}}, [][]string{
		{"a", "1", "ü", "end"},
		{"longer", "12345", "", ""},
		{"日本", "", "x", "a longer one"},
		{"e\u0301te\u0301", "2", "", ""},
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = "" +
		"NAME     PID X LAST\n" +
		"a          1 ü end\n" +
		"longer 12345\n" +
		"日本         x a longer one\n" +
		"e\u0301te\u0301        2\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// A character takes no column, one or two.
func TestColumnsOf(t *testing.T) {
	for in, want := range map[string]int{
		"": 0, "nginx": 5, "ü": 1, "监控服务": 8, "ｗ": 2, "e\u0301": 1, "😀": 2, "한글": 4, "ﾊﾝ": 2, "x日": 3,
	} {
		if got := columnsOf([]byte(in)); got != want {
			t.Errorf("%q takes %d columns, want %d", in, got, want)
		}
	}
}

// noSpace is a writer that fails at the nth write.
type noSpace struct{ n int }

func (w *noSpace) Write(p []byte) (int, error) {
	if w.n--; w.n < 0 {
		return 0, syscall.ENOSPC
	}
	return len(p), nil
}

func TestTableWriteError(t *testing.T) {
	for n := range 2 {
		if err := Table(&noSpace{n}, Style{}, []Column{{Name: "A"}}, [][]string{{"b"}}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("write %d fails: error %v, want %v", n+1, err, syscall.ENOSPC)
		}
	}
	if err := testNames().SocketsJSON(&noSpace{}, SocketsOf(manySockets(1), nil)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("SocketsJSON: error %v, want %v", err, syscall.ENOSPC)
	}
}

func holder(pid uint32, comm string) tracer.Holder {
	return tracer.Holder{Process: tracer.Process{PID: pid, Comm: comm}}
}

// socketLine is a socket in the host's namespace.
func socketLine(role tracer.Role, state tracer.State, local, remote string, holders ...tracer.Holder) tracer.Socket {
	s := tracer.Socket{Proto: tracer.TCP, Role: role, State: state, Local: netip.MustParseAddrPort(local), NetNS: hostNS, Holders: holders}
	if remote != "" {
		s.Remote = netip.MustParseAddrPort(remote)
	}
	return s
}

func ordinarySockets() []tracer.Socket {
	dns := socketLine(tracer.RoleBound, tracer.StateUnconn, "127.0.0.53:53", "", holder(812, "systemd-resolve"))
	dns.Proto = tracer.UDP
	return []tracer.Socket{
		socketLine(tracer.RoleListener, tracer.StateListen, "0.0.0.0:80", "", holder(48213, "nginx"), holder(48213, "nginx"), holder(48214, "nginx"), holder(48215, "nginx")),
		dns,
		socketLine(tracer.RoleServer, tracer.StateEstablished, "10.0.0.5:22", "10.0.0.9:51234", holder(901, "sshd-session")),
		socketLine(tracer.RoleTimeWait, tracer.StateTimeWait, "10.0.0.5:40012", "10.0.8.20:5432"),
	}
}

func TestSocketsText(t *testing.T) {
	const want = "" +
		"PROTO STATE     LOCAL          REMOTE         ROLE        PID COMM\n" +
		"tcp   LISTEN    0.0.0.0:80     *:*            listener  48213 nginx +2\n" +
		"udp   UNCONN    127.0.0.53:53  *:*            bound       812 systemd-resolve\n" +
		"tcp   ESTAB     10.0.0.5:22    10.0.0.9:51234 server      901 sshd-session\n" +
		"tcp   TIME-WAIT 10.0.0.5:40012 10.0.8.20:5432 time_wait     - -\n"
	var b strings.Builder
	if err := testNames().SocketsText(&b, Style{Width: terminal}, SocketsOf(ordinarySockets(), nil)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for line := range strings.Lines(b.String()) {
		if width := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); width > terminal {
			t.Errorf("%d columns, want at most %d: %s", width, terminal, line)
		}
	}
}

func TestSocketsTextElsewhere(t *testing.T) {
	sockets := ordinarySockets()[:2]
	sockets[0].MPTCP = true
	sockets[0].NetNS = 7
	sockets[1].Holders = []tracer.Holder{holder(1, "a\nb")}
	const want = "" +
		"PROTO  STATE  LOCAL         REMOTE ROLE       PID COMM     NETNS\n" +
		"tcp+mp LISTEN 0.0.0.0:80    *:*    listener 48213 nginx +2 blue\n" +
		"udp    UNCONN 127.0.0.53:53 *:*    bound        1 \"a\\nb\"   host\n"
	var b strings.Builder
	if err := testNames().SocketsText(&b, Style{Width: terminal}, SocketsOf(sockets, nil)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Why no process has a socket stands where its name would.
func TestSocketsTextNoHolder(t *testing.T) {
	var sockets []tracer.Socket
	for why := range tracer.NoHolderOutOfSight + 1 {
		s := socketLine(tracer.RoleBound, tracer.StateUnconn, "10.0.0.5:22", "")
		if s.NoHolder = why; why == tracer.NoHolderIOUring {
			s.Holders = []tracer.Holder{holder(7, "nginx"), holder(8, "nginx")}
		}
		sockets = append(sockets, s)
	}
	const want = "" +
		"PROTO STATE  LOCAL       REMOTE ROLE  PID COMM\n" +
		"tcp   UNCONN 10.0.0.5:22 *:*    bound   - -\n" +
		"tcp   UNCONN 10.0.0.5:22 *:*    bound   - (kernel)\n" +
		"tcp   UNCONN 10.0.0.5:22 *:*    bound   - (in flight)\n" +
		"tcp   UNCONN 10.0.0.5:22 *:*    bound   7 nginx +1 (io_uring)\n" +
		"tcp   UNCONN 10.0.0.5:22 *:*    bound   - (out of sight)\n"
	var b strings.Builder
	if err := testNames().SocketsText(&b, Style{Width: terminal}, SocketsOf(sockets, nil)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestNetNSName(t *testing.T) {
	n := testNames()
	n.NetNS = identity.FixedNetNSNames(hostNS, map[identity.NetNS]string{{Inode: 7, Cookie: 70}: "blue", {Inode: 8}: "a\x1bb"})
	for id, want := range map[identity.NetNS]string{
		{Inode: hostNS, Cookie: 1}: "host", {Inode: 7, Cookie: 70}: "blue", {Inode: 7, Cookie: 71}: "7", {Inode: 8}: `"a\x1bb"`, {Inode: 9}: "9",
	} {
		if got := n.NetNSName(id, time.Now()); got != want {
			t.Errorf("namespace %v is %s, want %s", id, got, want)
		}
	}
}

// A namespace whose name is none, or made up by a program, is called by its pod or container.
func TestSpaceName(t *testing.T) {
	n := testNames()
	made := "cni-7d1f9a2e-0c1d-4e2f-8a3b-5c6d7e8f9a0b"
	n.NetNS = identity.FixedNetNSNames(hostNS, map[identity.NetNS]string{{Inode: 7}: "blue", {Inode: 8}: made, {Inode: 10}: "netns-web"})
	web := Place{Container: &identity.Container{ID: "0123456789abcdef", Name: "web"}}
	api := Place{Container: web.Container, Pod: &identity.Pod{Namespace: "shop", Name: "api\n"}}
	for _, test := range []struct {
		inode uint32
		place Place
		want  string
	}{
		{hostNS, web, "host"}, {7, web, "blue"}, {8, web, "web"}, {8, api, `"shop/api\n"`}, {8, Place{Unit: "x.service"}, made},
		{9, web, "web"}, {9, Place{}, "9"}, {10, web, "netns-web"},
	} {
		if got := n.spaceName(identity.NetNS{Inode: test.inode}, time.Now(), &test.place); got != test.want {
			t.Errorf("namespace %d is %s, want %s", test.inode, got, test.want)
		}
	}
	ev := ordinaryEvent()
	ev.NetNS = 9
	row := n.Event(&ev)
	row.Place = api
	if line := n.EventLine(Style{}, &row); !strings.HasSuffix(line, ` pod="shop/api\n"`) || strings.Contains(line, "netns=") {
		t.Errorf("line %q", line)
	}
}

// ordinaryEvent is an IPv4 connection of a process with the longest name.
func ordinaryEvent() tracer.Event {
	return tracer.Event{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.Local), Type: tracer.EventConnect, Proto: tracer.TCP,
		Local: netip.MustParseAddrPort("10.0.3.17:40012"), Remote: netip.MustParseAddrPort("10.0.8.20:5432"),
		NetNS: hostNS, Process: tracer.Process{PID: 48213, Comm: "fifteen-letters"},
	}
}

func eventLine(style Style, ev *tracer.Event) string {
	row := testNames().Event(ev)
	return testNames().EventLine(style, &row)
}

func TestEventLine(t *testing.T) {
	inTheWay := socketLine(tracer.RoleListener, tracer.StateListen, "0.0.0.0:80", "", holder(9, "nginx"))
	leftOver := socketLine(tracer.RoleTimeWait, tracer.StateTimeWait, "10.0.3.17:80", "10.0.0.9:1")
	noHolder := socketLine(tracer.RoleListener, tracer.StateListen, "0.0.0.0:80", "")
	noHolder.Owner = tracer.Process{PID: 9, Comm: "ng\nx"}
	kernels := socketLine(tracer.RoleBound, tracer.StateUnconn, "0.0.0.0:80", "")
	kernels.NoHolder = tracer.NoHolderKernel
	unseen := socketLine(tracer.RoleListener, tracer.StateListen, "0.0.0.0:80", "")
	unseen.NoHolder = tracer.NoHolderOutOfSight
	refused := func(by ...tracer.Socket) func(*tracer.Event) {
		return func(ev *tracer.Event) {
			ev.Type, ev.Errno, ev.HeldBy = tracer.EventBind, syscall.EADDRINUSE, by
			ev.Local, ev.Remote = netip.MustParseAddrPort("0.0.0.0:80"), netip.AddrPort{}
		}
	}
	const bind = "03:04:05.006 bind    tcp 0.0.0.0:80        -               48213 fifteen-letters  "
	for _, test := range []struct {
		change func(*tracer.Event)
		want   string
	}{
		{func(*tracer.Event) {}, "03:04:05.006 connect tcp 10.0.3.17:40012   10.0.8.20:5432  48213 fifteen-letters"},
		{func(ev *tracer.Event) { ev.Process = tracer.Process{} }, "03:04:05.006 connect tcp 10.0.3.17:40012   10.0.8.20:5432      - -"},
		{func(ev *tracer.Event) { ev.Type = tracer.EventEstablished }, "03:04:05.006 estab   tcp 10.0.3.17:40012   10.0.8.20:5432  48213 fifteen-letters"},
		{func(ev *tracer.Event) { ev.Process.Comm = "a\x1b[2Jb" }, `03:04:05.006 connect tcp 10.0.3.17:40012   10.0.8.20:5432  48213 "a\x1b[2Jb"`},
		// A port nobody picked is not worth a column.
		{func(ev *tracer.Event) {
			ev.Local, ev.Errno = netip.MustParseAddrPort("0.0.0.0:0"), syscall.EADDRNOTAVAIL
		},
			"03:04:05.006 connect tcp -                 10.0.8.20:5432  48213 fifteen-letters  EADDRNOTAVAIL"},
		{func(ev *tracer.Event) {
			ev.Local, ev.Remote, ev.Device, ev.Errno = netip.AddrPort{}, netip.MustParseAddrPort("[fe80::2]:80"), 4, syscall.ENETUNREACH
		}, "03:04:05.006 connect tcp -                 [fe80::2%eth0]:80 48213 fifteen-letters  ENETUNREACH"},
		{func(ev *tracer.Event) {
			ev.Type, ev.Local, ev.Remote, ev.Device, ev.NetNS = tracer.EventBind, netip.MustParseAddrPort("[::]:80"), netip.AddrPort{}, 4, 7
		}, "03:04:05.006 bind    tcp *%4:80            -               48213 fifteen-letters  netns=blue"},
		{func(ev *tracer.Event) {
			ev.Type, ev.Local, ev.Remote, ev.V6Only = tracer.EventListen, netip.MustParseAddrPort("[::]:80"), netip.AddrPort{}, true
		}, "03:04:05.006 listen  tcp [::]:80           -               48213 fifteen-letters"},
		{refused(inTheWay), bind + "EADDRINUSE held by nginx (listener, pid 9)"},
		{refused(leftOver), bind + "EADDRINUSE held by a socket in TIME-WAIT"},
		{refused(noHolder), bind + `EADDRINUSE held by a listener of "ng\nx" (pid 9)`},
		{refused(kernels), bind + "EADDRINUSE held by the kernel (bound)"},
		{refused(unseen), bind + "EADDRINUSE held by a process out of sight (listener)"},
		{refused(inTheWay, leftOver, leftOver), bind + "EADDRINUSE held by nginx (listener, pid 9) and 2 more"},
		// Long addresses take the room there is, and what they need.
		{func(ev *tracer.Event) { ev.Local = netip.MustParseAddrPort("192.168.100.10:40012") },
			"03:04:05.006 connect tcp 192.168.100.10:40012 10.0.8.20:5432 48213 fifteen-letters"},
		{func(ev *tracer.Event) { ev.Local = netip.MustParseAddrPort("[2001:db8::1:2:3]:40012") },
			"03:04:05.006 connect tcp [2001:db8::1:2:3]:40012 10.0.8.20:5432 48213 fifteen-letters"},
		{func(ev *tracer.Event) {
			ev.Type, ev.Implicit, ev.MPTCP, ev.TimeWait, ev.NetNS = tracer.EventClose, true, true, true, 7
		}, "03:04:05.006 close   tcp 10.0.3.17:40012   10.0.8.20:5432  48213 fifteen-letters  implicit mptcp time_wait netns=blue"},
		{func(ev *tracer.Event) { ev.Type, ev.About = tracer.EventClose, true },
			"03:04:05.006 close   tcp 10.0.3.17:40012   10.0.8.20:5432  48213 fifteen-letters  noticed late"},
	} {
		ev := ordinaryEvent()
		test.change(&ev)
		if d := cmp.Diff(test.want, eventLine(Style{}, &ev)); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	}
}

func TestEventLineWidth(t *testing.T) {
	head := EventHead(Style{})
	if len(head) > terminal {
		t.Errorf("the heading has %d columns, want at most %d", len(head), terminal)
	}
	for _, typ := range tracer.EventTypes() {
		ev := ordinaryEvent()
		ev.Type = typ
		line := eventLine(Style{}, &ev)
		if width := utf8.RuneCountInString(line); width > terminal {
			t.Errorf("%d columns, want at most %d: %s", width, terminal, line)
		}
		if want, at := strings.Index(head, "COMM"), strings.Index(line, ev.Process.Comm); want != at {
			t.Errorf("COMM is in column %d of the heading and %d of the line:\n%s\n%s", want, at, head, line)
		}
	}
}

func TestColor(t *testing.T) {
	refused := ordinaryEvent()
	refused.Errno = syscall.ECONNREFUSED
	for _, color := range []bool{false, true} {
		style := Style{Color: color}
		var b strings.Builder
		if err := testNames().SocketsText(&b, style, SocketsOf(ordinarySockets(), nil)); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"table": b.String(), "event": eventLine(style, &refused),
			"red": style.Red("x"), "bold": style.Bold("x"),
		} {
			if strings.Contains(text, "\x1b") != color {
				t.Errorf("%s with color %t: %q", name, color, text)
			}
			if starts, ends := strings.Count(text, "\x1b["), strings.Count(text, "\x1b[0m"); starts != 2*ends {
				t.Errorf("%s: color is switched on %d times and off %d times: %q", name, starts-ends, ends, text)
			}
		}
		if got := style.Red("") + style.Bold(""); got != "" {
			t.Errorf("color %t of nothing: %q", color, got)
		}
	}
}
