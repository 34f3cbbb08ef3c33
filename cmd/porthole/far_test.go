package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// farFlagsOf starts an agent that is asked over TLS, too, and returns the flags that have a command ask it so.
func farFlagsOf(t *testing.T, ca *testutil.CA, args ...string) (flags []string, socket string, stop func() int) {
	t.Helper()
	cert, key := ca.Server(t, nil)
	file := filepath.Join(t.TempDir(), "api.yml")
	text := fmt.Sprintf("tls_server_config:\n  cert_file: %s\n  key_file: %s\n  client_ca_file: %s\n  client_auth_type: RequireAndVerifyClientCert\n", cert, key, ca.File)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	url, socket, stop := startAgentSaying(t, "api: ", append([]string{"--api.listen-address", "127.0.0.1:0", "--api.config.file", file}, args...)...)
	cert, key = ca.Client(t, "alice", nil)
	return []string{"--agent.url", url, "--agent.ca-file", ca.File, "--agent.cert-file", cert, "--agent.key-file", key}, socket, stop
}

// overTLS is a client as curl --cert is, of the agent that flags are of.
func overTLS(t *testing.T, flags []string) *http.Client {
	t.Helper()
	text, err := os.ReadFile(flags[3])
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(flags[5], flags[7])
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}}
	config.RootCAs.AppendCertsFromPEM(text)
	return &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: config}}
}

// What the API answers over TLS is what it answers on the unix socket, refusals included.
func TestFarAPI(t *testing.T) {
	ns := testutil.NewNetNS(t)
	port := listen(t, "127.0.0.1:0").Port
	flags, socket, _ := farFlagsOf(t, testutil.NewCA(t))
	client := overTLS(t, flags)
	for _, request := range []string{
		fmt.Sprintf("GET /v1/sockets?netns=%d", ns), fmt.Sprintf("GET /v1/ports/%d?proto=tcp", port), fmt.Sprintf("GET /v1/headroom?netns=%d", ns),
		fmt.Sprintf("GET /v1/history?port=%d", port), "GET /healthz", "GET /readyz", "GET /", "GET /v1/nope", "POST /v1/sockets", "DELETE /v1/status", "GET /v1/ports/70000",
		"GET /v1/sockets?nope=1", "GET /v1/namespaces?x=1", "GET /v1/events?event=nope",
	} {
		method, path, _ := strings.Cut(request, " ")
		wantCode, want := get(t, socket, method, path)
		req, err := http.NewRequestWithContext(t.Context(), method, flags[1]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", request, err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if d := cmp.Diff(want, string(body)); err != nil || d != "" || resp.StatusCode != wantCode || resp.ProtoMajor != 1 {
			t.Errorf("%s: %s %d, %v; want %d (-socket +TLS):\n%s", request, resp.Proto, resp.StatusCode, err, wantCode, d)
		}
	}
	if code, body := get(t, socket, "GET", "/v1/namespaces"); code != 200 || !strings.Contains(body, `"name":"host"}`) || !strings.Contains(body, fmt.Sprintf(`{"netns":%d`, ns)) {
		t.Errorf("namespaces: %d %s", code, body)
	}
}

// farWords is what is said otherwise of a machine that is not this one.
var farWords = regexp.MustCompile(`(?:this|that) machine's|, on the agent's machine \([^)]*\)|the agent's machine \([^)]*\): |\n  on the agent's machine \([^)]*\):|user (?:root|0)\b`)

// passes is what passes between two answers, and how lines are broken.
var passes = regexp.MustCompile(`"(?:known_since":"[^"]*"|waited_ns":[0-9]+)|\bnow\s+\S+|\s+`)

