package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// patience is how long a slow machine may take for what a test waits for.
const patience = time.Minute

// waitLine returns the first line on a channel of output that begins with prefix.
func waitLine(t *testing.T, lines lineWriter, prefix string) string {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line := <-lines:
			if strings.HasPrefix(line, prefix) {
				return strings.TrimSuffix(line, "\n")
			}
			t.Logf("stderr: %s", line)
		case <-timeout:
			t.Fatalf("no line begins with %q", prefix)
		}
	}
}

// startAgent runs an agent in this process until the test ends, or stop is called,
// which returns its exit code. It answers on the socket returned and has no TCP
// port unless args say so.
func startAgent(t *testing.T, args ...string) (socket string, stop func() int) {
	t.Helper()
	_, socket, stop = startAgentSaying(t, "", args...)
	return socket, stop
}

// startAgentSaying is startAgent of one that says something first, on a line that begins with prefix; "": it does not.
func startAgentSaying(t *testing.T, prefix string, args ...string) (said, socket string, stop func() int) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "porthole.sock")
	errs := make(lineWriter, 64)
	ctx, cancel := context.WithCancel(context.Background())
	code := make(chan int, 1)
	args = append([]string{"agent", "--socket", socket, "--web.listen-address=", "--tier", testTier()}, args...)
	go func() {
		code <- run(ctx, &env{unasked: true, stdout: io.Discard, stderr: errs}, args)
		errs.Write([]byte("ended\n"))
	}()
	ended := false
	stop = func() int {
		cancel()
		if ended {
			return exitDone
		}
		ended = true
		select {
		case got := <-code:
			return got
		case <-time.After(patience):
			t.Error("the agent does not end")
			return -1
		}
	}
	t.Cleanup(func() {
		if got := stop(); got != exitDone {
			t.Errorf("the agent ends with %d", got)
		}
	})
	if prefix != "" {
		said = strings.TrimPrefix(waitLine(t, errs, prefix), prefix)
	}
	waitLine(t, errs, "socket: ")
	go func() { // what else it says
		for line := range errs {
			if line == "ended\n" {
				return
			}
			t.Logf("agent: %s", line)
		}
	}()
	return said, socket, stop
}

// overUnix is a client as curl --unix-socket is.
func overUnix(socket string) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
}

