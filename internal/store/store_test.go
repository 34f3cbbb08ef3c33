package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// clock is one that a test sets.
type clock struct{ stamp }

func (c *clock) now() stamp { return c.stamp }

func (c *clock) pass(d time.Duration) {
	c.boot += uint64(d)
	c.wall += int64(d)
}

// begin is when tests begin: a thousand seconds after the machine.
var begin = stamp{1000e9, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano()}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// openAt opens a history with a clock of the test's own.
func openAt(t *testing.T, dir string, c *clock, change ...func(*Config)) *Store {
	t.Helper()
	cfg := Config{Dir: dir, MaxSize: 64 << 20, MaxAge: DefaultMaxAge, Log: quiet(), clock: c.now}
	for _, f := range change {
		f(&cfg)
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// crash ends a store as kill -9 does: nothing is written any more, the lock is free.
func crash(s *Store) {
	for _, w := range s.out {
		w.file.close()
		if w.old != nil {
			w.old.file.close()
		}
	}
	s.unlock()
}

var nginx = tracer.Process{PID: 100, UID: 33, Start: 5 * time.Second, Comm: "nginx", Cgroup: 7}

func listener(port uint16, c *clock) Entry {
	return Entry{
		Proto: tracer.TCP, Role: tracer.RoleListener, Local: netip.AddrPortFrom(netip.IPv4Unspecified(), port), NetNS: 4026531840, NetNSCookie: 1,
		Owner: nginx, Taken: time.Duration(c.boot), At: time.Duration(c.boot), Asked: true,
	}
}

func connection(i int, c *clock) Entry {
	return Entry{
		Proto: tracer.TCP, Role: tracer.RoleClient, Local: netip.MustParseAddrPort("192.0.2.1:40000"),
		Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 443), NetNS: 4026531840, NetNSCookie: 1,
		Owner: tracer.Process{PID: uint32(200 + i%5), Comm: "curl", Start: time.Second}, Taken: time.Duration(c.boot), At: time.Duration(c.boot) + time.Millisecond,
	}
}

// rowsOf reads what a store has, the latest first.
func rowsOf(t *testing.T, s *Store, q Query) []Row {
	t.Helper()
	var note Note
	rows := collect(t, s.Rows(&q, nil, &note))
	if note.Any() {
		t.Errorf("lacking: %s", &note)
	}
	return rows
}

func readDir(t *testing.T, dir string, q Query) []Row {
	t.Helper()
	var note Note
	rows := collect(t, Read(dir, &q, &note))
	if note.Any() {
		t.Errorf("lacking: %s", &note)
	}
	return rows
}

func collect(t *testing.T, seq func(func(*Row, error) bool)) []Row {
	t.Helper()
	var rows []Row
	for row, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, *row)
	}
	return rows
}

