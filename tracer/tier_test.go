package tracer

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// workloads is what both tiers are shown, at the same time. uring is what only
// the fentry tier sees of it where the kernel does not tell of io_uring's requests.
var workloads = []struct {
	name  string
	run   func(r *recorder)
	n     int // events of the fentry tier
	uring []EventType
}{
	{name: "bind", n: 4 * len(ends), run: func(r *recorder) {
		for _, end := range ends {
			for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
				fd := r.socket(end.family, kind)
				r.bind(fd, end.ip+":7001")
				r.close(fd)
			}
		}
	}},
	{name: "bind refused", n: 8, run: func(r *recorder) {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			holder, fd := r.socket(unix.AF_INET, kind), r.socket(unix.AF_INET, kind)
			r.bind(holder, "127.0.0.1:7001")
			r.fails(unix.Bind(fd, sockaddr(unix.AF_INET, "127.0.0.1:7001")), unix.EADDRINUSE)
			r.fails(unix.Bind(fd, sockaddr(unix.AF_INET, "192.0.2.1:7002")), unix.EADDRNOTAVAIL)
			r.close(holder, fd)
		}
	}},
	{name: "listen", n: 9, run: func(r *recorder) {
		l, _ := r.listener(unix.AF_INET6, "[::1]:7001")
		r.listen(l) // again: news to nobody
		auto := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.listen(auto)
		client := r.socket(unix.AF_INET6, unix.SOCK_STREAM)
		r.connect(client, r.local(l))
		r.fails(unix.Listen(client, 1), unix.EINVAL)
		r.resetOnClose(client)
		r.close(client, auto, l)
	}},
	{name: "TCP connection", n: 7 * len(ends), run: func(r *recorder) {
		for i, end := range ends {
			l, to := r.listener(end.family, fmt.Sprintf("%s:%d", end.ip, 7001+i))
			client := r.socket(end.family, unix.SOCK_STREAM)
			r.connect(client, to)
			server := r.accept(l)
			r.close(client)
			r.awaitClosed(server)
			r.close(server, l)
		}
	}},
	{name: "port picked by connect after bind", n: 5, run: func(r *recorder) {
		l, to := r.listener(unix.AF_INET, "127.0.0.1:7001")
		client := r.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
		r.setsockopt(client, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		r.bind(client, "127.0.0.2:0")
		if err := unix.Connect(client, sockaddr(unix.AF_INET, to.String())); err != unix.EINPROGRESS && err != nil {
			r.Fatal(err)
		}
		r.close(client, l)
	}},
	{name: "MPTCP", n: 4, run: func(r *recorder) {
		l := r.socketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		r.bind(l, "127.0.0.1:7001")
		r.listen(l)
		client := r.socketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
		r.connect(client, r.local(l))
		r.accept(l)
	}},
	{name: "connect refused", n: 5, run: func(r *recorder) {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, "127.0.0.1:1")), unix.ECONNREFUSED)
		r.close(fd)
		for _, to := range []struct {
			family int
			addr   string
		}{{unix.AF_INET, "192.0.2.1:443"}, {unix.AF_INET6, "[2001:db8::1]:443"}, {unix.AF_INET6, "[::ffff:192.0.2.1]:443"}} {
			fd := r.socket(to.family, unix.SOCK_STREAM)
			r.fails(unix.Connect(fd, sockaddr(to.family, to.addr)), unix.ENETUNREACH)
			r.close(fd)
		}
	}},
	{name: "no port left", n: 2*rounds + 4, run: func(r *recorder) {
		r.fill(unix.SOCK_STREAM)
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.fails(unix.Connect(fd, sockaddr(unix.AF_INET, "127.0.0.1:9")), unix.EADDRNOTAVAIL)
		r.fails(unix.Listen(fd, 1), unix.EADDRINUSE)
		r.close(slices.Clone(r.fds)...)
	}},
	{name: "UDP", n: 5 * len(ends), run: func(r *recorder) {
		for _, end := range ends {
			sender := r.socket(end.family, unix.SOCK_DGRAM)
			for range 2 {
				if err := unix.Sendto(sender, []byte("x"), 0, sockaddr(end.family, end.ip+":9")); err != nil {
					r.Fatal(err)
				}
			}
			client := r.socket(end.family, unix.SOCK_DGRAM)
			r.connect(client, netip.MustParseAddrPort(end.ip+":9"))
			r.close(sender, client)
		}
	}},
	{name: "UDP leaves its peer", n: 6, run: func(r *recorder) {
		for i := range 2 {
			fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
			if i == 1 {
				r.bind(fd, "127.0.0.1:7001")
			}
			r.connect(fd, netip.MustParseAddrPort("127.0.0.1:9"))
			var sa unix.RawSockaddrAny
			if err := connectRaw(fd, &sa, unix.SizeofSockaddrInet4); err != nil {
				r.Fatal(err)
			}
			r.close(fd)
		}
	}},
	{name: "datagrams that cannot be sent", n: 2 * len(sends), run: func(r *recorder) {
		for _, s := range sends {
			fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
			if err := s.send(r, fd, sockaddr(unix.AF_INET, "127.0.0.1:9")); err == nil {
				r.Fatalf("%s: no error", s.name)
			}
			r.close(fd)
		}
	}},
	{name: "UDP to port 0", n: 3, run: func(r *recorder) {
		fd := r.socket(unix.AF_INET, unix.SOCK_DGRAM)
		r.connect(fd, netip.MustParseAddrPort("127.0.0.1:0"))
		r.close(fd)
	}},
	{name: "ends that are taken", n: 9, run: func(r *recorder) {
		l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
		var fds [2]int
		for i := range fds {
			fds[i] = r.socket(unix.AF_INET, unix.SOCK_STREAM)
			r.setsockopt(fds[i], unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			r.bind(fds[i], "127.0.0.1:3001")
		}
		r.connect(fds[0], to)
		r.fails(unix.Connect(fds[1], sockaddr(unix.AF_INET, to.String())), unix.EADDRNOTAVAIL)
		r.resetOnClose(fds[0])
		r.close(fds[0], fds[1], l)
	}},
	{name: "io_uring", n: 6, uring: []EventType{EventAccept, EventClose}, run: func(r *recorder) {
		u := newRing(r.T)
		l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
		client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		u.connect(client, to.Port())
		server := u.do(testutil.Request{Op: uringAccept, FD: int32(l)})
		if server < 0 {
			r.Fatalf("accept: %v", unix.Errno(-server))
		}
		r.fds = append(r.fds, int(server))
		r.resetOnClose(int(server))
		r.close(int(server))
		r.awaitClosed(client)
		r.close(client)
	}},
}

