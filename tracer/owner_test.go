package tracer

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// statLine is proc_pid_stat(5) of a process that started so many ticks after boot.
func statLine(comm, state string, threads, ticks int64) string {
	return fmt.Sprintf("812 (%s) %s 1 812 812 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 %d 0 %d 0 0\n", comm, state, threads, ticks)
}

func TestOwnerStatusIn(t *testing.T) {
	owner := Process{PID: 812, Start: 12*time.Second + 349_999_999}
	for _, test := range []struct {
		name, stat string
		shift      time.Duration
		want       OwnerStatus
	}{
		{"there", statLine("nginx", "S", 1, 1234), 0, OwnerAlive},
		{"there, with a hostile name", statLine("x) Z 1 (y", "R", 1, 1234), 0, OwnerAlive},
		{"there, in a time namespace", statLine("nginx", "S", 1, 1334), time.Second, OwnerAlive},
		{"its pid is another's, later", statLine("nginx", "S", 1, 1235), 0, OwnerGone},
		{"its pid is another's, by a shifted clock", statLine("nginx", "S", 1, 1234), time.Second, OwnerGone},
		{"nobody has waited for it", statLine("nginx", "Z", 1, 1234), 0, OwnerGone},
		{"its first thread has ended", statLine("nginx", "Z", 2, 1234), 0, OwnerAlive},
		{"cut short", "812 (nginx) S 1 812", 0, 0},
		{"nothing", "", 0, 0},
	} {
		if got := owner.statusIn(test.stat, test.shift); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

// processNow is the process that has a pid, with its start to the tick.
func processNow(t *testing.T, pid int) Process {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	var ticks int64
	if _, err := fmt.Sscan(strings.Fields(after)[19], &ticks); err != nil {
		t.Fatal(err)
	}
	return Process{PID: uint32(pid), Start: time.Duration(ticks)*tick - time.Duration(bootShift())}
}

// The kernel is asked: about one that lives, one that is a zombie, and one that is no
// more.
func TestOwnerStatus(t *testing.T) {
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	p := processNow(t, child.Process.Pid)
	expect := func(when string, want OwnerStatus) {
		if got := p.status(); got != want {
			t.Errorf("%s: status %d, want %d", when, got, want)
		}
	}
	expect("alive", OwnerAlive)
	in.Close()
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Waitid(unix.P_PID, child.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	expect("zombie", OwnerGone)
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	expect("ended", OwnerGone)
}

// Whose pid another process has is gone, also where that one holds the socket; what the
// table learnt after the holders were read proves nothing about the living.
func TestLookUpOwners(t *testing.T) {
	self := processNow(t, os.Getpid())
	before := self
	before.Start -= tick
	by := func(p Process) []Holder { return []Holder{{Process: p, FD: 3}} }
	for _, test := range []struct {
		name         string
		socket       Socket
		want, inside OwnerStatus // inside: seen from a pid namespace that does not have everybody
	}{
		{"no owner", Socket{Holders: by(self)}, 0, 0},
		{"holder", Socket{Owner: self, Holders: by(self)}, OwnerHolder, OwnerHolder},
		{"alive", Socket{Owner: self}, OwnerAlive, 0},
		{"alive, learnt late", Socket{Owner: self, late: true}, 0, 0},
		{"gone, its pid holds", Socket{Owner: before, Holders: by(self)}, OwnerGone, 0},
		{"gone, learnt late", Socket{Owner: before, late: true}, OwnerGone, 0},
	} {
		for seesAll, want := range map[bool]OwnerStatus{true: test.want, false: test.inside} {
			so := test.socket
			newOwnerLookup(seesAll).Set(&so)
			if got := so.OwnerStatus; got != want {
				t.Errorf("%s, sees all %t: status %d, want %d", test.name, seesAll, got, want)
			}
		}
	}
}
