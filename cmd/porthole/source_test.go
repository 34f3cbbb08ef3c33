package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// A running agent is queried without being asked for: it knows the owner of a socket. Without
// one, and with --local, the kernel answers.
func TestKernelAgentByDefault(t *testing.T) {
	testutil.NewNetNS(t)
	socket, stop := startAgent(t)
	port := listen(t, "127.0.0.1:0").Port
	const owner = `"owner":{`
	for begin := time.Now(); ; { // the agent reads events within 20 ms or so
		if out, _, _ := command(t, "who", fmt.Sprint(port), "--json", "--agent", "--socket", socket); strings.Contains(out, owner) {
			break
		} else if time.Since(begin) > patience {
			t.Fatalf("the agent does not know the owner:\n%s", out)
		}
	}
	for _, c := range []struct {
		args  string
		agent bool
	}{{"", true}, {"--agent", true}, {"--local", false}} {
		args := append([]string{"who", fmt.Sprint(port), "--json", "--socket", socket}, strings.Fields(c.args)...)
		out, errs, code := command(t, args...)
		if code != exitDone || errs != "" || strings.Contains(out, owner) != c.agent {
			t.Errorf("who %s: exit code %d, stderr %q, from the agent: want %t\n%s", c.args, code, errs, c.agent, out)
		}
	}
	stop()
	out, errs, code := command(t, "who", fmt.Sprint(port), "--json", "--socket", socket)
	if code != exitDone || errs != "" || strings.Contains(out, owner) {
		t.Errorf("without an agent: exit code %d, stderr %q\n%s", code, errs, out)
	}
	if _, errs, code = command(t, "who", fmt.Sprint(port), "--agent", "--socket", socket); code != exitCant || !strings.Contains(errs, socket) {
		t.Errorf("--agent without an agent: exit code %d, stderr %q", code, errs)
	}
	if _, errs, code = command(t, "ls", "--agent", "--local"); code != exitUsage || !strings.Contains(errs, "--local") {
		t.Errorf("--agent --local: exit code %d, stderr %q", code, errs)
	}
}

// Who may query the kernel and not the agent is told so, once.
func TestKernelAgentForbidden(t *testing.T) {
	testutil.NewNetNS(t)
	port := listen(t, "127.0.0.1:0").Port
	dir, err := os.MkdirTemp("/tmp", "porthole-agent-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	startAgent(t, "--socket", socket)
	caps := []string{"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"}
	out, errs, code := asNobody(t, caps, "ls", "--lport", fmt.Sprint(port), "--json", "--socket", socket)
	if code != exitDone || strings.Count(errs, "group porthole may query the agent on "+socket) != 1 || !strings.Contains(out, `"role":"listener"`) {
		t.Errorf("exit code %d, stderr %q\n%s", code, errs, out)
	}
}

// A tail that follows the agent goes on when that ends.
func TestKernelAgentEndsUnderTail(t *testing.T) {
	ns := testutil.NewNetNS(t)
	socket, stop := startAgent(t)
	var out bytes.Buffer
	errs, code := make(lineWriter, 64), make(chan int, 1)
	args := []string{"tail", "--socket", socket, "--netns", fmt.Sprint(ns), "--event", "listen", "--count", "2"}
	go func() { code <- run(context.Background(), &env{unasked: true, stdout: &out, stderr: errs}, args) }()
	waitLine(t, errs, "attached: ")
	listen(t, "127.0.0.1:0")
	stop()
	waitLine(t, errs, "porthole: the agent ended")
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for { // the second once its own hooks are attached
		select {
		case <-again.C:
			listen(t, "127.0.0.1:0")
		case got := <-code:
			if got != exitDone || strings.Count(out.String(), " listen ") != 2 {
				t.Errorf("exit code %d:\n%s", got, out.String())
			}
			return
		}
	}
}

// What a filter can match nothing of is said by every command that has filters, whoever answers.
func TestKernelNotes(t *testing.T) {
	testutil.RequireRoot(t)
	socket, _ := startAgent(t)
	for flag, want := range map[string]string{
		"--unit=no-such-unit":        "no unit matches no-such-unit; running here: ",
		"--container=no-such-thing":  "no container matches no-such-thing; running here: ",
		"--pod=no/such*":             "no pod matches no/such*; running here: ",
		"--comm=a-name-of-some-19by": "no process is called a-name-of-some-19by: ",
	} {
		for _, line := range []string{"ls", "headroom", "headroom --json", "tail --duration 1ms", "who 9"} {
			if strings.HasPrefix(line, "who") && strings.HasPrefix(flag, "--comm") {
				continue // it has none
			}
			for _, from := range []string{"--local", "--agent --socket " + socket} {
				args := strings.Fields(line + " " + flag + " " + from)
				_, errs, code := command(t, args...)
				if !strings.HasPrefix(errs, want) || code != exitDone && code != exitNo {
					t.Errorf("%q: exit code %d, stderr %q, want %q", args, code, errs, want)
				}
			}
		}
	}
}
