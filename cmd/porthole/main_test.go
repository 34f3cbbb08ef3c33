package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// invoke runs one command line in process.
func invoke(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	args = append([]string{}, args...) // with nil cobra would take the arguments of the test
	code = run(t.Context(), &env{unasked: true, stdout: &out, stderr: &errs}, args)
	return out.String(), errs.String(), code
}

// Help is what people script and document against: a change must be meant.
func TestHelp(t *testing.T) {
	files := []string{"porthole.txt"}
	stdout, stderr, code := invoke(t, "--help")
	testutil.Golden(t, "testdata/help/porthole.txt", stdout)
	if code != exitDone || stderr != "" {
		t.Errorf("--help: exit %d, stderr %q", code, stderr)
	}
	if bare, _, code := invoke(t); bare != stdout || code != exitDone {
		t.Errorf("without arguments: exit %d, want 0 and the text of --help:\n%s", code, bare)
	}
	for _, cmd := range newRoot(&env{unasked: true}).Commands() {
		name := cmd.Name()
		files = append(files, name+".txt")
		stdout, stderr, code := invoke(t, name, "--help")
		testutil.Golden(t, "testdata/help/"+name+".txt", stdout)
		if code != exitDone || stderr != "" {
			t.Errorf("%s --help: exit %d, stderr %q", name, code, stderr)
		}
	}
	entries, err := os.ReadDir("testdata/help")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(files, e.Name()) {
			t.Errorf("testdata/help/%s is of no command", e.Name())
		}
	}
}

