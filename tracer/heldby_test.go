package tracer

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// refused is an event as the reader hands it on: what the table knows is in it.
func refused(known ...Socket) Event {
	ev := failed(syscall.EADDRINUSE, tcp(10, EventBind, sockA, "10.0.0.1:80", ""))
	ev.boot, ev.HeldBy, ev.asks = boottime(), known, true
	return ev
}

// completerTest runs a completer that gets its answers from rows.
func completerTest(t *testing.T, rows func(...uint16) (*Rows, error)) (*completer, *Subscription) {
	out := &fanout{}
	c := newCompleter(out, newTable(), rows)
	ending, ended := make(chan struct{}), make(chan struct{})
	c.running.Store(true)
	go func() {
		defer close(ended)
		c.run(ending)
	}()
	t.Cleanup(func() {
		close(ending)
		<-ended
	})
	return c, out.subscribe(1 << 16)
}

// await returns the next n events of a subscription.
func await(t *testing.T, sub *Subscription, n int) []Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []Event
	for len(got) < n {
		events, err := sub.Next(ctx, nil)
		if err != nil {
			t.Fatalf("%d of %d events: %v", len(got), n, err)
		}
		got = append(got, events...)
	}
	return got
}

// rowsOf are those of a snapshot of TCP sockets on 10.0.0.1:80.
func rowsOf(states ...State) *Rows {
	c := newCollection(newDecoder())
	var rows []bpfRow
	for i, state := range states {
		row := bpfRow{Sock: sockB + uint64(i), Proto: uint8(TCP), State: uint8(state), Flow: flowOf(endpoint("10.0.0.1:80"), endpoint(""))}
		row.Flow.Netns = testNS
		if state == StateTimeWait {
			row.Flags |= uint16(bpfRowFlagROW_TIMEWAIT)
		}
		rows = append(rows, row)
	}
	c.add(rows)
	c.want()
	return &Rows{start: boottime(), from: c, keys: c.sorted()}
}

// An event is told with what the kernel says, those that follow after it; who is refused
// for the same reason meanwhile costs no second look.
func TestCompleterAnswers(t *testing.T) {
	asked, release := make(chan struct{}, 10), make(chan struct{})
	c, sub := completerTest(t, func(...uint16) (*Rows, error) {
		asked <- struct{}{}
		<-release
		return rowsOf(StateTimeWait, StateListen), nil
	})
	gone := found(5, RoleServer, sockC, "10.0.0.1:80", "10.0.0.2:1")
	known := []Socket{gone}
	first, second := refused(known...), refused()
	second.HeldBy = first.HeldBy
	c.publish([]Event{tcp(1, EventListen, sockB, "10.0.0.1:81", ""), first, second}, true)
	<-asked
	c.publish([]Event{tcp(2, EventClose, sockB, "10.0.0.1:81", "")}, false)
	before := await(t, sub, 1)
	if len(before) != 1 || before[0].Type != EventListen {
		t.Fatalf("before there is an answer: %+v, want the event before it alone", before)
	}
	close(release)
	got := await(t, sub, 3)
	if got[0].Type != EventBind || got[1].Type != EventBind || got[2].Type != EventClose {
		t.Fatalf("events %v %v %v, want them in order", got[0].Type, got[1].Type, got[2].Type)
	}
	for i := range 2 {
		roles := make(map[Role]int)
		for _, s := range got[i].HeldBy {
			roles[s.Role]++
		}
		if len(got[i].HeldBy) != 3 || roles[RoleListener] != 1 || roles[RoleTimeWait] != 1 || roles[RoleServer] != 1 {
			t.Errorf("event %d is held by %+v, want what the kernel has and what was closed since", i, got[i].HeldBy)
		}
	}
	if len(asked) != 0 {
		t.Error("asked twice for the same")
	}
}

// The kernel takes too long: the event is told with what the table knew.
func TestCompleterDoesNotWait(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c, sub := completerTest(t, func(...uint16) (*Rows, error) {
		<-release
		return nil, errors.New("too late")
	})
	known := found(5, RoleListener, sockB, "10.0.0.1:80", "")
	for range 3 { // the others do not wait for what has been asked for
		c.publish([]Event{refused(known), tcp(2, EventListen, sockC, "10.0.0.1:81", "")}, true)
	}
	start := time.Now()
	for i, ev := range await(t, sub, 6) {
		if i%2 == 0 && (len(ev.HeldBy) != 1 || ev.HeldBy[0].id != sockB) || (i%2 == 0) != (ev.Type == EventBind) {
			t.Errorf("event %d: %s held by %+v", i, ev.Type, ev.HeldBy)
		}
	}
	if took := time.Since(start); took > 10*answerWithin {
		t.Errorf("they came after %v, want %v", took, answerWithin)
	}
}

