// Command init is process 1 of the VM: it makes the system ready, runs the jobs
// of the plan one after the other, and powers the machine off. Or it hands over to
// systemd, whose service it is then.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
		os.Exit(1)
	}
}

// jobs is the argument with which systemd starts this program.
const jobs = "jobs"

func run() error {
	plan, err := readPlan()
	switch {
	case err != nil:
		return err
	case os.Getpid() != 1 && len(os.Args) > 1 && os.Args[1] == jobs:
		return runJobs(plan)
	case os.Getpid() != 1:
		if err := setUp(plan.Modules); err != nil {
			return err
		}
		return runJobs(plan)
	case plan.Systemd:
		return startSystemd(plan.Modules)
	}
	reap()
	return nil
}

func readPlan() (plan guest.Plan, err error) {
	text, err := os.ReadFile(guest.PlanFile)
	if err != nil {
		return plan, err
	}
	if err := json.Unmarshal(text, &plan); err != nil {
		return plan, fmt.Errorf("read %s: %w", guest.PlanFile, err)
	}
	return plan, nil
}

// reap starts a child that does the work, and collects every process that loses
// its parent until the child ends. The work is in a process of its own because
// whoever collects any child would take those that the jobs' runner waits for.
func reap() {
	// Not to return: the kernel panics when process 1 ends.
	defer func() {
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
			fmt.Fprintf(os.Stderr, "init: power off: %v\n", err)
		}
	}()
	worker, err := os.StartProcess("/init", []string{"/init"}, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: start worker: %v\n", err)
		return
	}
	for {
		pid, err := unix.Wait4(-1, nil, 0, nil)
		if pid == worker.Pid {
			return
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			fmt.Fprintf(os.Stderr, "init: wait: %v\n", err)
			return
		}
	}
}

func runJobs(plan guest.Plan) error {
	port, err := openPort()
	if err != nil {
		return err
	}
	defer port.Close()
	out := json.NewEncoder(port)
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	if err := out.Encode(guest.Message{Kernel: unix.ByteSliceToString(uts.Release[:])}); err != nil {
		return err
	}
	for _, j := range plan.Jobs {
		if err := runJob(j, out); err != nil {
			return fmt.Errorf("run %s: %w", j.Name, err)
		}
	}
	return nil
}

// openPort finds the virtio port by its name. The driver makes its device file a
// moment after the module was loaded.
func openPort() (*os.File, error) {
	for range 500 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			if strings.TrimSpace(string(text)) == guest.Port {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_WRONLY, 0)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("no virtio port is named %q", guest.Port)
}

// runJob runs a job and reports its output and how it ended. An error is one of the
// port.
func runJob(j guest.Job, out *json.Encoder) error {
	lines := &lineWriter{job: j.Name, out: out}
	cmd := exec.Command(j.Argv[0], j.Argv[1:]...)
	cmd.Env = append(os.Environ(), j.Env...)
	cmd.Dir = "/tmp"
	cmd.Stdout, cmd.Stderr = lines, lines
	cmd.WaitDelay = 5 * time.Second // a child of the job may keep its output open
	start := time.Now()
	failed := cmd.Run()
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(failed, &exit) {
		code = exit.ExitCode()
	} else if failed != nil {
		code = -1
		fmt.Fprintf(lines, "\n%v\n", failed)
	}
	if err := lines.flush(); err != nil {
		return err
	}
	return out.Encode(guest.Message{Job: j.Name, Exit: &code, Seconds: time.Since(start).Seconds()})
}

// lineWriter sends what is written line by line.
type lineWriter struct {
	job  string
	out  *json.Encoder
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		w.rest = rest
		if err := w.out.Encode(guest.Message{Job: w.job, Output: string(line)}); err != nil {
			return 0, err
		}
	}
}

func (w *lineWriter) flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	_, err := io.WriteString(w, "\n")
	return err
}
