package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

const hostNS = 4026531840

// testNames knows one service, one namespace besides the host's, and no cgroup.
func testNames() Renderer {
	return New(&identity.Names{
		Services: identity.ParseServices(strings.NewReader("my-<http> 8080/tcp\n")),
		Cgroups:  identity.NewCgroups(""),
		NetNS:    identity.FixedNetNSNames(hostNS, map[identity.NetNS]string{{Inode: 7}: "blue"}),
		Device: func(id tracer.DeviceID) string {
			return map[tracer.DeviceID]string{{NetNS: hostNS, Index: 4}: "eth0"}[id]
		},
	})
}

// hostileComms are names a process can give itself: 15 bytes of anything.
func hostileComms() []string {
	return []string{
		"", "nginx", "tmux: server", `"quoted"`, `back\slash`, "<script>&amp;", "tab\tnew\nline\r", "\x00\x01\x1f\x7f", "\u009b31m\u0080",
		"\x1b]0;owned\a", "\xff\xfe", "caf\xc3", "日本語", "line\u2028sep\u2029", "\u202eevil", "\ufffd", "😀",
	}
}

// asEncodingJSON is what encoding/json writes with its defaults, and all control
// characters escaped.
func asEncodingJSON(t testing.TB, row any) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(row); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(escapeControls(b.Bytes())), "\n")
}

