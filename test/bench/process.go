package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readyWithin bounds the start of a process; it is slow in an emulated machine.
const readyWithin = 2 * time.Minute

// command is a child that ends with this process.
func (b *bench) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// process is a running child whose output is kept in memory: nobody has to read it
// while it is measured.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr *os.File
	ended          chan error
}

func (b *bench) start(argv []string) (*process, error) {
	p := &process{cmd: b.command(argv[0], argv[1:]...), ended: make(chan error, 1)}
	for _, f := range []**os.File{&p.stdout, &p.stderr} {
		fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make file for output: %w", err), p.stdout.Close())
		}
		*f = os.NewFile(uintptr(fd), "output")
	}
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", p.cmd, err), p.close())
	}
	go func() { p.ended <- p.cmd.Wait() }()
	return p, nil
}

func (p *process) close() error { return errors.Join(p.stdout.Close(), p.stderr.Close()) }

// until waits for a condition, for as long as the process lives.
func (p *process) until(is func() (bool, error)) error {
	for deadline := time.Now().Add(readyWithin); ; {
		ok, err := is()
		if ok || err != nil {
			return err
		}
		select {
		case err := <-p.ended:
			p.ended <- err
			return fmt.Errorf("%s has ended: %s", p.cmd, p.lastWords())
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %v: %s", p.cmd, readyWithin, p.lastWords())
		}
	}
}

// stop ends the process as Ctrl-C does and frees what it wrote.
func (p *process) stop() error {
	err := p.interrupt()
	return errors.Join(err, p.close())
}

// interrupt ends the process as Ctrl-C does; to be ended by it is no error.
func (p *process) interrupt() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.cmd, err)
	}
	err := <-p.ended
	p.ended <- err
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGINT {
		return nil
	} else if err != nil {
		return fmt.Errorf("run %s: %w: %s", p.cmd, err, p.lastWords())
	}
	return nil
}

// content is what is in a file from an offset on. The process goes on writing at
// its own.
func content(f *os.File, from int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
}

// says tells whether a line of stderr begins so.
func (p *process) says(prefix string) (bool, error) {
	said, err := content(p.stderr, 0)
	return bytes.HasPrefix(said, []byte(prefix)) || bytes.Contains(said, []byte("\n"+prefix)), err
}

// lastWords is the last line of stderr.
func (p *process) lastWords() string {
	said, err := content(p.stderr, 0)
	if err != nil {
		return err.Error()
	}
	all := strings.TrimSpace(string(said))
	return all[strings.LastIndexByte(all, '\n')+1:]
}

// cpuTime is the CPU time of all threads of the process; see
// clock_getcpuclockid(3).
func (p *process) cpuTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("read CPU time of %s, which may have ended: %w", p.cmd, err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory is what the process has in memory, and what of it no file is behind.
type memory struct{ resident, anonymous float64 } // MB

func (p *process) memory() (memory, error) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.cmd.Process.Pid))
	if err != nil {
		return memory{}, fmt.Errorf("read memory of %s: %w", p.cmd, err)
	}
	var m memory
	for line := range strings.Lines(string(rollup)) {
		var kB float64
		if n, _ := fmt.Sscanf(line, "Rss: %g kB", &kB); n == 1 {
			m.resident = kB / 1024
		} else if n, _ := fmt.Sscanf(line, "Anonymous: %g kB", &kB); n == 1 {
			m.anonymous = kB / 1024
		}
	}
	return m, nil
}