// Wrong input is refused before anything is started: exit 2, nothing on stdout,
// and a message that names the value and says what is accepted.
func TestWrongUsage(t *testing.T) {
	for _, test := range []struct {
		args string
		want []string
	}{
		{"who 70000", []string{`"70000"`, "1 to 65535", "/tcp", "/udp"}},
		{"who 0", []string{`"0"`, "1 to 65535"}},
		{"who -- -1", []string{`"-1"`, "1 to 65535"}},
		{"who nosuchservice", []string{`"nosuchservice"`, "1 to 65535", "http"}},
		{"tial", []string{`"tial"`, "did you mean tail?"}},
		{"ls --jsno", []string{"--jsno", "did you mean --json?"}},
		{"ls --role lisener", []string{`"lisener"`, "did you mean listener?"}},
		{"ls --state LISTNE", []string{`"LISTNE"`, "did you mean LISTEN?"}},
		{"ls --lport 90-80", []string{"--lport", `"90-80"`, "80-90"}},
		{"who 80/sctp", []string{`"sctp"`, "tcp, udp"}},
		{"who 80/", []string{`""`, "tcp, udp"}},
		{"who", []string{"8080 or 53/udp", "porthole who --help"}},
		{"who 80 90-80", []string{`"90-80"`, "the smaller one first"}},
		{"ls 80 nope", []string{`"nope"`, "1 to 65535"}},
		{"ls --since yesterday", []string{"--since", `"yesterday"`, "7d"}},
		{"ls --addr 10.0.0.0/33", []string{"--addr", `"10.0.0.0/33"`, "10.0.0.0/8"}},
		{"ls example.com:80", []string{`"example.com:80"`, "getent"}},
		{"ls --tree nope", []string{"--tree", `"nope"`, "process id"}},
		{"ls --tree 4294967295", []string{"--tree", `"4294967295"`, "no such process"}},
		{"ls -s", []string{"-s", "porthole headroom"}},
		{"ls -x", []string{"-x", "ss -x"}},
		{"ls -tuc", []string{"-c", "porthole tail"}},
		{"ls dst 192.0.2.1", []string{`"dst 192.0.2.1"`, "--addr"}},
		{"ls sport != :80", []string{`"sport != :80"`, "--lport"}},
		{"ls -A unix", []string{"-A unix", "-t, -u"}},
		{"-tulpn", []string{"did you mean ls -tulpn?"}},
		{"netstat", []string{`"netstat"`, "did you mean ls?"}},
		{":8080", []string{`":8080"`, "did you mean who :8080?"}},
		{"ls --proto sctp", []string{"--proto", `"sctp"`, "tcp, udp"}},
		{"ls --proto tcp,sctp", []string{"--proto", `"sctp"`, "tcp, udp"}},
		{"ls --netns nope", []string{"--netns", `"nope"`, "host", "/run/netns", "inode number"}},
		{"ls --netns ../nope", []string{"--netns", `"../nope"`, "host", "/run/netns", "inode number"}},
		{"ls --state FOO", []string{"--state", `"FOO"`, "TIME-WAIT, UNCONN"}},
		{"ls --role foo", []string{"--role", `"foo"`, "listener, client, server"}},
		{"ls --pid -1", []string{"--pid", `"-1"`, "0 to 4294967295"}},
		{"ls --uid no-such-user", []string{"--uid", `"no-such-user"`, "0 to 4294967295"}},
		{"ls --comm=", []string{"--comm", "empty value"}},
		{"ls --lport 65536", []string{"--lport", `"65536"`, "1 to 65535"}},
		{"ls --rport x", []string{"--rport", `"x"`, "1 to 65535"}},
		{"tail --event foo", []string{"--event", `"foo"`, "bind, listen, connect"}},
		{"tail --port 0", []string{"--port", `"0"`, "1 to 65535"}},
		{"tail --duration -1s", []string{"--duration", "-1s", "positive"}},
		{"tail --duration soon", []string{"--duration", `"soon"`, "porthole tail --help"}},
		{"tail --count -1", []string{"--count", `"-1"`, "porthole tail --help"}},
		{"tail --state LISTEN", []string{"--state", "porthole tail --help"}},
		{"check", []string{"a port, as 8080", "porthole check --help"}},
		{"check 80 --timeout 1s", []string{"--timeout", "with a host"}},
		{"check localhost 80 --addr ::1", []string{"--addr", "bind()"}},
		{"check localhost 53/udp", []string{`"53/udp"`, "TCP"}},
		{"check 80 --addr nope", []string{"--addr", `"nope"`, "192.0.2.1"}},
		{"check fe80::1", []string{`"fe80::1"`, "[fe80::1]:8080"}},
		{"check nosuchservice", []string{`"nosuchservice"`, "1 to 65535", "http"}},
		{"check 80 --netns nope", []string{"--netns", `"nope"`, "/run/netns"}},
		{"agent --kubelet node1", []string{"--kubelet", `"node1"`, "https://HOST:10250"}},
		{"agent --kubelet http://127.0.0.1:10255 --kubelet.token-file t", []string{"--kubelet", "https alone"}},
		{"agent --kubelet.ca-file ca.crt", []string{"--kubelet"}},
		{"free 0", []string{`"0"`, "1 to 500"}},
		{"free 1 2", []string{`"2"`, "porthole free --help"}},
		{"free --range 9-8", []string{"--range", `"9-8"`, "8000-9000"}},
		{"free --hold", []string{"--hold", "command after --"}},
		{"free -- true", []string{`"true"`, "--hold"}},
		{"free --addr ::1", []string{"--addr", "--hold"}},
		{"check 1-2000", []string{"2000", "1000"}},
		{"wait 80 80-90", []string{`"80-90"`, "one port"}},
		{"wait example.com:80", []string{`"example.com:80"`, "getent"}},
		{"wait", []string{"a port", "porthole wait --help"}},
		{"wait 80 --timeout -1s", []string{"--timeout", "-1s", "positive"}},
		{"wait 80 --pid x", []string{"--pid", `"x"`, "0 to 4294967295"}},
		{"wait 80 --addr x", []string{"--addr", `"x"`, "192.0.2.1"}},
		{"diff", []string{"one or two files", "porthole diff --help"}},
		{"diff - -", []string{"standard input once"}},
		{"run", []string{"a command after --", "porthole run --help"}},
		{"bogus", []string{`"bogus"`, "porthole --help"}},
		{"ls extra", []string{`"extra"`, "1 to 65535"}},
		{"ls --nope", []string{"--nope", "porthole ls --help"}},
		{"ls --port", []string{"--port", "porthole ls --help"}},
		{"tail --sockets --agent", []string{"--sockets", "--agent"}},
		{"tail --agent --tier fentry", []string{"--tier", "--agent"}},
		{"doctor --agent --no-syscall-hooks", []string{"--no-syscall-hooks", "--agent"}},
		{"agent extra", []string{`"extra"`, "porthole agent --help"}},
		{"agent --history -1", []string{"--history", "-1", "from 0 to 10000000"}},
		{"agent --history many", []string{"--history", `"many"`, "porthole agent --help"}},
		{"doctor extra", []string{`"extra"`, "porthole doctor --help"}},
		{"version extra", []string{`"extra"`, "porthole version --help"}},
	} {
		t.Run(test.args, func(t *testing.T) {
			stdout, stderr, code := invoke(t, strings.Fields(test.args)...)
			if code != exitUsage {
				t.Errorf("exit %d, want %d", code, exitUsage)
			}
			if stdout != "" {
				t.Errorf("stdout %q, want nothing", stdout)
			}
			if !strings.HasPrefix(stderr, "porthole: ") || strings.Count(stderr, "\n") != 1 {
				t.Errorf("stderr %q, want one line of porthole", stderr)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr %q, want %q in it", stderr, want)
				}
			}
		})
	}
}

func TestVersion(t *testing.T) {
	for args, want := range map[string]string{
		"version":        "porthole " + version + " (",
		"version --json": `{"version":"` + version + `","go":"`,
		"--version":      "porthole version " + version + "\n",
	} {
		if stdout, _, code := invoke(t, strings.Fields(args)...); code != exitDone || !strings.HasPrefix(stdout, want) {
			t.Errorf("%s: exit %d, %q; want 0 and %q at the start", args, code, stdout, want)
		}
	}
}

// Whoever may not trace is told both ways out, whatever was wrapped around it.
func TestHints(t *testing.T) {
	for _, test := range []struct {
		err  error
		want []string
	}{
		{fmt.Errorf("attach: %w: %w", tracer.ErrNotPermitted, os.ErrPermission), []string{"sudo porthole", "setcap", "porthole agent", "group porthole"}},
		{fmt.Errorf("attach: %w", tracer.ErrFiltered), []string{"seccomp=unconfined", "an agent"}},
		{fmt.Errorf("attach: %w", tracer.ErrNotSupported), []string{"porthole doctor"}},
		{os.ErrClosed, nil},
	} {
		got := strings.Join(hints(test.err), "\n")
		if test.want == nil && got != "" {
			t.Errorf("%v: hints %q, want none", test.err, got)
		}
		for _, want := range test.want {
			if !strings.Contains(got, want) {
				t.Errorf("%v: hints %q, want %q in them", test.err, got, want)
			}
		}
	}
}
