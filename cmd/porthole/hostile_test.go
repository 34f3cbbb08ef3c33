package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// hostileEnv makes this binary a process with the name in it.
const hostileEnv = "PORTHOLE_TEST_COMM"

// hostileMain listens, tells where, and connects to itself; then it listens once more
// for every line it reads.
func hostileMain(name string) error {
	if err := os.WriteFile("/proc/self/comm", []byte(name), 0); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		again, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		again.Close()
		fmt.Println("done")
	}
	return nil
}

// hostile is a process with a name to hurt who shows it.
type hostile struct {
	port string
	in   io.Writer
	out  *bufio.Reader
}

func startHostile(t *testing.T, name string) *hostile {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), hostileEnv+"="+name)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	h := &hostile{in: in, out: bufio.NewReader(out)}
	h.port = h.line(t)
	return h
}

func (h *hostile) line(t *testing.T) string {
	t.Helper()
	s, err := h.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

// act makes events.
func (h *hostile) act(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(h.in, "\n"); err != nil {
		t.Fatal(err)
	}
	h.line(t)
}

// harmless demands that output has nothing a terminal would obey, and tells of the
// name in its quoted form.
func harmless(t *testing.T, what, out, name string) {
	t.Helper()
	for i, r := range out {
		if r != '\n' && !unicode.IsPrint(r) || r == utf8.RuneError && !strings.HasPrefix(out[i:], "\uFFFD") {
			t.Errorf("%s: %q at byte %d of %q", what, r, i, out)
			return
		}
	}
	if name != "" && !strings.Contains(out, name) {
		t.Errorf("%s does not have %s:\n%s", what, name, out)
	}
}

// hostileNames are what a process may call itself.
var hostileNames = []string{"\x1b[31mred\x1b[0m", "two\nlines 1 2", "\xff\xfe\x80bad", "\x1b]0;t\x07\r\b", "q\"\\{}=,\t#", "\u202egnp\u200b", "\u009b31m\x7f"}

// A name with control characters, escape sequences or broken UTF-8 comes out of every
// command, the API and the metrics without them.
func TestHostileNames(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	socket, _ := startAgent(t)
	for _, name := range hostileNames { // no subtests: they have threads of their own, in another namespace
		h := startHostile(t, name)
		h.shown(t, ns, socket, name)
	}
}

// shown looks at everything that shows the process.
func (h *hostile) shown(t *testing.T, ns, socket, name string) {
	t.Helper()
	safe := identity.Safe(name)
	for _, line := range []string{
		"ls --netns " + ns, "who " + h.port, "headroom --top 0 --netns " + ns,
		"ls --agent --netns " + ns, "who --agent " + h.port, "headroom --agent --top 0 --netns " + ns,
	} {
		args, want := strings.Fields(line), safe
		if strings.Contains(line, "--agent") {
			args = append(args, "--socket", socket)
			want = identity.Safe(string([]rune(name))) // JSON cannot have broken UTF-8
		}
		out, errs, code := command(t, args...)
		harmless(t, line, out, want)
		harmless(t, line+" on stderr", errs, "")
		if code != exitDone {
			t.Errorf("%s: exit code %d, %s", line, code, errs)
		}
		out, _, _ = command(t, append(args, "--json")...)
		jsonHarmless(t, line+" --json", out, name)
	}
	harmless(t, "tail", tailWhile(t, h, []string{"--netns", ns}), safe)
	jsonHarmless(t, "tail --json", tailWhile(t, h, []string{"--json", "--netns", ns}), name)
	for _, path := range []string{"/v1/sockets?netns=" + ns, "/v1/ports/" + h.port, "/v1/headroom?netns=" + ns, "/v1/history"} {
		_, body := get(t, socket, "GET", path)
		jsonHarmless(t, path, body, name)
	}
	_, body := get(t, socket, "GET", "/metrics")
	harmless(t, "/metrics", body, "")
}

// tailWhile is what tail writes while the process acts.
func tailWhile(t *testing.T, h *hostile, flags []string) string {
	t.Helper()
	var out bytes.Buffer
	errs := make(lineWriter, 16)
	code := make(chan int, 1)
	args := append([]string{"tail", "--tier", testTier(), "--count", "3"}, flags...)
	go func() { code <- run(t.Context(), &env{unasked: true, stdout: &out, stderr: errs}, args) }()
	waitLine(t, errs, "attached: ")
	h.act(t)
	select {
	case got := <-code:
		if got != exitDone {
			t.Errorf("tail: exit code %d", got)
		}
	case <-time.After(patience):
		t.Fatal("tail does not end")
	}
	return out.String()
}

// jsonHarmless demands lines of JSON that have the name, broken UTF-8 apart.
func jsonHarmless(t *testing.T, what, out, name string) {
	t.Helper()
	harmless(t, what, strings.Map(func(r rune) rune {
		if r >= ' ' && r != 0x7f && (r < 0x80 || r >= 0xa0) {
			return 'x' // what is no control character
		}
		return r
	}, out), "")
	found := !utf8.ValidString(name)
	for line := range strings.Lines(out) {
		var object any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("%s: %v in %q", what, err, line)
		}
		found = found || hasString(object, name)
	}
	if !found && what != "/v1/history" {
		t.Errorf("%s does not have %q:\n%s", what, name, out)
	}
}