// What was added is there, from memory, from the disk, and from the directory once the store has ended,
// with all that was known of it then.
func TestRoundTrip(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	user := uint32(1000)
	place := identity.Cgroup{
		Path: "/x", Unit: "web.service", UnitUser: &user,
		Container: &identity.Container{ID: "abc", Name: "web", Image: "nginx:1", Runtime: "docker"},
		Pod:       &identity.Pod{Namespace: "shop", Name: "web-1", UID: "u", Container: "c", Labels: map[string]string{"app": "web", "": ""}},
	}
	s := openAt(t, dir, c, func(cfg *Config) {
		cfg.Describe = func(*tracer.Process) Process {
			return Process{Exe: "/usr/sbin/nginx", Args: []string{"nginx", "-g", "daemon off;", ""}}
		}
		cfg.Place = func(*tracer.Process) identity.Cgroup { return place }
		cfg.Space = func(uint32, uint64) string { return "blue" }
	})
	l := listener(8080, c)
	s.Add(Holding, &l)
	c.pass(time.Minute)
	l.At = time.Duration(c.boot)
	s.Add(Held, &l)
	c.pass(time.Second)
	six := Entry{
		Proto: tracer.UDP, Role: tracer.RoleServer, Local: netip.MustParseAddrPort("[2001:db8::1]:53"), Remote: netip.MustParseAddrPort("[2001:db8::2]:5353"),
		NetNS: 5, NetNSCookie: 9, Device: 3, Errno: 104, At: time.Duration(c.boot), TimeWait: true, About: true, MPTCP: true, V6Only: true,
	}
	s.Add(Held, &six)
	c.pass(time.Second)
	refused := Entry{
		Proto: tracer.TCP, Local: netip.MustParseAddrPort("127.0.0.1:80"), NetNS: 4026531840, Errno: 98, Event: tracer.EventBind, At: time.Duration(c.boot), Owner: nginx,
	}
	s.Add(Refused, &refused)
	check := func(what string, rows []Row) {
		t.Helper()
		if len(rows) != 3 {
			t.Fatalf("%s: %d rows, want 3: %+v", what, len(rows), rows)
		}
		if r := rows[0]; r.Kind != Refused || r.Errno != 98 || r.Event != tracer.EventBind || r.Local != refused.Local || r.Owner.Comm != "nginx" {
			t.Errorf("%s: refused %+v", what, r)
		}
		r := rows[1]
		if r.Proto != tracer.UDP || r.Local != six.Local || r.Remote != six.Remote || r.NetNS != 5 || r.NetNSCookie != 9 || r.Device != 3 || r.Errno != 104 ||
			!r.TimeWait || !r.About || !r.MPTCP || !r.V6Only || r.Owner != nil || !r.SinceUnknown || !r.Since.Equal(time.Unix(0, begin.wall)) {
			t.Errorf("%s: %+v", what, r)
		}
		r = rows[2]
		if r.Kind != Held || !r.Listener || r.Took != time.Minute || !r.Since.Equal(time.Unix(0, begin.wall)) || !r.Until.Equal(time.Unix(0, begin.wall).Add(time.Minute)) ||
			r.SinceUnknown || r.UntilUnknown || r.Space != "blue" || !r.Asked {
			t.Errorf("%s: %+v", what, r)
		}
		o := r.Owner
		if o == nil || o.PID != 100 || o.UID != 33 || o.Start != nginx.Start || o.Exe != "/usr/sbin/nginx" || !slices.Equal(o.Args, []string{"nginx", "-g", "daemon off;", ""}) ||
			o.Place.Unit != "web.service" || *o.Place.UnitUser != user || *o.Place.Container != *place.Container || !reflect.DeepEqual(o.Place.Pod, place.Pod) {
			t.Errorf("%s: owner %+v", what, o)
		}
	}
	check("in memory", rowsOf(t, s, Query{}))
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	check("flushed", rowsOf(t, s, Query{}))
	if err := s.Close(nil); err != nil {
		t.Fatal(err)
	}
	check("closed", readDir(t, dir, Query{}))
	files, err := list(dir)
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v: want a segment of each class", files, err)
	}
	for _, f := range files {
		if _, ended := readIndex(f.path, new(index), nil); !ended {
			t.Errorf("%s has no index", f.path)
		}
	}
}

