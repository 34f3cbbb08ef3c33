package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
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
		if err := json.Unmarshal([]byte(out), &a); err != nil || errs != "" || code != count(!c.ok) || a.OK != c.ok || len(a.Sockets) != c.rows || a.NetNS != ns || a.OK && a.WaitedNS != 0 {
			t.Errorf("%v: exit code %d, %v, stderr %q, %s", args, code, err, errs, out)
		}
	}
	if out, _, _ := command(t, "wait", fmt.Sprint(port)); !strings.Contains(out, "somebody listens already\n") {
		t.Errorf("one that listens: %q", out)
	}
	out, _, code := command(t, "wait", fmt.Sprint(port), "--timeout", "10ms", "--comm", "nobody")
	if code != exitNo || !strings.Contains(out, "nobody of those waited for listened within 10ms") || !strings.Contains(out, fmt.Sprintf("127.0.0.1:%d", port)) {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if out, _, _ := command(t, "wait", fmt.Sprint(port), "--free", "--comm", "nobody"); !strings.Contains(out, "nobody of those asked for listens\n") {
		t.Errorf("--free --comm: %q", out)
	}
	if out, _, code := command(t, "wait", fmt.Sprintf("%d/udp", port), "--timeout", "0", "-q"); code != exitNo || out != "" {
		t.Errorf("-q: exit code %d, %q", code, out)
	}
}

// A listener counts where it takes what is sent to the address.
func TestWaitTakes(t *testing.T) {
	for _, c := range []struct {
		addr, local, device string
		v6Only, want        bool
	}{
		{"127.0.0.1", "::", "", false, true}, {"127.0.0.1", "::", "", true, false}, {"0.0.0.0", "::", "", true, false},
		{"0.0.0.0", "::", "", false, true}, {"::", "0.0.0.0", "", false, false}, {"::1", "::", "", true, true},
		{"127.0.0.1", "0.0.0.0", "d0", false, false}, {"127.0.0.1", "0.0.0.0", "lo", false, true}, {"0.0.0.0", "0.0.0.0", "d0", false, false},
		{"0.0.0.0%d0", "0.0.0.0", "d0", false, true}, {"192.0.2.1%d1", "0.0.0.0", "d0", false, false}, {"192.0.2.1%d1", "0.0.0.0", "", false, true},
		{"192.0.2.1", "192.0.2.1", "d0", false, true}, {"192.0.2.1", "192.0.2.2", "", false, false}, {"fe80::1%d0", "fe80::1", "d1", false, false},
	} {
		var w waiter
		var end query.End
		if err := addAddr(&end, "80", c.addr); err != nil {
			t.Fatal(err)
		}
		row := render.Socket{LocalIP: netip.MustParseAddr(c.local), Device: c.device, V6Only: c.v6Only}
		if got := w.takes(&end, &row); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
	if _, errs, code := command(t, "wait", "127.0.0.1:80", "--addr", "127.0.0.2"); code != exitUsage || !strings.Contains(errs, "has another address") {
		t.Errorf("two addresses: exit code %d, %q", code, errs)
	}
}

// An agent that stops answering makes a wait no longer.
func TestKernelWaitSilentAgent(t *testing.T) {
	ns := testutil.NewNetNS(t)
	port := listen(t, "127.0.0.1:0").Port
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/status" {
			fmt.Fprintln(w, "{}")
		} else if asked.Add(1) > 1 { // the first has an answer: nobody listens
			<-r.Context().Done()
		}
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	begin := time.Now()
	out, errs, code := command(t, "wait", fmt.Sprint(port), "--netns", fmt.Sprint(ns), "--agent", "--socket", listener.Addr().String(), "--timeout", "300ms")
	if code != exitNo || !strings.Contains(out, "nobody listened within 300ms") || !strings.Contains(errs, "not looked at the end") || time.Since(begin) > patience/2 {
		t.Errorf("exit code %d after %v, %q, stderr %q", code, time.Since(begin), out, errs)
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

// localhost is an address, not any: what listens on another is neither waited for nor in the way.
func TestKernelLocalhost(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	listen(t, "127.0.0.2:20101")
	listen(t, "[::1]:20102")
	for args, want := range map[string]int{
		"wait localhost:20101 --timeout 0": exitNo, "wait localhost:20102 --timeout 0": exitDone, "wait :20101 --timeout 0": exitDone,
		"check localhost:20101": exitDone, "check :20101": exitNo, "check localhost:20101 --addr 127.0.0.2": exitNo,
		"check localhost:20101 --addr 192.0.2.1": exitUsage, "check 20103/udp --addr 255.255.255.255": exitDone,
	} {
		if out, errs, code := command(t, append(strings.Fields(args), "--netns", ns)...); code != want {
			t.Errorf("%s: exit code %d, want %d\n%s%s", args, code, want, out, errs)
		}
	}
}

// Of several ports each says how long it took itself, not how long the last one took.
func TestKernelWaitOfEach(t *testing.T) {
	ns := testutil.NewNetNS(t)
	socket, _ := startAgent(t)
	first, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	later, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := later.Addr().(*net.TCPAddr)
	later.Close()
	args := []string{"wait", fmt.Sprint(first.Addr().(*net.TCPAddr).Port), fmt.Sprint(at.Port), "--netns", fmt.Sprint(ns), "--timeout", patience.String(), "--json", "--socket", socket, "--agent"}
	var out, errs bytes.Buffer
	code := make(chan int, 1)
	go func() { code <- run(t.Context(), &env{unasked: true, stdout: &out, stderr: &errs}, args) }()
	testutil.Await(t, "the agent has a client", func() bool {
		var status api.Status
		_, body := get(t, socket, "GET", "/v1/status")
		return json.Unmarshal([]byte(body), &status) == nil && status.Clients == 1
	})
	if later, err = net.ListenTCP("tcp4", at); err != nil {
		t.Fatal(err)
	}
	defer later.Close()
	if got := <-code; got != exitDone || errs.Len() > 0 {
		t.Errorf("exit code %d, %s", got, errs.String())
	}
	var each []waitAnswer
	for dec := json.NewDecoder(&out); dec.More(); {
		var a waitAnswer
		if err := dec.Decode(&a); err != nil {
			t.Fatal(err)
		}
		each = append(each, a)
	}
	if len(each) != 2 || each[0].WaitedNS != 0 || each[1].WaitedNS == 0 {
		t.Errorf("got %+v, want the first at once and the second later", each)
	}
}