// Both tiers report the same of the same work, but for what the kernel hides from
// one of them.
func TestKernelTiersAgree(t *testing.T) {
	requireFentry(t)
	requireExactSyscalls(t)
	for _, w := range workloads {
		t.Run(w.name, func(t *testing.T) {
			r, other := bothTiers(t)
			w.run(r)
			all := r.events(w.n)
			if len(all) != w.n {
				t.Errorf("fentry tier: %d events, want %d:\n%s", len(all), w.n, lines(all))
			}
			want := all[:0:0]
			missing := w.uring
			if seesRequests(other.tracer) {
				missing = nil
			}
			for _, ev := range all {
				if len(missing) > 0 && ev.Type == missing[0] {
					missing = missing[1:]
				} else {
					want = append(want, ev)
				}
			}
			if len(missing) > 0 {
				t.Errorf("fentry tier has no %v", missing)
			}
			if diff := cmp.Diff(wholeLines(want), wholeLines(other.events(len(want)))); diff != "" {
				t.Errorf("-fentry +tracepoint:\n%s", diff)
			}
		})
	}
}

// wholeLines is what both tiers must say of each event.
func wholeLines(events []Event) string {
	var b strings.Builder
	for i := range events {
		ev := &events[i]
		fmt.Fprintf(&b, "%s by %s pid %d uid %d, socket %x, %d in the way\n",
			line(ev), ev.Process.Comm, ev.Process.PID, ev.Process.UID, ev.sock, len(ev.HeldBy))
	}
	return b.String()
}

