package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// A wait that is over at once: it is so already, or is looked for once.
func TestKernelWaitAtOnce(t *testing.T) {
	ns := testutil.NewNetNS(t)
	port := listen(t, "127.0.0.1:0").Port
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		ok   bool
		rows int
	}{
		{"", true, 1}, {"--addr 127.0.0.1", true, 1}, {"--comm " + strings.TrimSpace(string(comm)), true, 1},
		{"--pid " + fmt.Sprint(os.Getpid()), true, 1}, {"--timeout 0 --addr 127.0.0.2", false, 1}, {"--timeout 0 --free", false, 1},
		{"--timeout 0 --comm nobody", false, 1}, {"--free --comm nobody", true, 0}, {"--free --addr ::1", true, 0},
	} {
		args := append([]string{"wait", fmt.Sprint(port), "--json"}, strings.Fields(c.args)...)
		out, errs, code := command(t, args...)
		var a waitAnswer
		if err := json.Unmarshal([]byte(out), &a); err != nil || errs != "" || code != count(!c.ok) || a.OK != c.ok || len(a.Sockets) != c.rows || a.NetNS != ns {
			t.Errorf("%v: exit code %d, %v, stderr %q, %s", args, code, err, errs, out)
		}
	}
	out, _, code := command(t, "wait", fmt.Sprint(port), "--timeout", "10ms", "--comm", "nobody")
	if code != exitNo || !strings.Contains(out, "nobody of those waited for listens within 10ms") || !strings.Contains(out, fmt.Sprintf("127.0.0.1:%d", port)) {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if out, _, code := command(t, "wait", fmt.Sprintf("%d/udp", port), "--timeout", "0", "-q"); code != exitNo || out != "" {
		t.Errorf("-q: exit code %d, %q", code, out)
	}
}

// Who waits is woken when somebody listens, and when nobody does any more, by an agent and by hooks
// of its own; nobody connects to the listener.
func TestKernelWaitWakes(t *testing.T) {
	ns := testutil.NewNetNS(t)
	socket, _ := startAgent(t)
	clients := func() int {
		var status api.Status
		_, body := get(t, socket, "GET", "/v1/status")
		if err := json.Unmarshal([]byte(body), &status); err != nil {
			t.Fatal(err)
		}
		return status.Clients
	}
	for _, who := range []string{"--agent", "--local"} {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		for _, free := range []bool{true, false} {
			args := []string{"wait", fmt.Sprint(port), "--netns", fmt.Sprint(ns), "--timeout", patience.String(), "--json", "--socket", socket, who, fmt.Sprintf("--free=%t", free)}
			var out, errs bytes.Buffer
			code := make(chan int, 1)
			go func() { code <- run(t.Context(), &env{unasked: true, stdout: &out, stderr: &errs}, args) }()
			if who == "--agent" {
				testutil.Await(t, "the agent has a client", func() bool { return clients() == 1 })
			}
			if free {
				l.Close()
			} else if l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}); err != nil {
				t.Fatal(err)
			}
			var a waitAnswer
			got := <-code
			if err := json.Unmarshal(out.Bytes(), &a); err != nil || got != exitDone || errs.Len() > 0 || a.Free != free || len(a.Sockets) != count(!free) ||
				time.Duration(a.WaitedNS) > patience/2 {
				t.Errorf("%v: exit code %d, %v, stderr %q, %s", args, got, err, errs.String(), out.String())
			}
		}
		if err := l.SetDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Accept(); err == nil {
			t.Errorf("%s: a connection was made", who)
		}
		l.Close()
	}
}
