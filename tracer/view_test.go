package tracer

import (
	"encoding/binary"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// manySockets is a table of n connections of a server's port, each held by one process.
func manySockets(tb testing.TB, n int, port uint16) *Table {
	tb.Helper()
	table := newTable()
	snap := &Snapshot{Sockets: make([]Socket, n), start: 1}
	for i := range snap.Sockets {
		s := found(1, RoleServer, sockA+64*uint64(i), "127.0.0.1:80", "")
		s.Local = addrPort(ipOf(0), port)
		s.Remote = addrPort(ipOf(uint32(i)), uint16(10_000+i%50_000))
		snap.Sockets[i] = held(10, s)
	}
	table.reconcile(snap)
	return table
}

func ipOf(i uint32) [16]byte {
	ip := [16]byte{10: 0xff, 11: 0xff, 12: 127}
	binary.BigEndian.PutUint32(ip[12:], 127<<24|i)
	return ip
}

// Whoever reads gets a part of the table at a time, however many sockets there are, or are on
// one port: events go on in between.
func TestTableReadInParts(t *testing.T) {
	const n = 10 * readAtOnce
	table := manySockets(t, n, 80)
	for _, port := range []uint16{0, 80} {
		got, most := 0, 0
		for at, more := 0, true; more; more = at != 0 {
			some := 0
			at = table.part(port, at, func(*entry) { some++ })
			got, most = got+some, max(most, some)
		}
		if got != n || most > readAtOnce {
			t.Errorf("port %d: %d sockets, %d at once; want %d, at most %d", port, got, most, n, readAtOnce)
		}
	}
	seen := 0
	table.Each(func(*Socket) {
		ev := tcp(1000+seen, EventBind, 1<<40, "127.0.0.1:9999", "")
		table.apply(&ev) // must not wait for Each
		seen++
	})
	if seen < n || seen > n+1 {
		t.Errorf("Each has %d sockets, want %d, and perhaps the one that is bound meanwhile", seen, n)
	}
}

// What is there all the time is there once, whatever comes and goes.
func TestTableReadWhileItChanges(t *testing.T) {
	const n = 2 * readAtOnce
	table := manySockets(t, n, 80)
	end := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			sock := uint64(1<<40 + i%(2*readAtOnce)*64) // some that come and go, on the same port
			bind := tcp(1000+i, EventListen, sock, "127.0.0.1:80", "")
			table.apply(&bind)
			if i%3 > 0 {
				last := tcp(1000+i, EventClose, sock, "127.0.0.1:80", "")
				table.apply(&last)
			}
		}
	})
	check := func(what string, sockets []Socket) {
		stable := make(map[uint64]int)
		for i := range sockets {
			if sockets[i].Role == RoleServer {
				stable[sockets[i].id]++
				if len(sockets[i].Holders) != 1 || sockets[i].Holders[0].Process != proc(10) {
					t.Fatalf("%s: %+v, want it held by %+v", what, sockets[i], proc(10))
				}
			}
		}
		if len(stable) != n {
			t.Fatalf("%s: %d sockets that are there all the time, want %d", what, len(stable), n)
		}
		for id, times := range stable {
			if times != 1 {
				t.Fatalf("%s: socket %#x is there %d times", what, id, times)
			}
		}
	}
	for range 10 {
		check("All", table.All())
		check("Port", table.Port(80))
		var each []Socket
		table.Each(func(s *Socket) {
			copy := *s
			copy.Holders = slices.Clone(s.Holders)
			each = append(each, copy)
		})
		check("Each", each)
		if got := table.Count(80); got < n {
			t.Fatalf("Count is %d, want %d at least", got, n)
		}
	}
	close(end)
	churn.Wait()
}

// How long the reader of events waits for others who read a table of 100,000 sockets.
func BenchmarkApplyBesideReaders(b *testing.B) {
	for name, read := range map[string]func(*Table){
		"nobody": func(*Table) { time.Sleep(time.Millisecond) },
		"All":    func(t *Table) { t.All() },
		"Port":   func(t *Table) { t.Port(80) },
		"Each":   func(t *Table) { t.Each(func(*Socket) {}) },
	} {
		b.Run(name, func(b *testing.B) {
			table := manySockets(b, 100_000, 80)
			var stop sync.WaitGroup
			end := make(chan struct{})
			var longest time.Duration
			runtime.GC()
			stop.Go(func() {
				for {
					select {
					case <-end:
						return
					default:
						start := time.Now()
						read(table)
						longest = max(longest, time.Since(start))
					}
				}
			})
			var waits []time.Duration
			for b.Loop() {
				ev := tcp(1000, EventBind, 1<<40, "127.0.0.1:9999", "")
				start := time.Now()
				table.apply(&ev)
				waits = append(waits, time.Since(start))
				time.Sleep(100 * time.Microsecond) // the reader reads a batch
			}
			close(end)
			stop.Wait()
			slices.Sort(waits)
			b.ReportMetric(float64(waits[len(waits)-1].Microseconds()), "longest-wait-us")
			b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds()), "p99-wait-us")
			b.ReportMetric(float64(longest.Microseconds()), "longest-read-us")
		})
	}
}