// Rows come the latest first, whatever segment they are in and however often the clock was set; a cursor
// goes on where an answer ended.
func TestOrderAndCursor(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c, func(cfg *Config) { cfg.MaxSize = LeastSize })
	const n = 8000
	for i := range n {
		e := connection(i, c)
		if i%4 == 0 {
			e = listener(uint16(1000+i%100), c)
			e.Owner.Cgroup = uint64(i)
		}
		s.Add(Held, &e)
		c.pass(10 * time.Millisecond)
		if i%500 == 0 {
			c.wall -= int64(time.Hour) // somebody sets the clock back
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if files, err := list(dir); err != nil || len(files) < 4 {
		t.Fatalf("%d segments, %v: want several of each class", len(files), err)
	}
	whole := rowsOf(t, s, Query{})
	if len(whole) != n {
		t.Fatalf("%d rows, want %d", len(whole), n)
	}
	for i, r := range whole {
		if at := n - 1 - i; r.Listener != (at%4 == 0) || !r.Listener && r.Remote.Addr() != connection(at, c).Remote.Addr() {
			t.Fatalf("row %d: %+v", i, r)
		}
	}
	var paged []Row
	for q := (Query{}); ; {
		page := 0
		var note Note
		for row, err := range s.Rows(&q, nil, &note) {
			if err != nil {
				t.Fatal(err)
			}
			paged = append(paged, *row)
			if page++; page == 37 {
				break
			}
		}
		if page == 0 {
			break
		}
		q.After = paged[len(paged)-1].Cursor
		if len(paged)%2 == 0 { // what comes meanwhile is not part of it
			e := connection(7, c)
			s.Add(Held, &e)
		}
	}
	if len(paged) != n {
		t.Fatalf("%d rows in pages, want %d", len(paged), n)
	}
	for i := range paged {
		if paged[i].Local != whole[i].Local || paged[i].Remote != whole[i].Remote {
			t.Fatalf("row %d in pages: %+v, want %+v", i, paged[i], whole[i])
		}
	}
	for _, bad := range []string{"x", "1.2-3.4", "1.2-3.4-5x"} {
		for _, err := range s.Rows(&Query{After: bad}, nil, new(Note)) {
			if !errors.Is(err, ErrCursor) {
				t.Errorf("cursor %q: %v", bad, err)
			}
		}
	}
	s.Close(nil)
}

// Who was in the way of a refused bind is in its record, as they were then, and bounded; the same ones are
// written once.
func TestHeldBy(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c, func(cfg *Config) {
		cfg.Describe = func(p *tracer.Process) Process { return Process{Args: []string{p.Comm, "-x"}} }
		cfg.Place = func(p *tracer.Process) identity.Cgroup { return identity.Cgroup{Path: "/x", Unit: p.Comm + ".service"} }
	})
	six := netip.MustParseAddrPort("[2001:db8::1]:8080")
	way := tracer.Socket{Proto: tracer.TCP, State: tracer.StateListen, Role: tracer.RoleListener, Local: six, Owner: nginx, HoldersMore: 3}
	for i := range 6 {
		p := nginx
		p.PID += uint32(i)
		way.Holders = append(way.Holders, tracer.Holder{Process: p, FD: 5}, tracer.Holder{Process: p, FD: 6})
	}
	gone := tracer.Socket{Proto: tracer.TCP, State: tracer.StateTimeWait, Role: tracer.RoleTimeWait, Local: six, Remote: netip.MustParseAddrPort("192.0.2.9:5")}
	refused := func(in ...tracer.Socket) {
		e := Entry{
			Proto: tracer.TCP, Local: six, Errno: 98, Event: tracer.EventBind, Owner: tracer.Process{PID: 7, Comm: "late"}, At: time.Duration(c.boot), HeldBy: in, HeldByMore: 1,
		}
		s.Add(Refused, &e)
		c.pass(time.Second)
	}
	refused(way, gone, gone, gone, gone, gone)
	before := len(s.out[ofPorts].entries)
	refused(way, gone, gone, gone, gone, gone)
	if after := len(s.out[ofPorts].entries); after != before {
		t.Errorf("the same ones again take %d bytes", after-before)
	}
	refused()
	check := func(what string, rows []Row) {
		t.Helper()
		if len(rows) != 3 || rows[0].HeldBy != nil || len(rows[1].HeldBy) != maxHeldBy || rows[1].HeldByMore != 1+6-maxHeldBy || rows[2].Remote.IsValid() {
			t.Fatalf("%s: %+v", what, rows)
		}
		first, second := rows[2].HeldBy[0], rows[2].HeldBy[1]
		if first.State != tracer.StateListen || first.Role != tracer.RoleListener || first.Local != six || first.Owner == nil || first.Owner.PID != nginx.PID ||
			len(first.Holders) != 2 || first.Holders[1].PID != nginx.PID+1 || first.Holders[1].Args[1] != "-x" || first.Holders[0].Place.Unit != "nginx.service" || first.More != 8+3 {
			t.Errorf("%s: the first: %+v", what, first)
		}
		if second.State != tracer.StateTimeWait || second.Remote != gone.Remote || second.Owner != nil || len(second.Holders) != 0 {
			t.Errorf("%s: the second: %+v", what, second)
		}
	}
	check("from memory", rowsOf(t, s, Query{}))
	if err := s.Close(nil); err != nil {
		t.Fatal(err)
	}
	check("from the disk", readDir(t, dir, Query{}))
}

