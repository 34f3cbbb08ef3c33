package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// nobodysUID has a name on no machine.
const nobodysUID = 4000000001

func testPool() pool {
	return pool{low: 32768, high: 60999, out: []portRange{{8080, 8080}, {40000, 40010}}}
}

// askWho answers a question about these sockets in words.
func askWho(t *testing.T, question string, sockets ...tracer.Socket) string {
	t.Helper()
	q, err := parseQuestion(question)
	if err != nil {
		t.Fatal(err)
	}
	tracer.SortSockets(sockets)
	var b strings.Builder
	if err := whoText(&b, render.Style{}, plainNames(), q, testPool(), sockets); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const about8080 = "8080: registered (1024-49151); my-web/tcp; http-alt/udp\n" +
	"  outside this machine's ephemeral range 32768-60999, and reserved\n"

func web(pid uint32) tracer.Process { return process(pid, nobodysUID, "nginx") }

func TestWhoText(t *testing.T) {
	shared := socket(tracer.TCP, tracer.RoleListener, "0.0.0.0:8080", "", heldBy(web(10), web(11), web(11))...)
	alone := socket(tracer.TCP, tracer.RoleListener, "0.0.0.0:8080", "", heldBy(web(10))...)
	reuse := socket(tracer.TCP, tracer.RoleListener, "0.0.0.0:8080", "", heldBy(web(11))...)
	server := socket(tracer.TCP, tracer.RoleServer, "10.0.0.1:8080", "10.0.0.2:40000", heldBy(web(10))...)
	orphan := socket(tracer.TCP, tracer.RoleOrphan, "10.0.0.1:8080", "10.0.0.2:40001")
	gone := socket(tracer.TCP, tracer.RoleTimeWait, "10.0.0.1:8080", "10.0.0.2:40002")
	goneToo := socket(tracer.TCP, tracer.RoleTimeWait, "10.0.0.1:8080", "10.0.0.2:40003")
	client := socket(tracer.TCP, tracer.RoleClient, "10.0.0.1:8080", "10.0.0.9:443", heldBy(process(12, nobodysUID, "curl"))...)
	other := alone
	other.NetNS, other.MPTCP, other.Since = otherNS, true, time.Date(2026, 1, 2, 3, 4, 5, 6, time.Local)
	kernels := socket(tracer.UDP, tracer.RoleBound, "[::]:8080", "")
	hostile := socket(tracer.UDP, tracer.RoleBound, "127.0.0.1:8080", "", heldBy(process(13, nobodysUID, "a\x1b[2J\nb"))...)
	for _, test := range []struct {
		name     string
		question string
		sockets  []tracer.Socket
		want     string
	}{
		{"nobody", "8080", nil, "8080/tcp is held by nobody\n8080/udp is held by nobody\n" + about8080},
		{"one process", "8080", []tracer.Socket{alone},
			"8080/tcp is held by nginx (pid 10, user 4000000001), listening on 0.0.0.0\n" + about8080},
		{"two processes with one socket", "8080", []tracer.Socket{shared},
			"8080/tcp is held by 2 processes, listening on 0.0.0.0:\n" +
				"  nginx (pid 10, user 4000000001)\n  nginx (pid 11, user 4000000001)\n" + about8080},
		{"SO_REUSEPORT", "8080", []tracer.Socket{alone, reuse},
			"8080/tcp is held by 2 processes, listening on 0.0.0.0, 2 sockets:\n" +
				"  nginx (pid 10, user 4000000001)\n  nginx (pid 11, user 4000000001)\n" + about8080},
		{"listener and its connections", "8080", []tracer.Socket{alone, server, orphan, gone, goneToo},
			"8080/tcp is held by nginx (pid 10, user 4000000001), listening on 0.0.0.0\n" +
				"  and by 1 accepted connection,\n" +
				"         1 connection that no process holds,\n" +
				"         2 connections in TIME-WAIT, each for up to a minute\n" + about8080},
		{"TIME_WAIT only", "8080", []tracer.Socket{gone},
			"8080/tcp has no listener; it is held by 1 connection in TIME-WAIT, for up to a minute\n" + about8080},
		{"clients apart", "8080", []tracer.Socket{alone, client},
			"8080/tcp is held by nginx (pid 10, user 4000000001), listening on 0.0.0.0\n  and by 1 client\n" + about8080 +
				"\nclients that have 8080 as their own port:\n" +
				"PROTO STATE LOCAL         REMOTE       ROLE   PID COMM\n" +
				"tcp   ESTAB 10.0.0.1:8080 10.0.0.9:443 client  12 curl\n"},
		{"two namespaces", "8080", []tracer.Socket{alone, other},
			"8080/tcp is held by nginx (pid 10, user 4000000001), listening on 0.0.0.0\n" +
				"8080/tcp is held by nginx (pid 10, user 4000000001), listening on 0.0.0.0 (MPTCP) in network namespace blue since 2026-01-02 03:04:05\n" + about8080},
		{"the kernel", "8080", []tracer.Socket{kernels},
			"8080/udp is held by no process, bound to :: (a socket of the kernel, or one on its way between processes)\n" + about8080},
		{"a name with escapes", "8080/udp", []tracer.Socket{hostile},
			`8080/udp is held by "a\x1b[2J\nb" (pid 13, user 4000000001), bound to 127.0.0.1` + "\n" +
				"8080: registered (1024-49151); http-alt/udp\n  outside this machine's ephemeral range 32768-60999, and reserved\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if d := cmp.Diff(test.want, askWho(t, test.question, test.sockets...)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestWhoAboutNumber(t *testing.T) {
	for question, want := range map[string]string{
		"443/tcp":   "443: system (0-1023); https/tcp\n  outside this machine's ephemeral range 32768-60999\n",
		"32767/tcp": "  outside this machine's",
		"32768/tcp": "  inside this machine's ephemeral range 32768-60999\n",
		"60999/tcp": "60999: dynamic (49152-65535)\n  inside this machine's ephemeral range 32768-60999\n",
		"61000/tcp": "  outside this machine's",
		"40010/tcp": "  inside this machine's ephemeral range 32768-60999, and reserved\n",
	} {
		if got := askWho(t, question); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q in it", question, got, want)
		}
	}
}

func TestWhoJSON(t *testing.T) {
	for _, test := range []struct {
		question string
		sockets  []tracer.Socket
		want     string
	}{
		{"8080", nil, `{"port":8080,"range":"registered","service":"my-web","in_ephemeral_range":false,"reserved":true,"sockets":[],"history":[]}`},
		{"40001/udp", nil, `{"port":40001,"proto":"udp","range":"registered","in_ephemeral_range":true,"reserved":true,"sockets":[],"history":[]}`},
		{"53/udp", []tracer.Socket{socket(tracer.UDP, tracer.RoleBound, "127.0.0.53:53", "", heldBy(process(20, 101, "resolved"))...)},
			`{"port":53,"proto":"udp","range":"system","service":"domain","in_ephemeral_range":false,"reserved":false,"sockets":[` +
				`{"proto":"udp","state":"UNCONN","role":"bound","local_ip":"127.0.0.53","local_port":53,"netns":4026531840,"uid":101,` +
				`"holders":[{"pid":20,"comm":"resolved","fd":3}],"origin":"snapshot","service":"domain"}],"history":[]}`},
	} {
		q, err := parseQuestion(test.question)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := whoJSON(&b, plainNames(), q, testPool(), test.sockets); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(test.want+"\n", b.String()); d != "" || !json.Valid(b.Bytes()) {
			t.Errorf("%s (-want +got):\n%s", test.question, d)
		}
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestWhoWriteError(t *testing.T) {
	q := question{port: 8080, protos: protos}
	if err := whoText(full{}, render.Style{}, plainNames(), q, testPool(), nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("text: error %v, want %v", err, syscall.ENOSPC)
	}
	if err := whoJSON(full{}, plainNames(), q, testPool(), nil); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("JSON: error %v, want %v", err, syscall.ENOSPC)
	}
}

func TestParseQuestion(t *testing.T) {
	for in, want := range map[string]question{
		"1":        {1, protos},
		"65535":    {65535, protos},
		"53/udp":   {53, []tracer.Proto{tracer.UDP}},
		"53/TCP":   {53, []tracer.Proto{tracer.TCP}},
		"0008080":  {8080, protos},
		"8080/Tcp": {8080, []tracer.Proto{tracer.TCP}},
	} {
		got, err := parseQuestion(in)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(question{})); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got):\n%s", in, err, d)
		}
	}
}