// Commands say of an agent elsewhere what they say of the same one on its socket, but for what they do not know of
// its machine.
func TestFarSameOutput(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	addr := listen(t, "127.0.0.1:0")
	client, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	flags, socket, _ := farFlagsOf(t, testutil.NewCA(t), "--history.dir", filepath.Join(dir, "history"))
	before, policy := filepath.Join(dir, "before"), filepath.Join(dir, "policy.yml")
	for name, text := range map[string]string{before: "", policy: "allow: []\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{
		"ls --netns " + ns, "ls --netns " + ns + " --json", "ls -tln4 --netns " + ns, "ls --comm nobody,knows --json", "ls --exposed --netns " + ns,
		fmt.Sprintf("who %d", addr.Port), fmt.Sprintf("who %d/tcp --json", addr.Port), fmt.Sprintf("who %d/udp", addr.Port), fmt.Sprintf("who %d --no-args", addr.Port),
		fmt.Sprintf("who %d --at now", addr.Port), fmt.Sprintf("who %d --netns %s", client.LocalAddr().(*net.TCPAddr).Port, ns),
		"headroom --netns " + ns, "headroom --json --netns " + ns, fmt.Sprintf("history %d", addr.Port), fmt.Sprintf("history %d --json --netns %s", addr.Port, ns),
		fmt.Sprintf("wait %d --netns %s --timeout 0", addr.Port, ns), fmt.Sprintf("wait %d --netns %s --timeout 0 --json", addr.Port, ns), "wait 1 --netns " + ns + " --timeout 0",
		"wait 1 --netns host --timeout 0 --json", "wait 1 --timeout 0 --netns went-away", "tail --netns " + ns + " --duration 1ms",
		"ls --netns went-away", "ls --lport 70000", "headroom --to 192.0.2.1:1 --netns went-away",
	} {
		args := strings.Fields(line)
		want, wantErrs, wantCode := command(t, append(args, "--agent", "--socket", socket)...)
		got, errs, code := command(t, append(args, flags...)...)
		same := func(s string) string {
			return passes.ReplaceAllString(farWords.ReplaceAllString(agentKnows.ReplaceAllString(s, ""), ""), " ")
		}
		if code != wantCode || same(errs) != same(wantErrs) {
			t.Errorf("%s: exit code %d, want %d; stderr %q, want %q", line, code, wantCode, errs, wantErrs)
		}
		if d := cmp.Diff(same(want), same(got)); d != "" {
			t.Errorf("%s (-socket +TLS):\n%s", line, d)
		}
	}
	there := "the agent's machine (" + strings.TrimPrefix(flags[1], "https://") + ")"
	for line, want := range map[string]string{
		fmt.Sprintf("who %d --netns %s", addr.Port, ns): "stop it, on " + there + ": kill ",
		"policy check " + policy:                        "stop it, on " + there + ": kill ",
		"diff " + before:                                fmt.Sprintf("+ tcp 127.0.0.1:%d ", addr.Port),
		"policy init":                                   fmt.Sprintf("port: %d\n", addr.Port),
		"doctor":                                        "\nagent " + version + " since ",
	} {
		if out, errs, _ := command(t, append(strings.Fields(line), flags...)...); !strings.Contains(out, want) {
			t.Errorf("%s: not %q in\n%s%s", line, want, out, errs)
		}
	}
	if out, _, code := command(t, append([]string{"wait", fmt.Sprint(addr.Port), "--timeout", "0"}, flags...)...); code != exitNo || !strings.HasPrefix(out, fmt.Sprintf("%d/tcp: nobody ", addr.Port)) {
		t.Errorf("wait without a namespace, which is the machine's own: %d, %s", code, out)
	}
}

// tail follows an agent elsewhere as one on its socket, and ends as then when that ends.
func TestFarTail(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	flags, _, stop := farFlagsOf(t, testutil.NewCA(t))
	type ended struct {
		out  string
		code int
	}
	tail := func(args ...string) (lineWriter, chan ended) {
		errs, end := make(lineWriter, 16), make(chan ended, 1)
		args = append(append([]string{"tail", "--netns", ns}, args...), flags...)
		go func() {
			var out bytes.Buffer
			code := run(context.Background(), &env{unasked: true, stdout: &out, stderr: errs}, args)
			end <- ended{out.String(), code}
		}()
		waitLine(t, errs, "attached: ")
		return errs, end
	}
	_, counted := tail("--json", "--event", "bind,listen", "--count", "2")
	errs, whole := tail("--event", "listen")
	listen(t, "127.0.0.1:0")
	if got := <-counted; got.code != exitDone || strings.Join(kinds(t, got.out), " ") != "bind listen" {
		t.Errorf("tail --count: exit code %d, %s", got.code, got.out)
	}
	stop()
	waitLine(t, errs, "1 event, 0 lost")
	waitLine(t, errs, "porthole: the agent ended")
	if got := <-whole; got.code != exitCant || strings.Join(kinds(t, got.out), " ") != "EVENT listen" {
		t.Errorf("tail: exit code %d, %s", got.code, got.out)
	}
}