// get asks for a path and returns the status code and the body.
func get(t *testing.T, socket, method, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://porthole"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := overUnix(socket).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// Each path answers, and each bad input has a status code and a JSON object that
// names it.
func TestKernelAgentAPI(t *testing.T) {
	ns := testutil.NewNetNS(t)
	port := listen(t, "127.0.0.1:0").Port
	listen(t, "127.0.0.1:0")
	socket, _ := startAgent(t)

	code, body := get(t, socket, "GET", fmt.Sprintf("/v1/sockets?netns=%d&lport=%d,1&tcp=true&listening=true", ns, port))
	var row render.Socket
	if err := json.Unmarshal([]byte(body), &row); err != nil || code != 200 || int(row.LocalPort) != port || len(row.Holders) != 1 {
		t.Errorf("sockets: %d %s", code, body)
	}
	var answer render.Port
	code, body = get(t, socket, "GET", fmt.Sprintf("/v1/ports/%d?proto=tcp", port))
	if err := json.Unmarshal([]byte(body), &answer); err != nil || code != 200 || answer.Proto != "tcp" || len(answer.Sockets) != 1 ||
		answer.Sockets[0].Holders[0].UID == nil || answer.History == nil || answer.RangeHigh == 0 {
		t.Errorf("ports: %d %s", code, body)
	}
	var status api.Status
	code, body = get(t, socket, "GET", "/v1/status")
	if err := json.Unmarshal([]byte(body), &status); err != nil || code != 200 || !status.OK || !status.Ready || len(status.Hooks) < 15 ||
		status.OpenSockets < 2 || status.Version != version || time.Since(status.Since.Time) > patience {
		t.Errorf("status: %d %s", code, body)
	}
	for _, c := range []struct {
		path string
		code int
		want string // in the body
	}{
		{"GET /v1/history", 200, ""},
		{"GET /healthz", 200, "ok"},
		{"GET /readyz", 200, "ok"},
		{"GET /metrics", 200, "porthole_build_info{"},
		{"GET /metrics", 200, "process_resident_memory_bytes"},
		{"GET /", 404, `"nothing is at /"`},
		{"GET /v1/nope", 404, "/v1/nope"},
		{"GET /v1/ports/", 404, "/v1/ports/"},
		{"POST /v1/sockets", 405, "want GET"},
		{"GET /v1/ports/70000", 400, `\"70000\": want a number from 1 to 65535`},
		{"GET /v1/ports/http", 400, `\"http\"`},
		{"GET /v1/ports/80?proto=sctp", 400, `proto: \"sctp\": want one of tcp, udp`},
		{"GET /v1/ports/80?pid=1", 400, `\"pid\": want proto`},
		{"GET /v1/sockets?nope=1", 400, `\"nope\": want one of port, lport`},
		{"GET /v1/sockets?event=bind", 400, `\"event\"`},
		{"GET /v1/sockets?lport=0", 400, `lport: port \"0\"`},
		{"GET /v1/sockets?pid=", 400, "pid: no value"},
		{"GET /v1/sockets?tcp=yes", 400, `tcp: \"yes\": want true or false`},
		{"GET /v1/sockets?netns=went-away", 400, `\"went-away\": want host`},
		{"GET /v1/sockets?netns=4026539999", 400, "no such network namespace: inode number 4026539999"},
		{"GET /v1/events?netns=4026539999", 400, "no such network namespace: inode number 4026539999"},
		{"GET /v1/sockets?netns=host&lport=1", 200, ""},
		{"GET /v1/sockets?x=%zz", 400, "%zz"},
		{"GET /v1/events?event=nope", 400, `\"nope\": want one of bind`},
		{"GET /v1/events?verbose=1", 400, `verbose: \"1\"`},
		{"GET /v1/history?port=1&port=2", 400, `\"1,2\"`},
		{"GET /v1/history?port=x", 400, `port: port \"x\"`},
		{"GET /v1/status?x=1", 400, `\"x\": want none`},
	} {
		method, path, _ := strings.Cut(c.path, " ")
		code, body := get(t, socket, method, path)
		var refused struct{ Error string }
		if err := json.Unmarshal([]byte(body), &refused); code != 200 && (err != nil || refused.Error == "") {
			t.Errorf("%s: %d %s, want a JSON object with an error", c.path, code, body)
		}
		if code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s\nwant %d and %s in it", c.path, code, body, c.code, c.want)
		}
	}
}

// As many clients as there may be can read events, and no more.
func TestAgentManyClients(t *testing.T) {
	testutil.RequireRoot(t)
	socket, _ := startAgent(t)
	for n := 1; ; n++ {
		resp, err := overUnix(socket).Get("http://porthole/v1/events?event=listen&lport=1")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == 503 && n == 33 {
			break
		}
		if resp.StatusCode != 200 || n == 33 {
			t.Fatalf("client %d: status %d", n, resp.StatusCode)
		}
	}
	var status api.Status
	_, body := get(t, socket, "GET", "/v1/status")
	if err := json.Unmarshal([]byte(body), &status); err != nil || status.Clients != 32 {
		t.Errorf("%d clients read events, want 32: %v", status.Clients, err)
	}
}

// agentKnows matches what the agent knows better than who asks the kernel once.
var agentKnows = regexp.MustCompile(`,"owner":\{[^}]*\}|,"since":"[^"]*"|,"origin":"[^"]*"|,"history":\[.*\]|,"netns":[0-9]+,"sockets":|,"nat_unread":"[^"]*"|, since [0-9: -]+ \([0-9]+ s ago\)|previously:\n(  .*\n)*|[0-9]+ s ago`)