// DEL and the second set of control characters are escaped, what looks like them is not.
func TestEscapeControls(t *testing.T) {
	for in, want := range map[string]string{
		"": "", `"a\u0000"`: `"a\u0000"`, "\"\x7f\u0080x\u009b\u009f\"": `"\u007f\u0080x\u009b\u009f"`, "\u00a0\u00c2日本": "\u00a0\u00c2日本",
	} {
		if got := string(escapeControls([]byte(in))); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// sameJSON encodes a row twice with the method of an Encoder, which remembers parts of it.
func sameJSON[Row any](t testing.TB, appendTo func([]byte, *Row) []byte, row *Row) {
	t.Helper()
	const before = "x"
	want := before + asEncodingJSON(t, row)
	for range 2 {
		if d := cmp.Diff(want, string(appendTo([]byte(before), row))); d != "" {
			t.Errorf("not as encoding/json writes it (-want +got):\n%s", d)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// fullSocket has every field set, emptySocket none that may be absent.
func fullSocket() Socket {
	return Socket{
		Proto: "tcp", State: "ESTAB", Role: "client",
		LocalIP: netip.MustParseAddr("2001:db8::1"), LocalPort: math.MaxUint16,
		RemoteIP: netip.MustParseAddr("::ffff:10.0.0.1"), RemotePort: 1,
		Device: "<eth0>", Index: 7, Scope: "\x1beth0", V6Only: true, ReuseAddr: true, ReusePort: true,
		NetNS: math.MaxUint32, Cookie: math.MaxUint64, Inode: math.MaxUint64, UID: ptr[uint32](math.MaxUint32), MPTCP: true,
		Holders:     []Holder{{PID: 1, Comm: "init", FD: 0, IOUring: true}, {PID: math.MaxUint32, Comm: "<&>", FD: 3, UID: ptr[uint32](0), Place: Place{Container: &identity.Container{ID: "0123"}, Pod: &identity.Pod{Namespace: "shop", Name: "api", Container: "<web>"}}}},
		HoldersMore: 7, NoHolder: "<in_flight>",
		Owner: &Owner{PID: 2, Comm: "a\"b", Status: "gone"},
		Since: Stamp{time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))}, Origin: "observed", Service: "my-<http>",
		Place: Place{Unit: "a\x1b.service", UnitUser: ptr[uint32](0), Container: &identity.Container{ID: strings.Repeat("ab", 32), Name: "<web>", Image: "shop/web:1", Runtime: "docker"}}, RangeLow: 1, RangeHigh: math.MaxUint16,
	}
}

func emptySocket() Socket { return Socket{Holders: []Holder{}} }

func fullEvent() Event {
	return Event{
		Time: Stamp{time.Date(2026, 1, 2, 3, 4, 5, 120_000_000, time.UTC)}, Event: "bind", Proto: "udp",
		LocalIP: netip.MustParseAddr("0.0.0.0"), LocalPort: 53,
		RemoteIP: netip.MustParseAddr("fe80::1"), RemotePort: 54,
		RequestedPort: ptr[uint16](0), Implicit: true, Error: "EADDRINUSE", HeldBy: []Socket{fullSocket(), emptySocket()}, HeldByMore: 7,
		PID: 1, Comm: "<init>", UID: ptr[uint32](0), NetNS: 1, Cgroup: "/a&b/\x01", MPTCP: true,
		Device: "<eth0>", Index: 7, Scope: "\x1beth0", V6Only: true,
		Place:      Place{Container: &identity.Container{ID: "0123"}},
		DurationNS: math.MaxInt64, TimeWait: true, UntilAbout: true,
	}
}

func TestSocketJSON(t *testing.T) {
	var enc Encoder // one for all: rows differ in one field, or few
	full, empty := fullSocket(), emptySocket()
	sameJSON(t, enc.AppendSocket, &full)
	sameJSON(t, enc.AppendSocket, &empty)
	for _, comm := range hostileComms() {
		row := full
		row.Holders = []Holder{{PID: 1, Comm: comm, FD: 2}}
		row.Owner = &Owner{PID: 1, Comm: comm}
		row.Service = comm
		sameJSON(t, enc.AppendSocket, &row)
	}
	// A field that appears, or goes, alone: commas and order must hold.
	for i, change := range []func(*Socket){
		func(s *Socket) { s.LocalIP = netip.Addr{} },
		func(s *Socket) { s.RemoteIP = netip.Addr{} },
		func(s *Socket) { s.RemotePort = 0 },
		func(s *Socket) { s.Inode = 0 },
		func(s *Socket) { s.UID = nil },
		func(s *Socket) { s.MPTCP = false },
		func(s *Socket) { s.V6Only = false },
		func(s *Socket) { s.HoldersMore = 0 },
		func(s *Socket) { s.NoHolder = "" },
		func(s *Socket) { s.ReuseAddr = false },
		func(s *Socket) { s.ReusePort = false },
		func(s *Socket) { s.Device = "" },
		func(s *Socket) { s.Index = 0 },
		func(s *Socket) { s.Scope = "" },
		func(s *Socket) { s.Holders = []Holder{} },
		func(s *Socket) { s.Owner = nil },
		func(s *Socket) { s.Since = Stamp{} },
		func(s *Socket) { s.Service = "" },
		func(s *Socket) { s.Container = nil },
		func(s *Socket) { s.RangeLow = 0 },
		func(s *Socket) { s.RangeHigh = 0 },
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			row := fullSocket()
			change(&row)
			sameJSON(t, enc.AppendSocket, &row)
		})
	}
}

func TestEventJSON(t *testing.T) {
	var enc Encoder // one for all: rows differ in one field, or few
	full := fullEvent()
	sameJSON(t, enc.AppendEvent, &full)
	sameJSON(t, enc.AppendEvent, &Event{})
	for _, comm := range hostileComms() {
		row := full
		row.Comm, row.Cgroup = comm, "/"+comm
		sameJSON(t, enc.AppendEvent, &row)
	}
	for i, change := range []func(*Event){
		func(e *Event) { e.LocalIP = netip.Addr{} },
		func(e *Event) { e.LocalPort = 0 },
		func(e *Event) { e.RemoteIP = netip.Addr{} },
		func(e *Event) { e.RemotePort = 0 },
		func(e *Event) { e.RequestedPort = nil },
		func(e *Event) { e.Implicit = false },
		func(e *Event) { e.Error = "" },
		func(e *Event) { e.HeldBy = nil },
		func(e *Event) { e.HeldByMore = 0 },
		func(e *Event) { e.PID = 0 },
		func(e *Event) { e.Comm = "" },
		func(e *Event) { e.UID = nil },
		func(e *Event) { e.Cgroup = "" },
		func(e *Event) { e.Container = nil },
		func(e *Event) { e.MPTCP = false },
		func(e *Event) { e.V6Only = false },
		func(e *Event) { e.Device = "" },
		func(e *Event) { e.Index = 0 },
		func(e *Event) { e.Scope = "" },
		func(e *Event) { e.DurationNS = -1 },
		func(e *Event) { e.TimeWait = false },
		func(e *Event) { e.UntilAbout = false },
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			row := fullEvent()
			change(&row)
			sameJSON(t, enc.AppendEvent, &row)
		})
	}
}