// top shows an agent elsewhere, and ends none of its processes.
func TestFarTop(t *testing.T) {
	testutil.RequireRoot(t)
	port := fmt.Sprint(listen(t, "127.0.0.1:0").Port)
	flags, _, _ := farFlagsOf(t, testutil.NewCA(t))
	there := strings.TrimPrefix(flags[1], "https://")
	term := inTerminal(t, 100, 24, append([]string{"top", port}, flags...)...)
	term.awaits("porthole.test", "agent "+there)
	term.press("K")
	term.awaits("end it there: it is on the agent's machine (" + there + ")")
	term.press("Enter")
	term.awaits("stop it, on the agent's machine (" + there + "): kill ")
	term.press("q")
	term.press("q")
	term.restored(exitDone)
}

// Who has no certificate that counts is told so, in a line, and nothing is answered instead of the agent.
func TestFarRefused(t *testing.T) {
	testutil.NewNetNS(t)
	ca, other := testutil.NewCA(t), testutil.NewCA(t)
	flags, _, stop := farFlagsOf(t, ca)
	cert, key := other.Client(t, "alice", nil)
	for _, question := range []string{"ls", "who 1", "headroom", "tail --count 1", "history", "doctor", "wait 1", "policy init"} {
		args := append(strings.Fields(question), "--agent.url", flags[1], "--agent.ca-file", ca.File, "--agent.cert-file", cert, "--agent.key-file", key)
		out, errs, code := command(t, args...)
		want := "porthole: ask the agent at " + flags[1] + ": it refuses the certificate " + cert + " (unknown certificate authority)\n"
		if code != exitCant || out != "" || errs != want {
			t.Errorf("%s: exit code %d, stdout %q, stderr\n%swant\n%s", question, code, out, errs, want)
		}
	}
	stop()
	out, errs, code := command(t, append([]string{"ls"}, flags...)...)
	if want := "porthole: ask the agent at " + flags[1] + ": connection refused: nothing listens there\n"; code != exitCant || out != "" || errs != want {
		t.Errorf("no agent: exit code %d, stdout %q, stderr %q; want %q", code, out, errs, want)
	}
}

// A client that has gone gives its place among the readers of events back, over TLS too, and even where it had sent more
// than its request.
func TestFarGoneReaders(t *testing.T) {
	testutil.RequireRoot(t)
	flags, socket, _ := farFlagsOf(t, testutil.NewCA(t))
	pair, err := tls.LoadX509KeyPair(flags[5], flags[7])
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
	for _, more := range []string{"", "X", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"} {
		c, err := tls.Dial("tcp", strings.TrimPrefix(flags[1], "https://"), config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /v1/events?port=1&event=listen HTTP/1.1\r\nHost: x\r\n\r\n"+more); err != nil {
			t.Fatal(err)
		}
		testutil.Await(t, "events are read", func() bool { return streams(t, socket) == 1 })
		if err := c.NetConn().Close(); err != nil {
			t.Fatal(err)
		}
		testutil.Await(t, "its place is given back", func() bool { return streams(t, socket) == 0 })
	}
}

