package tracer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/porthole-dev/porthole/internal/testutil"
	"golang.org/x/sys/unix"
)

func uintptrOf(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s))) }

// awaitBlocked waits until a process waits in the kernel for a connection.
func awaitBlocked(t *testing.T, pid int) {
	t.Helper()
	testutil.Await(t, "the child comes to accept", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		return err == nil && strings.HasPrefix(string(b), strconv.Itoa(unix.SYS_ACCEPT4)+" ")
	})
}

// snapshotter is for every test; its programs go with the process.
var snapshotter = sync.OnceValues(func() (*Snapshotter, error) { return NewSnapshotter(ReadsSockets | ReadsPorts) })

// snapshot takes one.
func snapshot(t testing.TB, port uint16) *Snapshot {
	t.Helper()
	s, err := snapshotter()
	if err != nil {
		t.Fatal(err)
	}
	snap, err := s.Take(port)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// fullHouse opens sockets of every kind and in every state. Those that must stay
// half-open or unread are left to the end of the test.
func (r *recorder) fullHouse() {
	r.Helper()
	for i, end := range ends {
		l, to := r.listener(end.family, fmt.Sprintf("%s:%d", end.ip, 9000+i))
		pair := func() (int, int) {
			c := r.socket(end.family, unix.SOCK_STREAM)
			r.connect(c, to)
			return c, r.accept(l)
		}
		for range 50 { // ESTAB, both ends held
			pair()
		}
		c, s := pair() // FIN-WAIT-2 and CLOSE-WAIT
		if err := unix.Shutdown(c, unix.SHUT_WR); err != nil {
			r.Fatal(err)
		}
		_ = s
		c, _ = pair() // orphaned FIN-WAIT-2
		r.close(c)
		c, s = pair() // TIME-WAIT of the client
		r.close(c)
		r.awaitClosed(s)
		r.close(s)
		c, s = pair() // TIME-WAIT of the server
		r.close(s)
		r.awaitClosed(c)
		r.close(c)
		c = r.socket(end.family, unix.SOCK_STREAM) // ESTAB in the accept queue
		r.connect(c, to)
		u := r.socket(end.family, unix.SOCK_DGRAM)
		r.bind(u, fmt.Sprintf("%s:%d", end.ip, 9000+i))
		u = r.socket(end.family, unix.SOCK_DGRAM)
		r.connect(u, to)
	}
	any6 := r.socket(unix.AF_INET6, unix.SOCK_STREAM)
	r.bind(any6, "[::]:9100")
	r.listen(any6)
	only6 := r.socket(unix.AF_INET6, unix.SOCK_STREAM)
	r.setsockopt(only6, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	r.bind(only6, "[::]:9101")
	r.listen(only6)
	r.backlogged()
}

// backlogged fills the accept queue of a listener, so that the kernel ignores the
// last word of further handshakes: SYN-RECV here, ESTAB or SYN-SENT there.
func (r *recorder) backlogged() {
	r.Helper()
	l := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.bind(l, "127.0.0.1:9200")
	if err := unix.Listen(l, 1); err != nil {
		r.Fatal(err)
	}
	for range 4 {
		c := r.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
		if err := unix.Connect(c, sockaddr(unix.AF_INET, "127.0.0.1:9200")); err != nil && err != unix.EINPROGRESS {
			r.Fatal(err)
		}
	}
}

// ssRows runs the real ss in the test's namespace: "STATE LOCAL PEER" lines.
func ssRows(t *testing.T, flags string) []string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("ss", flags)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ss %s: %v %s", flags, err, &stderr)
	}
	var rows []string
	for text := range strings.Lines(string(out)) {
		f := strings.Fields(text)
		if len(f) < 5 {
			t.Fatalf("ss printed %q", text)
		}
		rows = append(rows, f[0]+" "+f[3]+" "+f[4])
	}
	slices.Sort(rows)
	return rows
}

// asSS shows a socket as ss does: mapped addresses on IPv6 sockets as such, the
// dual-stack wildcard as *.
func asSS(s *Socket) string {
	peer := s.Remote.String()
	if !s.Remote.IsValid() {
		peer = "0.0.0.0:*"
		if s.Local.Addr().Is6() {
			peer = "[::]:*"
		}
	}
	return fmt.Sprintf("%s %s %s", s.State, s.Local, peer)
}

// normal undoes in a row of ss what porthole shows otherwise on purpose: IPv4 as
// IPv4 on IPv6 sockets, and the dual-stack wildcard by its address.
func normal(row string) string {
	f := strings.Fields(row)
	for i := 1; i < 3; i++ {
		f[i] = strings.Replace(f[i], "[::ffff:127.0.0.1]", "127.0.0.1", 1)
		if after, ok := strings.CutPrefix(f[i], "*:"); ok {
			f[i] = "[::]:" + after
		}
	}
	if strings.HasPrefix(f[1], "127.") && f[2] == "[::]:*" {
		f[2] = "0.0.0.0:*"
	}
	return strings.Join(f, " ")
}

