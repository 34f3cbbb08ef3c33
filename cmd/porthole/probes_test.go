package main

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// Only a socket that was connected to port 0 and nowhere else is left out, and the order stays.
func TestProbes(t *testing.T) {
	bind := render.Event{Event: "bind", Proto: "udp", LocalPort: 40000, Implicit: true, PID: 7}
	to := func(port uint16) render.Event {
		return render.Event{Event: "connect", Proto: "udp", LocalPort: 40000, RemotePort: port, PID: 7}
	}
	gone := func(port uint16) render.Event {
		return render.Event{Event: "close", Proto: "udp", LocalPort: 40000, RemotePort: port, PID: 7}
	}
	explicit, other, tcp, failed := bind, bind, bind, to(0)
	explicit.Implicit = false
	other.PID = 8
	tcp.Proto = "tcp"
	failed.Error = "EHOSTUNREACH"
	for _, c := range []struct {
		what   string
		events []render.Event
		shown  string // their numbers
		probes int
	}{
		{"a probe", []render.Event{bind, to(0), gone(0)}, "", 1},
		{"a probe of several addresses", []render.Event{bind, to(0), to(0), to(0), gone(0)}, "", 1},
		{"probes on a port that is used again", []render.Event{bind, to(0), gone(0), bind, to(0), gone(0)}, "", 2},
		{"others meanwhile", []render.Event{tcp, bind, other, to(0), tcp, gone(0), tcp}, "0 2 4 6", 1},
		{"a flow", []render.Event{bind, to(53), gone(53)}, "0 1 2", 0},
		{"a flow after a probe of the same socket", []render.Event{bind, to(0), to(53), gone(53)}, "0 1 2 3", 0},
		{"a socket that only sends", []render.Event{bind, gone(0)}, "0 1", 0},
		{"a socket that is bound", []render.Event{explicit, to(0), gone(0)}, "0 1 2", 0},
		{"one that cannot be connected", []render.Event{bind, failed, gone(0)}, "0 1 2", 0},
		{"one whose beginning was not seen", []render.Event{to(0), gone(0)}, "0 1", 0},
		{"one that is not closed", []render.Event{bind, to(0), tcp}, "0 1 2", 0},
		{"one whose end was not seen", []render.Event{bind, to(0), bind, to(0), gone(0)}, "0 1", 1},
		{"one whose port another process takes", []render.Event{bind, to(0), other, gone(0)}, "2", 1},
	} {
		var p probes
		var shown []string
		take := func() {
			for line := p.next(); line != nil; line = p.next() {
				shown = append(shown, string(line))
			}
		}
		for i := range c.events {
			p.add(&c.events[i], fmt.Append(nil, i))
			take()
		}
		p.giveUp()
		take()
		if got := strings.Join(shown, " "); got != c.shown || p.left != c.probes || p.events != len(c.events)-len(shown) {
			t.Errorf("%s: shown are %q, want %q; %d probes of %d events, want %d", c.what, got, c.shown, p.left, p.events, c.probes)
		}
	}
}

// Nothing is held back for longer than a probe takes.
func TestProbesInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p probes
		p.add(&render.Event{Event: "bind", Proto: "udp", LocalPort: 1, Implicit: true, PID: 7}, []byte("a"))
		p.add(&render.Event{Event: "connect", Proto: "tcp"}, []byte("b"))
		if line := p.next(); line != nil || p.wait() != probeFor {
			t.Errorf("%q is written at once; %v are left", line, p.wait())
		}
		time.Sleep(probeFor)
		if first, second := p.next(), p.next(); string(first) != "a" || string(second) != "b" {
			t.Errorf("%q, %q", first, second)
		}
	})
}

// Text is without probes, and says how many there were; JSON has them all.
func TestKernelTailProbes(t *testing.T) {
	ns := testutil.NewNetNS(t)
	probe := func(port int) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args  string
		lines int // with the heading
		left  bool
	}{{"", 3, true}, {"--no-probes=false", 6, false}, {"--json", 5, false}} {
		var out strings.Builder
		errs, code := make(lineWriter, 64), make(chan int, 1)
		args := append([]string{"tail", "--local", "--netns", fmt.Sprint(ns), "--event", "bind,connect,close", "--proto", "udp"}, strings.Fields(c.args)...)
		if c.lines == 3 {
			args = append(args, "--count", "2")
		} else {
			args = append(args, "--count", "5")
		}
		go func() { code <- run(t.Context(), &env{unasked: true, stdout: &out, stderr: errs}, args) }()
		waitLine(t, errs, "attached: ")
		probe(0)
		bound, err := net.ListenPacket("udp", "127.0.0.1:0") // is shown
		if err != nil {
			t.Fatal(err)
		}
		bound.Close()
		if got := <-code; got != exitDone || strings.Count(out.String(), "\n") != c.lines {
			t.Errorf("%s: exit code %d, want %d lines:\n%s", c.args, got, c.lines, out.String())
		}
		if c.left {
			waitLine(t, errs, "porthole: left out 1 probe of getaddrinfo() (3 events)")
		}
	}
	if _, errs, code := command(t, "tail", "--json", "--no-probes"); code != exitUsage || !strings.Contains(errs, "--no-probes") {
		t.Errorf("--json --no-probes: exit code %d, %q", code, errs)
	}
}