// What cannot be asked of an agent elsewhere, or would be of this machine, is refused before anything is asked.
func TestFarWrong(t *testing.T) {
	url := []string{"--agent.url", "https://web1:9656"}
	files := append(url[:2:2], "--agent.cert-file", "alice.pem", "--agent.key-file", "alice.key")
	for _, test := range []struct {
		line  string
		flags []string
		want  string
	}{
		{"ls", url, "--agent.url: want --agent.cert-file and --agent.key-file too"},
		{"ls --agent.url http://web1:9656", nil, `--agent.url: "http://web1:9656": want https://HOST:PORT`},
		{"ls --agent.url=", nil, `--agent.url: "": want https://HOST:PORT`},
		{"ls --agent.cert-file alice.pem", nil, "--agent.cert-file: want --agent.url too"},
		{"ls --local", files, "--local: not with --agent.url"},
		{"ls --socket /run/s", files, "--socket: not with --agent.url"},
		{"ls --tree 1", files, "--tree: not with --agent.url"},
		{"wait 1 --tree 1", files, "--tree: not with --agent.url"},
		{"ls --uid root", files, `--uid: "root": want a number with --agent.url`},
		{"history --history.dir /x", files, "--history.dir: not with --agent.url"},
		{"who 1 --at 03:00 --history.dir /x", files, "--history.dir: not with --agent.url"},
		{"tail --sockets", files, "--sockets: not with --agent"},
		{"tail --tier fentry", files, "--tier"},
		{"doctor --no-syscall-hooks", files, "--tier, --no-syscall-hooks: not with --agent"},
		{"check 80", files, "--agent.url: not with check, which is about this machine; porthole check --host HOST"},
		{"check web1 80", files, "--agent.url: not with check"},
		{"free", files, "--agent.url: not with free, which is about this machine"},
		{"run", append(files, "--", "true"), "--agent.url: not with run, which is about this machine; on another: ssh HOST porthole run"},
		{"agent --api.listen-address :1", nil, "--api.listen-address: :1: want --api.config.file too"},
		{"agent --api.config.file /x", nil, "--api.config.file: /x: want --api.listen-address too"},
	} {
		stdout, stderr, code := invoke(t, append(strings.Fields(test.line), test.flags...)...)
		if code != exitUsage || stdout != "" || !strings.HasPrefix(stderr, "porthole: "+test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit %d, want %d; stdout %q, stderr %q", test.line, code, exitUsage, stdout, stderr)
		}
	}
	file := filepath.Join(t.TempDir(), "policy.yml")
	if err := os.WriteFile(file, []byte("allow: [{name: web, uid: root}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := invoke(t, append([]string{"policy", "check", file}, files...)...); code != exitUsage || !strings.Contains(stderr, `uid: "root": want a number with --agent.url`) {
		t.Errorf("a policy with a name of this machine: exit %d, %s", code, stderr)
	}
	if out, _, _ := invoke(t, append([]string{"__complete", "ls"}, append(files, "--pid", "")...)...); out != ":4\n" {
		t.Errorf("offered of this machine: %s", out)
	}
}

// An agent whose API would let others in does not start, nor one whose API's address is taken: that says by whom.
func TestFarNotStarted(t *testing.T) {
	testutil.RequireRoot(t)
	ca := testutil.NewCA(t)
	cert, key := ca.Server(t, nil)
	dir := t.TempDir()
	weak, right, socket := filepath.Join(dir, "weak.yml"), filepath.Join(dir, "right.yml"), filepath.Join(dir, "s")
	text := fmt.Sprintf("tls_server_config:\n  cert_file: %s\n  key_file: %s\n", cert, key)
	for name, more := range map[string]string{weak: "", right: "  client_ca_file: " + ca.File + "\n  client_auth_type: RequireAndVerifyClientCert\n"} {
		if err := os.WriteFile(name, []byte(text+more), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, test := range []struct {
		file string
		code int
		want string
	}{
		{weak, exitUsage, "porthole: --api.config.file " + weak + `: client_auth_type: "": want RequireAndVerifyClientCert, with a client_ca_file` + "\n"},
		{weak + "x", exitCant, "porthole: --api.config.file: open " + weak + "x: no such file or directory\n"},
		{right, exitCant, "--api.listen-address takes another\n"},
	} {
		stdout, stderr, code := invoke(t, "agent", "--socket", socket, "--web.listen-address=", "--api.listen-address", l.Addr().String(), "--api.config.file", test.file)
		if code != test.code || stdout != "" || !strings.HasSuffix(stderr, test.want) {
			t.Errorf("%s: exit %d, want %d; stderr %q, want %q", test.file, code, test.code, stderr, test.want)
		}
		if err := unix.Access(socket, unix.F_OK); err == nil {
			t.Errorf("%s: the socket is there", test.file)
		}
	}
}