// Row by row what the real ss shows inside the namespace.
func TestKernelSnapshotEqualsSS(t *testing.T) {
	r := idle(t)
	r.fullHouse()
	for _, c := range []struct {
		flags string
		match func(*Socket) bool
	}{
		{"-Htan", func(s *Socket) bool { return s.Proto == TCP }},
		{"-Huan", func(s *Socket) bool { return s.Proto == UDP }},
		{"-Htln", func(s *Socket) bool { return s.State == StateListen }},
	} {
		// Some sockets are still on their way from one state to the next.
		var want, again []string
		var snap *Snapshot
		for range 100 {
			want, snap, again = ssRows(t, c.flags), snapshot(t, 0), ssRows(t, c.flags)
			if slices.Equal(want, again) {
				break
			}
		}
		if !slices.Equal(want, again) {
			t.Fatalf("ss %s does not come to rest:\n%s", c.flags, cmp.Diff(want, again))
		}
		for i := range want {
			want[i] = normal(want[i])
		}
		var got []string
		for i := range snap.Sockets {
			if s := &snap.Sockets[i]; s.NetNS == r.netns && c.match(s) {
				got = append(got, asSS(s))
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ss %s: %d rows, porthole %d (-ss +porthole):\n%s", c.flags, len(want), len(got), diff)
		}
	}
}

// Every descriptor of every process: what ss -p finds in /proc.
func TestKernelSnapshotHolders(t *testing.T) {
	r := idle(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:0")
	dup, err := unix.FcntlInt(uintptr(l), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	cmd := r.child("accept", l)
	awaitBlocked(t, cmd.Process.Pid)
	snap := snapshot(t, to.Port())
	var got []string
	var inode uint64
	for _, s := range snap.Sockets {
		if s.NetNS != r.netns {
			continue
		}
		inode = s.Inode
		for _, h := range s.Holders {
			got = append(got, fmt.Sprintf("%d/%d", h.PID, h.FD))
		}
	}
	slices.Sort(got)
	want := []string{fmt.Sprintf("%d/%d", os.Getpid(), l), fmt.Sprintf("%d/%d", os.Getpid(), dup), fmt.Sprintf("%d/3", cmd.Process.Pid)}
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("holders (-want +got):\n%s", diff)
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", l)); err != nil || link != fmt.Sprintf("socket:[%d]", inode) {
		t.Errorf("inode %d, but the descriptor is %s (%v)", inode, link, err)
	}
	c := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(c, to)
	r.wait(cmd)
}

// Roles of sockets nobody saw being opened.
func TestKernelSnapshotRoles(t *testing.T) {
	r := idle(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	want := make(map[string]bool)
	for i := range 4 {
		c := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		switch i {
		case 1:
			r.bind(c, "127.0.0.1:7001")
		case 2:
			r.bind(c, "127.0.0.1:0")
		}
		r.connect(c, to)
		s := r.accept(l)
		if i == 3 { // with data and half closed
			if _, err := unix.Write(c, make([]byte, 5000)); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(s, make([]byte, 7000)); err != nil {
				t.Fatal(err)
			}
			if err := unix.Shutdown(c, unix.SHUT_WR); err != nil {
				t.Fatal(err)
			}
		}
		want["client "+r.local(c).String()] = true
		want["server "+peerOf(t, s).String()] = true // its remote, which is the client's local
	}
	b := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.bind(b, "127.0.0.1:7002")
	want["bound 127.0.0.1:7002"] = true
	want["listener 127.0.0.1:9000"] = true
	for _, s := range snapshot(t, 0).Sockets {
		if s.NetNS != r.netns {
			continue
		}
		end := s.Local
		if s.Role == RoleServer {
			end = s.Remote
		}
		key := s.Role.String() + " " + end.String()
		if !want[key] {
			t.Errorf("not expected: %s in %s", key, s.State)
		}
		delete(want, key)
	}
	for key := range want {
		t.Errorf("missing: %s", key)
	}
}

// Sockets older than porthole are in the table, and events go on from there:
// neither a gap nor a double.
func TestKernelStartMerge(t *testing.T) {
	r := idle(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	old := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(old, to)
	server := r.accept(l)
	queued := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(queued, to)
	u := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
	if err := unix.Sendto(u, []byte("x"), 0, sockaddr(unix.AF_INET, "127.0.0.1:9")); err != nil {
		t.Fatal(err)
	}
	r.start(Config{})
	if got := r.held(9000); len(got) != 3 || got[0].Role != RoleListener {
		t.Errorf("table has %+v on port 9000, want listener, server and the one not accepted yet", got)
	}
	r.expect(os.Getpid()) // nothing has happened since
	// An old UDP socket sends again: no bind. An old connection closes, by its holder.
	if err := unix.Sendto(u, []byte("x"), 0, sockaddr(unix.AF_INET, "127.0.0.1:9")); err != nil {
		t.Fatal(err)
	}
	from, qfrom := r.local(old), r.local(queued)
	r.close(old)
	r.awaitClosed(server)
	r.close(server)
	r.expect(os.Getpid(), closeLine("client time_wait", from, to), closeLine("server", from, to))
	r.acceptNoAddr(l) // the one that was waiting
	r.expect(os.Getpid(), fmt.Sprintf("accept tcp %s > %s", to, qfrom))
	port := r.local(u).Port()
	r.close(u)
	r.expect(os.Getpid(), fmt.Sprintf("close udp 0.0.0.0:%d", port))
}

// Connections come and go while porthole starts. Stopped at any moment, the table
// holds exactly the sockets that the kernel does, each with its holder.
func TestKernelStartUnderLoad(t *testing.T) {
	r := idle(t)
	cmd := r.child("churn")
	awaitListener(t, r.netns, 9000)
	r.start(Config{})
	t.Cleanup(func() { // before the tracer stops, so that its counters stand still
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		r.events(0)
	})
	for range 5 {
		r.awaitEvents(300)
		if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		awaitState(t, cmd.Process.Pid, "T")
		r.events(0)
		want, orphans := make(map[string]Role), make(map[string]bool)
		for _, s := range snapshot(t, 0).Sockets {
			ends := s.Local.String() + " " + s.Remote.String()
			switch {
			case s.NetNS != r.netns:
			case s.Role == RoleListener || s.Role == RoleClient || s.Role == RoleServer:
				want[ends] = s.Role
			default:
				orphans[ends] = true
			}
		}
		got, all := make(map[string]Role), make(map[string]Socket)
		for _, s := range r.tracer.Table().All() {
			ends := s.Local.String() + " " + s.Remote.String()
			if s.NetNS == r.netns {
				all[ends] = s
			}
			// A connection in the accept queue is an orphan until it is accepted, and so
			// is what the process has closed and the kernel not yet.
			if s.NetNS == r.netns && s.Role != RoleOrphan && !orphans[ends] {
				got[ends] = s.Role
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			for ends, role := range want {
				if got[ends] != role {
					t.Errorf("%s is %v, in the table: %+v", ends, role, all[ends])
				}
			}
			t.Fatalf("the table differs (-kernel +table):\n%s", diff)
		}
		if len(want) < 20 {
			t.Fatalf("%d sockets: no load", len(want))
		}
		if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitEvents waits until the table has seen n more events of the namespace.
func (r *recorder) awaitEvents(n int) {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for n > 0 {
		batch, err := r.sub.Next(ctx, nil)
		if err != nil {
			r.Fatalf("wait for %d more events: %v", n, err)
		}
		for _, ev := range batch {
			if ev.NetNS == r.netns {
				n--
			}
		}
	}
}

// awaitListener waits until something listens.
func awaitListener(t *testing.T, netns uint32, port uint16) {
	t.Helper()
	testutil.Await(t, fmt.Sprintf("something listens on port %d", port), func() bool {
		return slices.ContainsFunc(snapshot(t, port).Sockets, func(s Socket) bool { return s.NetNS == netns && s.Role == RoleListener })
	})
}

// awaitState waits until every thread of a process is in a state of proc(5).
func awaitState(t *testing.T, pid int, state string) {
	t.Helper()
	testutil.Await(t, fmt.Sprintf("process %d comes to state %s", pid, state), func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(stats) == 0 {
			t.Fatalf("threads of %d: %v", pid, err)
		}
		return !slices.ContainsFunc(stats, func(name string) bool {
			b, err := os.ReadFile(name)
			_, after, _ := strings.Cut(string(b), ") ")
			return err == nil && !strings.HasPrefix(after, state)
		})
	})
}

// Kernels before 5.17 walk in short bursts: the rows are the same.
func TestKernelSnapshotBurst(t *testing.T) {
	r := idle(t)
	r.fullHouse()
	var got [2]string
	for i, old := range []bool{false, true} {
		s, err := newSnapshotter(ReadsSockets|ReadsPorts, old)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if old && s.sockWalk.burst == nil {
			t.Fatal("the walk is not in bursts")
		}
		snap, err := s.Take(0)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, so := range snap.Sockets {
			if so.NetNS == r.netns {
				so.stamp = 0
				fmt.Fprintf(&b, "%+v\n", so)
			}
		}
		got[i] = b.String()
	}
	if diff := cmp.Diff(got[0], got[1]); diff != "" || len(got[0]) == 0 {
		t.Errorf("-in one go +in bursts:\n%s", diff)
	}
}

// An object for newer kernels has no program for old ones to fall back to.
func TestWalkerLoadRefused(t *testing.T) {
	spec, err := loadSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	spec.Programs[snapshotProgPhWalk].Instructions = asm.Instructions{asm.Return()} // of nothing
	var w walker
	if err := w.load(spec, snapshotProgPhWalk, snapshotOldProgPhWalkBurst, ebpf.CollectionOptions{}, false); err == nil {
		t.Error("a program that the kernel must refuse was loaded")
	}
}
