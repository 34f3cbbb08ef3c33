package main

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

const longAddr = "2001:db8:85a3:1234:5678:8a2e:370:7334"

// screenSockets are those that an answer shows besides its words.
func screenSockets() []render.Socket {
	listener := render.Socket{
		Proto: "tcp", State: "LISTEN", Role: "listener", LocalIP: netip.MustParseAddr(longAddr), LocalPort: 8443, NetNS: 7,
		Holders: []render.Holder{{PID: 1048213, Comm: "systemd-resolve", FD: 3}},
	}
	past := render.Socket{
		Proto: "tcp", State: "TIME-WAIT", Role: "time_wait", LocalIP: listener.LocalIP, LocalPort: 8443,
		RemoteIP: netip.MustParseAddr("2001:db8:85a3:1234:5678:8a2e:370:9999"), RemotePort: 51234, NetNS: 7,
	}
	return []render.Socket{listener, past}
}

// screens is what the commands write in words that are no rows alone, by name.
func screens(t *testing.T, style render.Style) map[string]string {
	t.Helper()
	out := make(map[string]string)
	take := func(name string, write func(*env) error) {
		var text bytes.Buffer
		if err := write(&env{stdout: &text, stderr: &text, style: style, errStyle: style}); err != nil {
			t.Fatal(err)
		}
		out[name] = text.String()
	}
	addr, rows := netip.MustParseAddr(longAddr), screenSockets()
	take("check-bind", func(e *env) error {
		a := &bindAnswer{Error: "EADDRINUSE", errno: unix.EADDRINUSE, Proto: "tcp", LocalIP: addr, LocalPort: 8443, InTheWay: rows, InEphemeralRange: true, RangeLow: 1024, RangeHigh: 60999}
		return a.text(e)
	})
	take("check-connect", func(e *env) error {
		a := &connectAnswer{RemoteIP: addr, RemotePort: 8443, Error: "EHOSTUNREACH", errno: unix.EHOSTUNREACH, ToHere: true, Listeners: rows[:1], DurationNS: 3061 * 1e6}
		return a.text(e, time.Second)
	})
	take("check-connected", func(e *env) error {
		a := &connectAnswer{OK: true, RemoteIP: addr, RemotePort: 8443, LocalIP: addr, LocalPort: 51234, DurationNS: 1_230_000}
		return a.text(e, time.Second)
	})
	take("wait", func(e *env) error {
		w := &waiter{e: e, o: &waitOptions{timeout: 30 * time.Second}, src: &source.Local{}}
		return w.tell(t.Context(), &waitAnswer{Proto: "tcp", LocalPort: 8443, Sockets: rows})
	})
	take("run", func(e *env) error {
		r := &recorder{o: &runOptions{}, out: e.stderr, style: e.errStyle, used: map[usedPort]int{
			{Event: "listen", Proto: "tcp", LocalIP: addr, LocalPort: 8443, Comm: "systemd-resolve"}:                            1,
			{Event: "connect", Proto: "tcp", RemoteIP: addr, RemotePort: 8443, Comm: "integration-tes", Error: "EADDRNOTAVAIL"}: 12000,
		}}
		leak := usedPort{Event: "leak", Proto: "tcp", LocalIP: addr, LocalPort: 8443, PID: 1234567, Comm: "systemd-resolve", Times: 1}
		return r.write("/usr/local/bin/integration-tests-of-the-shop-frontend", ending(1<<8), 62*time.Second, []usedPort{leak})
	})
	take("diff", func(e *env) error {
		for _, change := range []string{"added", "removed"} {
			r := &diffRow{Change: change, listening: listening{Proto: "tcp", LocalIP: addr, LocalPort: 8443, Comm: "systemd-resolve", Container: "shop-frontend-production-web-1"}, NetNS: 1, Sockets: 1}
			fmt.Fprintln(e.style.Wrapper(e.stdout), r.text(e.style))
		}
		return nil
	})
	take("doctor", func(e *env) error {
		r := &doctor.Report{
			OK: true, Kernel: "6.12.0-1-amd64", Arch: "x86_64", BTF: true, Cgroup2: "/sys/fs/cgroup", Tier: tracer.TierTracepoint, MissingCaps: []string{},
			Hooks: []doctor.Hook{
				{Hook: "fexit/inet_hash_connect", Tier: tracer.TierFentry, Reason: "BPF trampolines are refused"},
				{Hook: "cgroup/getpeername4", Tier: tracer.TierTracepoint, Reason: "not needed with tp_btf/io_uring_complete"},
				{Hook: "tp_btf/inet_sock_set_state", Attached: true},
			},
			NotSeen:     []string{"accepts by io_uring into its own table of files, or while its completion queue is full (the socket shows at the next snapshot)"},
			PartialView: []string{"holders outside this pid namespace are not visible; in a container, run it with --pid=host"},
		}
		if err := r.Text(e.stdout, e.style); err != nil {
			return err
		}
		return r.HooksText(e.stdout, e.style)
	})
	take("error", func(e *env) error {
		ended(e, fmt.Errorf("%w: this needs CAP_BPF, CAP_PERFMON; ask the agent: dial unix /run/porthole/porthole.sock: connect: no such file or directory", tracer.ErrNotPermitted))
		return nil
	})
	return out
}

// What commands say fits a terminal of 60 columns or more, and uses more where there are. A word
// that is too long by itself stays whole: it is part of a command to be copied.
func TestScreens(t *testing.T) {
	for _, width := range []int{0, 60, 80, 120} {
		for name, got := range screens(t, render.Style{Width: width}) {
			if strings.Contains(got, "…") && width == 0 {
				t.Errorf("%s is cut where it is for no terminal:\n%s", name, got)
			}
			testutil.Golden(t, fmt.Sprintf("testdata/screens/%s-%d.txt", name, width), got)
		}
	}
	for width := 60; width <= 130; width++ {
		for name, got := range screens(t, render.Style{Width: width}) {
			for line := range strings.Lines(got) {
				word := !strings.Contains(strings.TrimSpace(line), " ")
				if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > width && !word {
					t.Errorf("%s has %d columns, want at most %d: %s", name, n, width, line)
				}
			}
		}
	}
}

// Help fits a terminal of 60 columns or more, and 80 columns where there is no terminal; a word
// that is too long by itself stays whole. At 80 no paragraph is broken but where its lines end.
func TestHelpFits(t *testing.T) {
	root := newRoot(&env{})
	for _, cmd := range append([]*cobra.Command{root}, root.Commands()...) {
		name := strings.TrimPrefix(strings.TrimPrefix(cmd.CommandPath(), root.Name()), " ")
		for _, width := range []int{0, 60, 80, 120} {
			var out bytes.Buffer
			e := &env{stdout: &out, stderr: &out, style: render.Style{Width: width}}
			if code := run(t.Context(), e, strings.Fields(name+" --help")); code != exitDone {
				t.Fatalf("%s --help: exit code %d", name, code)
			}
			want := cmp.Or(width, 80)
			for line := range strings.Lines(out.String()) {
				word := want < 80 && !strings.Contains(strings.TrimSpace(line), " ")
				if n := len(strings.TrimSuffix(line, "\n")); n > want && !word {
					t.Errorf("%s --help, of %d columns, has %d: %s", name, width, n, line)
				}
			}
			if width == 80 && !strings.HasPrefix(out.String(), cmd.Long) {
				t.Errorf("%s --help does not begin with the lines of its text:\n%s", name, out.String())
			}
		}
	}
}
