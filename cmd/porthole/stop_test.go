package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// fullPipe is a pipe that takes nothing more, until it is read.
func fullPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	return r, w
}

// unread is porthole with a stdout that nobody reads.
type unread struct {
	*exec.Cmd
	errs  strings.Builder
	ended chan struct{}
}

// startUnread starts it and waits until it waits for its output.
func startUnread(t *testing.T, args ...string) *unread {
	t.Helper()
	u := &unread{Cmd: child(t, args...), ended: make(chan struct{})}
	_, u.Stdout = fullPipe(t)
	u.Stderr = &u.errs
	if args[len(args)-1] == "2>&1" {
		u.Cmd = child(t, args[:len(args)-1]...)
		_, w := fullPipe(t)
		u.Stdout, u.Stderr = w, w
	}
	if err := u.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		u.Wait()
		close(u.ended)
	}()
	t.Cleanup(func() {
		u.Process.Kill()
		<-u.ended
	})
	for end := time.Now().Add(patience); !u.writes(t); time.Sleep(10 * time.Millisecond) {
		select {
		case <-u.ended:
			t.Fatalf("%v ended before it had written: %s", args, u.errs.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%v never writes", args)
		}
	}
	return u
}

// writes tells whether a thread is in write() of stdout or stderr.
func (u *unread) writes(t *testing.T) bool {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", u.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // has ended
		}
		var number, fd uint64
		if n, _ := fmt.Sscanf(string(text), "%d 0x%x", &number, &fd); n == 2 && number == unix.SYS_WRITE && (fd == 1 || fd == 2) {
			return true
		}
	}
	return false
}

// signal sends one and returns how the process ends.
func (u *unread) signal(t *testing.T, signals ...syscall.Signal) syscall.WaitStatus {
	t.Helper()
	for _, sig := range signals {
		if err := u.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
	}
	select {
	case <-u.ended:
	case <-time.After(patience):
		t.Fatalf("%v goes on after %v", u.Args, signals)
	}
	return u.ProcessState.Sys().(syscall.WaitStatus)
}

// Every command ends with the first signal though nobody reads what it writes. Those that
// have something to end do so; others are ended by the signal.
func TestStopUnread(t *testing.T) {
	testutil.NewNetNS(t)
	port := fmt.Sprint(listen(t, "127.0.0.1:0").Port)
	tier := testTier()
	socket := filepath.Join(t.TempDir(), "porthole.sock")
	for i, c := range []struct {
		args string
		ends bool // itself
	}{
		{"ls", false}, {"ls --json", false}, {"who " + port, false}, {"who --json " + port, false},
		{"headroom --top 0", false}, {"headroom --json", false}, {"doctor --tier " + tier, false}, {"version", false},
		{"tail --sockets --tier " + tier, true}, {"tail --sockets --json --tier " + tier, true}, {"tail --tier " + tier, true},
		{"agent --tail --web.listen-address= --socket " + socket + " --tier " + tier, true},
		{"tail 2>&1", false}, // at the end it has nowhere to say anything
	} {
		sig := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM}[i%2]
		u := startUnread(t, strings.Fields(c.args)...)
		switch status := u.signal(t, sig); {

		case c.ends && status.ExitStatus() != exitCant:
			t.Errorf("%s ends with %#x after %v, want exit code %d: %s", c.args, status, sig, exitCant, u.errs.String())
		case c.ends && !strings.Contains(u.errs.String(), errUnread.Error()):
			t.Errorf("%s does not say that its output is not read: %s", c.args, u.errs.String())
		case !c.ends && !(status.Signaled() && status.Signal() == sig):
			t.Errorf("%s ends with %#x after %v", c.args, status, sig)
		}
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the agent leaves its socket: %v", err)
	}
}

// A second signal does not wait for the end that the first one began.
func TestStopTwice(t *testing.T) {
	testutil.NewNetNS(t)
	u := startUnread(t, "tail", "--sockets", "--tier", testTier())
	if status := u.signal(t, syscall.SIGINT, syscall.SIGTERM); !status.Signaled() {
		t.Errorf("ends with %#x and not by a signal: %s", status, u.errs.String())
	}
}

// What was written before the signal is there for a reader that comes back.
func TestStopWritesEnd(t *testing.T) {
	r, w := io.Pipe()
	o := &output{ctx: t.Context(), to: w}
	go func() {
		for _, s := range []string{"one", "two"} {
			if _, err := o.Write([]byte(s)); err != nil {
				t.Error(err)
			}
		}
		w.Close()
	}()
	if got, err := io.ReadAll(r); string(got) != "onetwo" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

// A tail that ends by time before it has what --count wants says no.
func TestKernelTailShort(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	socket, _ := startAgent(t)
	for _, c := range []struct {
		flags string
		want  int
	}{
		{"--duration 10ms", exitDone}, {"--duration 10ms --count 1", exitNo},
	} {
		for _, how := range []string{"--tier " + testTier(), "--agent --socket " + socket} {
			args := strings.Fields("tail --netns " + ns + " " + how + " " + c.flags)
			if _, errs, code := command(t, args...); code != c.want || !strings.Contains(errs, "0 events, 0 lost\n") {
				t.Errorf("%v: exit code %d, want %d; %s", args, code, c.want, errs)
			}
		}
	}
}

// A command does not wait for ever for an agent that is stopped.
func TestAgentSilent(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	f.freeze(t, func() {
		lines := []string{"ls", "ls --json", "who 1", "who 1 --json", "headroom --netns " + ns, "headroom --json", "doctor", "doctor --json", "tail", "tail --json"}
		done := make(chan struct{}, len(lines))
		for _, line := range lines {
			go func() {
				out, errs, code := command(t, append(strings.Fields(line), "--agent", "--socket", f.socket)...)
				if code != exitCant || out != "" || !strings.Contains(errs, f.socket+": it does not answer within 5s") || !strings.Contains(errs, "kill -CONT") {
					t.Errorf("%s: exit code %d, %q, %s", line, code, out, errs)
				}
				done <- struct{}{}
			}()
		}
		for range lines {
			select {
			case <-done:
			case <-time.After(patience):
				t.Fatal("commands wait for a stopped agent")
			}
		}
	})
	if code := f.stop(t); code != exitDone {
		t.Errorf("the agent ends with %d", code)
	}
}