func TestParseRanges(t *testing.T) {
	for in, want := range map[string][]portRange{
		"":                   nil,
		"8080":               {{8080, 8080}},
		"8080,9000-9010":     {{8080, 8080}, {9000, 9010}},
		"1-65535":            {{1, 65535}},
		"0-5":                {{0, 5}},
		"50000-50000,50002,": {{50000, 50000}, {50002, 50002}},
	} {
		got, err := parseRanges(in)
		if d := cmp.Diff(want, got, cmp.AllowUnexported(portRange{})); err != nil || d != "" {
			t.Errorf("%q: %v (-want +got):\n%s", in, err, d)
		}
	}
	for _, in := range []string{"x", "1-", "-1", "1-2-3", "65536", "1 2", "1-65536"} {
		if got, err := parseRanges(in); err == nil || !strings.Contains(err.Error(), in) {
			t.Errorf("%q: %v, error %v; want an error that names it", in, got, err)
		}
	}
}

func FuzzParseRanges(f *testing.F) {
	f.Add("8080,9000-9010")
	f.Fuzz(func(t *testing.T, s string) {
		ranges, err := parseRanges(s)
		if err == nil && len(ranges) > strings.Count(s, ",")+1 {
			t.Errorf("%q has %d ranges", s, len(ranges))
		}
	})
}
