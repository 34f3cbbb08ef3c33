package tracer

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ends are the kinds of address a socket can have: its family, an address to
// bind to, and how it is reported.
var ends = []struct {
	name   string
	family int
	ip     string
	shown  string
}{
	{"IPv4", unix.AF_INET, "127.0.0.1", "127.0.0.1"},
	{"IPv6", unix.AF_INET6, "[::1]", "[::1]"},
	{"mapped", unix.AF_INET6, "[::ffff:127.0.0.1]", "127.0.0.1"},
}

func TestKernelTCPBind(t *testing.T) {
	for _, end := range ends {
		t.Run(end.name, func(t *testing.T) {
			r := record(t, Config{})
			var want []string
			for i := range rounds {
				asked := 0
				if i%2 == 1 {
					asked = 7000 + i
				}
				fd := r.socket(end.family, unix.SOCK_STREAM)
				r.bind(fd, fmt.Sprintf("%s:%d", end.ip, asked))
				got := r.local(fd)
				r.close(fd)
				want = append(want,
					fmt.Sprintf("bind tcp %s:%d asked %d", end.shown, got.Port(), asked),
					fmt.Sprintf("close tcp %s:%d", end.shown, got.Port()))
			}
			r.expect(os.Getpid(), want...)
		})
	}
}

func TestKernelTCPListen(t *testing.T) {
	for _, end := range ends[:2] {
		t.Run(end.name, func(t *testing.T) {
			r := record(t, Config{})
			any := map[int]string{unix.AF_INET: "0.0.0.0", unix.AF_INET6: "[::]"}[end.family]
			var want []string
			for i := range rounds {
				fd := r.socket(end.family, unix.SOCK_STREAM)
				at := fmt.Sprintf("%s:%d", end.shown, 7000+i)
				if i%2 == 0 {
					r.bind(fd, at)
					want = append(want, fmt.Sprintf("bind tcp %s asked %d", at, 7000+i))
				}
				r.listen(fd)
				if i%2 == 1 { // the kernel binds
					at = fmt.Sprintf("%s:%d", any, r.local(fd).Port())
					want = append(want, fmt.Sprintf("bind tcp %s implicit", at))
				}
				r.close(fd)
				want = append(want, "listen tcp "+at, "close tcp "+at)
			}
			r.expect(os.Getpid(), want...)
		})
	}
}

// enders are the ways a connection can end; each returns what the two closes
// must say, in order.
var enders = []struct {
	name string
	end  func(r *recorder, client, server int) (first, second string)
}{
	{"client closes first", func(r *recorder, client, server int) (string, string) {
		r.close(client)
		r.awaitClosed(server)
		r.close(server)
		return "client time_wait", "server"
	}},
	{"server closes first", func(r *recorder, client, server int) (string, string) {
		r.close(server)
		r.awaitClosed(client)
		r.close(client)
		return "server time_wait", "client"
	}},
	{"client resets", func(r *recorder, client, server int) (string, string) {
		r.resetOnClose(client)
		r.close(client)
		r.awaitClosed(server)
		r.close(server)
		return "client", "server ECONNRESET"
	}},
	{"server resets", func(r *recorder, client, server int) (string, string) {
		r.resetOnClose(server)
		r.close(server)
		r.awaitClosed(client)
		r.close(client)
		return "server", "client ECONNRESET"
	}},
}

func TestKernelTCPConnection(t *testing.T) {
	for _, end := range ends {
		for _, e := range enders {
			t.Run(end.name+"/"+e.name, func(t *testing.T) {
				r := record(t, Config{})
				l, to := r.listener(end.family, end.ip+":9000")
				r.events(0)
				var want []string
				for i := range rounds {
					client := r.socket(end.family, unix.SOCK_STREAM)
					r.connect(client, to)
					from := r.local(client)
					accept := r.accept
					if i%2 == 1 {
						accept = r.acceptNoAddr
					}
					server := accept(l)
					first, second := e.end(r, client, server)
					want = append(want,
						fmt.Sprintf("connect tcp %s > %s", from, to),
						fmt.Sprintf("accept tcp %s > %s", to, from),
						closeLine(first, from, to), closeLine(second, from, to))
				}
				got := r.expectConnections(want...)
				for i := range got {
					if ev := &got[i]; ev.Type == EventClose && (ev.Duration <= 0 || ev.Duration > got[i].Time.Sub(got[0].Time)) {
						t.Errorf("%s: held for %v", line(ev), ev.Duration)
					}
				}
				if left := r.held(to.Port()); len(left) != 1 || left[0].Role != RoleListener {
					t.Errorf("table has %+v on the listener's port, want the listener alone", left)
				}
			})
		}
	}
}