// A forced tier has no hook of the other.
func TestKernelTierForced(t *testing.T) {
	testutil.RequireRoot(t)
	run, err := share(Config{Tier: TierTracepoint})
	if err != nil {
		t.Fatal(err)
	}
	tr := run.tracer
	if tr.Tier() != TierTracepoint {
		t.Errorf("tier %s, want %s", tr.Tier(), TierTracepoint)
	}
	for _, h := range tr.Hooks() {
		want := !strings.HasPrefix(h.Reason, "not in this kernel")
		if h.Hook == hookUring {
			want = seesRequests(tr)
		} else if strings.HasPrefix(h.Hook, "cgroup/getpeername") {
			want = !seesRequests(tr)
		}
		if h.Tier == TierFentry || h.Attached != want {
			t.Errorf("hook %+v in the tracepoint tier", h)
		}
	}
}

func TestCheckRelease(t *testing.T) {
	for release, want := range map[string]string{
		"5.10.0-30-cloud-amd64": "", "6.18.44": "", "10.0": "",
		"5.9.16":  "not supported: Linux 5.10 or newer is needed, this is 5.9.16",
		"4.19.0+": "not supported: Linux 5.10 or newer is needed, this is 4.19.0+",
	} {
		got := ""
		if err := checkRelease(release, minMajor, minMinor); err != nil {
			got = err.Error()
			if !errors.Is(err, ErrNotSupported) {
				t.Errorf("%s: %v, want ErrNotSupported", release, err)
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", release, got, want)
		}
	}
	if err := checkRelease("linux", minMajor, minMinor); err == nil {
		t.Error("no error for a release without a number")
	}
}

// requireFentry skips a test that compares the tiers where there is but one.
func requireFentry(t *testing.T) {
	t.Helper()
	testutil.RequireRoot(t)
	if _, err := share(Config{Tier: TierFentry}); errors.Is(err, ErrNotPermitted) || errors.Is(err, ErrNotSupported) {
		t.Skip("this kernel refuses the fentry tier; make test-kernels has kernels that do not")
	}
}

// requireExactSyscalls skips a test that demands of the tracepoint tier to lose nothing, where
// the kernel does not let it.
func requireExactSyscalls(t *testing.T) {
	t.Helper()
	running, err := share(Config{Tier: TierTracepoint})
	if err != nil {
		t.Fatal(err)
	}
	if running.tracer.preempted {
		t.Skip("this kernel skips programs at the end of system calls now and then")
	}
}

// What 7.2 changed is found in its types, and said where a hook of system calls is attached.
func TestKernelSkippedCallsToldOf(t *testing.T) {
	testutil.RequireRoot(t)
	for _, without := range []bool{false, true} {
		running, err := newRunning(tested(Config{NoSyscallHooks: without}))
		if err != nil {
			t.Fatal(err)
		}
		tr := running.tracer
		hooked := slices.ContainsFunc(tr.Hooks(), func(h HookStatus) bool { return h.Hook == hookSyscall && h.Attached })
		want := hooked && checkKernel(7, 2) == nil
		if got := slices.Contains(tr.NotSeen(), skippedCalls); got != want || hooked && without {
			t.Errorf("without hooks of system calls %v: hooked %v, said %v, want %v", without, hooked, got, want)
		}
		if err := running.stop(); err != nil {
			t.Error(err)
		}
	}
}

// bothTiers follows a namespace of the test's own with a tracer of each tier.
func bothTiers(t *testing.T) (fentry, tracepoint *recorder) {
	t.Helper()
	fentry = idle(t)
	fentry.follow(Config{Tier: TierFentry})
	tracepoint = &recorder{T: t, netns: fentry.netns}
	tracepoint.follow(Config{Tier: TierTracepoint})
	return fentry, tracepoint
}

// What one tier tells and the other does not, or later.
func TestKernelTiersDiffer(t *testing.T) {
	requireFentry(t)
	requireExactSyscalls(t)
	t.Run("fast open", fastOpen)
	t.Run("refused by a cgroup program", refusedByCgroup)
	t.Run("parts left to the other tier", partsLeft)
}

// Where a function of the fentry tier is missing, the hooks of the tracepoint tier
// see that part of the job, and nothing is told twice.
func partsLeft(t *testing.T) {
	saved, tier := slices.Clone(probes), testTier
	restore := func() {
		copy(probes, saved)
		testTier = tier
	}
	defer restore()
	const left = partListen | partImplicit
	for i := range probes {
		if p := &probes[i]; p.tier == TierFentry && p.parts&left != 0 {
			p.hook = "fexit/no_such_function"
			p.progs = slices.Repeat(p.progs[:1], 2) // looked for in the kernel's BTF
		}
	}
	testTier = ""
	mixed := &recorder{T: t}
	mixed.start(Config{})
	restore()
	if mixed.tracer.Tier() != TierFentry || mixed.tracer.byTracepoint != left {
		t.Fatalf("tier %s, parts %#x left, want %#x", mixed.tracer.Tier(), mixed.tracer.byTracepoint, left)
	}
	for _, h := range mixed.tracer.Hooks() {
		if h.Hook == hookUring {
			continue
		}
		if missing := h.Hook == "fexit/no_such_function"; h.Attached == missing || missing && h.Reason != "not in this kernel" || missing && h.Lost != "" {
			t.Errorf("hook %+v", h)
		}
	}
	for _, w := range workloads {
		if len(w.uring) > 0 || w.name == "MPTCP" {
			continue
		}
		t.Run(w.name, func(t *testing.T) {
			r := idle(t)
			r.use(mixed.tracer)
			other := &recorder{T: t, netns: r.netns}
			other.follow(Config{Tier: TierTracepoint})
			w.run(r)
			got, want := r.events(w.n), other.events(w.n)
			if diff := cmp.Diff(wholeLines(want), wholeLines(got)); diff != "" {
				t.Errorf("-tracepoint +mixed:\n%s", diff)
			}
		})
	}
}

// With TCP_FASTOPEN_CONNECT connect() only picks the port, which the fentry tier
// tells at once; the SYN leaves with the first data, which the tracepoint tier
// waits for.
func fastOpen(t *testing.T) {
	fentry, tracepoint := bothTiers(t)
	testutil.WriteSysctl(t, "ipv4/tcp_fastopen", "5") // as a client, and without a cookie
	_, to := fentry.listener(unix.AF_INET, "127.0.0.1:9000")
	fentry.events(2)
	tracepoint.events(2)
	fd := fentry.socket(unix.AF_INET, unix.SOCK_STREAM)
	fentry.setsockopt(fd, unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
	fentry.connect(fd, to)
	want := fmt.Sprintf("connect tcp %s > %s", fentry.local(fd), to)
	fentry.expect(os.Getpid(), want)
	tracepoint.expect(os.Getpid())
	if _, err := unix.Write(fd, []byte("x")); err != nil {
		t.Fatal(err)
	}
	fentry.expect(os.Getpid())
	tracepoint.expect(os.Getpid(), want)
}

// What a cgroup program refuses never comes to TCP: the tracepoint tier, which sees
// the end of the system call, tells it, the fentry tier does not.
func refusedByCgroup(t *testing.T) {
	fentry, tracepoint := bothTiers(t)
	root, err := CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "porthole-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	refuse, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer refuse.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupInet4Connect, Program: refuse})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pid := fentry.wait(fentry.childIn(dir, "connect-refused"))
	tracepoint.expect(pid, "connect tcp 0.0.0.0:0 > 127.0.0.1:9000 EPERM")
	fentry.expect(pid)
}

func helperConnectRefused() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 9000, Addr: [4]byte{127, 0, 0, 1}}); err != unix.EPERM {
		return fmt.Errorf("connect: %v, want EPERM", err)
	}
	return nil
}
