package top

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper starts a process that waits, and returns it as a row has it. ended is closed once it has ended.
func sleeper(t *testing.T, script string) (p process, ended chan struct{}, cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command("sh", "-c", script)
	cmd.Stdin, _ = pipe(t)
	out, w := pipe(t)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	ended = make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // it is there
		t.Fatal(err)
	}
	return process{pid: uint32(cmd.Process.Pid), comm: "sh"}, ended, cmd
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// later is a time since boot when what runs now is known to have run.
func later() time.Duration { return sinceBoot() + time.Minute }

// A process is ended by the signal that is asked for, and it is seen that it has.
func TestEnd(t *testing.T) {
	p, ended, _ := sleeper(t, "echo; read wait")
	v, err := openVictim(p, later())
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	if v.may != nil || v.user == "" || !strings.Contains(v.args, "read wait") || v.started == 0 {
		t.Errorf("%+v", v)
	}
	text, err := v.send(syscall.SIGTERM)
	if err != nil || !strings.Contains(text, "has ended after SIGTERM") {
		t.Errorf("%q, %v", text, err)
	}
	<-ended
	if text, err := v.send(syscall.SIGKILL); err != nil || !strings.Contains(text, "had ended already") {
		t.Errorf("once more: %q, %v", text, err)
	}
	if _, err := openVictim(p, later()); err == nil || !strings.Contains(err.Error(), "it has ended") {
		t.Errorf("of a process that has ended: %v", err)
	}
}

// One that does not end is said not to have; SIGKILL ends it.
func TestEndStubborn(t *testing.T) {
	p, ended, _ := sleeper(t, "trap '' TERM; echo; read wait")
	v, err := openVictim(p, later())
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	if text, err := v.send(syscall.SIGTERM); err != nil || !strings.Contains(text, "has not ended") {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := v.send(syscall.SIGKILL); err != nil || !strings.Contains(text, "has ended after SIGKILL") {
		t.Errorf("%q, %v", text, err)
	}
	<-ended
}

// A process that started after its number was read is another, and is not touched: its number was read
// of one that has ended.
func TestEndNumberUsedAgain(t *testing.T) {
	had := sinceBoot()
	p, _, cmd := sleeper(t, "echo; read wait")
	if v, err := openVictim(p, had); !errors.Is(err, errOther) {
		t.Errorf("%+v, %v; want %v", v, err, errOther)
	}
	// With its number as the kernel gives it once more.
	first, ended, _ := sleeper(t, "echo; read wait")
	before := later()
	v, err := openVictim(first, before)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	if _, err := v.send(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-ended
	had = sinceBoot()
	again := restart(t, int(first.pid))
	if again == nil {
		t.Fatalf("no process could be given number %d", first.pid)
	}
	if text, err := v.send(syscall.SIGKILL); err != nil || !strings.Contains(text, "had ended already") {
		t.Errorf("the descriptor of the first: %q, %v", text, err)
	}
	if v, err := openVictim(first, had); !errors.Is(err, errOther) {
		t.Errorf("the second is taken for the first: %+v, %v", v, err)
	}
	for _, c := range []*exec.Cmd{again, cmd} {
		if err := unix.Kill(c.Process.Pid, 0); err != nil {
			t.Errorf("pid %d: %v", c.Process.Pid, err)
		}
	}
}

// restart starts a process with a number, which it asks the kernel for.
func restart(t *testing.T, pid int) *exec.Cmd {
	t.Helper()
	for range 50 { // others take numbers, too
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(number(uint32(pid-1))), 0); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		if cmd.Process.Pid == pid {
			return cmd
		}
	}
	return nil
}

// Whoever may not send a signal is told before anything is sent.
func TestEndNotPermitted(t *testing.T) {
	p, _, _ := sleeper(t, "echo; read wait")
	done := make(chan error, 1)
	go func() { // the thread ends with the goroutine: it is locked
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			done <- errno
			return
		}
		v, err := openVictim(p, later())
		if err == nil {
			err = v.may
			v.close()
		}
		done <- err
	}()
	if err := <-done; !errors.Is(err, unix.EPERM) {
		t.Errorf("as another user: %v, want %v", err, unix.EPERM)
	}
}

// A name can have anything in it, brackets and spaces too.
func TestStartOf(t *testing.T) {
	stat := "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 0 0 0 0 20 0 1 0 12345 1000 10 18446744073709551615"
	if got, err := startOf([]byte(stat)); err != nil || got != 12345*tick {
		t.Errorf("%v, %v; want %v", got, err, 12345*tick)
	}
	for _, bad := range []string{"", "42 sh S 1", "42 (sh) S 1 2 3"} {
		if got, err := startOf([]byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}