// Connections that failed are kept with the ports, which outlive a flood; those that were reset are as others. What
// was open for long before it failed is not taken for open after a crash.
func TestFailedConnections(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c)
	for i, errno := range []syscall.Errno{0, syscall.ECONNREFUSED, syscall.ETIMEDOUT, syscall.ECONNRESET, syscall.EPIPE} {
		e := connection(i, c)
		e.Taken += time.Duration(i)
		s.Add(Holding, &e)
		c.pass(2 * time.Minute)
		e.At, e.Errno = time.Duration(c.boot), errno
		s.Add(Held, &e)
		s.Flush()
	}
	var ports []string
	for _, r := range rowsOf(t, s, Query{PortsOnly: true}) {
		ports = append(ports, r.Errno.Error())
	}
	if want := []string{syscall.ETIMEDOUT.Error(), syscall.ECONNREFUSED.Error()}; !slices.Equal(ports, want) {
		t.Errorf("among the ports: %v, want %v", ports, want)
	}
	crash(s)
	for range 2 {
		if rows := readDir(t, dir, Query{}); len(rows) != 5 {
			t.Errorf("%d rows after a crash, want 5: %+v", len(rows), rows)
		}
		s = openAt(t, dir, c)
		s.Close(nil)
	}
}

// Only what is asked for is told: by port, by kind, by time.
func TestQuery(t *testing.T) {
	c := &clock{begin}
	s := openAt(t, t.TempDir(), c)
	for i := range 100 {
		e := listener(uint16(1000+i), c)
		s.Add(Held, &e)
		f := connection(i, c)
		f.Local = netip.AddrPortFrom(f.Local.Addr(), uint16(2000+i))
		s.Add(Held, &f)
		c.pass(time.Second)
	}
	at := func(sec int) time.Time { return time.Unix(0, begin.wall).Add(time.Duration(sec) * time.Second) }
	for _, test := range []struct {
		what string
		q    Query
		want int
	}{
		{"all", Query{}, 200},
		{"a local port", Query{Local: []uint16{1007}}, 1},
		{"two", Query{Local: []uint16{1007, 2008}}, 2},
		{"one that nobody had", Query{Local: []uint16{5}}, 0},
		{"a remote port", Query{Remote: []uint16{443}}, 100},
		{"either", Query{Either: []uint16{443, 1001}}, 101},
		{"from a time on", Query{Since: at(90)}, 20},
		{"up to a time", Query{Until: at(9).Add(time.Millisecond)}, 20},
		{"refused", Query{Kinds: []Kind{Refused}}, 0},
		{"matched", Query{Match: func(r *Row) bool { return r.Listener }}, 100},
	} {
		if got := rowsOf(t, s, test.q); len(got) != test.want {
			t.Errorf("%s: %d rows, want %d", test.what, len(got), test.want)
		}
	}
	if err := s.Close(nil); err != nil {
		t.Fatal(err)
	}
}

// What was open when an agent ended uncleanly was so until the last moment that is known; that an agent
// lives is known once a minute.
func TestUncleanEnd(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c)
	l := listener(5000, c)
	s.Add(Holding, &l)
	early := listener(22, c)
	early.Taken = 0 // it was there before
	s.Add(Holding, &early)
	accepted := early // a connection of it, of before too
	accepted.Role, accepted.Remote = tracer.RoleServer, netip.MustParseAddrPort("192.0.2.9:5555")
	s.Add(Held, &accepted)
	over := listener(80, c)
	s.Add(Holding, &over)
	c.pass(time.Second)
	over.At = time.Duration(c.boot)
	s.Add(Held, &over)
	s.Flush()
	c.pass(time.Minute)
	s.out[ofPorts].alive = true
	s.Flush()
	last := c.stamp
	c.pass(time.Hour)
	lost := listener(6000, c)
	s.Add(Holding, &lost) // never written
	check := func(what string, rows []Row) {
		t.Helper()
		if len(rows) != 4 {
			t.Fatalf("%s: %+v", what, rows)
		}
		for _, r := range rows {
			if r.Remote.IsValid() {
				continue
			}
			switch r.Local.Port() {
			case 80:
				if r.UntilUnknown || r.Took != time.Second {
					t.Errorf("%s: what was closed: %+v", what, r)
				}
			case 22, 5000:
				if r.Kind != Held || !r.UntilUnknown || r.Until.UnixNano() != last.wall || r.SinceUnknown != (r.Local.Port() == 22) || r.Owner.Comm != "nginx" ||
					r.Since.UnixNano() != begin.wall {
					t.Errorf("%s: what was not: %+v", what, r)
				}
			default:
				t.Errorf("%s: invented: %+v", what, r)
			}
		}
	}
	var note Note
	if rows := collect(t, Read(dir, &Query{Local: []uint16{5000}}, &note)); len(rows) != 1 || rows[0].Kind != Holding {
		t.Errorf("while the agent lives: %+v", rows)
	}
	crash(s)
	check("read by nobody's agent", readDir(t, dir, Query{}))
	for range 3 { // agents come and go, and change nothing of it
		s = openAt(t, dir, c)
		check("read by the next agent", rowsOf(t, s, Query{}))
		crash(s)
	}
	check("read after them", readDir(t, dir, Query{}))
}