// closeLine makes "close tcp A > B words" of "client words" or "server words".
func closeLine(who string, client, server netip.AddrPort) string {
	local, remote, words := client, server, who[len("client"):]
	if who[:len("server")] == "server" {
		local, remote = server, client
	}
	return fmt.Sprintf("close tcp %s > %s%s", local, remote, words)
}

// A bound client keeps its port after the connection ended, until close().
func TestKernelTCPBoundClient(t *testing.T) {
	r := record(t, Config{})
	l, to := r.listener(unix.AF_INET, "127.0.0.1:0")
	r.events(0)
	client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.bind(client, "127.0.0.1:7001")
	r.connect(client, to)
	from := r.local(client)
	server := r.accept(l)
	r.resetOnClose(server)
	r.close(server)
	r.awaitClosed(client)
	r.expect(os.Getpid(),
		"bind tcp 127.0.0.1:7001 asked 7001",
		fmt.Sprintf("connect tcp %s > %s", from, to),
		fmt.Sprintf("accept tcp %s > %s", to, from),
		fmt.Sprintf("close tcp %s > %s", to, from))
	if held := r.held(7001); len(held) != 1 || held[0].Role != RoleBound {
		t.Errorf("table has %+v on port 7001, want one bound socket", held)
	}
	r.close(client)
	r.expect(os.Getpid(), "close tcp 127.0.0.1:7001 ECONNRESET")
}

// IP_BIND_ADDRESS_NO_PORT: bind() takes no port, connect() does.
func TestKernelTCPBindNoPort(t *testing.T) {
	r := record(t, Config{})
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	r.events(0)
	var want []string
	for range rounds {
		client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.setsockopt(client, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		r.bind(client, "127.0.0.2:0")
		r.connect(client, to)
		from := r.local(client)
		server := r.accept(l)
		r.close(server)
		r.awaitClosed(client)
		r.close(client)
		want = append(want,
			fmt.Sprintf("connect tcp %s > %s", from, to),
			fmt.Sprintf("accept tcp %s > %s", to, from),
			closeLine("server time_wait", from, to), closeLine("client", from, to))
	}
	r.expectConnections(want...)
}

// Every socket of an SO_REUSEPORT group is reported and held.
func TestKernelReusePort(t *testing.T) {
	r := record(t, Config{})
	var want []string
	var fds []int
	for range rounds {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.setsockopt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		r.bind(fd, "127.0.0.1:7000")
		r.listen(fd)
		fds = append(fds, fd)
		want = append(want, "bind tcp 127.0.0.1:7000 asked 7000", "listen tcp 127.0.0.1:7000")
	}
	r.expect(os.Getpid(), want...)
	if got := r.held(7000); len(got) != rounds {
		t.Errorf("table has %d sockets on the port, want %d", len(got), rounds)
	}
	want = nil
	for _, fd := range fds {
		r.close(fd)
		want = append(want, "close tcp 127.0.0.1:7000")
	}
	r.expect(os.Getpid(), want...)
}

// An MPTCP socket is one row: the subflow has the port, the process the socket.
func TestKernelMPTCP(t *testing.T) {
	r := record(t, Config{})
	l := r.socketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	r.bind(l, "127.0.0.1:0")
	r.listen(l)
	to := r.local(l)
	r.expect(os.Getpid(), fmt.Sprintf("bind tcp %s asked 0 mptcp", to), fmt.Sprintf("listen tcp %s mptcp", to))
	client := r.socketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	r.connect(client, to)
	from := r.local(client)
	server := r.accept(l)
	r.expect(os.Getpid(),
		fmt.Sprintf("connect tcp %s > %s mptcp", from, to),
		fmt.Sprintf("accept tcp %s > %s mptcp", to, from))
	snap := snapshot(t, 0)
	var rows []string
	for _, s := range snap.Sockets {
		if s.NetNS == r.netns {
			rows = append(rows, fmt.Sprintf("%s %s mptcp=%v holders=%d", s.Role, s.Local, s.MPTCP, len(s.Holders)))
		}
	}
	want := []string{
		fmt.Sprintf("listener %s mptcp=true holders=1", to),
		fmt.Sprintf("client %s mptcp=true holders=1", from),
		fmt.Sprintf("server %s mptcp=true holders=1", to),
	}
	if fmt.Sprint(rows) != fmt.Sprint(want) {
		t.Errorf("snapshot has\n%q, want\n%q", rows, want)
	}
	r.close(client)
	r.awaitClosed(server)
	r.close(server, l)
	r.events(3)

	r.fill(unix.SOCK_STREAM)
	_, at := r.listener(unix.AF_INET, "127.0.0.1:9000")
	r.events(0)
	r.fails(unix.Connect(r.socketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), sockaddr(unix.AF_INET, at.String())), unix.EADDRNOTAVAIL)
	r.fails(unix.Connect(r.socketOf(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), sockaddr(unix.AF_INET, noRoute)), unix.ENETUNREACH)
	r.expect(os.Getpid(),
		fmt.Sprintf("connect tcp 127.0.0.1:0 > %s mptcp EADDRNOTAVAIL", at),
		"connect tcp 0.0.0.0:0 > "+noRoute+" mptcp ENETUNREACH")
}

