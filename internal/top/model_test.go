package top

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// now is when the answers of these tests were given.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// screen is a model that messages are sent to.
type screen struct {
	*model
	t *testing.T
}

func newScreen(t *testing.T, cfg Config) *screen {
	t.Helper()
	cfg.Names = &identity.Names{Cgroups: identity.NewCgroups(""), NetNS: identity.NewNetNSNames(nil)}
	cfg.Interval = 2 * time.Second
	cfg.From = "agent"
	m, err := newModel(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &screen{m, t}
}

func (s *screen) size(width, height int) { s.Update(tea.WindowSizeMsg{Width: width, Height: height}) }

// press presses keys, which have the names that bubbletea gives them. What they ask of the world is not
// done, but returned.
func (s *screen) press(keys ...string) (last tea.Cmd) {
	for _, k := range keys {
		key := tea.Key{Text: k}
		switch code, special := specialKeys[k]; {
		case special:
			key = code
		case len([]rune(k)) == 1:
			key.Code = []rune(k)[0]
		}
		last = s.update(tea.KeyPressMsg(key))
	}
	return last
}

var specialKeys = map[string]tea.Key{
	"enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "up": {Code: tea.KeyUp}, "down": {Code: tea.KeyDown},
	"end": {Code: tea.KeyEnd}, "home": {Code: tea.KeyHome}, "pgdown": {Code: tea.KeyPgDown}, "tab": {Code: tea.KeyTab},
	"space": {Code: tea.KeySpace, Text: " "}, "backspace": {Code: tea.KeyBackspace},
	"ctrl+c": {Code: 'c', Mod: tea.ModCtrl}, "ctrl+u": {Code: 'u', Mod: tea.ModCtrl}, "ctrl+w": {Code: 'w', Mod: tea.ModCtrl},
}

// typed types a text, a key a letter.
func (s *screen) typed(text string) {
	for _, r := range text {
		s.press(string(r))
	}
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

// text is what is on the screen, without its colours. It fails the test where a line is too wide or
// there are too many.
func (s *screen) text() string {
	s.t.Helper()
	lines := strings.Split(escapes.ReplaceAllString(s.View().Content, ""), "\n")
	if len(lines) != s.height {
		s.t.Errorf("%d lines on a screen of %d", len(lines), s.height)
	}
	for i, line := range lines {
		if w := render.Columns(line); w > s.width {
			s.t.Errorf("line %d has %d columns on a screen of %d: %q", i, w, s.width, line)
		}
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

// has fails the test unless the screen has a text.
func (s *screen) has(texts ...string) {
	s.t.Helper()
	got := s.text()
	for _, text := range texts {
		if !strings.Contains(got, text) {
			s.t.Errorf("no %q on the screen:\n%s", text, got)
		}
	}
}

func (s *screen) hasNot(texts ...string) {
	s.t.Helper()
	got := s.text()
	for _, text := range texts {
		if strings.Contains(got, text) {
			s.t.Errorf("%q is on the screen:\n%s", text, got)
		}
	}
}

// answerPorts answers with sockets.
func (s *screen) answerPorts(sockets ...render.Socket) {
	fold := newFolder(s.cfg.renderer(), s.all || s.filter.asksForAll())
	for i := range sockets {
		fold.add(&sockets[i])
	}
	rows := fold.fold()
	st := &s.states[portsView]
	s.update(answer{view: portsView, gen: st.gen, at: now, had: time.Hour, set: func() { s.ports.set(rows) }})
}

func (s *screen) answerConns(all ...render.Headroom) {
	rows := connRows(s.cfg.renderer(), all)
	s.update(answer{view: connsView, gen: s.states[connsView].gen, at: now, had: time.Hour, set: func() { s.conns.set(rows) }})
}

func (s *screen) answerHistory(all ...render.Tenancy) {
	rows := tenancyRows(s.cfg.renderer(), all, now)
	s.update(answer{view: historyView, gen: s.states[historyView].gen, at: now, set: func() { s.history.set(rows) }})
}

func (s *screen) happen(events ...render.Event) {
	var b batch
	for i := range events {
		b.rows = append(b.rows, newEventRow(s.cfg.renderer(), &events[i], s.seen+uint64(i)+1))
	}
	b.seen = uint64(len(events))
	s.stream = &follower{}
	s.update(batchMsg{number: s.streaming, at: now, batch: b})
}

// host is the network namespace of the machine.
func host(t *testing.T) uint32 {
	t.Helper()
	inode, err := identity.HostNetNS()
	if err != nil {
		t.Fatal(err)
	}
	return inode
}

// socket is one on an address, of processes: each is its number and its name.
func socket(t *testing.T, proto, role, local, remote string, holders ...render.Holder) render.Socket {
	t.Helper()
	l := netip.MustParseAddrPort(local)
	s := render.Socket{Proto: proto, Role: role, State: "ESTAB", LocalIP: l.Addr(), LocalPort: l.Port(), NetNS: host(t), Holders: holders, V6Only: l.Addr().Is6() && !l.Addr().IsUnspecified()}
	if remote != "" {
		r := netip.MustParseAddrPort(remote)
		s.RemoteIP, s.RemotePort = r.Addr(), r.Port()
	}
	return s
}

func held(pid uint32, comm string) render.Holder { return render.Holder{PID: pid, Comm: comm} }

// machine is what there is on a machine with everything.
func machine(t *testing.T) []render.Socket {
	ago := func(d time.Duration) render.Stamp { return render.Stamp{Time: now.Add(-d)} }
	ssh := socket(t, "tcp", "listener", "0.0.0.0:22", "", held(812, "sshd"))
	ssh.Unit, ssh.Since = "ssh.service", ago(72*time.Hour)
	web := socket(t, "tcp", "listener", "[::]:8080", "", held(31676, "node"), held(31677, "node"), held(31678, "node"))
	web.MPTCP, web.Container, web.Since = true, &identity.Container{ID: "0123456789ab", Name: "web"}, ago(3*time.Hour)
	dns := socket(t, "udp", "bound", "127.0.0.53:53", "", held(640, "systemd-resolve"))
	dns.Device, dns.Unit = "lo", "systemd-resolved.service"
	api := socket(t, "tcp", "listener", "[2001:db8:85a3:1234:0:8a2e:370:7334]:8443", "", held(4711, "日本語のサーバー"))
	api.NetNS, api.Pod, api.Since = 4026539999, &identity.Pod{Namespace: "shop", Name: "api-7d9f8b6c5-x2x7k"}, ago(90*time.Second)
	nfs := socket(t, "tcp", "listener", "0.0.0.0:2049", "")
	nfs.NoHolder = "kernel"
	evil := socket(t, "tcp", "listener", "127.0.0.1:6666", "", held(99999, "a\x1b[31mb\u202ec"))
	full := socket(t, "tcp", "listener", "127.0.0.1:9000", "", held(5000, "slow"))
	waiting, most := uint32(129), uint32(128)
	full.Backlog, full.BacklogMax = &waiting, &most
	return []render.Socket{
		ssh, web, dns, api, nfs, evil, full,
		socket(t, "tcp", "server", "192.0.2.7:22", "198.51.100.9:55555", held(900, "sshd")),
		socket(t, "tcp", "server", "192.0.2.7:22", "198.51.100.9:55556", held(901, "sshd")),
		socket(t, "tcp", "server", "192.0.2.7:7000", "198.51.100.9:55557", held(77, "worker")),
		socket(t, "tcp", "client", "192.0.2.7:40000", "203.0.113.80:443", held(31676, "node")),
		socket(t, "tcp", "time_wait", "192.0.2.7:40002", "203.0.113.80:443"),
	}
}

func destinations(t *testing.T) []render.Headroom {
	to := func(ip string, port uint16, used, wait, blocked int, users ...render.PortUser) render.Headroom {
		h := render.Headroom{
			NetNS: host(t), Proto: "tcp", Op: "connect", LocalIP: netip.MustParseAddr("192.0.2.7"), RemoteIP: netip.MustParseAddr(ip), RemotePort: port,
			RangeLow: 32768, RangeHigh: 60999, Capacity: 28232, Used: used, TimeWait: wait, Blocked: blocked, Free: 28232 - used - blocked, Holders: users,
		}
		if h.RemoteIP.Is6() {
			h.LocalIP = netip.MustParseAddr("2001:db8::7")
		}
		h.Utilization = float64(used+blocked) / 28232
		return h
	}
	user := func(pid uint32, comm string, ports int) render.PortUser {
		return render.PortUser{PID: pid, Comm: comm, Ports: ports}
	}
	any := to("192.0.2.1", 0, 0, 0, 3)
	any.RemoteIP = netip.Addr{}
	udp := to("192.0.2.1", 0, 17, 0, 0, user(640, "systemd-resolve", 17))
	udp.Proto, udp.Op, udp.RemoteIP, udp.LocalIP = "udp", "implicit_bind", netip.Addr{}, netip.IPv4Unspecified()
	web := user(31676, "node", 28231)
	web.Container = &identity.Container{ID: "0123456789ab", Name: "web"}
	return []render.Headroom{
		to("203.0.113.80", 443, 28231, 20000, 1, web, user(31677, "node", 1)),
		to("2001:db8:85a3:1234:0:8a2e:370:7334", 5432, 15000, 0, 1, user(812, "pgbouncer", 15000)),
		to("198.51.100.1", 6379, 12, 4, 1, user(0, "", 4), user(77, "worker", 8)), any, udp,
	}
}

func events(t *testing.T) []render.Event {
	uid, zero := uint32(0), uint16(8080)
	event := func(name, local, remote string, pid uint32, comm string) render.Event {
		ev := render.Event{Time: render.Stamp{Time: now}, Event: name, Proto: "tcp", NetNS: host(t), PID: pid, Comm: comm, UID: &uid}
		if local != "" {
			l := netip.MustParseAddrPort(local)
			ev.LocalIP, ev.LocalPort = l.Addr(), l.Port()
		}
		if remote != "" {
			r := netip.MustParseAddrPort(remote)
			ev.RemoteIP, ev.RemotePort = r.Addr(), r.Port()
		}
		return ev
	}
	refused := event("bind", "127.0.0.1:8080", "", 5001, "python3")
	refused.Error, refused.RequestedPort, refused.HeldBy = "EADDRINUSE", &zero, []render.Socket{socket(t, "tcp", "listener", "[::]:8080", "", held(31676, "node"))}
	closed := event("close", "192.0.2.7:40000", "203.0.113.80:443", 31676, "node")
	closed.TimeWait = true
	return []render.Event{
		event("listen", "127.0.0.1:3000", "", 5000, "python3"), refused,
		event("connect", "192.0.2.7:40000", "203.0.113.80:443", 31676, "node"),
		event("connect", "[2001:db8::7]:40001", "[2001:db8:85a3:1234:0:8a2e:370:7334]:5432", 4711, "日本語のサーバー"), closed,
	}
}

func tenancies(t *testing.T) []render.Tenancy {
	had := func(local, remote string, pid uint32, comm string, ended, lasted time.Duration) render.Tenancy {
		l := netip.MustParseAddrPort(local)
		h := render.Tenancy{Proto: "tcp", LocalIP: l.Addr(), LocalPort: l.Port(), NetNS: host(t), PID: pid, Comm: comm, Until: render.Stamp{Time: now.Add(-ended)}}
		if remote != "" {
			r := netip.MustParseAddrPort(remote)
			h.RemoteIP, h.RemotePort = r.Addr(), r.Port()
		}
		if lasted > 0 {
			h.Since, h.DurationNS = render.Stamp{Time: now.Add(-ended - lasted)}, lasted.Nanoseconds()
		}
		return h
	}
	open := had("0.0.0.0:22", "", 812, "sshd", 0, 0)
	open.Role, open.Open, open.KnownSince, open.Until = "listener", true, render.Stamp{Time: now.Add(-26 * time.Hour)}, render.Stamp{}
	web := had("0.0.0.0:5000", "", 4242, "flask", 9*time.Hour, 50*time.Hour)
	web.Role, web.Container = "listener", &identity.Container{ID: "0123456789ab", Name: "web"}
	refused := had("192.0.2.7:40000", "203.0.113.80:443", 31676, "node", 3*time.Second, 150*time.Microsecond)
	refused.Role, refused.Error = "client", "ECONNREFUSED"
	return []render.Tenancy{open, refused, had("[2001:db8::7]:40001", "[2001:db8:85a3:1234:0:8a2e:370:7334]:5432", 4711, "日本語のサーバー", 5*time.Minute, 0), web}
}

// What every view shows, on a small terminal and on a wide one.
func TestScreens(t *testing.T) {
	for _, size := range []struct{ width, height int }{{80, 24}, {120, 30}} {
		s := newScreen(t, Config{})
		s.size(size.width, size.height)
		name := func(view string) string { return fmt.Sprintf("testdata/%s-%d.txt", view, size.width) }
		s.answerPorts(machine(t)...)
		testutil.Golden(t, name("ports"), s.text())
		s.all = true
		s.answerPorts(machine(t)...)
		testutil.Golden(t, name("all"), s.text())
		s.press("2")
		s.answerConns(destinations(t)...)
		testutil.Golden(t, name("connections"), s.text())
		s.press("3")
		s.happen(events(t)...)
		testutil.Golden(t, name("events"), s.text())
		s.press("4")
		s.answerHistory(tenancies(t)...)
		testutil.Golden(t, name("history"), s.text())
		s.press("?")
		testutil.Golden(t, name("help"), s.text())
	}
}

// Colours are of the 16 that a terminal has, and tell what is refused, full or gone. Without them the
// line that is chosen is still seen.
func TestColors(t *testing.T) {
	for _, color := range []bool{true, false} {
		s := newScreen(t, Config{Color: color})
		s.press("2")
		s.answerConns(destinations(t)...)
		s.press("down", "down")
		got := s.View().Content
		for code, want := range map[string]bool{"\x1b[31m": color, "\x1b[33m": color, "\x1b[2m": color, "\x1b[7m": true, "\x1b[1m": true} {
			if strings.Contains(got, code) != want {
				t.Errorf("color %v: has %q: %v", color, code, !want)
			}
		}
		if other := regexp.MustCompile("\x1b\\[(?:[34]8|3[07]|9[0-7]|4[0-7])").FindString(got); other != "" {
			t.Errorf("color %v: %q does not suit every background", color, other)
		}
	}
}

// Names are the users': nothing in them reaches the terminal as it is.
func TestHostileNames(t *testing.T) {
	s := newScreen(t, Config{})
	sockets := machine(t)
	name := "x\x1b]52;c;aGk=\x07\u202e\u009b31m\n"
	for i := range sockets {
		sockets[i].Unit = name
		for j := range sockets[i].Holders {
			sockets[i].Holders[j].Comm = name
		}
	}
	all := events(t)
	for i := range all {
		all[i].Comm, all[i].Unit, all[i].Container = name, name, &identity.Container{ID: name, Name: name}
	}
	to := destinations(t)
	to[0].Holders[0].Comm, to[0].Holders[0].Container = name, &identity.Container{ID: name, Name: name}
	check := func() {
		t.Helper()
		got := strings.ReplaceAll(s.text(), "\n", "")
		if i := strings.IndexFunc(got, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x202e }); i >= 0 {
			t.Errorf("%q on the screen:\n%q", got[i:i+1], got)
		}
	}
	s.answerPorts(sockets...)
	check()
	s.update(victimMsg{all: []*victim{{process: s.ports.selected().holders[0], fd: -1}}})
	check()
	s.press("n", "2")
	s.answerConns(to...)
	check()
	s.press("3")
	s.happen(all...)
	check()
	s.press("/")
	s.update(tea.PasteMsg{Content: name})
	check()
	s.press("esc")
	s.update(noteMsg(name))
	check()
	s.fail(errors.New(name))
	check()
}

// What is searched for is looked for in names, and at the beginning of ports and pids.
func TestSearch(t *testing.T) {
	s := newScreen(t, Config{})
	s.answerPorts(machine(t)...)
	for _, c := range []struct {
		typed string
		want  int
		has   string
	}{
		{"8080", 1, "node +2"}, {"3167", 1, "node +2"}, {"NODE", 1, "node +2"}, {"80", 1, "8080"}, {"ssh.serv", 1, "sshd"},
		{"shop/api", 1, "8443"}, {"127.0.0", 3, "6666"}, {"web node", 1, "8080"}, {"web sshd", 0, "nothing that the filter lets pass"},
		{"日本", 1, "8443"}, {"kernel", 1, "2049"}, {"", 8, "sshd"},
	} {
		s.press("/", "ctrl+u")
		s.typed(c.typed)
		if got, _ := s.ports.counts(); got != c.want {
			t.Errorf("%q: %d lines while it is typed, want %d", c.typed, got, c.want)
		}
		s.press("enter")
		if got, all := s.ports.counts(); got != c.want || all != 8 {
			t.Errorf("%q: %d of %d lines, want %d of 8", c.typed, got, all, c.want)
		}
		s.has(c.has)
	}
	s.press("/")
	s.typed("nothing of the kind")
	s.press("esc")
	if got, _ := s.ports.counts(); got != 8 {
		t.Errorf("%d lines after esc, want 8 as before", got)
	}
}

// Flags are asked of the source, which has the answer; an answer to what was asked before is not shown.
func TestFilter(t *testing.T) {
	s := newScreen(t, Config{})
	s.answerPorts(machine(t)...)
	s.press("/")
	s.typed("--lprot 80")
	s.press("enter")
	s.has(`unknown flag: --lprot; did you mean --lport?`)
	s.press("ctrl+u")
	s.typed("--lport eighty")
	s.press("enter")
	s.has(`--lport: port "eighty": want a number`)
	s.press("ctrl+u")
	s.typed("--lport")
	s.press("enter")
	s.has("flag needs an argument")
	s.press("ctrl+u")
	s.typed("'")
	s.press("enter")
	s.has("a quote has no end")
	s.press("ctrl+u")
	s.typed("--lport 22,8080 --state LISTEN -t ssh")
	old := s.states[portsView].gen
	if s.press("enter") == nil {
		t.Fatal("the source is not asked")
	}
	if s.states[portsView].gen == old {
		t.Error("an earlier answer would be shown")
	}
	want := map[string][]string{"lport": {"22", "8080"}, "state": {"LISTEN"}, "tcp": {"true"}}
	if d := cmp.Diff(want, s.filter.values); d != "" {
		t.Errorf("filter (-want +got):\n%s", d)
	}
	s.has("filter: --lport 22,8080 --state LISTEN -t ssh", "1 of 8 ports")
	s.update(answer{view: portsView, gen: old, at: now, set: func() { t.Error("an answer to an earlier question is shown") }})
	s.press("2")
	s.has("not here: --lport --state --tcp")
	if _, err := newModel(t.Context(), Config{Filter: "--proto sctp"}); err == nil || !strings.Contains(err.Error(), "sctp") {
		t.Errorf("a filter that is no filter: %v", err)
	}
}

// Whatever is given as flags can be typed.
func TestFilterText(t *testing.T) {
	values := map[string][]string{
		"comm": {"a b", "it's", `q"uote`, "c,d", "*"}, "lport": {"80-90", "http"}, "ipv4": {"true"}, "udp": {"false"}, "pod": {"shop/api-*"},
	}
	text := FilterText(values)
	f, err := parseFilter(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if d := cmp.Diff(values, f.values); d != "" || len(f.words) > 0 {
		t.Errorf("%s: words %q (-want +got):\n%s", text, f.words, d)
	}
	for _, words := range [][]string{{"8080"}, {"a b", "it's"}, {"x", "-v"}, {"日本"}} {
		text := FilterText(values, words...)
		if f, err := parseFilter(text); err != nil || !slices.Equal(f.words, words) {
			t.Errorf("%s: words %q, %v; want %q", text, f.words, err, words)
		}
	}
}

// The column that lines are sorted by is marked; the cursor stays on its line.
func TestSort(t *testing.T) {
	s := newScreen(t, Config{})
	s.size(120, 24)
	s.answerPorts(machine(t)...)
	s.press("down", "down")
	chosen := s.ports.selected().portKey
	s.has("PORT▲ ")
	order := func() (ports []uint16) {
		for _, i := range s.ports.shown {
			ports = append(ports, s.ports.rows[i].port)
		}
		return ports
	}
	ascending := []uint16{22, 53, 2049, 6666, 7000, 8080, 8443, 9000}
	if d := cmp.Diff(ascending, order()); d != "" {
		t.Errorf("by port (-want +got):\n%s", d)
	}
	s.press("S")
	s.has("PORT▼ ")
	if got := order(); got[0] != 9000 || got[7] != 22 {
		t.Errorf("the other way round: %v", got)
	}
	s.press("s", "s", "s", "s")
	s.has(" CONNS▼ ")
	if got := order(); got[0] != 22 || got[1] != 7000 {
		t.Errorf("by connections: %v", got)
	}
	if got := s.ports.selected().portKey; got != chosen {
		t.Errorf("the cursor is on %v, was on %v", got, chosen)
	}
	s.answerPorts(machine(t)[1:]...)
	if got := s.ports.selected().portKey; got != chosen {
		t.Errorf("after another answer the cursor is on %v, was on %v", got, chosen)
	}
	for range len(s.ports.columns) {
		s.press("s")
	}
	s.has(" CONNS▼ ")
}

// While it is paused nothing changes, and nothing is forgotten.
func TestPause(t *testing.T) {
	s := newScreen(t, Config{})
	s.answerPorts(machine(t)[:1]...)
	s.press("space")
	s.has("PAUSED", "sshd", "1 port")
	s.answerPorts(machine(t)...)
	s.hasNot("node")
	s.press("3")
	s.happen(events(t)...)
	s.hasNot("python3")
	s.press("space")
	s.has("python3")
	s.press("1")
	s.has("node")
	s.hasNot("PAUSED")
}

// The table of events follows them, until the user looks at an earlier one.
func TestFollow(t *testing.T) {
	s := newScreen(t, Config{})
	s.press("3")
	for range 10 {
		s.happen(events(t)...)
	}
	if s.events.cursor != 49 {
		t.Errorf("the cursor is on %d, want 49, the last", s.events.cursor)
	}
	s.press("up")
	seq := s.events.selected().seq
	s.happen(events(t)...)
	if got := s.events.selected().seq; got != seq {
		t.Errorf("the cursor is on event %d, was on %d", got, seq)
	}
	s.press("end")
	s.happen(events(t)...)
	if s.events.cursor != 59 {
		t.Errorf("the cursor is on %d, want 59, the last", s.events.cursor)
	}
}

// However many events there are, so many are kept, and all are counted.
func TestKept(t *testing.T) {
	s := newScreen(t, Config{})
	s.press("3")
	for range 3 * keptEvents / 5 {
		s.happen(events(t)...)
	}
	s.update(batchMsg{number: s.streaming, at: now, batch: batch{seen: 1_000_000, lost: 7}})
	if _, all := s.events.counts(); all < keptEvents || all > 2*keptEvents+5 {
		t.Errorf("%d events are kept, want %d to %d", all, keptEvents, 2*keptEvents+5)
	}
	s.has("1006000 events", "1.0M only counted, 7 lost")
}

// A source that fails is said to, and asked again; so is a stream that ends.
func TestSourceFails(t *testing.T) {
	s := newScreen(t, Config{})
	s.answerPorts(machine(t)...)
	again := s.update(answer{view: portsView, gen: s.states[portsView].gen, err: errors.New("ask the agent: it is gone")})
	s.has("ask the agent: it is gone", "sshd")
	if again == nil {
		t.Error("it is not asked again")
	}
	s.answerPorts(machine(t)...)
	s.hasNot("it is gone")
	s.press("3")
	s.happen(events(t)...)
	if s.update(batchMsg{number: s.streaming, batch: batch{err: errors.New("the agent ended")}}) == nil {
		t.Error("events are not followed again")
	}
	s.has("the agent ended", "python3")
	if s.update(restartMsg(s.streaming)) == nil {
		t.Error("no new stream is begun")
	}
	if s.update(restartMsg(s.streaming-1)) != nil {
		t.Error("a stream is begun for one that another has replaced")
	}
}

// A line is copied as a command that a shell takes as it stands.
func TestCopy(t *testing.T) {
	s := newScreen(t, Config{})
	s.answerPorts(machine(t)...)
	s.press("end", "up")
	for _, c := range []struct {
		view  string
		moves []string
		want  string
	}{
		{"1", []string{"home"}, "porthole who 22/tcp"},
		{"1", []string{"down"}, "porthole who 53/udp"},
		{"1", []string{"end", "up"}, "porthole who 8443/tcp --netns 4026539999"},
		{"2", []string{"home"}, "porthole headroom --to 203.0.113.80:443 --from 192.0.2.7"},
		{"2", []string{"down"}, "porthole headroom --to '[2001:db8:85a3:1234:0:8a2e:370:7334]:5432' --from 2001:db8::7"},
		{"2", []string{"end", "up"}, "porthole headroom --proto udp --op implicit_bind"},
		{"3", []string{"home"}, "porthole who 3000/tcp"},
	} {
		s.press(c.view)
		s.answerConns(destinations(t)...)
		if c.view == "3" && s.seen == 0 {
			s.happen(events(t)...)
		}
		s.press(c.moves...)
		got, err := s.commandOf()
		if err != nil || got != c.want {
			t.Errorf("view %s, %v: %q, %v; want %q", c.view, c.moves, got, err, c.want)
		}
		if s.press("y") == nil {
			t.Errorf("view %s, %v: nothing is copied", c.view, c.moves)
		}
		s.press("down", "up")
	}
}

// Of a machine elsewhere no process of this one is ended that has the same number, a command that is copied asks that
// machine, and help says whose all of it is.
func TestElsewhere(t *testing.T) {
	s := newScreen(t, Config{Elsewhere: "the agent's machine (web1:9656)", Reach: []string{"--agent.url", "https://web1:9656"}})
	s.answerPorts(machine(t)...)
	if s.press("K") != nil {
		t.Error("a process is looked for")
	}
	s.has("end it there: it is on the agent's machine (web1:9656)")
	for _, c := range []struct{ view, want string }{
		{"1", "porthole who 22/tcp --agent.url https://web1:9656"},
		{"2", "porthole headroom --to 203.0.113.80:443 --from 192.0.2.7 --agent.url https://web1:9656"},
	} {
		s.press(c.view)
		s.answerConns(destinations(t)...)
		s.press("home")
		if got, err := s.commandOf(); err != nil || got != c.want {
			t.Errorf("view %s: %q, %v; want %q", c.view, got, err, c.want)
		}
	}
	s.size(80, 60)
	s.press("?")
	s.has("All of it is of the agent's machine (web1:9656), where its processes are ended")
}

// A terminal that is too small says so; one that shrinks keeps the line that is chosen on the screen.
func TestResize(t *testing.T) {
	s := newScreen(t, Config{})
	s.answerPorts(machine(t)...)
	s.press("end")
	s.size(200, 50)
	s.has("slow")
	s.size(80, 8)
	s.has("slow")
	s.hasNot("sshd")
	for _, view := range []string{"1", "2", "3", "4"} {
		for width := range 130 {
			s.press(view)
			s.size(width, 9)
			for _, line := range strings.Split(escapes.ReplaceAllString(s.View().Content, ""), "\n") {
				if got := render.Columns(line); got > width {
					t.Fatalf("view %s: %d columns on a terminal of %d: %q", view, got, width, line)
				}
			}
		}
	}
	s.size(20, 5)
	if got := s.View().Content; !strings.Contains(got, "a terminal") {
		t.Errorf("on 20x5: %q", got)
	}
}

// A click chooses a line, a column to sort by, a view; the wheel scrolls.
func TestMouse(t *testing.T) {
	s := newScreen(t, Config{})
	s.answerPorts(machine(t)...)
	s.press("m")
	if s.View().MouseMode != tea.MouseModeCellMotion {
		t.Error("m does not turn the mouse on")
	}
	click := func(x, y int) { s.update(tea.MouseClickMsg{X: x, Y: y, Button: tea.MouseLeft}) }
	click(5, headLine+3)
	if got := s.ports.selected().port; got != 2049 {
		t.Errorf("a click on the third line chooses port %d, want 2049", got)
	}
	s.update(tea.MouseWheelMsg{Button: tea.MouseWheelDown})
	if got := s.ports.selected().port; got != 8080 {
		t.Errorf("the wheel leads to port %d, want 8080", got)
	}
	click(strings.Index(s.text(), "ADDRESS"), 23) // not a line
	click(16, headLine)
	s.has("ADDRESS▲")
	click(12, 0)
	if s.view != connsView {
		t.Errorf("a click on connections shows view %d", s.view)
	}
}

// Without UTF-8 nothing but ASCII is written.
func TestASCII(t *testing.T) {
	s := newScreen(t, Config{ASCII: true})
	s.answerPorts(socket(t, "tcp", "listener", "[2001:db8:85a3:1234:0:8a2e:370:7334]:8443", "", held(1, "server")))
	s.has("PORT^", "2001:db~70:7334")
	s.press("2")
	s.answerConns(destinations(t)[:2]...)
	s.has("FULLv", "100% ########", " 53% ####....")
	if i := strings.IndexFunc(s.text(), func(r rune) bool { return r > '~' }); i >= 0 {
		t.Errorf("not ASCII:\n%s", s.text())
	}
}

// A prompt can be edited.
func TestPrompt(t *testing.T) {
	s := newScreen(t, Config{Filter: "--proto tcp"})
	s.press("/")
	s.typed("nginx")
	s.press("ctrl+w")
	s.typed("x日")
	s.press("backspace")
	s.has("/--proto tcp x")
	if c := s.View().Cursor; c == nil || c.X != len("/--proto tcp x") || c.Y != 1 {
		t.Errorf("cursor %+v", c)
	}
	s.typed(strings.Repeat("long ", 40))
	s.text()
	if c := s.View().Cursor; c == nil || c.X >= 80 {
		t.Errorf("cursor %+v on a screen of 80", c)
	}
}

// q and ctrl+c end it, whatever is shown.
func TestQuit(t *testing.T) {
	for _, keys := range [][]string{{"q"}, {"ctrl+c"}, {"/", "q", "ctrl+c"}, {"?", "ctrl+c"}, {"?", "q", "q"}, {"3", "q"}} {
		cmd := newScreen(t, Config{}).press(keys...)
		if cmd == nil {
			t.Errorf("%v does not end it", keys)
			continue
		}
		if _, ok := cmd().(tea.QuitMsg); !ok {
			t.Errorf("%v does not end it", keys)
		}
	}
}