// What is open at a clean end is told as such, and not known any longer either.
func TestCleanEnd(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c)
	l := listener(5000, c)
	s.Add(Holding, &l)
	c.pass(time.Hour)
	err := s.Close(func(add func(*Entry)) {
		l.At = time.Duration(c.boot)
		add(&l)
	})
	if err != nil {
		t.Fatal(err)
	}
	rows := readDir(t, dir, Query{})
	if len(rows) != 1 || !rows[0].UntilUnknown || rows[0].Took != time.Hour {
		t.Errorf("%+v", rows)
	}
}

// A segment of listeners begins with those that are open, so that one who has it needs none before.
func TestOpenSurviveTheirSegment(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c, func(cfg *Config) { cfg.MaxSize = LeastSize })
	old := listener(5000, c)
	s.Add(Holding, &old)
	s.Opened()
	for i := 0; ; i++ {
		e := listener(uint16(10000+i%10000), c)
		e.Owner.Cgroup = uint64(i)
		s.Add(Held, &e)
		c.pass(time.Millisecond)
		if i%100 == 0 {
			s.Flush()
		}
		if s.Wanting() {
			break
		}
	}
	again := old
	again.At = time.Duration(c.boot)
	s.Add(Holding, &again)
	s.Opened()
	s.Flush()
	files, _ := list(dir)
	first := slices.IndexFunc(files, func(f file) bool { return f.class == ofPorts })
	if _, ended := readIndex(files[first].path, new(index), nil); !ended {
		t.Error("the segment before is not ended")
	}
	os.Remove(files[first].path)
	crash(s)
	rows := readDir(t, dir, Query{Local: []uint16{5000}})
	if len(rows) != 1 || rows[0].Since.UnixNano() != begin.wall || !rows[0].UntilUnknown {
		t.Errorf("%+v", rows)
	}
}

