package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// output runs porthole as its own process.
func (c *isolated) output(t *testing.T) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	var exit *exec.ExitError
	if err := c.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

type isolated struct{ *exec.Cmd }

// inNamespaces is porthole in new namespaces.
func inNamespaces(t *testing.T, flags uintptr, args ...string) *isolated {
	t.Helper()
	cmd := child(t, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&unix.CLONE_NEWPID != 0 { // with the /proc that belongs to it
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
		cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", "mount -t proc none /proc && exec \"$0\"", exe}
	}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{Size: 1}}
	}
	return &isolated{cmd}
}

const (
	holdersOutside = "holders outside this pid namespace are not visible"
	hostPIDs       = "process numbers (pid) are the host's"
)

// In a pid namespace every command says that holders are missing and whose numbers it
// shows; elsewhere none does.
func TestViewPIDNamespace(t *testing.T) {
	testutil.NewNetNS(t)
	port := fmt.Sprint(listen(t, "127.0.0.1:0").Port)
	for _, line := range []string{
		"who " + port, "who --json " + port, "ls --lport " + port, "ls --json --lport " + port, "headroom", "headroom --json",
		"tail --duration 10ms --tier " + testTier(), "tail --json --duration 10ms --tier " + testTier(),
	} {
		for _, flags := range []uintptr{0, unix.CLONE_NEWPID} {
			out, errs, code := inNamespaces(t, flags, strings.Fields(line)...).output(t)
			inside := flags != 0
			told := errs
			if line == "who "+port {
				told = out // an answer in words says it itself
			}
			if code != exitDone || strings.Count(errs, holdersOutside) != count(inside) || strings.Count(told, hostPIDs) != count(inside) {
				t.Errorf("%s, in a pid namespace: %t: exit code %d\n%s\n%s", line, inside, code, out, errs)
			}
		}
	}
	out, _, code := inNamespaces(t, unix.CLONE_NEWPID, "doctor", "--json", "--tier", testTier()).output(t)
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitDone || !strings.Contains(strings.Join(r.PartialView, "\n"), holdersOutside) {
		t.Errorf("doctor --json: exit code %d, %v, %s", code, err, out)
	}
}

// stderrLines is what a process is going to say, a line at a time.
func stderrLines(t *testing.T, cmd *exec.Cmd) lineWriter {
	t.Helper()
	r, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs := make(lineWriter, 1024)
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			errs <- lines.Text() + "\n"
		}
	}()
	return errs
}

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// Who asks an agent is told what that does not see.
func TestViewOfAgent(t *testing.T) {
	testutil.NewNetNS(t)
	port := fmt.Sprint(listen(t, "127.0.0.1:0").Port)
	socket := filepath.Join(t.TempDir(), "porthole.sock")
	c := inNamespaces(t, unix.CLONE_NEWPID, "agent", "--socket", socket, "--web.listen-address=", "--tier", testTier())
	errs := stderrLines(t, c.Cmd)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	waitLine(t, errs, "socket: ")
	for _, line := range []string{"who " + port, "ls --json --lport " + port, "headroom", "tail --duration 10ms"} {
		_, errs, code := command(t, append(strings.Fields(line), "--agent", "--socket", socket)...)
		if code != exitDone || strings.Count(errs, holdersOutside) != 1 || strings.Contains(errs, hostPIDs) {
			t.Errorf("%s: exit code %d, %s", line, code, errs)
		}
	}
	_, body := get(t, socket, "GET", "/v1/status")
	var status api.Status
	if err := json.Unmarshal([]byte(body), &status); err != nil || !strings.Contains(strings.Join(status.PartialView, "\n"), holdersOutside) {
		t.Errorf("status: %v, %s", err, body)
	}
}

// In a user namespace capabilities are named as what they are, and nothing else is blamed.
func TestViewUserNamespace(t *testing.T) {
	testutil.RequireRoot(t)
	for _, line := range []string{"doctor", "ls", "tail"} {
		out, errs, code := inNamespaces(t, unix.CLONE_NEWUSER, strings.Fields(line)...).output(t)
		want, says := exitCant, "root of the host"
		if line == "ls" {
			want, says = exitDone, "only the sockets of this network namespace are shown" // which /proc has
		}
		if code != want || strings.Contains(out, "all that are needed") || strings.Contains(errs, "5.11") ||
			!strings.Contains(errs, "user namespace") || !strings.Contains(errs, says) {
			t.Errorf("%s: exit code %d\n%s\n%s", line, code, out, errs)
		}
		if line == "doctor" && !strings.Contains(out, "those of a user namespace, which do not count") {
			t.Errorf("doctor says\n%s", out)
		}
	}
}

// belowCgroup runs f in a thread whose processes find a cgroup below the root where
// cgroup2 is mounted, as in a container.
func belowCgroup(t *testing.T, f func()) {
	t.Helper()
	m, err := tracer.FindCgroup()
	if err != nil || !m.Whole {
		t.Fatalf("cgroup2 here: %+v, %v", m, err)
	}
	dir, err := os.MkdirTemp(m.Path, "porthole-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // for who may not read everything
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: its namespaces go with it
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount(dir, m.Path, "", unix.MS_BIND, "")); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// Where cgroup2 is mounted below its root, what other processes do is seen all the same;
// without the capability that this takes, tail and doctor say what they do not see.
func TestViewCgroup(t *testing.T) {
	ns := fmt.Sprint(testutil.NewNetNS(t))
	args := []string{"tail", "--tier", "tracepoint", "--event", "bind", "--netns", ns, "--count", "1"}
	var whole *exec.Cmd
	var errs lineWriter
	var part, doc string
	var partCode int
	belowCgroup(t, func() {
		caps := []string{"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"}
		if oldMemlock(t) {
			caps = append(caps, "CAP_SYS_RESOURCE")
		}
		_, part, partCode = asNobody(t, caps, "tail", "--tier", "tracepoint", "--duration", "10ms")
		doc, _, _ = asNobody(t, caps, "doctor", "--tier", "tracepoint")
		whole = child(t, args...)
		errs = stderrLines(t, whole)
		if err := whole.Start(); err != nil {
			t.Error(err)
		}
	})
	const missing = "sees only what processes below this cgroup root do"
	if partCode != exitDone || strings.Count(part, missing) != 1 || !strings.Contains(doc, missing) {
		t.Errorf("without CAP_DAC_READ_SEARCH tail exits with %d and says\n%s\ndoctor\n%s", partCode, part, doc)
	}
	if t.Failed() {
		return
	}
	waitLine(t, errs, "porthole: cgroups that are not below ")
	waitLine(t, errs, "attached: ")
	listen(t, "127.0.0.1:0")
	ended := make(chan error, 1)
	go func() { ended <- whole.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("no bind is seen of a process outside")
		whole.Process.Kill()
		<-ended
	}
}
