package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// server is a daemon that leaves its parent, listens on the port given and writes its pid to a file. One
// that listened there before may have left a connection in TIME-WAIT.
const server = `import os, socket, sys
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen()
open(sys.argv[2] + ".new", "w").write(str(os.getpid())); os.rename(sys.argv[2] + ".new", sys.argv[2])
for n in (0, 1, 2): os.close(n)
s.accept(); s.accept()
`

// What a command's descendants do is in the table, a daemon that stays is a leak, and the exit code
// is the command's.
func TestRun(t *testing.T) {
	testutil.NewNetNS(t)
	root, err := ownCgroup()
	if err != nil {
		t.Fatal(err)
	}
	pidFile, rows := filepath.Join(t.TempDir(), "pid"), filepath.Join(t.TempDir(), "rows")
	script := fmt.Sprintf(`python3 -c '%s' 20101 %s; while ! test -e %[2]s; do sleep 0.01; done
python3 -c 'import socket; socket.create_connection(("127.0.0.1", 20101))'; exit ${CODE:-0}`, server, pidFile)
	for _, c := range []struct {
		args []string
		code int
		env  string
	}{{nil, 7, "CODE=7"}, {[]string{"--fail-on-leak"}, exitNo, ""}} {
		args := append([]string{"run", "--json", "-o", rows}, c.args...)
		cmd := child(t, append(args, "--", "sh", "-c", script)...)
		cmd.Env = append(cmd.Env, c.env)
		out, errs, code := (&isolated{cmd}).output(t)
		text, err := os.ReadFile(pidFile)
		if err != nil {
			t.Fatalf("%v; %q, stderr %q", err, out, errs)
		}
		pid, err := strconv.Atoi(string(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		testutil.Await(t, "the daemon is gone", func() bool {
			out, _, _ := command(t, "ls", "-l", "--lport", "20101", "--json", "--pid", string(text))
			return out == ""
		})
		if err := os.Remove(pidFile); err != nil {
			t.Fatal(err)
		}
		if left, err := filepath.Glob(filepath.Join(root, fmt.Sprintf("porthole-run-%d-*", cmd.ProcessState.Pid()))); err != nil || len(left) > 0 {
			t.Errorf("cgroups left: %v, %v", left, err)
		}
		if code != c.code || out != "" || errs != "" {
			t.Errorf("%v: exit code %d, %q, stderr %q", c.args, code, out, errs)
		}
		var got []string
		lines, err := os.ReadFile(rows)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(lines)) {
			var p usedPort
			if err := json.Unmarshal([]byte(line), &p); err != nil {
				t.Fatal(err)
			}
			got = append(got, p.Event+" "+p.address())
			if (p.Event == "leak") != (p.PID != 0) {
				t.Errorf("%v: %+v, want the process of what still listens, and of nothing else", c.args, p)
			}
		}
		const want = "listen 127.0.0.1:20101, accept 127.0.0.1:20101, connect 127.0.0.1:20101, leak 127.0.0.1:20101"
		if strings.Join(got, ", ") != want {
			t.Errorf("%v: %v, want %s", c.args, got, want)
		}
	}
}

// A signal is passed on, and what it does to the command is the exit code; where nothing is used and
// nothing stays, that is said.
func TestRunSignal(t *testing.T) {
	testutil.NewNetNS(t)
	ready := filepath.Join(t.TempDir(), "ready")
	cmd := child(t, "run", "--", "sh", "-c", "trap 'exit 9' TERM; touch "+ready+"; while :; do sleep 0.01; done")
	errs := stderrLines(t, cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testutil.Await(t, "the command runs", func() bool { _, err := os.Stat(ready); return err == nil })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitLine(t, errs, "porthole: sh ended with exit code 9 after ")
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
	_, text, code := (&isolated{child(t, "run", "--", "sh", "-c", "kill -KILL $$")}).output(t)
	if code != 128+9 || !strings.Contains(text, "sh was ended by SIGKILL after") || !strings.Contains(text, "it used no ports") {
		t.Errorf("exit code %d, %q", code, text)
	}
}

// What a run that was killed leaves is removed by the next, but never while somebody is in it.
func TestRunKilled(t *testing.T) {
	testutil.NewNetNS(t)
	root, err := ownCgroup()
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	cmd := child(t, "run", "--", "sh", "-c", "echo $$ >"+pidFile+".new; mv "+pidFile+".new "+pidFile+"; exec sleep 600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := func() int {
		dirs, err := filepath.Glob(filepath.Join(root, fmt.Sprintf("%s%d-*", familyPrefix, cmd.Process.Pid)))
		if err != nil {
			t.Fatal(err)
		}
		return len(dirs)
	}
	again := func() {
		if _, errs, code := (&isolated{child(t, "run", "--", "true")}).output(t); code != exitDone {
			t.Fatalf("exit code %d, %q", code, errs)
		}
	}
	var pid int
	testutil.Await(t, "the command runs", func() bool {
		text, err := os.ReadFile(pidFile)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		return err == nil
	})
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	again()
	if left() != 1 {
		t.Fatal("the cgroup of one that runs was removed")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	again()
	if left() != 1 {
		t.Error("a cgroup was removed that a process is in")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testutil.Await(t, "the cgroup is removed", func() bool { again(); return left() == 0 })
}

// A reader of the table that went away changes nothing else: the exit code stays the command's, and
// no cgroup is left.
func TestRunReaderGone(t *testing.T) {
	testutil.NewNetNS(t)
	root, err := ownCgroup()
	if err != nil {
		t.Fatal(err)
	}
	for _, more := range [][]string{nil, {"-v"}} {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		read.Close()
		args := append([]string{"run"}, more...)
		cmd := child(t, append(args, "--", "python3", "-c", `import socket, sys; socket.create_server(("127.0.0.1", 20101)); sys.exit(4)`)...)
		cmd.Stderr = write
		err = cmd.Run()
		write.Close()
		if cmd.ProcessState.ExitCode() != 4 {
			t.Errorf("%v: %v", more, err)
		}
		if left, err := filepath.Glob(filepath.Join(root, fmt.Sprintf("porthole-run-%d-*", cmd.ProcessState.Pid()))); err != nil || len(left) > 0 {
			t.Errorf("%v: cgroups left: %v, %v", more, left, err)
		}
	}
}

// Where no cgroup can be made descendants are known by their parents, daemons too.
func TestRunWithoutCgroup(t *testing.T) {
	testutil.NewNetNS(t)
	dir, err := os.MkdirTemp("/tmp", "porthole-run-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(dir, "pid")
	script := fmt.Sprintf(`python3 -c '%s' 20101 %s; while ! test -e %[2]s; do sleep 0.01; done`, server, pidFile)
	caps := []string{"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"}
	_, errs, code := asNobody(t, caps, "run", "--json", "--", "sh", "-c", script)
	if text, err := os.ReadFile(pidFile); err != nil {
		t.Error(err)
	} else if pid, err := strconv.Atoi(string(text)); err != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
		t.Errorf("the daemon %q cannot be ended: %v", text, err)
	}
	for _, want := range []string{"no cgroup can be made", `{"event":"listen","proto":"tcp","local_ip":"127.0.0.1","local_port":20101`, `{"event":"leak","proto":"tcp","local_ip":"127.0.0.1","local_port":20101`} {
		if !strings.Contains(errs, want) {
			t.Errorf("stderr %q, want %q in it", errs, want)
		}
	}
	if code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// Ports that the kernel picked are one row, whatever they were, and a bind that led to a listener none.
func TestRunRows(t *testing.T) {
	zero, asked := uint16(0), uint16(80)
	ip := netip.MustParseAddr("127.0.0.1")
	r := &recorder{used: make(map[usedPort]int), bound: make(map[boundTo]usedPort)}
	for port := range uint16(3) {
		r.add(&render.Event{Event: "bind", Proto: "tcp", LocalIP: ip, LocalPort: 40000 + port, RequestedPort: &zero})
		r.add(&render.Event{Event: "listen", Proto: "tcp", LocalIP: ip, LocalPort: 40000 + port})
		r.add(&render.Event{Event: "accept", Proto: "tcp", LocalIP: ip, LocalPort: 40000 + port, RemoteIP: ip, RemotePort: 5})
		r.add(&render.Event{Event: "close", Proto: "tcp", LocalIP: ip, LocalPort: 40000 + port, RemoteIP: ip, RemotePort: 5})
		r.add(&render.Event{Event: "close", Proto: "tcp", LocalIP: ip, LocalPort: 40000 + port})
	}
	r.add(&render.Event{Event: "bind", Proto: "udp", LocalIP: ip, LocalPort: 40000, Implicit: true})
	r.add(&render.Event{Event: "bind", Proto: "tcp", LocalIP: ip, LocalPort: 80, RequestedPort: &asked, Error: "EADDRINUSE"})
	var got []string
	for _, p := range r.rows() {
		got = append(got, fmt.Sprint(p.Event, " ", p.Proto, " ", p.address(), " ", p.Times, p.Error))
	}
	const want = "listen tcp 127.0.0.1:any 3, bind udp 127.0.0.1:any 1, bind tcp 127.0.0.1:80 1EADDRINUSE, accept tcp 127.0.0.1:any 3"
	if strings.Join(got, ", ") != want || len(r.bound) != 1 {
		t.Errorf("%v, want %s; %d are bound", got, want, len(r.bound))
	}
}

// A connection that was refused has the error, one that was reset later none; a shell's exit codes stand
// for commands that cannot be started.
func TestRunErrors(t *testing.T) {
	testutil.NewNetNS(t)
	script := `import socket
for n in range(2):
    try: socket.create_connection(("127.0.0.1", 20199))
    except ConnectionRefusedError: pass
l = socket.create_server(("127.0.0.1", 20101))
c = socket.create_connection(("127.0.0.1", 20101)); a, _ = l.accept()
a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"); a.close() # with a reset
try: c.recv(1)
except ConnectionResetError: pass
`
	_, errs, code := (&isolated{child(t, "run", "--json", "--", "python3", "-c", script)}).output(t)
	for _, want := range []string{
		`{"event":"connect","proto":"tcp","remote_ip":"127.0.0.1","remote_port":20199,"comm":"python3","error":"ECONNREFUSED","times":2}`,
		`{"event":"connect","proto":"tcp","remote_ip":"127.0.0.1","remote_port":20101,"comm":"python3","times":1}`,
	} {
		if code != exitDone || !strings.Contains(errs, want) {
			t.Errorf("exit code %d, want %s in\n%s", code, want, errs)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"no-such-command": 127, "/no/such/command": 127, file: 126} {
		if _, errs, code := (&isolated{child(t, "run", "--", name)}).output(t); code != want || !strings.Contains(errs, name) {
			t.Errorf("%s: exit code %d, want %d; %q", name, code, want, errs)
		}
	}
}

// What stays is a leak if the command's own socket waits for others, wherever who has it went: not the
// socket of a client.
func TestRunLeaks(t *testing.T) {
	testutil.NewNetNS(t)
	root, err := ownCgroup()
	if err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	script := fmt.Sprintf(`import os, socket
read, write = os.pipe()
if os.fork():
    os.close(write); os.read(read, 1); os._exit(0)
for n in (0, 1, 2): os.close(n)
s = socket.create_server(("127.0.0.1", 20101))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); client.sendto(b"x", ("127.0.0.1", 9))
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); server.bind(("127.0.0.1", 20102))
open(%q, "w").write(str(os.getpid()))
open(%q, "w").write(str(os.getpid()))
os.write(write, b"x"); os.close(write)
s.accept()
`, filepath.Join(root, "cgroup.procs"), pidFile)
	_, errs, code := (&isolated{child(t, "run", "--json", "--fail-on-leak", "--", "python3", "-c", script)}).output(t)
	if text, err := os.ReadFile(pidFile); err != nil {
		t.Error(err)
	} else if pid, err := strconv.Atoi(string(text)); err != nil || syscall.Kill(pid, syscall.SIGKILL) != nil {
		t.Errorf("the daemon %q cannot be ended: %v", text, err)
	}
	if code != exitNo || strings.Count(errs, `"event":"leak"`) != 2 || !strings.Contains(errs, `{"event":"leak","proto":"tcp","local_ip":"127.0.0.1","local_port":20101`) ||
		!strings.Contains(errs, `{"event":"leak","proto":"udp","local_ip":"127.0.0.1","local_port":20102`) {
		t.Errorf("exit code %d:\n%s", code, errs)
	}
}

// What listens without being allowed is said, though it closed at once and whoever of the descendants it was; then a
// command that succeeds does not, and one that fails has its own exit code.
func TestRunPolicy(t *testing.T) {
	testutil.NewNetNS(t)
	file := filepath.Join(t.TempDir(), "policy.yml")
	policy := "allow:\n- {proto: tcp, port: 20101}\n- {name: dns, proto: udp, port: 20102, exposure: local}\n"
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	const allowed = `import os, socket, sys
s = socket.create_server(("0.0.0.0", 20101)); socket.create_connection(("127.0.0.1", 20101))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 20102))
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.bind(("127.0.0.1", 0)); c.sendto(b"x", ("127.0.0.1", 9))
try: socket.create_server(("127.0.0.1", 20101))
except OSError: pass
`
	const violates = allowed + `u.close()
if os.fork() == 0:
    for n in range(2): socket.create_server(("127.0.0.1", 20103)).close()
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("0.0.0.0", 20102))
    os._exit(0)
os.wait()
`
	for _, c := range []struct {
		script string
		code   int
		want   []string
	}{
		{allowed, exitDone, nil},
		{violates, exitNo, []string{
			`{"event":"violation","proto":"udp","local_ip":"0.0.0.0","local_port":20102,"comm":"python3","rule":"dns","reason":"it is exposed, the rule says local","exposure":"exposed","times":1}`,
			`{"event":"violation","proto":"tcp","local_ip":"127.0.0.1","local_port":20103,"comm":"python3","rule":"none","reason":"no rule has the port","exposure":"local","times":2}`,
		}},
		{violates + "sys.exit(5)", 5, []string{`"event":"violation"`}},
	} {
		_, errs, code := (&isolated{child(t, "run", "--json", "--policy", file, "--", "python3", "-c", c.script)}).output(t)
		if code != c.code || len(c.want) == 0 && strings.Contains(errs, "violation") {
			t.Errorf("exit code %d, want %d:\n%s", code, c.code, errs)
		}
		for _, want := range c.want {
			if !strings.Contains(errs, want) {
				t.Errorf("want %s in\n%s", want, errs)
			}
		}
	}
	_, errs, code := (&isolated{child(t, "run", "--policy", file, "--", "python3", "-c", violates)}).output(t)
	if code != exitNo || !strings.Contains(errs, "not allowed: 20103/tcp on 127.0.0.1, local, by python3: no rule has the port\n") ||
		!strings.Contains(errs, "not allowed: 20102/udp on 0.0.0.0, exposed, by python3: rule dns: it is exposed, the rule says local\n") {
		t.Errorf("exit code %d:\n%s", code, errs)
	}
	caps := []string{"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_DAC_READ_SEARCH"} // they let read the file
	if _, errs, code := asNobody(t, caps, "run", "--policy", file, "--", "true"); code != exitCant || !strings.Contains(errs, "no cgroup can be made") {
		t.Errorf("without a cgroup: exit code %d, %s", code, errs)
	}
}