// A flood of connections is folded, and evicts no listener; a flood of listeners of one cgroup none of
// another.
func TestFlood(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c, func(cfg *Config) { cfg.MaxSize = LeastSize })
	l := listener(5000, c)
	s.Add(Held, &l)
	fail := Entry{Proto: tracer.TCP, Local: netip.MustParseAddrPort("0.0.0.0:5000"), Errno: 98, Event: tracer.EventBind, At: time.Duration(c.boot), Owner: nginx}
	s.Add(Refused, &fail)
	const n = 200_000
	for i := range n {
		e := connection(i%3, c)
		if i%4 == 0 {
			e = listener(uint16(i), c)
			e.Owner = tracer.Process{PID: 9, Comm: "flood", Cgroup: 99}
		}
		s.Add(Held, &e)
		c.pass(100 * time.Microsecond)
		if i%1000 == 0 {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if i%10000 == 0 {
			if err := s.retain(); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.pass(time.Minute)
	e := connection(1, c)
	s.Add(Held, &e)
	rows := rowsOf(t, s, Query{Local: []uint16{5000}, Kinds: []Kind{Held, Refused}, Match: func(r *Row) bool { return r.Owner.Comm == "nginx" }})
	if len(rows) != 2 {
		t.Errorf("%d rows of the listener and the refused call, want 2", len(rows))
	}
	var kept, folded uint64
	for _, r := range rowsOf(t, s, Query{}) {
		if r.Kind == Folded {
			folded += uint64(r.Count)
			if r.Owner == nil || r.Owner.Comm != "curl" && r.Owner.Comm != "flood" || r.Owner.Comm == "curl" && (r.Remote.Port() != 443 || r.Local.Port() != 0) {
				t.Fatalf("folded %+v of %+v", r, r.Owner)
			}
		} else {
			kept++
		}
	}
	st := s.Stats()
	if folded != st.Folded || st.Folded < n/2 || st.Lost[LostSlow] != 0 {
		t.Errorf("%d in folded rows and %d kept; counted %+v", folded, kept, st)
	}
	var size int64
	files, _ := list(dir)
	for _, f := range files {
		size += f.size
	}
	if size > LeastSize {
		t.Errorf("%d bytes on disk, want at most %d", size, LeastSize)
	}
	s.Close(nil)
}

// Segments that are too old are deleted, by the clock that nobody sets.
func TestRetainAge(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c, func(cfg *Config) { cfg.MaxAge = time.Hour })
	e := listener(5000, c)
	s.Add(Held, &e)
	s.Close(nil)
	c.wall += int64(1000 * time.Hour) // somebody sets the clock
	s = openAt(t, dir, c, func(cfg *Config) { cfg.MaxAge = time.Hour })
	if rows := rowsOf(t, s, Query{}); len(rows) != 1 {
		t.Errorf("%d rows after the clock was set, want 1", len(rows))
	}
	c.pass(61 * time.Minute)
	if err := s.retain(); err != nil {
		t.Fatal(err)
	}
	if rows := rowsOf(t, s, Query{}); len(rows) != 0 {
		t.Errorf("%d rows after an hour, want none", len(rows))
	}
	s.Close(nil)
}

// Two agents cannot keep their history in one directory.
func TestInUse(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	s := openAt(t, dir, c)
	_, err := Open(Config{Dir: dir, MaxSize: DefaultMaxSize, Log: quiet()})
	if !errors.Is(err, ErrInUse) || !bytes.Contains([]byte(err.Error()), []byte(dir)) {
		t.Errorf("a second store: %v", err)
	}
	if err := s.Close(nil); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir, c)
	s.Close(nil)
}

// damaged is a directory with some listeners in one segment, a block each.
func damaged(t *testing.T) (dir, path string, c *clock) {
	t.Helper()
	c = &clock{begin}
	dir = t.TempDir()
	s := openAt(t, dir, c)
	for i := range 10 {
		e := listener(uint16(1000+i), c)
		e.Owner.PID += uint32(i)
		s.Add(Held, &e)
		s.Flush()
		c.pass(time.Second)
	}
	path = s.out[ofPorts].file.path
	crash(s)
	return dir, path, c
}