// What a command prints is the same from the kernel and through the agent.
func TestKernelAgentSameOutput(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	addr := listen(t, "127.0.0.1:0")
	client, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	socket, _ := startAgent(t)
	own := client.LocalAddr().(*net.TCPAddr).Port
	for _, line := range []string{
		"ls --netns " + ns, "ls --netns " + ns + " --json", "ls -tln4 --netns " + ns, "ls --comm nobody,knows --json",
		fmt.Sprintf("ls --lport %d --json --role listener", addr.Port),
		fmt.Sprintf("who %d", addr.Port), fmt.Sprintf("who %d/tcp --json", addr.Port), fmt.Sprintf("who %d/udp", addr.Port),
		fmt.Sprintf("who %d", own), fmt.Sprintf("who %d --json", own),
	} {
		args := strings.Fields(line)
		want, _, wantCode := command(t, args...)
		got, errs, code := command(t, append(args, "--agent", "--socket", socket)...)
		if code != wantCode || errs != "" {
			t.Errorf("%s: exit code %d, want %d; stderr %q", line, code, wantCode, errs)
		}
		if d := cmp.Diff(agentKnows.ReplaceAllString(want, ""), agentKnows.ReplaceAllString(got, "")); d != "" {
			t.Errorf("%s (-own +agent):\n%s", line, d)
		}
	}
	out, errs, code := command(t, "doctor", "--agent", "--socket", socket)
	if code != exitDone || errs != "" || !strings.Contains(out, "\nagent "+version+" since ") {
		t.Errorf("doctor: exit code %d, stderr %q, %s", code, errs, out)
	}
	var status api.Status
	out, _, _ = command(t, "doctor", "--json", "--agent", "--socket", socket)
	if err := json.Unmarshal([]byte(out), &status); err != nil || !status.OK || status.Version != version {
		t.Errorf("doctor --json: %v, %s", err, out)
	}
}

func TestKernelAgentTail(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	addr := listen(t, "127.0.0.1:0")
	socket, stop := startAgent(t)
	type tail struct {
		args []string
		want string
		out  *bytes.Buffer
		errs lineWriter
		code chan int
	}
	tails := []*tail{
		{args: []string{"--json", "--event", "connect,bind,listen", "--count", "3"}, want: "connect bind listen"},
		{args: []string{"--json", "--event", "connect,established", "--verbose", "--count", "3"}, want: "connect established established"},
		{args: []string{"--event", "connect,listen,established", "--count", "2"}, want: "EVENT connect listen"},
		{args: []string{"--event", "listen", "--port", "1"}, want: "EVENT"}, // nothing, until the agent ends
	}
	for _, c := range tails {
		c.out, c.errs, c.code = new(bytes.Buffer), make(lineWriter, 16), make(chan int, 1)
		args := append([]string{"tail", "--agent", "--socket", socket, "--netns", ns}, c.args...)
		go func() { c.code <- run(context.Background(), &env{unasked: true, stdout: c.out, stderr: c.errs}, args) }()
		if got := waitLine(t, c.errs, "attached: "); !strings.HasSuffix(got, " hooks") {
			t.Errorf("stderr begins with %q", got)
		}
	}
	client, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	listen(t, "127.0.0.1:0")
	for i, c := range tails {
		last := i == len(tails)-1
		if last {
			stop()
		}
		end := waitLine(t, c.errs, fmt.Sprintf("%d events, ", len(strings.Fields(c.want))-strings.Count(c.want, "EVENT")))
		code := <-c.code
		if !strings.HasSuffix(end, " 0 lost") || (code == exitCant) != last {
			t.Errorf("tail %v ends with %q and exit code %d", c.args, end, code)
		}
		if got := strings.Join(kinds(t, c.out.String()), " "); got != c.want {
			t.Errorf("tail %v wrote %q, want %q", c.args, got, c.want)
		}
	}
}