func FuzzJSONComm(f *testing.F) {
	for _, comm := range hostileComms() {
		f.Add(comm)
	}
	f.Fuzz(func(t *testing.T, comm string) {
		s := Socket{Holders: []Holder{{PID: 1, Comm: comm}}, Owner: &Owner{Comm: comm}}
		var enc Encoder
		sameJSON(t, enc.AppendSocket, &s)
		sameJSON(t, enc.AppendEvent, &Event{PID: 1, Comm: comm, HeldBy: []Socket{s}})
	})
}

// manySockets is sockets of every role with no, one or more holders.
func manySockets(n int) []tracer.Socket {
	out := make([]tracer.Socket, n)
	comms := hostileComms()
	for i := range out {
		s := &out[i]
		s.Proto, s.Role = tracer.TCP, tracer.Roles()[i%len(tracer.Roles())]
		s.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(i))
		for j := range i % 4 {
			s.Holders = append(s.Holders, tracer.Holder{Process: tracer.Process{PID: uint32(i), Comm: comms[i%len(comms)]}, FD: uint32(j)})
		}
	}
	return out
}

// Encoding on every processor must neither mix rows nor change their order.
func TestSocketsJSON(t *testing.T) {
	n := testNames()
	sockets := manySockets(3000*runtime.GOMAXPROCS(0) + 1)
	var want, got bytes.Buffer
	enc := json.NewEncoder(&want)
	for i := range sockets {
		if err := enc.Encode(n.Socket(&sockets[i])); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.SocketsJSON(&got, SocketsOf(sockets, nil)); err != nil {
		t.Fatal(err)
	}
	wantLines, gotLines := strings.Split(string(escapeControls(want.Bytes())), "\n"), strings.Split(got.String(), "\n")
	if len(wantLines) != len(gotLines) {
		t.Fatalf("%d lines, want %d", len(gotLines), len(wantLines))
	}
	for i := range wantLines {
		if wantLines[i] != gotLines[i] {
			t.Fatalf("line %d is\n%s\nwant\n%s", i+1, gotLines[i], wantLines[i])
		}
	}
}

func TestSocketRow(t *testing.T) {
	n := testNames()
	process := tracer.Process{PID: 42, UID: 1000, Comm: "curl", Cgroup: 9}
	client := tracer.Socket{
		Proto: tracer.TCP, State: tracer.StateEstablished, Role: tracer.RoleClient,
		Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort("10.0.0.2:8080"),
		NetNS: 7, Inode: 99, UID: 1000, Owner: process, Holders: []tracer.Holder{{Process: process, FD: 5}},
		Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600)), Origin: tracer.OriginObserved,
	}
	const want = `{"proto":"tcp","state":"ESTAB","role":"client","local_ip":"10.0.0.1","local_port":40000,` +
		`"remote_ip":"10.0.0.2","remote_port":8080,"netns":7,"inode":99,"uid":1000,` +
		`"holders":[{"pid":42,"comm":"curl","fd":5}],"owner":{"pid":42,"comm":"curl"},` +
		`"since":"2026-01-02T02:04:05.000000006Z","origin":"observed","service":"my-\u003chttp\u003e"}`
	row := n.Socket(&client)
	if d := cmp.Diff(want, string(new(Encoder).AppendSocket(nil, &row))); d != "" {
		t.Errorf("client (-want +got):\n%s", d)
	}

	// Nobody owns a TIME_WAIT: uid 0 would be a lie. Its holders are none, not null.
	gone := tracer.Socket{
		Proto: tracer.TCP, State: tracer.StateTimeWait, Role: tracer.RoleTimeWait,
		Local: netip.MustParseAddrPort("[::1]:1"), Remote: netip.MustParseAddrPort("[::1]:2"),
	}
	const wantGone = `{"proto":"tcp","state":"TIME-WAIT","role":"time_wait","local_ip":"::1","local_port":1,` +
		`"remote_ip":"::1","remote_port":2,"netns":0,"holders":[],"origin":"snapshot"`
	row = n.Socket(&gone)
	if got := string(new(Encoder).AppendSocket(nil, &row)); !strings.HasPrefix(got, wantGone) || strings.Contains(got, "uid") {
		t.Errorf("TIME_WAIT: %s\nwant it to start with %s, and no uid", got, wantGone)
	}
}