// hasString looks through a decoded object.
func hasString(object any, s string) bool {
	switch o := object.(type) {
	case string:
		return o == s
	case []any:
		for _, e := range o {
			if hasString(e, s) {
				return true
			}
		}
	case map[string]any:
		for _, e := range o {
			if hasString(e, s) {
				return true
			}
		}
	}
	return false
}

// What the user typed comes back quoted, too.
func TestHostileArguments(t *testing.T) {
	for _, args := range [][]string{
		{"\x1b[31m"}, {"ls", "--state", "\x1b[31m"}, {"ls", "--netns", "a\nb\x07"}, {"who", "\x1b]0;x\x07"}, {"ls", "--\x1b[31m"},
		{"headroom", "--to", "\x1b[31m"}, {"tail", "--count", "\x1b[31m"}, {"ls", "x\x1by"}, {"help", "\x1bx"}, {"completion", "\x1bx"},
	} {
		out, errs, code := command(t, args...)
		harmless(t, fmt.Sprintf("stdout of %q", args), out, "")
		harmless(t, fmt.Sprintf("stderr of %q", args), errs, "")
		if code == exitDone {
			t.Errorf("%q: exit code 0", args)
		}
	}
}

// Requests that are huge, malformed, slow or many are refused or wait; an agent of its
// own process does not grow, and answers as before.
func TestAgentHostileClients(t *testing.T) {
	testutil.NewNetNS(t)
	socket := t.TempDir() + "/porthole.sock"
	cmd := agentProcess(t, socket)
	warm := rss(t, cmd.Process.Pid)
	for _, c := range []struct{ what, request, want string }{
		{"no HTTP", "\x00\x01\x02\r\n\r\n", "400"},
		{"a huge header", "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "431"},
		{"a huge path", "GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n", "431"},
		{"many values", "GET /v1/sockets?port=1" + strings.Repeat(",1", 6000) + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400"},
		{"as many values as there may be", "GET /v1/sockets?port=1" + strings.Repeat(",1", 999) + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200"},
		{"a broken query", "GET /v1/sockets?%zz=%\x7f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400"},
		{"escapes in a value", "GET /v1/events?event=%1b%5b31m%0a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "400"},
		{"a body", "POST /v1/sockets HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n" + strings.Repeat("x", 1<<20), "405"},
	} {
		answer := raw(t, socket, c.request)
		if status, _, _ := strings.Cut(answer, "\r\n"); !strings.Contains(status, " "+c.want+" ") {
			t.Errorf("%s: %q, want %s", c.what, status, c.want)
		}
		if i := strings.IndexFunc(answer, func(r rune) bool { return r == 0x1b || r == 0x7f }); i >= 0 {
			t.Errorf("%s: the answer has an escape: %q", c.what, answer)
		}
	}
	slowClients(t, socket)
	counted, asked := manyRequests(t, socket), 1000
	// A few answers of a kind are made at a time, and others wait for ten seconds.
	// Whose request does not come within its time, on a busy machine, is cut off (0).
	if counted[http.StatusOK] < 200 || counted[0] > asked/100 || counted[0]+counted[http.StatusOK]+counted[http.StatusServiceUnavailable] != asked {
		t.Errorf("status codes of a thousand requests at once: %v", counted)
	}
	if code, _ := get(t, socket, "GET", "/readyz"); code != http.StatusOK {
		t.Errorf("then it answers with %d", code)
	}
	now := rss(t, cmd.Process.Pid)
	t.Logf("%v; memory %d MB, %d MB at the start", counted, now>>20, warm>>20)
	if now > warm+128<<20 {
		t.Errorf("the agent has %d MB, and had %d", now>>20, warm>>20)
	}
}

// slowClients send a byte each and stay.
func slowClients(t *testing.T, socket string) {
	for range 200 {
		conn, err := net.Dial("unix", socket)
		for errors.Is(err, syscall.EAGAIN) { // the kernel's queue of the socket is full
			runtime.Gosched()
			conn, err = net.Dial("unix", socket)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.WriteString(conn, "G"); err != nil {
			t.Fatal(err)
		}
	}
}

// manyRequests sends a thousand at once, and counts the status codes.
func manyRequests(t *testing.T, socket string) map[int]int {
	var all sync.WaitGroup
	codes := make(chan int, 1000)
	for i := range cap(codes) {
		all.Go(func() {
			path := []string{"/v1/sockets", "/v1/headroom", "/v1/ports/80", "/metrics", "/v1/history"}[i%5]
			resp, err := overUnix(socket).Get("http://porthole" + path)
			for errors.Is(err, syscall.EAGAIN) { // the kernel's queue of the socket is full
				runtime.Gosched()
				resp, err = overUnix(socket).Get("http://porthole" + path)
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v", path, err)
				}
				codes <- 0
				return
			}
			defer resp.Body.Close()
			io.Copy(io.Discard, resp.Body)
			codes <- resp.StatusCode
		})
	}
	all.Wait()
	close(codes)
	counted := make(map[int]int)
	for code := range codes {
		counted[code]++
	}
	return counted
}

// raw sends bytes to the agent and returns the beginning of what comes back.
func raw(t *testing.T, socket, request string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	go io.WriteString(conn, request) // the agent may not want all of it
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		t.Errorf("%.40q: %v", request, err)
	}
	return string(buf[:n])
}

// rss is the memory of a process, in bytes.
func rss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(b), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}