// kinds are the events of tail's output, as JSON or as text.
func kinds(t *testing.T, out string) []string {
	t.Helper()
	var kinds []string
	for line := range strings.Lines(out) {
		var row struct{ Event string }
		if !strings.HasPrefix(line, "{") {
			row.Event = strings.Fields(line)[1]
		} else if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		kinds = append(kinds, row.Event)
	}
	return kinds
}

// A client that does not read loses events, and is told how many once it does;
// another gets them all.
func TestAgentSlowClient(t *testing.T) {
	ns := testutil.NewNetNS(t)
	socket, stop := startAgent(t)
	stream := func() *bufio.Reader {
		resp, err := overUnix(socket).Get(fmt.Sprintf("http://porthole/v1/events?netns=%d&event=bind,close", ns))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return bufio.NewReader(resp.Body)
	}
	slow, quick := stream(), stream()
	const rounds, some = 70, 2_000 // more than is kept
	counted, progress := make(chan told, 1), make(chan uint64, rounds)
	go func() { counted <- tally(t, quick, 2*some, progress) }()
	for round := range rounds {
		for range some {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		select { // no more than there is room for at once
		case <-progress:
		case <-time.After(patience):
			stop()
			t.Fatalf("who reads does not get everything: told %+v, want %d events", <-counted, 2*some*(round+1))
		}
	}
	const all = 2 * rounds * some
	// The agent ends the streams with what is in their queues.
	ended := make(chan int, 1)
	slowly := make(chan told, 1)
	go func() { slowly <- tally(t, slow, 0, nil) }()
	go func() { ended <- stop() }()
	if got := <-counted; got != (told{events: all}) {
		t.Errorf("who reads was told %+v, want %d events and no loss", got, all)
	}
	// Lost are events of the whole machine.
	if got := <-slowly; got.events == 0 || got.events >= all || got.events+got.byClient < all || got.byKernel != 0 {
		t.Errorf("who does not read was told %+v, want %d together at least, and nothing lost by the kernel", got, all)
	}
	if got := <-ended; got != exitDone {
		t.Errorf("the agent ends with %d", got)
	}
}

// told is what a stream had, and what it said was lost.
type told struct{ events, byClient, byKernel uint64 }

// tally reads a stream to its end. Every so many events it says so; 0: never.
func tally(t *testing.T, r *bufio.Reader, every uint64, progress chan<- uint64) (n told) {
	for {
		line, err := r.ReadSlice('\n')
		if err == io.EOF {
			return n
		} else if err != nil {
			t.Error(err)
			return n
		}
		var lost api.Lost
		if !bytes.HasPrefix(line, []byte(`{"lost":`)) {
			if n.events++; every > 0 && n.events%every == 0 {
				progress <- n.events
			}
		} else if err := json.Unmarshal(line, &lost); err != nil {
			t.Errorf("%v in %s", err, line)
		} else if lost.By == api.ByClient {
			n.byClient += lost.Lost
		} else {
			n.byKernel += lost.Lost
		}
	}
}

// bpfFiles is how many descriptors of BPF objects this process has.
func bpfFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.Contains(to, "bpf") {
			n++
		}
	}
	return n
}

// One agent a socket; what one left behind is taken over; one that ends leaves
// nothing.
func TestKernelAgentSocket(t *testing.T) {
	testutil.RequireRoot(t)
	before := bpfFiles(t)
	socket, stop := startAgent(t)
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v; want mode 660", info.Mode(), err)
	}
	out, errs, code := command(t, "agent", "--socket", socket, "--web.listen-address=")
	if code != exitCant || out != "" || !strings.Contains(errs, "another agent answers on "+socket) {
		t.Errorf("a second agent: exit code %d, %q %q", code, out, errs)
	}
	if code, _ := get(t, socket, "GET", "/healthz"); code != 200 {
		t.Errorf("the first agent answers with %d then", code)
	}
	if got := stop(); got != exitDone {
		t.Errorf("exit code %d", got)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is there still: %v", err)
	}
	if after := bpfFiles(t); after > before {
		t.Errorf("%d BPF objects are open, there were %d before", after, before)
	}
	if _, errs, code := command(t, "who", "1", "--agent", "--socket", socket); code != exitCant || !strings.Contains(errs, socket) {
		t.Errorf("who asks an agent that is gone: exit code %d, %q", code, errs)
	}
}