func TestEventRow(t *testing.T) {
	n := testNames()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	process := tracer.Process{PID: 42, Comm: "nc"} // of root: uid 0 must be there
	for _, test := range []struct {
		name string
		ev   tracer.Event
		want string
	}{
		{"bind to any port",
			tracer.Event{Type: tracer.EventBind, Proto: tracer.TCP, Local: netip.MustParseAddrPort("0.0.0.0:40000"), Process: process},
			`"event":"bind","proto":"tcp","local_ip":"0.0.0.0","local_port":40000,"requested_port":0,"pid":42,"comm":"nc","uid":0,"netns":0`},
		{"bind refused",
			tracer.Event{Type: tracer.EventBind, Proto: tracer.UDP, Local: netip.MustParseAddrPort("[::]:53"), RequestedPort: 53, Errno: syscall.EADDRINUSE, Process: process},
			`"event":"bind","proto":"udp","local_ip":"::","local_port":53,"requested_port":53,"error":"EADDRINUSE","pid":42,"comm":"nc","uid":0,"netns":0`},
		{"bind to an address of another machine, any port",
			tracer.Event{Type: tracer.EventBind, Proto: tracer.TCP, Local: netip.MustParseAddrPort("8.8.8.8:0"), Errno: syscall.EADDRNOTAVAIL, Process: process},
			`"event":"bind","proto":"tcp","local_ip":"8.8.8.8","requested_port":0,"error":"EADDRNOTAVAIL","pid":42,"comm":"nc","uid":0,"netns":0`},
		{"implicit bind asked for nothing",
			tracer.Event{Type: tracer.EventBind, Proto: tracer.UDP, Local: netip.MustParseAddrPort("0.0.0.0:40000"), Implicit: true, Process: process},
			`"event":"bind","proto":"udp","local_ip":"0.0.0.0","local_port":40000,"implicit":true,"pid":42,"comm":"nc","uid":0,"netns":0`},
		{"connect without a port left",
			tracer.Event{Type: tracer.EventConnect, Proto: tracer.TCP, Local: netip.MustParseAddrPort("0.0.0.0:0"), Remote: netip.MustParseAddrPort("10.0.0.2:80"), Errno: syscall.EADDRNOTAVAIL, Process: process},
			`"event":"connect","proto":"tcp","remote_ip":"10.0.0.2","remote_port":80,"error":"EADDRNOTAVAIL","pid":42,"comm":"nc","uid":0,"netns":0`},
		{"close by nobody known",
			tracer.Event{Type: tracer.EventClose, Proto: tracer.TCP, Local: netip.MustParseAddrPort("10.0.0.1:80"), Duration: time.Second, TimeWait: true, NetNS: 7},
			`"event":"close","proto":"tcp","local_ip":"10.0.0.1","local_port":80,"netns":7,"duration_ns":1000000000,"time_wait":true`},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.ev.Time = at
			row := n.Event(&test.ev)
			want := `{"time":"2026-01-02T03:04:05.000000006Z",` + test.want + `}`
			if d := cmp.Diff(want, string(new(Encoder).AppendEvent(nil, &row))); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
