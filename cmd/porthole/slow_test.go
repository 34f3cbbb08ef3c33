package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// Clients that begin something and do not go on cost nobody else an answer.

// clients are connections that have sent something.
type clients []net.Conn

// send connects n times and sends each time the same.
func send(t *testing.T, network, addr, text string, n int) (out clients) {
	t.Helper()
	for range n {
		conn, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if c, ok := conn.(*net.TCPConn); ok {
			if err := c.SetReadBuffer(1 << 10); err != nil { // an answer fits nowhere
				t.Fatal(err)
			}
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		out = append(out, conn)
	}
	return out
}

// awaitEnd reads what there is to the end, which the agent makes.
func (c clients) awaitEnd(t *testing.T, what string) {
	t.Helper()
	for _, conn := range c {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v, want that the agent ends the connection", what, err)
			return
		}
	}
}

// metricsProcess is an agent of its own process that is asked over TCP, too.
func metricsProcess(t *testing.T) (f *faulty, addr string) {
	t.Helper()
	f = trouble(t, "", "", "--web.listen-address", "127.0.0.1:0")
	url := waitLine(t, f.errs, "metrics: ")
	waitLine(t, f.errs, "socket: ")
	return f, strings.TrimSuffix(strings.TrimPrefix(url, "metrics: http://"), "/metrics")
}

// Whatever phase a request stops in, its connection ends by itself, and in the meantime
// others are answered at once.
func TestAgentUnfinishedRequests(t *testing.T) {
	f, addr := metricsProcess(t)
	const many = 24 // more than answers are made at once, of whatever kind
	for _, c := range []struct{ what, request string }{
		{"a line", "GET /metr"},
		{"headers", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: "},
		{"a body", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123"},
		{"a body in chunks", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123"},
		{"a body once wanted", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"},
		{"the body of a POST", "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123"},
		{"the body of what is not there", "GET /nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"},
	} {
		all := append(send(t, "tcp", addr, c.request, many), send(t, "unix", f.socket, strings.ReplaceAll(c.request, "/metrics", "/v1/sockets"), many)...)
		start := time.Now()
		for range 3 {
			resp, err := http.Get("http://" + addr + "/metrics")
			if err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if code, _ := get(t, f.socket, "GET", "/v1/sockets"); code != 200 || resp.StatusCode != 200 {
				t.Errorf("%s: others are answered with %d and %d", c.what, resp.StatusCode, code)
			}
		}
		t.Logf("%s: others have waited %v", c.what, time.Since(start).Round(time.Millisecond))
		all.awaitEnd(t, c.what)
	}
}

// Who does not read the metrics keeps nobody from them, and is cut off; requests in one go
// are answered in their order.
func TestAgentUnreadMetrics(t *testing.T) {
	f, addr := metricsProcess(t)
	const many = 40
	one := "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
	all := send(t, "tcp", addr, strings.Repeat(one, 50), many) // far more than the kernel keeps
	for range 10 {
		resp, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || !bytes.Contains(body, []byte("porthole_build_info")) {
			t.Fatalf("status %d, %v:\n%s", resp.StatusCode, err, body)
		}
	}
	in := bufio.NewReader(all[0])
	for i := range 5 {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Contains(body, []byte("porthole_build_info")) {
			t.Errorf("answer %d: %v", i, err)
		}
	}
	if peak := f.peak(t); peak > mostMemory {
		t.Errorf("the agent had %d MB, want at most %d", peak>>20, mostMemory>>20)
	}
}

// streams is how many clients read events.
func streams(t *testing.T, socket string) int {
	t.Helper()
	var status api.Status
	if _, body := get(t, socket, "GET", "/v1/status"); json.Unmarshal([]byte(body), &status) != nil {
		t.Fatalf("status: %s", body)
	}
	return status.Clients
}

// A client that has gone gives its place among the readers of events back, even where
// nothing is ever sent to it and it had sent more than its request.
func TestAgentGoneReaders(t *testing.T) {
	testutil.NewNetNS(t)
	socket, _ := startAgent(t)
	for _, more := range []string{"", "X", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"} {
		all := send(t, "unix", socket, "GET /v1/events?port=1&event=listen HTTP/1.1\r\nHost: x\r\n\r\n"+more, 5)
		for end := time.Now().Add(patience); streams(t, socket) != len(all); {
			if time.Now().After(end) {
				t.Fatalf("%q: %d clients read, want %d", more, streams(t, socket), len(all))
			}
		}
		for i, c := range all {
			if i%2 == 0 {
				c.Close()
			} else if err := c.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		for end := time.Now().Add(patience); streams(t, socket) != 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%q: %d clients read still that have gone", more, streams(t, socket))
			}
		}
	}
}

// A client is told within seconds what the kernel has lost, though nothing comes that
// passes its filter.
func TestAgentTellsLossToAll(t *testing.T) {
	testutil.NewNetNS(t)
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	resp, err := overUnix(f.socket).Get("http://porthole/v1/events?port=1&event=listen")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	f.freeze(t, func() { overflow(t) })
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, `{"lost":`) || !strings.Contains(line, `"by":"kernel"`) {
		t.Errorf("the client is told %q, %v", line, err)
	}
}

// busyPort has n connections to itself, and is closed with the test.
func busyPort(t *testing.T, n int) (port string) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if want := uint64(2*n + 200); limit.Cur < want {
		old := limit
		limit.Cur = min(want, limit.Max)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
		n = min(n, int(limit.Cur-200)/2)
	}
	l := listener(t)
	for range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); s.Close() })
	}
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