// agentProcess starts an agent of its own process and waits until it is ready.
func agentProcess(t *testing.T, socket string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := child(t, append([]string{"agent", "--socket", socket, "--web.listen-address=", "--tier", testTier()}, args...)...)
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	for lines := bufio.NewScanner(out); ; {
		if !lines.Scan() {
			t.Fatalf("the agent has not started: %v", lines.Err())
		}
		if strings.HasPrefix(lines.Text(), "socket: ") {
			return cmd
		}
		t.Logf("stderr: %s", lines.Text())
	}
}

// An agent that is killed leaves a socket, which the next takes over; SIGHUP does
// nothing to that one, and SIGTERM ends it.
func TestAgentSignals(t *testing.T) {
	testutil.RequireRoot(t)
	socket := filepath.Join(t.TempDir(), "porthole.sock")
	first := agentProcess(t, socket)
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.Wait()
	if _, err := os.Stat(socket); err != nil {
		t.Fatalf("a killed agent leaves no socket: %v", err)
	}
	if out, errs, code := command(t, "doctor", "--agent", "--socket", socket); code != exitCant || out != "" || !strings.Contains(errs, "connection refused") {
		t.Errorf("doctor asks an agent that was killed: exit code %d, %q %q", code, out, errs)
	}
	second := agentProcess(t, socket)
	if err := second.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if code, _ := get(t, socket, "GET", "/readyz"); code != 200 {
		t.Errorf("after SIGHUP the agent answers with %d", code)
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("SIGTERM ends the agent with %v", err)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is there still: %v", err)
	}
}

// On a terminal the agent tells where it is asked, and with --tail every event.
func TestAgentTerminal(t *testing.T) {
	testutil.NewNetNS(t)
	socket := filepath.Join(t.TempDir(), "porthole.sock")
	out, errs := make(lineWriter, 1<<16), make(lineWriter, 64)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, &env{unasked: true, stdout: out, stderr: errs}, []string{"agent", "--socket", socket, "--web.listen-address", "127.0.0.1:0", "--tail"})
	}()
	waitLine(t, errs, "attached: ")
	url := strings.TrimPrefix(waitLine(t, errs, "metrics: http://127.0.0.1:"), "metrics: ")
	if got, want := waitLine(t, errs, "socket: "), "socket: "+socket; got != want {
		t.Errorf("stderr has %q, want %q", got, want)
	}
	second := []string{"agent", "--socket", socket, "--web.listen-address", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/metrics")}
	if _, errs, code := command(t, second...); code != exitCant || !strings.Contains(errs, "another agent answers on "+socket) {
		t.Errorf("the same again: exit code %d, %q", code, errs)
	}
	waitLine(t, out, render.EventHead(render.Style{}))
	listen(t, "127.0.0.1:0")
	timeout := time.After(patience)
	for seen := ""; !strings.Contains(seen, fmt.Sprintf(" %d ", os.Getpid())); {
		select {
		case seen = <-out:
		case <-timeout:
			t.Fatal("no event of this process")
		}
	}
	for path, want := range map[string]int{"/metrics": 200, "/readyz": 200, "/v1/status": 404} {
		resp, err := http.Get(strings.TrimSuffix(url, "/metrics") + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", path, resp.StatusCode, want)
		}
	}
	cancel()
	if got := <-code; got != exitDone {
		t.Errorf("exit code %d", got)
	}
}