// --verbose: established on both ends, with the time the handshake took.
func TestKernelEstablished(t *testing.T) {
	r := record(t, Config{Established: true})
	l, to := r.listener(unix.AF_INET, "127.0.0.1:0")
	r.events(0)
	client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(client, to)
	from := r.local(client)
	r.accept(l)
	events := r.events(4)
	byLine := make(map[string]Event)
	for i := range events {
		byLine[line(&events[i])] = events[i]
	}
	ours := byLine[fmt.Sprintf("established tcp %s > %s", from, to)]
	if ours.Duration <= 0 || int(ours.Process.PID) != os.Getpid() {
		t.Errorf("client's handshake took %v, by %+v; events:\n%s", ours.Duration, ours.Process, lines(events))
	}
	if _, ok := byLine[fmt.Sprintf("established tcp %s > %s", to, from)]; !ok || len(events) != 4 {
		t.Errorf("want connect, accept and established on both ends, got:\n%s", lines(events))
	}
}

// How long the kernel looked for a port is told by the fentry tier, and not of a
// bound socket, for which it does not look.
func TestKernelConnectSearch(t *testing.T) {
	r := record(t, Config{})
	_, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	free, bound := r.socket(unix.AF_INET, unix.SOCK_STREAM), r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.bind(bound, "127.0.0.1:7001")
	for _, fd := range []int{free, bound} {
		r.connect(fd, to)
	}
	for _, ev := range r.events(2) {
		if ev.Type != EventConnect {
			continue
		}
		want := r.tracer.Tier() == TierFentry && ev.Local != r.local(bound)
		if got := ev.Search > 0 && ev.Search < time.Minute; got != want {
			t.Errorf("%s: looked for a port for %v; want to be told: %v", line(&ev), ev.Search, want)
		}
	}
	counts := r.tracer.Counts()
	if got := len(counts.Searches) > 0 && counts.SearchSum > 0; got != (r.tracer.Tier() == TierFentry) {
		t.Errorf("counted searches %v, %v in all, in the %s tier", counts.Searches, counts.SearchSum, r.tracer.Tier())
	}
}

// A listener that was shut down listens no more; the port that it asked for it has
// until it is closed, and may listen on again.
func TestKernelTCPListenerShutdown(t *testing.T) {
	r := record(t, Config{})
	l, at := r.listener(unix.AF_INET, "127.0.0.1:7001")
	r.expect(os.Getpid(), "bind tcp 127.0.0.1:7001 asked 7001", "listen tcp 127.0.0.1:7001")
	for _, undo := range []func() error{
		func() error { return unix.Shutdown(l, unix.SHUT_RD) },
		func() error { return disconnect(l) },
	} {
		if err := undo(); err != nil {
			t.Fatal(err)
		}
		r.expect(os.Getpid()) // nothing is told: the port is held as before
		if got := r.held(at.Port()); len(got) != 1 || got[0].Role != RoleBound || got[0].State != StateUnconn {
			t.Errorf("the table has %+v, want the socket, bound", got)
		}
		r.listen(l)
		r.expect(os.Getpid(), "listen tcp 127.0.0.1:7001")
		if got := r.held(at.Port()); len(got) != 1 || got[0].Role != RoleListener {
			t.Errorf("the table has %+v, want a listener", got)
		}
	}
	r.close(l)
	r.expect(os.Getpid(), "close tcp 127.0.0.1:7001")
}
