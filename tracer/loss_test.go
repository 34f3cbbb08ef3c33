package tracer

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/porthole-dev/porthole/internal/testutil"
	"golang.org/x/sys/unix"
)

// binds opens, binds and closes sockets, each of which is two events.
func (r *recorder) binds(n int) {
	r.Helper()
	for range n {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.bind(fd, "127.0.0.1:0")
		r.close(fd)
	}
}

// stats are those of a tracer.
func stats(t *testing.T, tr *Tracer) Stats {
	t.Helper()
	s, err := tr.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The ring buffer overflows while nobody reads: what was lost is counted to one, what
// was not arrives, and afterwards the table is what the kernel says.
func TestKernelLost(t *testing.T) {
	r := idle(t)
	tr, err := Open(tested(Config{RingBytes: os.Getpagesize()}))
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	r.tracer = tr
	const binds = 101
	exact := false
	for range 30 { // other processes may add to some, never take away
		before := stats(t, tr)
		r.binds(binds)
		after := stats(t, tr)
		seen := after.Submitted + after.LostRing - before.Submitted - before.LostRing
		if seen < 2*binds || after.Lost()-before.Lost() != after.LostRing-before.LostRing {
			t.Fatalf("from %+v to %+v: want %d events at least", before, after, 2*binds)
		}
		exact = exact || before.LostRing > 0 && after.Submitted == before.Submitted && after.LostRing-before.LostRing == 2*binds
	}
	if !exact {
		t.Errorf("never were %d events lost: %+v", 2*binds, stats(t, tr))
	}
	l, at := r.listener(unix.AF_INET, "127.0.0.1:9000") // its events are lost
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sub := tr.Subscribe(1 << 16)
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- tr.Run(ctx, func(*Snapshot) { close(ready) }) }()
	<-ready
	if got := r.held(at.Port()); len(got) == 0 || got[0].Role != RoleListener {
		t.Errorf("after the snapshot the table has %+v on port %d, want the listener", got, at.Port())
	}
	testutil.Await(t, "the loss is noticed, and all is read", func() bool { // by then the ring buffer has room again
		s := stats(t, tr)
		return s.Resyncs > 0 && s.Submitted == s.Decoded
	})
	r.tableIsKernels(tr)
	r.close(l)
	r.awaitClose(ctx, sub, at)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// tableIsKernels compares the table with fresh snapshots, until it has settled: what a comparison
// did not find stays for a moment, for its close may be on its way.
func (r *recorder) tableIsKernels(tr *Tracer) {
	r.Helper()
	ofNetNS := func(sockets []Socket) (out []string) {
		for _, s := range sockets {
			if s.NetNS == r.netns {
				out = append(out, fmt.Sprintln(s.Proto, s.State, s.Role, s.Local, s.Remote, s.Inode, s.Holders))
			}
		}
		return out
	}
	var diff string
	defer func() {
		if diff != "" {
			r.Errorf("the table differs (-kernel +table):\n%s", diff)
		}
	}()
	testutil.Await(r, "the table is the kernel's", func() bool {
		want := ofNetNS(snapshot(r, 0).Sockets)
		diff = cmp.Diff(want, ofNetNS(tr.Table().All()))
		return diff == "" && len(want) > 0
	})
}

// awaitClose waits for the close of a socket of the test.
func (r *recorder) awaitClose(ctx context.Context, sub *Subscription, at netip.AddrPort) {
	r.Helper()
	for {
		batch, err := sub.Next(ctx, nil)
		if err != nil {
			r.Fatalf("wait for the close of %s: %v", at, err)
		}
		if slices.ContainsFunc(batch, func(ev Event) bool {
			return ev.NetNS == r.netns && ev.Type == EventClose && ev.Local == at
		}) {
			return
		}
	}
}

// The reader goes round while nothing happens, and not while it is stuck.
func TestKernelSinceRound(t *testing.T) {
	r := idle(t)
	r.start(Config{})
	await := func(what string, ok func(time.Duration) bool) {
		t.Helper()
		testutil.Await(t, "the reader goes round "+what, func() bool { return ok(r.tracer.SinceRound()) })
	}
	await("at the start", func(d time.Duration) bool { return d < 2*idleRound })
	last := r.tracer.SinceRound()
	await("idle", func(d time.Duration) bool { // it may have to sleep for all of it
		again := d < last
		last = d
		return again
	})
	r.tracer.mu.Lock() // what the reader needs for every event
	r.binds(1)
	await("stuck", func(d time.Duration) bool { return d > 2*idleRound })
	r.tracer.mu.Unlock()
	await("no longer stuck", func(d time.Duration) bool { return d < 2*idleRound })
}

// Whenever the counters are read, no more was understood than handed over; and once
// all is read, as much.
func TestKernelBalance(t *testing.T) {
	r := idle(t)
	cmd := r.child("churn")
	awaitListener(t, r.netns, 9000)
	r.start(Config{Established: true})
	before := stats(t, r.tracer)
	for n := 0; n < 1000 || stats(t, r.tracer).Decoded < before.Decoded+2000; n++ {
		s := stats(t, r.tracer)
		if s.Decoded+s.Bad > s.Submitted || s.Submitted < before.Submitted || s.Decoded < before.Decoded {
			t.Fatalf("%+v: more was read than handed over, or a counter went back", s)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	testutil.Await(t, "all that was handed over is read", func() bool {
		s := stats(t, r.tracer)
		return s.Decoded+s.Bad == s.Submitted
	})
}

// A close that was lost leaves nothing in the table, once it was compared with the kernel's,
// and is told and remembered then: when it was at the latest.
func TestKernelLostClose(t *testing.T) {
	r := idle(t)
	tr, err := Open(tested(Config{RingBytes: os.Getpagesize(), History: 1 << 16}))
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	r.tracer = tr
	l, at := r.listener(unix.AF_INET, "127.0.0.1:9000")
	sub := tr.Subscribe(1 << 16)
	var closed time.Time
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- tr.Run(ctx, func(*Snapshot) { // the reader waits, so nobody reads
			for range 100 {
				fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
				r.bind(fd, "127.0.0.1:0")
				r.close(fd)
			}
			r.close(l)
			closed = time.Now()
		})
	}()
	var told *Event
	for told == nil {
		events, err := sub.Next(ctx, nil)
		if err != nil {
			t.Fatalf("wait for the close of the listener: %v; stats %+v", err, stats(t, tr))
		}
		for i, ev := range events {
			if ev.Type == EventClose && ev.NetNS == r.netns && ev.Local == at {
				told = &events[i]
			}
		}
	}
	if !told.About || told.Time.Before(closed) || int(told.Process.PID) != os.Getpid() {
		t.Errorf("told %+v, want a close before it was noticed, of a socket of this process, closed at %v", told, closed)
	}
	before := slices.DeleteFunc(tr.History().Port(at.Port()), func(p Tenancy) bool { return p.NetNS != r.netns })
	if len(before) != 1 || !before[0].About || !before[0].Until.Equal(told.Time) || int(before[0].Owner.PID) != os.Getpid() {
		t.Errorf("the history has %+v, want the listener", before)
	}
	if got := r.held(at.Port()); len(got) != 0 {
		t.Errorf("the table still has %+v", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// While the table is compared with the kernel again and again, every bind and every
// close is told once.
func TestKernelReconcileTellsAll(t *testing.T) {
	r := record(t, Config{Reconcile: time.Millisecond})
	const binds = 2000
	before := stats(t, r.tracer).Reconciles
	for stats(t, r.tracer).Reconciles < before+5 {
		r.binds(binds)
		told := make(map[EventType]int)
		for _, ev := range r.events(2 * binds) {
			told[ev.Type]++
		}
		if diff := cmp.Diff(map[EventType]int{EventBind: binds, EventClose: binds}, told); diff != "" {
			t.Fatalf("events (-want +got):\n%s", diff)
		}
	}
}

// The same of connections, as many as there can be while addresses and ports are used again.
func TestKernelReconcileTellsConnections(t *testing.T) {
	r := record(t, Config{Reconcile: time.Millisecond})
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("32768 33767"), 0); err != nil {
		t.Fatal(err)
	}
	l, at := r.listener(unix.AF_INET, "127.0.0.1:0")
	r.events(2)
	const connections = 3000
	before := stats(t, r.tracer).Reconciles
	for stats(t, r.tracer).Reconciles < before+5 {
		for range connections {
			client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
			r.connect(client, at)
			r.close(r.acceptNoAddr(l), client)
		}
		told := make(map[EventType]int)
		for _, ev := range r.events(4 * connections) {
			told[ev.Type]++
		}
		want := map[EventType]int{EventConnect: connections, EventAccept: connections, EventClose: 2 * connections}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Fatalf("events (-want +got):\n%s", diff)
		}
	}
}

// While the descriptors of processes that have very many are copied, events go on.
func TestKernelReconcileInterrupted(t *testing.T) {
	r := idle(t)
	tr, err := Open(tested(Config{}))
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	r.tracer, r.sub = tr, tr.Subscribe(1<<16)
	const copies, children = 10_000, 50
	r.manyHolders(copies, children)
	const resyncs = 3
	ctx, end := context.WithCancel(t.Context())
	go func() {
		defer end()
		for range resyncs {
			if err := tr.resync(); err != nil {
				t.Error(err)
			}
		}
	}()
	start, told := time.Now(), 0
	for r.tryFence(ctx) == nil { // a socket comes and goes, and is told of
		told++
	}
	took := time.Since(start)
	t.Logf("%d comparisons took %v, in which %d sockets were told of", resyncs, took, told)
	if late := took / time.Duration(told+1); late > max(50*time.Millisecond, took/resyncs/4) {
		t.Errorf("the close of a socket is told after %v", late)
	}
}

// manyHolders starts processes that inherit very many descriptors of a socket.
func (r *recorder) manyHolders(copies, children int) {
	r.Helper()
	fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	r.bind(fd, "127.0.0.1:7001")
	for range copies {
		other, err := unix.Dup(fd)
		if err != nil {
			r.Fatal(err)
		}
		r.fds = append(r.fds, other)
	}
	for range children {
		cmd := exec.Command("ip", "monitor") // which the VMs have, and waits
		if err := cmd.Start(); err != nil {
			r.Fatal(err)
		}
		r.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
}