// What cannot be served is told before anything is attached.
func TestAgentRefused(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	taken := listen(t, "127.0.0.1:0").String()
	config := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(config, []byte("tls_server_config:\n  cert_file: nope.pem\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	notSocket := filepath.Join(dir, "file")
	if err := os.WriteFile(notSocket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--web.listen-address", taken}, fmt.Sprintf("address already in use: porthole.test (pid %d) has it", os.Getpid())},
		{[]string{"--web.listen-address", "nonsense"}, "nonsense"},
		{[]string{"--web.config.file", config}, config},
		{[]string{"--socket", notSocket, "--web.listen-address="}, notSocket + " is there and is no socket"},
		{[]string{"--socket", "/proc/nope/s", "--web.listen-address="}, "/proc/nope"},
	} {
		args := append([]string{"agent", "--socket", filepath.Join(dir, "s")}, c.args...)
		if out, errs, code := command(t, args...); code != exitCant || out != "" || !strings.Contains(errs, c.want) || strings.Contains(errs, "attached") {
			t.Errorf("%v: exit code %d, %q %q; want %q in it", c.args, code, out, errs, c.want)
		}
	}
	if b, err := os.ReadFile(notSocket); err != nil || string(b) != "precious" {
		t.Errorf("the file is %q now: %v", b, err)
	}
}

// systemd is told when the agent is ready, that it lives, and when it stops.
func TestAgentNotify(t *testing.T) {
	testutil.RequireRoot(t)
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "100000")
	_, stop := startAgent(t)
	buf := make([]byte, 128)
	next := func() string {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := next(); got != want {
			t.Fatalf("systemd is told %q, want %q", got, want)
		}
	}
	stop()
	for got := next(); got != "STOPPING=1"; got = next() {
		if got != "WATCHDOG=1" {
			t.Fatalf("systemd is told %q, want STOPPING=1", got)
		}
	}
}

// Who may not ask the kernel asks the agent, without being told to.
func TestAgentUnprivileged(t *testing.T) {
	testutil.NewNetNS(t)
	port := fmt.Sprint(listen(t, "127.0.0.1:0").Port)
	socket, _ := startAgent(t)
	dir := filepath.Dir(socket)
	for _, path := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{"who " + port, "who " + port + "/tcp --json", "ls --lport " + port, "doctor", "tail --duration 10ms"} {
		args := append(strings.Fields(line), "--socket", socket)
		if err := os.Chown(socket, 0, 0); err != nil {
			t.Fatal(err)
		}
		_, errs, code := asNobody(t, nil, args...)
		fromProc := args[0] == "who" || args[0] == "ls" // what /proc shows, and that this is not all
		if fromProc && (code != exitDone || !strings.Contains(errs, "only root and members of group porthole may query the agent on "+socket) ||
			!strings.Contains(errs, "only the sockets of this network namespace are shown")) ||
			!fromProc && (code != exitCant || !strings.Contains(errs, socket+": connect: permission denied") || !strings.Contains(errs, "sudo porthole agent")) ||
			!strings.Contains(errs, "CAP_BPF") {
			t.Errorf("%s, not of the group: exit code %d, %s", line, code, errs)
		}
		if err := os.Chown(socket, 0, 65534); err != nil {
			t.Fatal(err)
		}
		out, errs, code := asNobody(t, nil, args...)
		if code != exitDone || out == "" || strings.Contains(errs, "porthole: ") {
			t.Errorf("%s: exit code %d, %q, %s", line, code, out, errs)
		}
	}
	out, errs, code := asNobody(t, nil, "who", port+"/udp", "--socket", socket)
	if code != exitNo || errs != "" || !strings.HasPrefix(out, "nothing uses "+port+"/udp\n") {
		t.Errorf("who of a free port: exit code %d, %q, %s", code, out, errs)
	}
}