// A tail that was being written is left out, whatever its length, and what is before it is there; the
// next agent cuts it off and goes on.
func TestTornTail(t *testing.T) {
	dir, path, c := damaged(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var seg segment
	if err := seg.parse(whole); err != nil {
		t.Fatal(err)
	}
	ends := []int{headerSize}
	for at := headerSize; at < len(whole); {
		_, size := cutBlock(whole[at:], blockMagic)
		at += size
		ends = append(ends, at)
	}
	for length := 0; length < len(whole); length += 13 {
		if err := os.WriteFile(path, whole[:length], 0o600); err != nil {
			t.Fatal(err)
		}
		want := 0
		for i, end := range ends {
			if end <= length {
				want = i
			}
		}
		q := Query{}
		if rows := collect(t, Read(dir, &q, new(Note))); len(rows) != want {
			t.Fatalf("%d of %d bytes: %d rows, want %d", length, len(whole), len(rows), want)
		}
		s := openAt(t, dir, c)
		if rows := rowsOf(t, s, Query{}); len(rows) != want {
			t.Fatalf("%d of %d bytes, the next agent: %d rows, want %d", length, len(whole), len(rows), want)
		}
		crash(s)
	}
}

// A bit that flips costs the block that it is in, and is told; nothing else changes.
func TestFlippedBit(t *testing.T) {
	dir, path, c := damaged(t)
	s := openAt(t, dir, c) // ends the segment
	crash(s)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := readDir(t, dir, Query{})
	for at := 0; at < len(whole)-indexSize; at += 5 {
		b := bytes.Clone(whole)
		b[at] ^= 1 << (at % 8)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var note Note
		q := Query{}
		rows := collect(t, Read(dir, &q, &note))
		missing := 0
		for _, w := range want {
			if !slices.ContainsFunc(rows, func(r Row) bool { return r.Local == w.Local && r.Since.Equal(w.Since) && r.Until.Equal(w.Until) }) {
				missing++
			}
		}
		switch {
		case len(rows)+missing != len(want):
			t.Fatalf("bit in byte %d: %d rows and %d missing of %d", at, len(rows), missing, len(want))
		case at < headerSize && missing > 0 && note.Damaged+note.Newer == 0:
			t.Fatalf("bit in byte %d of the header: nothing is said", at)
		case at >= headerSize && (missing > 1 || missing > 0 && note.Damaged == 0):
			t.Fatalf("bit in byte %d: %d rows missing, %s", at, missing, &note)
		}
	}
}

// A segment of a newer version is left out, and told.
func TestNewerVersion(t *testing.T) {
	dir, path, c := damaged(t)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	le.PutUint16(b[8:], formatVersion+1)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, dir, c)
	e := listener(7, c)
	s.Add(Held, &e)
	var note Note
	if rows := collect(t, s.Rows(&Query{}, nil, &note)); len(rows) != 1 || note.Newer != 1 {
		t.Errorf("%d rows, %+v; want the new one, and a segment that is newer", len(rows), note)
	}
	s.Close(nil)
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
		t.Errorf("the segment was changed: %v", err)
	}
}

// Files that are none of ours are let alone.
func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"ports-x.seg", "notes.txt", "connections-00.seg.bak", "ports-00000000000000aa.seg"} {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte("PHBT not ours "), 20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := openAt(t, dir, &clock{begin})
	var note Note
	if rows := collect(t, s.Rows(&Query{}, nil, &note)); len(rows) != 0 || note.Damaged != 1 {
		t.Errorf("%d rows, %+v", len(rows), note)
	}
	s.Close(nil)
	if all, _ := os.ReadDir(dir); len(all) < 4 {
		t.Errorf("%v", all)
	}
}

