package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// These tests run commands against the running kernel, in a network namespace of
// their own.

// command runs porthole in process.
func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), &env{unasked: true, stdout: &out, stderr: &errs}, args)
	return out.String(), errs.String(), code
}

// testTier is the tier to test, auto where the kernel matrix does not say.
func testTier() string { return cmp.Or(os.Getenv("PORTHOLE_TEST_TIER"), "auto") }

func listen(t *testing.T, addr string) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr)
}

// ago is when something was, which changes from one answer to the next.
var ago = regexp.MustCompile(`[0-9]+ s ago`)

func TestKernelWho(t *testing.T) {
	ns := testutil.NewNetNS(t)
	port := listen(t, "127.0.0.1:0").Port
	out, errs, code := command(t, "who", fmt.Sprint(port))
	first, _, _ := strings.Cut(strings.ReplaceAll(out, "\n ", ""), "\n")
	for _, want := range []string{fmt.Sprintf("%d/tcp  ", port), fmt.Sprintf("(pid %d, user root) listens on 127.0.0.1:%d", os.Getpid(), port)} {
		if !strings.Contains(first, want) {
			t.Errorf("who says %q, want %q in it", first, want)
		}
	}
	if code != 0 || errs != "" {
		t.Errorf("exit code %d, stderr %q", code, errs)
	}
	out, _, _ = command(t, "who", fmt.Sprint(port), "--json")
	var a render.Port
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if int(a.Port) != port || len(a.Sockets) != 1 || a.Sockets[0].NetNS != ns || a.Sockets[0].Role != "listener" ||
		!a.InEphemeralRange || len(a.Sockets[0].Holders) != 1 || int(a.Sockets[0].Holders[0].PID) != os.Getpid() {
		t.Errorf("who --json says %+v", a)
	}
	// The text counts connections, of which JSON has rows: they say the same.
	to := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	for range 3 {
		dial(t, to)
	}
	if u, err := net.ListenUDP("udp", &net.UDPAddr{IP: to.IP, Port: port}); err != nil {
		t.Fatal(err)
	} else {
		t.Cleanup(func() { u.Close() })
	}
	for _, question := range []string{fmt.Sprint(port), fmt.Sprintf("%d/tcp", port), fmt.Sprintf("%d/udp", port)} {
		text, _, _ := command(t, "who", question)
		out, _, _ := command(t, "who", question, "--json")
		var a render.Port
		if err := json.Unmarshal([]byte(out), &a); err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		names := identity.Load(nil)
		defer names.Cgroups.Close()
		var want strings.Builder
		if err := render.New(names).PortText(&want, render.Style{}, &a); err != nil {
			t.Fatal(err)
		}
		if d := gocmp.Diff(ago.ReplaceAllString(want.String(), ""), ago.ReplaceAllString(text, "")); d != "" {
			t.Errorf("who %s does not say what its JSON does (-want +got):\n%s", question, d)
		}
		if told := strings.Contains(text, "3 connections wait for accept()"); told == strings.HasSuffix(question, "udp") {
			t.Errorf("who %s says\n%s", question, text)
		}
	}
	port = listen(t, "127.0.0.1:0").Port
	if out, errs, code = command(t, "who", fmt.Sprintf("%d/udp", port)); code != exitNo || errs != "" ||
		!strings.HasPrefix(out, fmt.Sprintf("nothing uses %d/udp\n", port)) {
		t.Errorf("who of a free port: exit code %d, %q, stderr %q", code, out, errs)
	}
}

func TestKernelLs(t *testing.T) {
	ns := testutil.NewNetNS(t)
	addr := listen(t, "127.0.0.1:0")
	client, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	rows := func(args ...string) []render.Socket {
		out, errs, code := command(t, append([]string{"ls", "--json", "--netns", fmt.Sprint(ns)}, args...)...)
		if code != 0 || errs != "" {
			t.Fatalf("ls %v: exit code %d, stderr %q", args, code, errs)
		}
		var rows []render.Socket
		for dec := json.NewDecoder(strings.NewReader(out)); ; {
			var row render.Socket
			if err := dec.Decode(&row); err == io.EOF {
				return rows
			} else if err != nil {
				t.Fatalf("ls %v: %v in %q", args, err, out)
			}
			rows = append(rows, row)
		}
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{nil, 3}, {[]string{"-tulpn"}, 1}, {[]string{"-6"}, 0}, {[]string{"--role", "client", "--uid", "0"}, 1},
		{[]string{"--rport", fmt.Sprint(addr.Port)}, 1}, {[]string{"--pid", fmt.Sprint(os.Getpid())}, 2},
	} {
		if got := rows(c.args...); len(got) != c.want {
			t.Errorf("ls %v: %d rows, want %d: %+v", c.args, len(got), c.want, got)
		}
	}
}

// lineWriter hands on what is written, for a test that waits for it.
type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	w <- string(b)
	return len(b), nil
}

func TestKernelTail(t *testing.T) {
	ns := testutil.NewNetNS(t)
	addr := listen(t, "127.0.0.1:0") // older than the tail
	var out bytes.Buffer
	errs := make(lineWriter, 16)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, &env{unasked: true, stdout: &out, stderr: errs},
			[]string{"tail", "--tier", testTier(), "--json", "--sockets", "--event", "connect,bind,listen", "--count", "3", "--netns", fmt.Sprint(ns)})
	}()
	if got := <-errs; !strings.HasPrefix(got, "attached: ") || !strings.HasSuffix(got, " hooks\n") {
		t.Fatalf("stderr begins with %q", got)
	}
	client, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	listen(t, "127.0.0.1:0")
	if got := <-errs; got != "3 events, 0 lost\n" {
		t.Errorf("stderr ends with %q", got)
	}
	if got := <-code; got != exitDone {
		t.Errorf("exit code %d", got)
	}
	var kinds []string
	for line := range strings.Lines(out.String()) {
		var row struct{ Event, Role string }
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		kinds = append(kinds, row.Role+row.Event)
	}
	if got, want := strings.Join(kinds, " "), "listener connect bind listen"; got != want {
		t.Errorf("tail wrote %q, want %q", got, want)
	}
}

func TestKernelDoctor(t *testing.T) {
	testutil.RequireRoot(t)
	out, errs, code := command(t, "doctor", "--json", "--no-syscall-hooks", "--tier", testTier())
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 || errs != "" {
		t.Fatalf("exit code %d, %v, stderr %q", code, err, errs)
	}
	for _, h := range r.Hooks {
		off := h.Hook == "tp_btf/sys_exit" || h.Hook == "tp_btf/io_uring_complete" // and those the kernel refuses
		if strings.HasPrefix(h.Reason, "not in this kernel") {
			continue
		}
		if off && h.Reason != "switched off" || !off && !h.Attached && (h.Tier != tracer.TierFentry || testTier() != "auto") {
			t.Errorf("doctor says of a hook: %+v", h)
		}
	}
	if !r.OK || testTier() != "auto" && string(r.Tier) != testTier() || len(r.Hooks) < 15 || len(r.NotSeen) < 2 || len(r.MissingCaps) != 0 {
		t.Errorf("doctor says %+v", r)
	}
}
