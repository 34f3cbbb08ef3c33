package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// command is a child that ends with this process.
func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// tail is a running porthole tail, all hooks attached.
type tail struct {
	cmd    *exec.Cmd
	stderr *bufio.Reader
	cpu    time.Duration // used until it was ready
}

// tailEnd is what became of it.
type tailEnd struct {
	events, lost int
	cpu          time.Duration // used since it was ready, with the detaching
}

// startTail returns once the hooks are attached. Events go to a file; only those
// of the bench's namespace are written, for the machine has others too.
func (b *bench) startTail(args ...string) (*tail, error) {
	out, err := os.CreateTemp("", "porthole-bench-")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if err := os.Remove(out.Name()); err != nil { // the open file is enough
		return nil, err
	}
	args = append([]string{"tail", "--json", "--netns", strconv.Itoa(int(b.netns))}, args...)
	t := &tail{cmd: b.command(b.porthole, args...)}
	t.cmd.Stdout = out
	stderr, err := t.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	t.stderr = bufio.NewReader(stderr)
	if err := t.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", t.cmd, err)
	}
	line, _ := t.stderr.ReadString('\n')
	if !strings.HasPrefix(line, "attached: ") {
		return nil, errors.Join(fmt.Errorf("start %s: %s", t.cmd, strings.TrimSpace(line)), t.cmd.Wait())
	}
	t.cpu, err = t.cpuTime()
	return t, err
}

// cpuTime is the CPU time of all threads of the process; see
// clock_getcpuclockid(3).
func (t *tail) cpuTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^t.cmd.Process.Pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("read CPU time of %s: %w", t.cmd, err)
	}
	return time.Duration(ts.Nano()), nil
}

// stop ends tail as Ctrl-C does: it writes what the kernel has collected, then
// its counts.
func (t *tail) stop() (tailEnd, error) {
	var end tailEnd
	if err := t.cmd.Process.Signal(os.Interrupt); err != nil {
		return end, fmt.Errorf("stop %s: %w", t.cmd, err)
	}
	var line, last string
	var err error
	for err == nil {
		last = line
		line, err = t.stderr.ReadString('\n')
	}
	if err := t.cmd.Wait(); err != nil {
		return end, fmt.Errorf("run %s: %w: %s", t.cmd, err, last)
	}
	if _, err := fmt.Sscanf(last, "%d events, %d lost", &end.events, &end.lost); err != nil {
		return end, fmt.Errorf("read counts of %s in %q: %w", t.cmd, last, err)
	}
	end.cpu = t.cmd.ProcessState.UserTime() + t.cmd.ProcessState.SystemTime() - t.cpu
	return end, nil
}

// whileTailing runs a load with tail attached.
func (b *bench) whileTailing(load func(t *tail) error, args ...string) (tailEnd, error) {
	t, err := b.startTail(args...)
	if err != nil {
		return tailEnd{}, err
	}
	failed := load(t)
	end, err := t.stop()
	return end, errors.Join(failed, err)
}