// What is always the same costs nothing but its record.
func TestAddAllocates(t *testing.T) {
	c := &clock{begin}
	s := openAt(t, t.TempDir(), c, func(cfg *Config) {
		cfg.Place = func(*tracer.Process) identity.Cgroup { return identity.Cgroup{Path: "/x", Unit: "web.service"} }
	})
	defer s.Close(nil)
	e := connection(1, c)
	i := 0
	if n := testutil.Allocs(1000, func() {
		i++
		e.At += time.Millisecond * 2
		e.Local = netip.AddrPortFrom(e.Local.Addr(), uint16(i))
		s.Add(Held, &e)
	}); n > 0.1 { // the memory of a block, once
		t.Errorf("%v allocations a record", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	c := &clock{begin}
	s, err := Open(Config{Dir: b.TempDir(), MaxSize: DefaultMaxSize, MaxAge: DefaultMaxAge, Log: quiet(), clock: c.now})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(nil)
	e := connection(1, c)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e.At += time.Millisecond * 2 // within the budget
		e.Local = netip.AddrPortFrom(e.Local.Addr(), uint16(i))
		s.Add(Held, &e)
		if len(s.queue) > 4 { // as if the disk took no time
			s.mu.Lock()
			s.queue, s.queued = s.queue[:0], 0
			s.mu.Unlock()
		}
	}
}

// Example of a name: docs/history.md has the same.
func ExampleReasons() {
	fmt.Println(Reasons())
	// Output: [full read_only gone slow io events]
}

// Who asks about a time when no agent looked is told so.
func TestUnseen(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	at := func(min int) time.Time { return time.Unix(0, begin.wall).Add(time.Duration(min) * time.Minute) }
	for range 2 { // for ten minutes each, an hour apart
		s := openAt(t, dir, c)
		l := listener(80, c)
		s.Add(Held, &l)
		c.pass(10 * time.Minute)
		l.At = time.Duration(c.boot)
		s.Add(Held, &l)
		s.Close(nil)
		c.pass(50 * time.Minute)
	}
	for min, want := range map[int]bool{-1: true, 5: false, 30: true, 65: false, 80: true} {
		var note Note
		collect(t, Read(dir, &Query{Since: at(min), Until: at(min).Add(time.Minute - 1)}, &note))
		if note.Unseen != want {
			t.Errorf("minute %d: unseen %v, want %v", min, note.Unseen, want)
		}
	}
}

// BenchmarkPast asks a history of the usual size: for the last of a port that many have, and for one that
// nobody ever had.
func BenchmarkPast(b *testing.B) {
	c := &clock{begin}
	s, err := Open(Config{Dir: b.TempDir(), MaxSize: DefaultMaxSize, MaxAge: DefaultMaxAge, Log: quiet(), clock: c.now})
	if err != nil {
		b.Fatal(err)
	}
	e := connection(1, c)
	e.Role = tracer.RoleServer
	for i := 0; s.seq < DefaultMaxSize/maxSegment; i++ {
		c.pass(time.Millisecond)
		e.At = time.Duration(c.boot)
		e.Local, e.Remote = netip.AddrPortFrom(e.Local.Addr(), 443), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), uint16(32768+i%28232))
		s.Add(Held, &e)
		if i%2000 == 0 {
			if err := s.Flush(); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := s.Close(nil); err != nil {
		b.Fatal(err)
	}
	if s, err = Open(Config{Dir: s.cfg.Dir, MaxSize: DefaultMaxSize, MaxAge: DefaultMaxAge, Log: quiet(), clock: c.now}); err != nil {
		b.Fatal(err)
	}
	defer s.Close(nil)
	for _, of := range []struct {
		what string
		port uint16
		want int
	}{{"Common", 443, 20}, {"Never", 7, 0}} {
		b.Run(of.what, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				for _, err := range s.Rows(&Query{Local: []uint16{of.port}}, nil, new(Note)) {
					if err != nil {
						b.Fatal(err)
					}
					if n++; n == 20 {
						break
					}
				}
				if n != of.want {
					b.Fatalf("%d rows, want %d", n, of.want)
				}
			}
		})
	}
}

// BenchmarkWritten is how much is written of so many connections a second, once the first burst is over: of twenty
// programs, to fifty destinations, each connection another port. An iteration is two minutes of a clock of its own.
func BenchmarkWritten(b *testing.B) {
	for _, rate := range []int{10, 1000, 20_000} {
		b.Run(fmt.Sprint(rate), func(b *testing.B) {
			for b.Loop() {
				c := &clock{begin}
				s, err := Open(Config{Dir: b.TempDir(), MaxSize: DefaultMaxSize, MaxAge: DefaultMaxAge, Log: quiet(), clock: c.now, Place: func(p *tracer.Process) identity.Cgroup {
					return identity.Cgroup{Path: "/x", Unit: p.Comm + ".service"}
				}})
				if err != nil {
					b.Fatal(err)
				}
				s.budget.connections.tokens, s.budget.connections.last = 0, c.boot
				const seconds = 120
				bytes := func() (sum int64) {
					files, err := list(s.cfg.Dir)
					if err != nil {
						b.Fatal(err)
					}
					for _, f := range files {
						sum += f.size
					}
					return sum
				}
				for i := range seconds * rate {
					e := connection(i%50, c)
					e.Owner = tracer.Process{PID: uint32(1 + i%20), Comm: fmt.Sprint("p", i%20), Start: time.Second}
					e.Local = netip.AddrPortFrom(e.Local.Addr(), uint16(32768+i%28232))
					s.Add(Held, &e)
					c.pass(time.Second / time.Duration(rate))
					if i%rate == rate-1 {
						if err := s.Flush(); err != nil {
							b.Fatal(err)
						}
					}
				}
				written := float64(bytes())
				b.ReportMetric(written/(seconds*float64(rate)), "B/connection")
				b.ReportMetric(written/seconds*24*3600/1e6, "MB/day")
				if err := s.Close(nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
