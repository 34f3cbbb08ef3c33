package store

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/tracer"
)

// passed reads what has happened after a moment.
func passed(t *testing.T, s *Store, m Mark) []Passed {
	t.Helper()
	var note Note
	var out []Passed
	for row, err := range s.After(m, &note) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, *row)
	}
	if note.Any() {
		t.Errorf("lacking: %s", &note)
	}
	return out
}

// What has happened after a moment is there, in order and once, whether it is on disk, over several segments of both kinds, or
// in memory; after the agent was killed too, and with the times that tell one event from another.
func TestAfter(t *testing.T) {
	c := &clock{begin}
	dir := t.TempDir()
	small := func(cfg *Config) { cfg.MaxSize = LeastSize } // segments of 64 kB
	s := openAt(t, dir, c, small)
	const n = 4000
	var middle Mark
	for i := range n {
		c.pass(10 * time.Millisecond)
		if i == n/2 {
			middle = Mark{Boot: s.Boot(), At: time.Duration(c.boot) - time.Millisecond, Wall: time.Unix(0, c.wall)}
		}
		if i%4 == 0 {
			e := listener(uint16(i), c)
			e.Owner.Cgroup = uint64(i % 16) // each has a budget
			e.Event = tracer.EventListen
			s.Add(Holding, &e)
		} else {
			e := connection(i, c)
			e.Local = netip.AddrPortFrom(e.Local.Addr(), uint16(i))
			s.Add(Held, &e)
		}
		if i%500 == 0 {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(rows []Passed, from int) {
		t.Helper()
		if len(rows) != n-from {
			t.Fatalf("%d rows, want %d", len(rows), n-from)
		}
		for i, row := range rows {
			i += from
			if int(row.Local.Port()) != i || (row.Kind == Holding) != (i%4 == 0) {
				t.Fatalf("row %d is %v of port %d", i, row.Kind, row.Local.Port())
			}
			if row.Kind == Holding && (row.Event != tracer.EventListen || row.At != row.Taken) || row.Kind == Held && row.At != row.Taken+time.Millisecond {
				t.Fatalf("row %d: %v at %v, taken at %v", i, row.Event, row.At, row.Taken)
			}
			if want := time.Unix(0, begin.wall).Add(row.At - time.Duration(begin.boot)); !row.When.Equal(want) {
				t.Fatalf("row %d was at %v, want %v", i, row.When, want)
			}
		}
	}
	check(passed(t, s, middle), n/2)
	check(passed(t, s, Mark{Boot: s.Boot()}), 0)
	if rows := passed(t, s, Mark{Boot: s.Boot(), At: time.Duration(c.boot) + time.Second}); len(rows) != 0 {
		t.Errorf("%d rows are later than the last", len(rows))
	}
	// Of another boot everything later by the wall clock is there.
	if rows := passed(t, s, Mark{Boot: [16]byte{1}, Wall: time.Unix(0, begin.wall-1)}); len(rows) != n {
		t.Errorf("%d rows after an earlier boot, want %d", len(rows), n)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	crash(s)
	again := openAt(t, dir, c, small)
	defer again.Close(nil)
	all := passed(t, again, middle)
	rows := slices.DeleteFunc(slices.Clone(all), func(row Passed) bool { return row.UntilUnknown })
	if len(rows) == len(all) {
		t.Error("no row tells what the killed agent had open")
	}
	check(rows, n/2)
}

// What is deleted and was not read is counted.
func TestUnread(t *testing.T) {
	c := &clock{begin}
	s := openAt(t, t.TempDir(), c, func(cfg *Config) { cfg.MaxSize = LeastSize })
	defer s.Close(nil)
	add := func(n int) {
		for i := range n {
			c.pass(time.Millisecond)
			e := connection(i, c)
			s.Add(Held, &e)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	add(15_000)
	read := Mark{Boot: s.Boot(), At: time.Duration(c.boot), Wall: time.Unix(0, c.wall)}
	s.SetRead(read)
	add(2000)
	if err := s.retain(); err != nil {
		t.Fatal(err)
	}
	if n := s.Unread(); n != 0 {
		t.Errorf("%d records are unread of what was read", n)
	}
	c.pass(time.Minute)
	add(18_000)
	if err := s.retain(); err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, row := range passed(t, s, read) {
		if row.At > read.At {
			left++
		}
	}
	if gone := 20_000 - left; gone <= 0 || int(s.Unread()) < gone {
		t.Errorf("%d are gone, %d counted", gone, s.Unread())
	}
}