// More than can wait does not.
func TestCompleterBounded(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c, sub := completerTest(t, func(...uint16) (*Rows, error) {
		<-release
		return nil, errors.New("too late")
	})
	first := refused()
	first.boot += uint64(time.Hour) // it would wait as long
	c.publish([]Event{first}, true)
	batch := make([]Event, maxBatch)
	for i := range batch {
		batch[i] = tcp(i, EventListen, sockC, "10.0.0.1:81", "")
	}
	n := 1
	for ; n <= maxWaiting/eventBytes+maxBatch; n += maxBatch {
		c.publish(batch, false)
	}
	await(t, sub, n)
}

// What waits is bounded by the memory it takes, and what is in the way of a call takes much.
// No event is lost for that, and none overtakes another.
func TestCompleterMemory(t *testing.T) {
	out := &fanout{}
	c := newCompleter(out, newTable(), nil)
	c.running.Store(true) // but run is not: it gets no processor
	sub := out.subscribe(1 << 20)
	const n = 10_000
	most := 0
	for i := range n {
		ev := refused(make([]Socket, maxHeldBy)...)
		ev.RequestedPort = uint16(i)
		c.publish([]Event{ev}, true)
		most = max(most, c.waiting.bytes)
	}
	if size := sizeOf(&Event{HeldBy: make([]Socket, maxHeldBy)}); most > maxWaiting || most < maxWaiting-size {
		t.Errorf("%d bytes wait, want up to %d", most, maxWaiting)
	}
	c.flush()
	for i, ev := range await(t, sub, n) {
		if int(ev.RequestedPort) != i {
			t.Fatalf("event %d comes after %d", ev.RequestedPort, i-1)
		}
	}
}

// What is flushed while an answer is awaited is published once.
func TestCompleterFlushed(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	c, sub := completerTest(t, func(...uint16) (*Rows, error) {
		asked <- struct{}{}
		<-release
		return rowsOf(StateListen), nil
	})
	for i := range 3 {
		ev := refused()
		ev.RequestedPort = uint16(i)
		c.publish([]Event{ev}, true)
	}
	<-asked
	c.mu.Lock()
	c.flush()
	c.mu.Unlock()
	c.publish([]Event{tcp(3, EventListen, sockB, "10.0.0.1:81", "")}, false)
	close(release)
	for i, ev := range await(t, sub, 4) {
		if i < 3 && int(ev.RequestedPort) != i || (i == 3) != (ev.Type == EventListen) {
			t.Errorf("event %d is %s of %d", i, ev.Type, ev.RequestedPort)
		}
	}
}

// However fast calls are refused one after the other, each is told who holds what is in the
// way, and that it is in TIME-WAIT.
func TestKernelHeldBySteadily(t *testing.T) {
	r := record(t, Config{})
	l, at := r.listener(unix.AF_INET, "127.0.0.1:7001")
	r.leaveTimeWait(l, at)
	udp := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	r.bind(udp, "127.0.0.1:7002")
	r.events(0)
	tcp, other := r.socket(unix.AF_INET, unix.SOCK_STREAM), r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	const want = 5
	for row, deadline := 0, time.Now().Add(20*time.Second); row < want; row++ { // on a busy machine one may not be answered
		r.fails(unix.Bind(tcp, sockaddr(unix.AF_INET, "127.0.0.1:7001")), unix.EADDRINUSE)
		r.fails(unix.Bind(other, sockaddr(unix.AF_INET, "127.0.0.1:7002")), unix.EADDRINUSE)
		got := r.events(2)
		waiting := len(got[0].HeldBy) == 1 && got[0].HeldBy[0].Role == RoleTimeWait
		by := got[1].HeldBy
		if len(by) != 1 {
			t.Fatalf("held by %+v, want the socket on descriptor %d", by, udp)
		}
		held := len(by[0].Holders) == 1 && int(by[0].Holders[0].PID) == os.Getpid() && int(by[0].Holders[0].FD) == udp
		if (!waiting || !held) && time.Now().After(deadline) {
			t.Fatalf("held by %+v and %+v, want a socket in TIME-WAIT, and that on descriptor %d", got[0].HeldBy, by, udp)
		} else if !waiting || !held {
			row = -1
		}
	}
}

// leaveTimeWait has a listener's port in TIME-WAIT alone.
func (r *recorder) leaveTimeWait(l int, at netip.AddrPort) {
	r.Helper()
	client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(client, at)
	server := r.acceptNoAddr(l)
	r.close(server) // first: its end waits
	r.close(client, l)
}
