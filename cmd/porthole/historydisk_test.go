package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// pastOf asks the history of a directory, or with a socket an agent, about a port of a network namespace.
func pastOf(t *testing.T, ns uint32, args ...string) []render.Tenancy {
	t.Helper()
	out, errs, code := command(t, append([]string{"history", "--json", "--netns", fmt.Sprint(ns)}, args...)...)
	if code != exitDone && code != exitNo {
		t.Fatalf("history %v: exit code %d, %s", args, code, errs)
	}
	var rows []render.Tenancy
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var row render.Tenancy
		if err := dec.Decode(&row); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		rows = append(rows, row)
	}
	return rows
}

// keepingAgent is an agent in a process of its own, that can be killed.
func keepingAgent(t *testing.T, dir string) (socket string, cmd *exec.Cmd) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	return socket, agentProcess(t, socket, "--history.dir", dir)
}

// Who had a port is known over the end of an agent, clean or not, with what it was called then; what was
// open then is told as such, and is not taken for open afterwards.
func TestKernelHistoryOverRestarts(t *testing.T) {
	ns := testutil.NewNetNS(t)
	dir := filepath.Join(t.TempDir(), "history")
	before := listen(t, "127.0.0.1:0")
	socket, agent := keepingAgent(t, dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	over := l.Addr().(*net.TCPAddr).Port
	if _, err := net.Listen("tcp", l.Addr().String()); err == nil {
		t.Fatal("the port is taken twice") // it is refused twice: Go tries MPTCP first
	}
	l.Close()
	left := listen(t, "127.0.0.1:0")
	port := func(n int) string { return fmt.Sprint(n) }

	testutil.Await(t, "the close has come through", func() bool {
		_, body := get(t, socket, "GET", fmt.Sprintf("/v1/history?port=%d&netns=%d", over, ns))
		return body != ""
	})
	rows := pastOf(t, ns, port(over), "--agent", "--socket", socket)
	if len(rows) != 3 || rows[0].Role != "listener" || rows[0].DurationNS <= 0 || rows[1].Event != "bind" || rows[1].Error != "EADDRINUSE" {
		t.Fatalf("with the agent: %+v", rows)
	}
	// Who was in the way of a refused call is kept with it: who opened it, for it is closed too soon to be asked about.
	inTheWay := func(what string, r render.Tenancy) {
		t.Helper()
		if len(r.HeldBy) != 1 || r.HeldBy[0].Role != "listener" || r.HeldBy[0].Owner == nil || int(r.HeldBy[0].Owner.PID) != os.Getpid() ||
			len(r.HeldBy[0].Owner.Args) == 0 || r.HeldBy[0].LocalPort != r.LocalPort {
			t.Errorf("%s: in the way: %+v", what, r.HeldBy)
		}
	}
	inTheWay("with the agent", rows[1])
	if out, _, _ := command(t, "history", port(over), "--failures", "--netns", fmt.Sprint(ns), "--agent", "--socket", socket); strings.Count(out, fmt.Sprintf("porthole.test (%d)\n          held by ", os.Getpid())) != 2 {
		t.Errorf("who was in the way is not said:\n%s", out)
	}
	testutil.Await(t, "the agent has seen the last one listen", func() bool {
		return len(pastOf(t, ns, port(left.Port), "--agent", "--socket", socket, "--listeners")) > 0
	})
	if rows := pastOf(t, ns, port(left.Port), "--agent", "--socket", socket, "--listeners"); len(rows) != 1 || !rows[0].Open || int(rows[0].PID) != os.Getpid() || len(rows[0].Args) == 0 {
		t.Fatalf("what listens: %+v", rows)
	}
	if rows := pastOf(t, ns, port(before.Port), "--agent", "--socket", socket, "--listeners"); len(rows) != 1 || !rows[0].Open || !rows[0].Since.IsZero() || rows[0].KnownSince.IsZero() {
		t.Fatalf("what listened before: %+v", rows)
	}
	// Once a second it is written: then it may end as it likes.
	testutil.Await(t, "it is on disk", func() bool {
		_, _, code := command(t, "history", port(left.Port), "--netns", fmt.Sprint(ns), "--local", "--history.dir", dir)
		return code == exitDone
	})
	agent.Process.Kill()
	agent.Wait()

	check := func(what string, from ...string) {
		t.Helper()
		if rows := pastOf(t, ns, append(from, port(over))...); len(rows) != 3 || rows[0].DurationNS <= 0 {
			t.Errorf("%s: what was over: %+v", what, rows)
		} else {
			inTheWay(what, rows[1])
		}
		for _, n := range []int{left.Port, before.Port} {
			rows := pastOf(t, ns, append(from, port(n))...)
			if len(rows) == 0 {
				t.Errorf("%s: nothing of port %d", what, n)
				continue
			}
			row := rows[len(rows)-1]
			if row.Open || row.UntilKnown == nil || *row.UntilKnown || int(row.PID) != os.Getpid() || len(row.Args) == 0 || (n == before.Port) != row.Since.IsZero() {
				t.Errorf("%s: what was open: %+v", what, row)
			}
		}
	}
	check("after it was killed", "--local", "--history.dir", dir)
	socket, agent = keepingAgent(t, dir)
	check("the next agent", "--agent", "--socket", socket)
	if rows := pastOf(t, ns, port(left.Port), "--agent", "--socket", socket); len(rows) != 2 || !rows[0].Open || rows[0].KnownSince.IsZero() {
		t.Errorf("what is open still: %+v", rows)
	}
	agent.Process.Signal(syscall.SIGTERM)
	if err := agent.Wait(); err != nil {
		t.Errorf("the agent ends with %v", err)
	}
	check("after a clean end", "--local", "--history.dir", dir)
	if rows := pastOf(t, ns, port(left.Port), "--local", "--history.dir", dir); len(rows) != 2 || rows[0].Open || rows[0].UntilKnown == nil {
		t.Errorf("what was open at a clean end: %+v", rows)
	}
	at := rows[0].Since.Add(time.Duration(rows[0].DurationNS / 2)).Format(time.RFC3339Nano)
	out, errs, code := command(t, "who", port(over), "--at", at, "--local", "--history.dir", dir)
	if code != exitDone || !strings.Contains(out, "listen 127.0.0.1:"+port(over)) {
		t.Errorf("who --at: exit code %d, %s%s", code, out, errs)
	}
	if _, _, code := command(t, "who", port(over), "--at", "2001-01-01", "--local", "--history.dir", dir); code != exitNo {
		t.Errorf("who --at long ago: exit code %d", code)
	}
}

// Two agents cannot keep their history in one place: the second says so, and where.
func TestKernelHistoryInUse(t *testing.T) {
	testutil.NewNetNS(t)
	dir := t.TempDir()
	startAgent(t, "--history.dir", dir)
	_, errs, code := command(t, "agent", "--socket", filepath.Join(t.TempDir(), "s"), "--web.listen-address=", "--history.dir", dir)
	if code != exitCant || !strings.Contains(errs, dir) || !strings.Contains(errs, "another agent") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}
