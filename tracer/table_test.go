package tracer

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// Addresses of kernel sockets, as the table knows them.
const (
	sockA uint64 = 0xffff8880_00001000
	sockB uint64 = 0xffff8880_00002000
	sockC uint64 = 0xffff8880_00003000
)

const testNS = 4026531840

// tableTest is a table and the test that fills it.
type tableTest struct {
	*testing.T
	*Table
}

func newTableTest(t *testing.T) tableTest { return tableTest{t, newTable()} }

// news applies an event that must be published, and returns it completed.
func (tt tableTest) news(ev Event) Event {
	tt.Helper()
	if !tt.apply(&ev) {
		tt.Fatalf("%s of %#x was not published", ev.Type, ev.sock)
	}
	return ev
}

// swallowed applies an event that must not be published.
func (tt tableTest) swallowed(ev Event) {
	tt.Helper()
	if tt.apply(&ev) {
		tt.Fatalf("%s of %#x was published", ev.Type, ev.sock)
	}
}

// only returns the one socket of the table.
func (tt tableTest) only() Socket {
	tt.Helper()
	all := tt.All()
	if len(all) != 1 {
		tt.Fatalf("table has %d sockets, want 1: %+v", len(all), all)
	}
	return all[0]
}

func (tt tableTest) empty() {
	tt.Helper()
	if all := tt.All(); len(all) != 0 {
		tt.Fatalf("table has %+v, want nothing", all)
	}
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// bootAt is CLOCK_BOOTTIME at a test's millisecond, wallAt the same on the wall.
func bootAt(at int) uint64    { return uint64(ms(at)) }
func wallAt(at int) time.Time { return time.Unix(1_700_000_000, 0).UTC().Add(ms(at)) }

func endpoint(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

func proc(pid uint32) Process { return Process{PID: pid, UID: 1000, Comm: "worker", Start: ms(1)} }

// tcp is an event of a TCP socket at a test's millisecond. As in the kernel, only
// events of a process that acts have one.
func tcp(at int, typ EventType, sock uint64, local, remote string) Event {
	ev := Event{
		Time: wallAt(at), Type: typ, Proto: TCP, Local: endpoint(local), Remote: endpoint(remote), NetNS: testNS,
		Process: proc(10), boot: bootAt(at), sock: sock,
	}
	if typ == EventClose || typ == EventEstablished || typ == eventDown {
		ev.Process = Process{}
	}
	return ev
}

func udp(at int, typ EventType, sock uint64, local, remote string) Event {
	ev := tcp(at, typ, sock, local, remote)
	ev.Proto = UDP
	return ev
}

func by(pid uint32, ev Event) Event             { ev.Process = proc(pid); return ev }
func implicit(ev Event) Event                   { ev.Implicit = true; return ev }
func failed(errno syscall.Errno, e Event) Event { e.Errno = errno; return e }
func flagged(f bpfEventFlag, ev Event) Event    { ev.flags |= uint8(f); return ev }
func leftTimeWait(ev Event) Event               { ev.TimeWait = true; return ev }

// found is a row of a snapshot, read at a test's millisecond.
func found(at int, role Role, id uint64, local, remote string) Socket {
	s := Socket{
		Proto: TCP, Role: role, State: StateEstablished, Local: endpoint(local), Remote: endpoint(remote), NetNS: testNS,
		Inode: id & 0xffff, UID: 1000, Origin: OriginSnapshot, id: id, attached: true, stamp: bootAt(at),
	}
	if role == RoleListener {
		s.State = StateListen
	}
	return s
}

func held(pid uint32, s Socket) Socket {
	s.Holders = []Holder{{Process: proc(pid), FD: 3}}
	return s
}

// reconcile merges a snapshot begun at a test's millisecond.
func (tt tableTest) reconcile(at int, sockets ...Socket) {
	tt.Table.reconcile(&Snapshot{Sockets: sockets, start: bootAt(at)})
}

// beside is what events and sockets tell of the socket's whole life: see TestTableTells.
func beside(p gocmp.Path) bool {
	field, ok := p.Last().(gocmp.StructField)
	return ok && slices.Contains([]string{"role", "asked", "since", "taken", "change"}, field.Name())
}

// equal fails the test where two values differ, fields of this package included.
func equal(t testing.TB, what string, want, got any) {
	t.Helper()
	if d := gocmp.Diff(want, got, gocmp.AllowUnexported(Event{}, Socket{}), gocmp.FilterPath(beside, gocmp.Ignore()), gocmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestTableListenerFromBindToClose(t *testing.T) {
	tt := newTableTest(t)
	tt.news(tcp(10, EventBind, sockA, "127.0.0.1:8080", ""))
	equal(t, "bound", Socket{
		Proto: TCP, State: StateUnconn, Role: RoleBound, Local: endpoint("127.0.0.1:8080"), NetNS: testNS,
		UID: 1000, Owner: proc(10), Since: wallAt(10), Origin: OriginObserved, id: sockA, stamp: bootAt(10),
	}, tt.only())

	tt.news(by(11, tcp(20, EventListen, sockA, "127.0.0.1:8080", ""))) // a child made it listen
	equal(t, "listening", Socket{
		Proto: TCP, State: StateListen, Role: RoleListener, Local: endpoint("127.0.0.1:8080"), NetNS: testNS,
		UID: 1000, Owner: proc(11), Since: wallAt(10), Origin: OriginObserved, id: sockA, stamp: bootAt(20),
	}, tt.only())

	want := by(11, tcp(1010, EventClose, sockA, "127.0.0.1:8080", ""))
	want.Duration = ms(1000)
	// Once the port is given back the kernel may show other ends.
	equal(t, "close", want, tt.news(tcp(1010, EventClose, sockA, "0.0.0.0:8080", "10.0.0.9:1")))
	tt.empty()
}

// Every event tells what its socket is there for, whether bind() gave it its port, and since when it has
// that; the close tells the same as the events before.
func TestTableTells(t *testing.T) {
	tt := newTableTest(t)
	implicit := udp(10, EventBind, sockB, "0.0.0.0:40000", "")
	implicit.Implicit = true
	for _, c := range []struct {
		ev    Event
		role  Role
		asked bool
		since int
	}{
		{tcp(10, EventBind, sockA, "127.0.0.1:8080", ""), RoleBound, true, 10},
		{tcp(20, EventListen, sockA, "127.0.0.1:8080", ""), RoleListener, true, 10},
		{tcp(30, EventClose, sockA, "127.0.0.1:8080", ""), RoleListener, true, 10},
		{failed(syscall.EADDRINUSE, tcp(35, EventBind, sockA, "127.0.0.1:8080", "")), 0, false, 0},
		{tcp(40, EventConnect, sockA, "127.0.0.1:50000", "127.0.0.1:80"), RoleClient, false, 40},
		{tcp(50, EventClose, sockA, "127.0.0.1:50000", ""), RoleClient, false, 40},
		{tcp(60, EventAccept, sockA, "127.0.0.1:80", "127.0.0.1:50001"), RoleServer, false, 60},
		{implicit, RoleBound, false, 10},
	} {
		got := tt.news(c.ev)
		if got.Role() != c.role || got.Asked() != c.asked || got.Taken() != time.Duration(bootAt(c.since)) {
			t.Errorf("%s at %v: role %s, asked %v, since %v; want %s, %v, %d ms", got.Type, got.Boottime(), got.Role(), got.Asked(), got.Taken(), c.role, c.asked, c.since)
		}
	}
}

// An event tells whether there is a listener more, or less, by what the table had.
func TestTableListeners(t *testing.T) {
	tt := newTableTest(t)
	fixed := func(ev Event) Event { ev.RequestedPort = ev.Local.Port(); return ev }
	old := found(5, RoleListener, sockC, "10.0.0.1:22", "")
	old.Backlog = Backlog{Waiting: 3, Max: 4, Known: true}
	tt.reconcile(5, old)
	if s := tt.only(); !s.Listens() || s.Backlog != old.Backlog {
		t.Errorf("of a snapshot: listens %t, backlog %+v, want true, %+v", s.Listens(), s.Backlog, old.Backlog)
	}
	var counts tally
	for _, c := range []struct {
		what string
		ev   Event
		want int
	}{
		{"bind", fixed(tcp(10, EventBind, sockA, "127.0.0.1:8080", "")), 0},
		{"listen", tcp(20, EventListen, sockA, "127.0.0.1:8080", ""), 1},
		{"listen with another backlog", tcp(25, EventListen, sockA, "127.0.0.1:8080", ""), 0},
		{"close", tcp(30, EventClose, sockA, "127.0.0.1:8080", ""), -1},
		{"a listener of before", tcp(31, EventClose, sockC, "10.0.0.1:22", ""), -1},
		{"a first datagram", implicit(udp(40, EventBind, sockB, "0.0.0.0:40000", "")), 0},
		{"its close", udp(41, EventClose, sockB, "0.0.0.0:40000", ""), 0},
		{"UDP bind to port 0", udp(50, EventBind, sockB, "0.0.0.0:40001", ""), 0},
		{"its close", udp(51, EventClose, sockB, "0.0.0.0:40001", ""), 0},
		{"UDP bind to a port", fixed(udp(60, EventBind, sockB, "0.0.0.0:53", "")), 1},
		{"UDP connect", udp(61, EventConnect, sockB, "10.0.0.1:53", "10.0.0.2:53"), -1},
		{"its close", udp(62, EventClose, sockB, "10.0.0.1:53", ""), 0},
	} {
		ev := tt.news(c.ev)
		if got := ev.Listener(); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
		counts.add(&ev)
	}
	if n := counts.counts(); n.ListenersAdded != 2 || n.ListenersRemoved != 3 {
		t.Errorf("%d added, %d removed, want 2 and 3", n.ListenersAdded, n.ListenersRemoved)
	}
}

// Without these a table could not tell who is in the way of a bind.
func TestTableSocketOptions(t *testing.T) {
	tt := newTableTest(t)
	tt.news(flagged(bpfEventFlagEVENT_V6ONLY|bpfEventFlagEVENT_REUSEADDR, tcp(10, EventBind, sockA, "[::]:80", "")))
	if s := tt.only(); !s.V6Only || !s.ReuseAddr || s.ReusePort {
		t.Errorf("v6only %t reuseaddr %t reuseport %t, want true true false", s.V6Only, s.ReuseAddr, s.ReusePort)
	}
	tt.news(flagged(bpfEventFlagEVENT_REUSEPORT, tcp(11, EventListen, sockA, "[::]:80", "")))
	if s := tt.only(); s.V6Only || s.ReuseAddr || !s.ReusePort {
		t.Errorf("v6only %t reuseaddr %t reuseport %t, want false false true", s.V6Only, s.ReuseAddr, s.ReusePort)
	}
	tt.news(tcp(12, EventConnect, sockA, "[::1]:80", "[::1]:81")) // does not carry them
	if s := tt.only(); !s.ReusePort {
		t.Error("a connect took away SO_REUSEPORT")
	}
}

func TestTableConnectFails(t *testing.T) {
	tt := newTableTest(t)
	tt.news(tcp(10, EventConnect, sockA, "10.0.0.1:40000", "10.0.0.2:443"))
	if s := tt.only(); s.State != StateSynSent || s.Role != RoleClient {
		t.Errorf("after connect: %s %s, want SYN-SENT client", s.State, s.Role)
	}
	want := failed(syscall.ECONNREFUSED, by(10, tcp(15, EventClose, sockA, "10.0.0.1:40000", "10.0.0.2:443")))
	want.Duration = ms(5)
	equal(t, "close", want, tt.news(failed(syscall.ECONNREFUSED, tcp(15, EventClose, sockA, "0.0.0.0:40000", ""))))
	tt.empty()
}

func TestTableAcceptOnce(t *testing.T) {
	tt := newTableTest(t)
	accept := tcp(10, EventAccept, sockA, "10.0.0.1:80", "10.0.0.2:40000")
	tt.news(accept)
	if s := tt.only(); s.State != StateEstablished || s.Role != RoleServer || s.Owner != proc(10) {
		t.Errorf("after accept: %s %s of %+v, want ESTAB server of %+v", s.State, s.Role, s.Owner, proc(10))
	}
	tt.swallowed(by(11, tcp(11, EventAccept, sockA, "10.0.0.1:80", "10.0.0.2:40000")))
	if s := tt.only(); s.Owner != proc(10) {
		t.Errorf("a repeated accept made %+v the owner", s.Owner)
	}
	closed := tt.news(tcp(20, EventClose, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
	if closed.Process != proc(10) {
		t.Errorf("closed by %+v, want the process that accepted", closed.Process)
	}
	// An accept of a connection that was reset meanwhile comes with a second close.
	tt.swallowed(tcp(21, EventClose, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
}

func TestTableCloseOfUnknown(t *testing.T) {
	tt := newTableTest(t)
	for _, typ := range []EventType{EventClose, eventDown, eventUnpeer} {
		tt.swallowed(tcp(10, typ, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
	}
	tt.empty()
}

// A socket bound to a port keeps it when its connection ends, and closes later.
func TestTableDownThenClose(t *testing.T) {
	bound := func(t *testing.T) tableTest {
		tt := newTableTest(t)
		tt.news(tcp(10, EventBind, sockA, "10.0.0.1:5000", ""))
		tt.news(tcp(20, EventConnect, sockA, "10.0.0.1:5000", "10.0.0.2:80"))
		return tt
	}
	t.Run("why and TIME_WAIT are told by the close", func(t *testing.T) {
		tt := bound(t)
		tt.swallowed(leftTimeWait(failed(syscall.ECONNRESET, tcp(30, eventDown, sockA, "10.0.0.1:5000", "10.0.0.2:80"))))
		if s := tt.only(); s.State != StateUnconn || s.Role != RoleBound || s.Remote.IsValid() {
			t.Errorf("after the connection: %s %s to %v, want UNCONN bound to nobody", s.State, s.Role, s.Remote)
		}
		want := leftTimeWait(failed(syscall.ECONNRESET, by(10, tcp(40, EventClose, sockA, "10.0.0.1:5000", ""))))
		want.Duration = ms(30)
		equal(t, "close", want, tt.news(tcp(40, EventClose, sockA, "10.0.0.1:5000", "10.0.0.2:80")))
	})
	t.Run("an error of the close itself is later", func(t *testing.T) {
		tt := bound(t)
		tt.swallowed(failed(syscall.ECONNRESET, tcp(30, eventDown, sockA, "10.0.0.1:5000", "")))
		if ev := tt.news(failed(syscall.ETIMEDOUT, tcp(40, EventClose, sockA, "10.0.0.1:5000", ""))); ev.Errno != syscall.ETIMEDOUT {
			t.Errorf("closed with %v, want ETIMEDOUT", ev.Errno)
		}
	})
	t.Run("the next connection is another", func(t *testing.T) {
		tt := bound(t)
		tt.swallowed(leftTimeWait(failed(syscall.ECONNREFUSED, tcp(30, eventDown, sockA, "10.0.0.1:5000", ""))))
		tt.news(tcp(40, EventConnect, sockA, "10.0.0.1:5000", "10.0.0.3:80"))
		ev := tt.news(tcp(50, EventClose, sockA, "10.0.0.1:5000", "10.0.0.3:80"))
		if ev.Errno != 0 || ev.TimeWait {
			t.Errorf("closed with %v, time_wait %t: those are of the connection before", ev.Errno, ev.TimeWait)
		}
	})
}

func TestTableUDPPeer(t *testing.T) {
	tt := newTableTest(t)
	tt.news(implicit(udp(10, EventBind, sockA, "0.0.0.0:5353", "")))
	tt.news(udp(11, EventConnect, sockA, "10.0.0.1:5353", "10.0.0.2:53"))
	if s := tt.only(); s.State != StateEstablished || s.Role != RoleClient || s.Local != endpoint("10.0.0.1:5353") {
		t.Errorf("with a peer: %s %s at %v, want ESTAB client at 10.0.0.1:5353", s.State, s.Role, s.Local)
	}
	tt.swallowed(udp(12, eventUnpeer, sockA, "0.0.0.0:5353", ""))
	if s := tt.only(); s.State != StateUnconn || s.Role != RoleBound || s.Remote.IsValid() {
		t.Errorf("without its peer: %s %s to %v, want UNCONN bound to nobody", s.State, s.Role, s.Remote)
	}
	if ev := tt.news(udp(20, EventClose, sockA, "0.0.0.0:5353", "")); ev.Remote.IsValid() || ev.Duration != ms(10) {
		t.Errorf("close of %v after %v, want no peer and 10ms", ev.Remote, ev.Duration)
	}
}

// The first datagram of a socket that has a port already looks as an implicit
// bind to the kernel programs.
func TestTableImplicitBindOnce(t *testing.T) {
	tt := newTableTest(t)
	tt.news(implicit(udp(10, EventBind, sockA, "0.0.0.0:5353", "")))
	tt.news(udp(11, EventConnect, sockA, "10.0.0.1:5353", "10.0.0.2:53"))
	tt.swallowed(implicit(udp(12, EventBind, sockA, "10.0.0.1:5353", "")))
	if s := tt.only(); s.Role != RoleClient || s.Remote != endpoint("10.0.0.2:53") {
		t.Errorf("the repetition made it %s to %v", s.Role, s.Remote)
	}
	tt.news(implicit(tcp(20, EventBind, sockB, "0.0.0.0:40001", ""))) // listen() without bind()
	tt.news(tcp(20, EventListen, sockB, "0.0.0.0:40001", ""))
}

// What was refused is told, and changes nothing.
func TestTableRefused(t *testing.T) {
	const local = "10.0.0.1:5000"
	bind := tcp(10, EventBind, sockA, local, "")
	connect := tcp(20, EventConnect, sockA, local, "10.0.0.2:80")
	down := failed(syscall.ECONNREFUSED, tcp(21, eventDown, sockA, local, ""))
	for _, test := range []struct {
		name   string
		before []Event
	}{
		{"socket not known", nil},
		{"bound", []Event{bind}},
		{"client", []Event{bind, connect}},
		{"after a connection", []Event{bind, connect, down}},
	} {
		t.Run(test.name, func(t *testing.T) {
			tt := newTableTest(t)
			for i := range test.before {
				tt.apply(&test.before[i])
			}
			before := tt.All()
			tt.news(failed(syscall.EADDRNOTAVAIL, tcp(30, EventConnect, sockA, local, "10.0.0.2:80")))
			equal(t, "a failure changed the table", before, tt.All())
		})
	}
}

func TestTableEstablished(t *testing.T) {
	tt := newTableTest(t)
	tt.news(tcp(10, EventConnect, sockA, "10.0.0.1:40000", "10.0.0.2:443"))
	want := by(10, tcp(13, EventEstablished, sockA, "10.0.0.1:40000", "10.0.0.2:443"))
	want.Duration = ms(3)
	equal(t, "established", want, tt.news(tcp(13, EventEstablished, sockA, "10.0.0.1:40000", "10.0.0.2:443")))
	if s := tt.only(); s.State != StateEstablished {
		t.Errorf("state %s, want ESTAB", s.State)
	}
	// The other end: no process has accepted it yet.
	other := tcp(13, EventEstablished, sockB, "10.0.0.2:443", "10.0.0.1:40000")
	equal(t, "established, not accepted", other, tt.news(other))
	if tt.Len() != 1 {
		t.Errorf("%d sockets: one that no process has accepted has no owner to tell", tt.Len())
	}
}

func TestTableEventsOlderThanFirstSnapshot(t *testing.T) {
	tt := newTableTest(t)
	row := found(100, RoleClient, sockA, "10.0.0.1:40000", "10.0.0.2:443")
	tt.reconcile(50, row)
	tt.swallowed(tcp(60, EventConnect, sockA, "10.0.0.1:40000", "10.0.0.2:443"))
	tt.swallowed(tcp(70, EventEstablished, sockA, "10.0.0.1:40000", "10.0.0.2:443"))
	tt.swallowed(tcp(80, eventDown, sockA, "10.0.0.1:40000", "10.0.0.2:443"))
	tt.swallowed(tcp(100, EventClose, sockA, "10.0.0.1:40000", "10.0.0.2:443")) // of the address's socket before
	row.Owner, row.Since = proc(10), wallAt(60)                                 // what only the events know
	equal(t, "row", row, tt.only())
	if ev := tt.news(tcp(160, EventClose, sockA, "10.0.0.1:40000", "")); ev.Duration != ms(100) || ev.Process != proc(10) {
		t.Errorf("closed after %v by %+v, want 100ms by %+v", ev.Duration, ev.Process, proc(10))
	}
}

func TestTableOlderEventOfAnotherSocket(t *testing.T) {
	tt := newTableTest(t)
	tt.reconcile(50, held(20, found(100, RoleClient, sockA, "10.0.0.1:40000", "10.0.0.2:443")))
	tt.swallowed(tcp(60, EventConnect, sockA, "10.0.0.1:39999", "10.0.0.2:443"))
	if s := tt.only(); s.Owner.PID != 0 || !s.Since.IsZero() {
		t.Errorf("owner %+v since %v are of the socket that had the address before", s.Owner, s.Since)
	}
	if ev := tt.news(tcp(160, EventClose, sockA, "10.0.0.1:40000", "")); ev.Process != proc(20) || ev.Duration != 0 {
		t.Errorf("closed by %+v after %v, want the holder and no duration", ev.Process, ev.Duration)
	}
}

// Only the first snapshot tells what older events would: later ones repair.
func TestTableEventOlderThanLaterSnapshot(t *testing.T) {
	tt := newTableTest(t)
	tt.reconcile(10)
	tt.reconcile(50, found(100, RoleListener, sockA, "10.0.0.1:80", ""))
	tt.news(tcp(60, EventBind, sockA, "10.0.0.1:80", ""))
	if s := tt.only(); s.State != StateListen || s.Owner != proc(10) || !s.Since.Equal(wallAt(60)) {
		t.Errorf("%s of pid %d since %v, want the state of the snapshot and the rest of the event", s.State, s.Owner.PID, s.Since)
	}
	tt.swallowed(tcp(99, EventClose, sockA, "10.0.0.1:80", "")) // the snapshot saw it later
	if tt.Len() != 1 {
		t.Error("an old close removed a newer row")
	}
}

func TestTableAddressReused(t *testing.T) {
	for _, test := range []struct {
		name          string
		before, after Event
	}{
		{"other port",
			tcp(10, EventConnect, sockA, "10.0.0.1:40000", "10.0.0.2:443"),
			by(11, tcp(90, EventConnect, sockA, "10.0.0.1:40001", "10.0.0.2:443"))},
		{"accepted from another peer",
			tcp(10, EventAccept, sockA, "10.0.0.1:80", "10.0.0.2:40000"),
			by(11, tcp(90, EventAccept, sockA, "10.0.0.1:80", "10.0.0.3:40000"))},
	} {
		t.Run(test.name, func(t *testing.T) {
			tt := newTableTest(t)
			tt.news(test.before)
			tt.news(test.after)
			s := tt.only()
			if s.Local != test.after.Local || s.Remote != test.after.Remote || s.Owner != proc(11) || !s.Since.Equal(wallAt(90)) {
				t.Errorf("row %v -> %v of pid %d since %v, want that of the second event alone", s.Local, s.Remote, s.Owner.PID, s.Since)
			}
			equal(t, "sockets of its port", []Socket{s}, tt.Port(s.Local.Port()))
			if old := test.before.Local.Port(); old != s.Local.Port() && tt.Port(old) != nil {
				t.Errorf("port %d still has %+v", old, tt.Port(old))
			}
		})
	}
}

func TestTableReconcileTakesRows(t *testing.T) {
	tt := newTableTest(t)
	listener := held(20, found(60, RoleListener, sockA, "10.0.0.1:80", ""))
	gone := found(60, RoleTimeWait, sockB, "10.0.0.1:81", "10.0.0.2:1")
	request := found(60, RoleOrphan, sockC, "10.0.0.1:80", "10.0.0.2:1")
	request.State, request.attached = StateSynRecv, false
	tt.reconcile(50, listener, gone, request)
	// Neither a TIME_WAIT nor a half-open connection has an event at its end.
	equal(t, "table", []Socket{listener}, tt.All())
}

func TestTableReconcileKeepsNewerRows(t *testing.T) {
	tt := newTableTest(t)
	tt.reconcile(10)
	tt.news(tcp(20, EventBind, sockA, "10.0.0.1:80", ""))
	tt.news(tcp(100, EventListen, sockA, "10.0.0.1:80", ""))
	want := tt.only()
	want.Holders, want.Inode, want.UID = []Holder{{Process: proc(20), FD: 3}}, sockA&0xffff, 1000
	bound := held(20, found(60, RoleBound, sockA, "10.0.0.1:80", ""))
	bound.State = StateUnconn
	tt.reconcile(50, bound)
	equal(t, "row, its state from the event and its holders from the snapshot", want, tt.only())

	tt.reconcile(70, held(21, found(80, RoleListener, sockA, "10.0.0.1:79", ""))) // the address's socket before
	equal(t, "row after word of an older socket", want, tt.only())
	tt.reconcile(90)
	tt.reconcile(95)
	equal(t, "row newer than two snapshots without it", want, tt.only())
}

func TestTableReconcileKeepsWhatEventsTold(t *testing.T) {
	tt := newTableTest(t)
	tt.reconcile(10)
	tt.news(tcp(20, EventBind, sockA, "10.0.0.1:80", ""))
	snap := held(20, found(60, RoleListener, sockA, "10.0.0.1:80", ""))
	tt.reconcile(50, snap)
	want := snap
	want.Owner, want.Since, want.Origin = proc(10), wallAt(20), OriginObserved
	equal(t, "row", want, tt.only())

	other := held(21, found(80, RoleBound, sockA, "10.0.0.1:79", ""))
	tt.reconcile(70, other)
	equal(t, "row of a new socket at the same address", other, tt.only())
}

func TestTableReconcileReusedConnection(t *testing.T) {
	tt := newTableTest(t)
	tt.reconcile(10)
	tt.news(tcp(20, EventAccept, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
	other := held(21, found(60, RoleServer, sockA, "10.0.0.1:80", "10.0.0.3:40000"))
	tt.reconcile(50, other)
	equal(t, "row of a connection with another peer", other, tt.only())
}

// A socket that a snapshot lacks may have its close still on its way.
func TestTableSettle(t *testing.T) {
	accept := tcp(20, EventAccept, sockA, "10.0.0.1:80", "10.0.0.2:40000")
	row := held(10, found(60, RoleServer, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
	start := func(t *testing.T) tableTest {
		tt := newTableTest(t)
		tt.news(accept)
		tt.reconcile(50)
		if tt.Len() != 1 {
			t.Fatal("removed by the snapshot without it")
		}
		return tt
	}
	t.Run("gone", func(t *testing.T) {
		tt := start(t)
		tt.settle(bootAt(1000))
		tt.empty()
		tt.swallowed(tcp(80, EventClose, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
	})
	t.Run("closed meanwhile", func(t *testing.T) {
		tt := start(t)
		if ev := tt.news(tcp(60, EventClose, sockA, "10.0.0.1:80", "10.0.0.2:40000")); ev.Process != proc(10) {
			t.Errorf("closed by %+v, want its owner", ev.Process)
		}
	})
	t.Run("there again", func(t *testing.T) {
		tt := start(t)
		tt.reconcile(55, row)
		tt.settle(bootAt(1000))
		want := row
		want.Owner, want.Since, want.Origin = proc(10), wallAt(20), OriginObserved
		equal(t, "row", want, tt.only())
	})
	t.Run("news of it between", func(t *testing.T) {
		tt := start(t)
		tt.news(tcp(65, EventEstablished, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
		tt.settle(bootAt(1000))
		if tt.Len() != 1 {
			t.Error("removed though the last event is newer than the snapshot")
		}
	})
}

// Who left a socket in TIME_WAIT is remembered as long as snapshots have it.
func TestTableTimeWaitOwner(t *testing.T) {
	const tw = sockC
	for _, tc := range []struct {
		name   string
		events []Event
	}{
		{"connected", []Event{
			tcp(20, EventConnect, sockA, "10.0.0.2:40000", "10.0.0.1:80"),
			{Type: EventClose, Proto: TCP, TimeWait: true, tw: tw, boot: bootAt(30), sock: sockA},
		}},
		{"bound", []Event{
			tcp(20, EventBind, sockA, "10.0.0.2:40000", ""),
			{Type: eventDown, Proto: TCP, TimeWait: true, tw: tw, boot: bootAt(30), sock: sockA},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tt := newTableTest(t)
			tt.timeWaits = make(map[uint64]timeWait)
			for _, ev := range tc.events {
				tt.apply(&ev)
			}
			waiting := func(local string) Process {
				snap := &Snapshot{Sockets: []Socket{found(60, RoleTimeWait, tw, local, "10.0.0.1:80")}}
				tt.completeAll(snap)
				return snap.Sockets[0].Owner
			}
			if got := waiting("10.0.0.2:40000"); got != proc(10) {
				t.Errorf("left by %+v, want the owner of the connection", got)
			}
			if got := waiting("10.0.0.2:40001"); got.PID != 0 {
				t.Errorf("left by %+v, want nobody: the address has another one now", got)
			}
			tt.reconcile(25)
			tt.reconcile(50, found(60, RoleTimeWait, tw, "10.0.0.2:40000", "10.0.0.1:80"))
			if len(tt.timeWaits) != 1 {
				t.Error("forgotten while it is there, or before a snapshot could have it")
			}
			tt.reconcile(70)
			if len(tt.timeWaits) != 0 {
				t.Error("remembered though a snapshot has it no more")
			}
		})
	}
}

// What events told of a socket is in later snapshots too.
func TestTableComplete(t *testing.T) {
	tt := newTableTest(t)
	tt.news(tcp(20, EventListen, sockA, "10.0.0.1:80", ""))
	snap := &Snapshot{Sockets: []Socket{
		found(60, RoleListener, sockA, "10.0.0.1:80", ""), found(60, RoleListener, sockB, "10.0.0.1:81", ""),
	}}
	want := slices.Clone(snap.Sockets)
	want[0].Owner, want[0].Since, want[0].Origin = proc(10), wallAt(20), OriginObserved
	tt.completeAll(snap)
	equal(t, "sockets", want, snap.Sockets)
}

// An owner that came by the socket after the snapshot is marked as one.
func TestTableCompleteLate(t *testing.T) {
	tt := newTableTest(t)
	tt.news(tcp(20, EventListen, sockA, "10.0.0.1:80", ""))
	for at, want := range map[int]bool{19: true, 20: false, 21: false} {
		snap := &Snapshot{Sockets: []Socket{found(at, RoleListener, sockA, "10.0.0.1:80", "")}}
		tt.completeAll(snap)
		if got := snap.Sockets[0]; got.Owner != proc(10) || got.late != want {
			t.Errorf("snapshot at %d: owner %+v, late %t, want %t", at, got.Owner, got.late, want)
		}
	}
}

// A service is started again while events are lost, and its new socket has the address
// and the ends of the old one: who bound that did not bind this.
func TestTableSameEndsOtherSocket(t *testing.T) {
	tt := newTableTest(t)
	tt.news(tcp(20, EventListen, sockA, "10.0.0.1:80", ""))
	tt.reconcile(25, found(30, RoleListener, sockA, "10.0.0.1:80", ""))
	if got := tt.only(); got.Owner != proc(10) {
		t.Fatalf("owner %+v, want the one that listened", got.Owner)
	}
	again := found(50, RoleListener, sockA, "10.0.0.1:80", "")
	again.Inode++
	snap := &Snapshot{Sockets: []Socket{again}}
	tt.completeAll(snap)
	equal(t, "completed", again, snap.Sockets[0])
	tt.reconcile(45, again)
	equal(t, "merged", again, tt.only())
}

func TestTableOrderAndCopies(t *testing.T) {
	tt := newTableTest(t)
	tt.news(tcp(10, EventConnect, sockA, "10.0.0.1:80", "10.0.0.2:1"))
	tt.news(udp(11, EventBind, sockB, "0.0.0.0:80", ""))
	tt.news(tcp(12, EventListen, sockC, "0.0.0.0:80", ""))
	tt.news(tcp(13, EventListen, sockC+1, "0.0.0.0:79", ""))
	ids := func(sockets []Socket) (out []uint64) {
		for i := range sockets {
			out = append(out, sockets[i].id)
		}
		return out
	}
	equal(t, "order of All", []uint64{sockC + 1, sockC, sockA, sockB}, ids(tt.All()))
	equal(t, "order of Port", []uint64{sockC, sockA, sockB}, ids(tt.Port(80)))
	equal(t, "port nobody has", []Socket(nil), tt.Port(81))
	want := tt.All()
	for _, got := range [][]Socket{tt.All(), tt.Port(80)} {
		clear(got) // a reader may do as it likes
	}
	equal(t, "table after a reader changed what it got", want, tt.All())
}

// Whatever comes, the rows found by port are those of the table.
func TestTableEach(t *testing.T) {
	tt := newTableTest(t)
	tt.news(tcp(1, EventListen, sockA, "0.0.0.0:80", ""))
	tt.news(tcp(2, EventConnect, sockB, "10.0.0.1:40000", "10.0.0.2:443"))
	tt.news(tcp(3, EventConnect, sockC, "10.0.0.1:40001", "10.0.0.2:443"))
	tt.news(tcp(4, EventClose, sockC, "10.0.0.1:40001", "10.0.0.2:443"))
	var seen []Socket
	tt.Each(func(s *Socket) { seen = append(seen, *s) })
	SortSockets(seen)
	equal(t, "sockets", tt.All(), seen)
}

func TestTablePortIndex(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	tt := newTableTest(t)
	const ports, socks = 4, 24
	types := []EventType{EventBind, EventListen, EventConnect, EventAccept, EventClose, EventClose, eventDown, eventUnpeer}
	for at := range 20_000 {
		local := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(1+rng.IntN(ports)))
		remote := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(1+rng.IntN(2)))
		id := uint64(1 + rng.IntN(socks))
		if rng.IntN(50) == 0 {
			tt.reconcile(at, found(at-rng.IntN(3), RoleServer, id, local.String(), remote.String()))
		} else {
			ev := tcp(at, types[rng.IntN(len(types))], id, local.String(), remote.String())
			tt.apply(&ev)
		}
		var byPort []Socket
		for port := uint16(1); port <= ports+1; port++ {
			for _, s := range tt.Port(port) {
				if s.Local.Port() != port {
					t.Fatalf("step %d: port %d has a socket of port %d", at, port, s.Local.Port())
				}
				byPort = append(byPort, s)
			}
		}
		SortSockets(byPort)
		if d := gocmp.Diff(tt.All(), byPort, gocmp.Comparer(func(a, b Socket) bool { return a.id == b.id })); len(byPort) != tt.Len() || d != "" {
			t.Fatalf("step %d: by port %d sockets, in all %d:\n%s", at, len(byPort), tt.Len(), d)
		}
	}
}

// One goroutine writes, others read: for the race detector.
func TestTableReadWhileWritten(t *testing.T) {
	tt := newTableTest(t)
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, s := range append(tt.All(), tt.Port(80)...) {
					if s.id != sockA || s.Local.Port() != 80 {
						t.Errorf("read a torn row: %+v", s)
						return
					}
				}
			}
		})
	}
	for at := range 2000 {
		tt.news(tcp(2*at, EventListen, sockA, "10.0.0.1:80", ""))
		if at%100 == 0 {
			tt.reconcile(2*at, found(2*at, RoleListener, sockA, "10.0.0.1:80", ""))
		}
		tt.news(tcp(2*at+1, EventClose, sockA, "10.0.0.1:80", ""))
	}
	close(stop)
	readers.Wait()
}

// A snapshot and what the events before it told need not agree: it may come between
// the word of a hook and the deed of the kernel.
func TestTableDoubt(t *testing.T) {
	bind := tcp(20, EventBind, sockA, "10.0.0.1:80", "")
	end := func(at int) Event { return tcp(at, EventClose, sockA, "10.0.0.1:80", "") }
	row := func(at int) Socket { return found(at, RoleListener, sockA, "10.0.0.1:80", "") }
	orphan := row(60)
	orphan.attached = false
	for _, test := range []struct {
		name  string
		close int // while the snapshot is expected
		row   Socket
		sure  bool
	}{
		{"closed after it was read", 70, row(60), true},
		{"closed before it was read", 55, row(60), false},
		{"a socket of no process", 55, orphan, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			tt := newTableTest(t)
			tt.reconcile(10)
			tt.news(bind)
			tt.expect()
			tt.news(end(test.close))
			tt.reconcile(50, test.row)
			if there := tt.Len() > 0; there == test.sure {
				t.Errorf("in the table: %t", there)
			}
			if sure := tt.settle(bootAt(1000)); sure != test.sure {
				t.Errorf("sure: %t, want %t", sure, test.sure)
			}
			if !tt.settle(bootAt(1000)) {
				t.Error("in doubt without another snapshot")
			}
			tt.reconcile(90, row(95))
			equal(t, "row of the next snapshot", row(95), tt.only())
		})
	}
	t.Run("address used again", func(t *testing.T) {
		tt := newTableTest(t)
		tt.reconcile(10)
		tt.news(bind)
		tt.expect()
		tt.news(end(52))
		tt.news(tcp(54, EventBind, sockA, "10.0.0.1:81", ""))
		other := found(60, RoleBound, sockA, "10.0.0.1:81", "")
		other.State = StateUnconn
		tt.reconcile(50, other)
		if got := tt.only(); got.Local != other.Local || got.Owner != proc(10) || !tt.settle(bootAt(1000)) {
			t.Errorf("the table has %+v, want the socket bound last, beyond doubt", got)
		}
	})
	t.Run("first snapshot", func(t *testing.T) {
		tt := newTableTest(t)
		tt.reconcile(10, row(20))
		tt.swallowed(end(15))
		if tt.settle(bootAt(1000)) {
			t.Error("sure of a socket that was closed before it was read")
		}
	})
	t.Run("no word of a listen", func(t *testing.T) {
		tt := newTableTest(t)
		tt.reconcile(10)
		tt.news(bind)
		for _, sure := range []bool{false, true} {
			tt.reconcile(50, row(60))
			if tt.settle(bootAt(1000)) != sure {
				t.Errorf("sure: %t, want %t", !sure, sure)
			}
		}
	})
}

func TestSortSockets(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	addrs := []netip.Addr{
		netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::"), netip.MustParseAddr("2001:db8::1"),
	}
	random := func(id int) Socket {
		s := Socket{
			Proto: TCP, Role: Roles()[rng.IntN(len(Roles()))], id: uint64(id),
			NetNS: []uint32{1, 1 << 16, testNS, 1<<32 - 1}[rng.IntN(4)],
			Local: netip.AddrPortFrom(addrs[rng.IntN(len(addrs))], []uint16{1, 80, 65535}[rng.IntN(3)]),
		}
		if rng.IntN(2) == 0 {
			s.Proto = UDP
		}
		if rng.IntN(2) == 0 {
			s.Remote = netip.AddrPortFrom(addrs[rng.IntN(len(addrs))], uint16(rng.IntN(3)))
		}
		return s
	}
	for _, n := range []int{0, 1, 2, 3, 17, 3000} {
		got := make([]Socket, n)
		for i, id := range rng.Perm(n) {
			got[i] = random(id)
		}
		want := slices.Clone(got)
		slices.SortFunc(want, func(a, b Socket) int {
			return cmp.Or(cmp.Compare(a.Role, b.Role), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.NetNS, b.NetNS),
				cmp.Compare(a.Local.Port(), b.Local.Port()), a.Local.Addr().Compare(b.Local.Addr()),
				a.Remote.Compare(b.Remote), cmp.Compare(a.id, b.id))
		})
		SortSockets(got)
		equal(t, "order", want, got)
	}
}

// The rows are those of the kernel's relation: KERNEL.md measured them. It is
// not symmetric.
func TestAddrConflict(t *testing.T) {
	const only = true
	for _, test := range []struct {
		new     string
		newOnly bool
		old     string
		oldOnly bool
		want    bool
	}{
		{"10.0.0.1", false, "10.0.0.1", false, true},
		{"10.0.0.1", false, "10.0.0.2", false, false},
		{"10.0.0.1", false, "0.0.0.0", false, true},
		{"0.0.0.0", false, "10.0.0.1", false, true},
		{"0.0.0.0", false, "0.0.0.0", false, true},
		{"10.0.0.1", false, "::", false, true},
		{"10.0.0.1", false, "::", only, false},
		{"10.0.0.1", false, "::1", false, false},
		{"0.0.0.0", false, "::", false, true},
		{"0.0.0.0", false, "::", only, false},
		{"0.0.0.0", false, "::1", only, false}, // bound to ::1
		{"0.0.0.0", false, "::1", false, true}, // connected from ::1
		{"::1", false, "::1", only, true},
		{"::1", false, "2001:db8::1", only, false},
		{"::1", false, "::", false, true},
		{"::1", false, "::", only, true},
		{"::1", false, "10.0.0.1", false, false},
		{"::1", false, "0.0.0.0", false, false}, // though not the other way round
		{"::", false, "::1", only, true},
		{"::", false, "::", only, true},
		{"::", false, "10.0.0.1", false, true},
		{"::", false, "0.0.0.0", false, true},
		{"::", only, "::1", only, true},
		{"::", only, "::", false, true},
		{"::", only, "10.0.0.1", false, false},
		{"::", only, "0.0.0.0", false, false},
	} {
		got := addrConflict(netip.MustParseAddr(test.new), test.newOnly, netip.MustParseAddr(test.old), test.oldOnly)
		if got != test.want {
			t.Errorf("bind to %s (v6only %t) while %s (v6only %t) is there: conflict %t, want %t",
				test.new, test.newOnly, test.old, test.oldOnly, got, test.want)
		}
	}
}

func TestInTheWay(t *testing.T) {
	const (
		none      bpfEventFlag = 0
		reuseAddr              = bpfEventFlagEVENT_REUSEADDR
		reusePort              = bpfEventFlagEVENT_REUSEPORT
	)
	// of makes the socket that may be in the way out of a listener on 10.0.0.1:80 of uid 1000.
	for _, test := range []struct {
		name  string
		flags bpfEventFlag
		of    func(*Socket)
		want  bool
	}{
		{"the same address", none, func(*Socket) {}, true},
		{"the socket itself", none, func(s *Socket) { s.id = sockA }, false},
		{"another protocol", none, func(s *Socket) { s.Proto = UDP }, false},
		{"another namespace", none, func(s *Socket) { s.NetNS++ }, false},
		{"another port", none, func(s *Socket) { s.Local = endpoint("10.0.0.1:81") }, false},
		{"another address", none, func(s *Socket) { s.Local = endpoint("10.0.0.2:80") }, false},
		{"dual stack", none, func(s *Socket) { s.Local = endpoint("[::]:80") }, true},
		{"IPv6 only", none, func(s *Socket) { s.Local, s.V6Only = endpoint("[::]:80"), true }, false},
		{"SO_REUSEADDR of both, a listener", reuseAddr, func(s *Socket) { s.ReuseAddr = true }, true},
		{"SO_REUSEADDR of both, bound", reuseAddr, func(s *Socket) { s.ReuseAddr, s.State = true, StateUnconn }, false},
		{"SO_REUSEADDR of both, TIME-WAIT", reuseAddr, func(s *Socket) { s.ReuseAddr, s.State, s.Role = true, StateTimeWait, RoleTimeWait }, false},
		{"SO_REUSEADDR of the new one", reuseAddr, func(s *Socket) { s.State = StateUnconn }, true},
		{"SO_REUSEADDR of the old one", none, func(s *Socket) { s.ReuseAddr, s.State = true, StateUnconn }, true},
		{"SO_REUSEPORT of both, same user", reusePort, func(s *Socket) { s.ReusePort = true }, false},
		{"SO_REUSEPORT of both, another user", reusePort, func(s *Socket) { s.ReusePort, s.UID = true, 0 }, true},
		{"SO_REUSEPORT of both, TIME-WAIT", reusePort, func(s *Socket) { s.ReusePort, s.UID, s.Role = true, 0, RoleTimeWait }, false},
		{"SO_REUSEPORT of the new one", reusePort, func(*Socket) {}, true},
		{"SO_REUSEPORT of the old one", none, func(s *Socket) { s.ReusePort = true }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			ev := flagged(test.flags, failed(syscall.EADDRINUSE, tcp(10, EventBind, sockA, "10.0.0.1:80", "")))
			s := found(5, RoleListener, sockB, "10.0.0.1:80", "")
			test.of(&s)
			equal(t, "in the way", test.want, conflict(&ev, &s))
		})
	}
}

// rawRecord is an event as the ring buffer has it.
func rawRecord(ev *bpfEvent) []byte {
	size := fullEvent
	if isShort(EventType(ev.Type)) {
		size = shortEvent
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(ev)), size)
}

// connectCloseCycle is the records of connections that come and go, all open at
// once in between.
func connectCloseCycle(connections int) [][]byte {
	cycle := make([][]byte, 2*connections)
	for i := range connections {
		ev := bpfEvent{
			Type: uint8(EventConnect), Proto: uint8(TCP), TimeNs: 1, Sock: sockA + uint64(i)*0x940,
			Process: bpfProcess{Pid: 10, Comm: [16]byte{'c', 'u', 'r', 'l'}},
			Flow:    bpfFlow{LocalPort: uint16(40000 + i), RemotePort: 443, Netns: testNS},
		}
		cycle[i] = rawRecord(&ev)
		end := ev
		end.Type, end.Process, end.TimeNs = uint8(EventClose), bpfProcess{}, 2
		cycle[connections+i] = rawRecord(&end)
	}
	return cycle
}

func TestAllocDecodeApply(t *testing.T) {
	dec, table, booted := newDecoder(), newTable(), wallAt(0)
	cycle := connectCloseCycle(500)
	var ev Event
	// Allocs runs once to warm up before it counts.
	allocs := testutil.Allocs(20, func() {
		for _, record := range cycle {
			if err := dec.event(record, booted, &ev); err != nil {
				t.Fatal(err)
			}
			if !table.apply(&ev) {
				t.Fatalf("%s of %#x was not published", ev.Type, ev.sock)
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for %d events, want none: the reader would feed the garbage collector", allocs, len(cycle))
	}
}

func BenchmarkDecodeApply(b *testing.B) {
	dec, table, booted := newDecoder(), newTable(), wallAt(0)
	cycle := connectCloseCycle(500)
	var ev Event
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ { // ns/op is ns per event
		if err := dec.event(cycle[i%len(cycle)], booted, &ev); err != nil {
			b.Fatal(err)
		}
		table.apply(&ev)
	}
}

// A snapshot taken to reconcile overtakes an event that waits in the ring buffer: it
// shows the connection as accepted already. The accept is news still.
func TestTableAcceptAfterReconcile(t *testing.T) {
	local, remote := netip.MustParseAddrPort("127.0.0.1:80"), netip.MustParseAddrPort("127.0.0.1:1000")
	holder := Process{PID: 7, Comm: "server"}
	table := newTable()
	table.reconcile(&Snapshot{start: 1})
	table.reconcile(&Snapshot{start: 100, Sockets: []Socket{{
		id: 5, stamp: 110, Proto: TCP, State: StateEstablished, Role: RoleServer, Local: local, Remote: remote,
		Holders: []Holder{{Process: holder, FD: 3}}, attached: true,
	}}})
	accept := Event{Type: EventAccept, Proto: TCP, Local: local, Remote: remote, Process: holder, sock: 5, boot: 90}
	if again := accept; !table.apply(&again) {
		t.Error("an accept that a snapshot overtook is not told")
	}
	if got := table.Port(80); len(got) != 1 || got[0].Owner != holder {
		t.Errorf("the table has %+v, want it owned by %+v", got, holder)
	}
	if again := accept; table.apply(&again) {
		t.Error("the accept is told twice")
	}
}

// A snapshot sees the descriptor of a connection before accept() has returned; but who
// asks for the peer's name of one that is held says nothing new.
func TestTableAcceptDuringReconcile(t *testing.T) {
	tt := newTableTest(t)
	tt.reconcile(10)
	tt.reconcile(50, held(10, found(60, RoleServer, sockA, "10.0.0.1:80", "10.0.0.2:40000")))
	accept := tcp(70, EventAccept, sockA, "10.0.0.1:80", "10.0.0.2:40000")
	tt.swallowed(flagged(bpfEventFlagEVENT_MAYBE, accept))
	tt.news(accept)
	tt.swallowed(accept)
}

// takeUnseen returns the closes that the table has noticed, and forgets them.
func (tt tableTest) takeUnseen() []Event {
	unseen := tt.unseen
	tt.Table.unseen = nil
	return unseen
}

// A close that nobody saw is told once the socket is known to be gone, as such.
func TestTableMissedClose(t *testing.T) {
	listen := tcp(20, EventListen, sockA, "10.0.0.1:80", "")
	want := by(10, tcp(0, EventClose, sockA, "10.0.0.1:80", ""))
	want.About = true
	at := func(ms int) []Event {
		ev := want
		ev.Time, ev.boot, ev.Duration = wallAt(ms), bootAt(ms), time.Duration(ms-20)*time.Millisecond
		return []Event{ev}
	}
	start := func(t *testing.T) tableTest {
		tt := newTableTest(t)
		tt.reconcile(10)
		tt.news(listen)
		return tt
	}
	t.Run("a snapshot lacks it", func(t *testing.T) {
		tt := start(t)
		tt.reconcile(50)
		equal(t, "unseen before what is older was read", []Event(nil), tt.takeUnseen())
		if ids := tt.missing(); len(ids) != 1 || ids[0].id != sockA {
			t.Errorf("missing: %+v, want the listener", ids)
		}
		tt.settle(bootAt(110))
		equal(t, "unseen", at(110), tt.takeUnseen())
		tt.empty()
	})
	t.Run("it is there all the same", func(t *testing.T) {
		tt := start(t)
		tt.reconcile(50)
		tt.found(sockA)
		tt.settle(bootAt(110))
		equal(t, "unseen", []Event(nil), tt.takeUnseen())
		tt.only()
	})
	t.Run("an event of another at its address", func(t *testing.T) {
		tt := start(t)
		tt.news(tcp(30, EventConnect, sockA, "10.0.0.1:40000", "10.0.0.2:443"))
		equal(t, "unseen", at(30), tt.takeUnseen())
	})
	t.Run("a snapshot has another at its address", func(t *testing.T) {
		tt := start(t)
		tt.reconcile(50, found(60, RoleListener, sockA, "10.0.0.1:81", ""))
		equal(t, "unseen", at(60), tt.takeUnseen())
	})
	for _, other := range []struct {
		name string
		ev   Event
	}{
		{"the close of another port", tcp(40, EventClose, sockA, "0.0.0.0:81", "")},
		{"the end of another connection", tcp(40, eventDown, sockA, "0.0.0.0:81", "")},
		{"the close of UDP", udp(40, EventClose, sockA, "0.0.0.0:80", "")},
		{"a close that leaves TIME-WAIT", Event{
			Type: EventClose, Proto: TCP, Local: endpoint("0.0.0.0:80"), TimeWait: true, tw: sockC, Time: wallAt(40), boot: bootAt(40), sock: sockA,
		}},
	} {
		t.Run(other.name, func(t *testing.T) {
			tt := start(t)
			tt.swallowed(other.ev)
			equal(t, "unseen", at(40), tt.takeUnseen())
			tt.empty()
		})
	}
	t.Run("its close was told, a snapshot came before the deed", func(t *testing.T) {
		tt := start(t)
		tt.expect()
		tt.news(tcp(55, EventClose, sockA, "10.0.0.1:80", ""))
		tt.reconcile(50, found(60, RoleListener, sockA, "10.0.0.1:80", ""))
		tt.settle(bootAt(110))
		tt.expect()
		tt.reconcile(120)
		tt.settle(bootAt(180))
		equal(t, "unseen", []Event(nil), tt.takeUnseen())
		tt.empty()
	})
}

// A connection that ends in the accept queue is nobody's, also where a snapshot saw it.
func TestTableNeverAccepted(t *testing.T) {
	queued := found(20, RoleOrphan, sockA, "10.0.0.1:80", "10.0.0.2:40000")
	queued.attached = false
	left := queued
	left.State = StateFinWait2
	tt := newTableTest(t)
	tt.reconcile(10, queued)
	tt.swallowed(tcp(30, EventClose, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
	tt.empty()
	tt.reconcile(10, queued)
	tt.reconcile(50)
	tt.settle(bootAt(110))
	equal(t, "unseen", []Event(nil), tt.takeUnseen())
	tt.reconcile(10, queued)
	tt.news(tcp(30, EventAccept, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
	tt.news(tcp(40, EventClose, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
	tt.reconcile(10, left) // by its process
	tt.news(tcp(60, EventClose, sockA, "10.0.0.1:80", "10.0.0.2:40000"))
}

// How long a port was held does not depend on who sets the clock meanwhile.
func TestTableClockSet(t *testing.T) {
	for _, set := range []time.Duration{-time.Hour, time.Hour} {
		tt := newTableTest(t)
		tt.news(tcp(20, EventListen, sockA, "10.0.0.1:80", ""))
		tt.news(tcp(30, EventConnect, sockB, "10.0.0.1:40000", "10.0.0.2:443"))
		later := func(ev Event) Event {
			ev.Time = ev.Time.Add(set)
			return ev
		}
		if ev := tt.news(later(tcp(70, EventEstablished, sockB, "10.0.0.1:40000", "10.0.0.2:443"))); ev.Duration != ms(40) {
			t.Errorf("set by %v: a handshake of %v, want 40ms", set, ev.Duration)
		}
		if s := tt.Port(80); !s[0].Since.Equal(wallAt(20).Add(set)) {
			t.Errorf("set by %v: since %v, want %v by the clock as it is", set, s[0].Since, wallAt(20).Add(set))
		}
		if ev := tt.news(later(tcp(120, EventClose, sockA, "10.0.0.1:80", ""))); ev.Duration != ms(100) {
			t.Errorf("set by %v: held for %v, want 100ms", set, ev.Duration)
		}
	}
}