// What is asked about a port with very many connections is what is shown; the whole is
// there for who wants it, and takes little memory however many ask and do not read.
func TestAgentBusyPort(t *testing.T) {
	testutil.NewNetNS(t)
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	const most = 4000
	port := busyPort(t, most)
	var whole, some render.Port
	read := func(path string, to *render.Port) int {
		code, body := get(t, f.socket, "GET", path)
		if err := json.Unmarshal([]byte(body), to); err != nil || code != 200 {
			t.Fatalf("%s: status %d, %v %s", path, code, err, body[:min(len(body), 300)])
		}
		return len(body)
	}
	all := read("/v1/ports/"+port, &whole)
	few := read("/v1/ports/"+port+"?limit=3", &some)
	if len(whole.Sockets) < most/2 || len(whole.More) != 0 || len(some.Sockets) != 4 || len(some.More) != 1 ||
		some.More[0].Sockets+4 != len(whole.Sockets) || few > all/100 {
		t.Errorf("%d sockets in %d bytes; with a limit %d and %+v more in %d bytes", len(whole.Sockets), all, len(some.Sockets), some.More, few)
	}
	text, errs, code := command(t, "who", port, "--agent", "--socket", f.socket)
	own, _, _ := command(t, "who", port)
	connections := fmt.Sprintf("%d accepted connections", len(whole.Sockets)-1)
	if code != exitDone || !strings.Contains(text, connections) || !strings.Contains(own, connections) {
		t.Errorf("exit code %d, %s, want %q in\n%s\nand in\n%s", code, errs, connections, text, own)
	}
	for _, path := range []string{"/v1/ports/" + port, "/v1/sockets", "/v1/history"} {
		send(t, "unix", f.socket, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n", 10) // nobody reads
		for range 3 {
			read("/v1/ports/"+port+"?limit=3", &some)
		}
	}
	peak := f.peak(t)
	t.Logf("%d sockets on the port; the agent had %d MB at most", len(whole.Sockets), peak>>20)
	if peak > mostMemory+16<<20 { // the sockets are in its table, too
		t.Errorf("the agent had %d MB, want at most %d", peak>>20, mostMemory>>20)
	}
}

// A lock that is a fifo, or a number out of bounds, is told, and nothing is started.
func TestAgentRefusesArguments(t *testing.T) {
	testutil.RequireRoot(t)
	socket := t.TempDir() + "/s"
	if err := unix.Mkfifo(socket+".lock", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitCant, socket + ".lock is there and is no regular file"},
		{[]string{"--history", "99999999999"}, exitUsage, "99999999999: want a number from 0 to 10000000"},
		{[]string{"--history", "-1"}, exitUsage, "-1: want a number from 0 to 10000000"},
		{[]string{"--history", "99999999999999999999"}, exitUsage, "99999999999999999999"},
	} {
		out, errs, code := command(t, append([]string{"agent", "--socket", socket, "--web.listen-address="}, c.args...)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.want) || strings.Contains(errs, "attached") {
			t.Errorf("%v: exit code %d, %q %q; want %q in it", c.args, code, out, errs, c.want)
		}
	}
	if info, err := os.Lstat(socket + ".lock"); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("the fifo: %v, %v", info, err)
	}
}
