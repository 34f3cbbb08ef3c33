package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/agent"
	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// What can go wrong on a machine, and what becomes of an agent then: docs/faults.md.

// faulty is an agent of its own process, in some trouble.
type faulty struct {
	*exec.Cmd
	socket string
	errs   lineWriter // what it says, until it ends
	ended  chan struct{}
}

// trouble starts an agent, after a script of the shell in a mount namespace of its own
// if there is one. It has the socket given, or one of its own.
func trouble(t *testing.T, script, socket string, args ...string) *faulty {
	t.Helper()
	testutil.RequireRoot(t)
	if socket == "" {
		socket = filepath.Join(t.TempDir(), "porthole.sock")
	}
	f := &faulty{socket: socket, errs: make(lineWriter, 1024), ended: make(chan struct{})}
	f.Cmd = child(t, append([]string{"agent", "--socket", socket, "--web.listen-address=", "--tier", testTier()}, args...)...)
	if script != "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		f.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		f.Path, f.Args = "/bin/sh", []string{"sh", "-c", script + "\nexec \"$0\"", exe}
	}
	f.Env = append(f.Env, "WATCHDOG_USEC=200000") // to hear of it soon
	out, err := f.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(f.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			f.errs <- lines.Text() + "\n"
		}
		f.Wait()
		close(f.errs)
	}()
	t.Cleanup(func() {
		f.Process.Kill()
		<-f.ended
	})
	return f
}

// stop ends the agent as systemd does and returns its exit code.
func (f *faulty) stop(t *testing.T) int {
	t.Helper()
	if err := f.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-f.ended:
	case <-time.After(patience):
		t.Fatal("the agent does not end")
	}
	return f.ProcessState.ExitCode()
}

// await asks until an answer is as wanted.
func (f *faulty) await(t *testing.T, path string, want func(body string) bool) {
	t.Helper()
	if body, ok := f.within(t, patience, path, want); !ok {
		t.Fatalf("%s never is as it should, but:\n%s", path, body)
	}
}

// within is await for a time, and tells the last answer and whether it was as wanted.
func (f *faulty) within(t *testing.T, long time.Duration, path string, want func(body string) bool) (body string, ok bool) {
	t.Helper()
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var code int
		if code, body = get(t, f.socket, "GET", path); code == 200 && want(body) {
			return body, true
		}
	}
	return body, false
}

// metric reads a sample from the text of /metrics, -1: not there.
func metric(body, name string) float64 {
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(body)
	if m == nil {
		return -1
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return -1
	}
	return v
}

// freeze makes the process miss what happens meanwhile.
func (f *faulty) freeze(t *testing.T, meanwhile func()) {
	t.Helper()
	if err := f.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); f.status(t, "State") != "T (stopped)"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the agent does not stop")
		}
	}
	meanwhile()
	if err := f.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// status reads a line of /proc/PID/status.
func (f *faulty) status(t *testing.T, key string) string {
	t.Helper()
	return statusOf(t, fmt.Sprintf("/proc/%d/status", f.Process.Pid), key)
}

// mostMemory is what an agent may ever have on a machine with few sockets: 45 MB when it
// is ready, and its queues. Of its binary the tests, which are part of it here, are some.
const mostMemory = 96 << 20

// peak is the most memory that the agent has had.
func (f *faulty) peak(t *testing.T) int {
	t.Helper()
	return peakOf(t, f.Process.Pid)
}

func peakOf(t *testing.T, pid int) int {
	t.Helper()
	kb, err := strconv.Atoi(strings.TrimSuffix(statusOf(t, fmt.Sprintf("/proc/%d/status", pid), "VmHWM"), " kB"))
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

func statusOf(t *testing.T, path, key string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s has no %s", path, key)
	return ""
}

// overflow takes and gives back ports until the ring buffer of an agent that does
// not read must be full.
func overflow(t *testing.T) {
	t.Helper()
	for range 80_000 { // two events each, of which it has room for some 100,000
		takePort(t)
	}
}

// lookups open a BPF object by its id.
var lookups = map[string]func(uint64) (io.Closer, error){
	"prog_id": func(id uint64) (io.Closer, error) { return ebpf.NewProgramFromID(ebpf.ProgramID(id)) },
	"map_id":  func(id uint64) (io.Closer, error) { return ebpf.NewMapFromID(ebpf.MapID(id)) },
	"link_id": func(id uint64) (io.Closer, error) { return link.NewFromID(link.ID(id)) },
}

// bpfObject is one that is loaded.
type bpfObject struct {
	kind string // a key of lookups
	id   uint64
}

// bpfObjects are those a process has descriptors of.
func bpfObjects(t *testing.T, pid int) []bpfObject {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []bpfObject
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			kind, value, _ := strings.Cut(line, ":")
			if lookups[kind] == nil {
				continue
			}
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, bpfObject{kind, id})
		}
	}
	return out
}

// Of an agent that is killed nothing stays in the kernel, and the next starts where
// it was.
func TestKernelAgentKilled(t *testing.T) {
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	objects := bpfObjects(t, f.Process.Pid)
	kinds := make(map[string]int)
	for _, o := range objects {
		kinds[o.kind]++
		c, err := lookups[o.kind](o.id)
		if err != nil {
			t.Fatalf("%s %d: %v", o.kind, o.id, err)
		}
		c.Close()
	}
	if kinds["prog_id"] < 10 || kinds["map_id"] < 5 || kinds["link_id"] < 1 {
		t.Fatalf("the agent has %v", kinds)
	}
	if err := f.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-f.ended
	for _, o := range objects {
		for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) { // the kernel frees them a little later
			c, err := lookups[o.kind](o.id)
			if errors.Is(err, os.ErrNotExist) {
				break
			} else if err == nil {
				c.Close()
			}
			if time.Now().After(end) {
				t.Fatalf("%s %d is there still: %v", o.kind, o.id, err)
			}
		}
	}
	next := trouble(t, "", f.socket)
	waitLine(t, next.errs, "socket: ")
	if code := next.stop(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// An agent that was stopped tells how much it missed, and then knows what there is.
func TestAgentStopped(t *testing.T) {
	ns := testutil.NewNetNS(t)
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	before := listener(t)
	var after net.Listener
	f.freeze(t, func() {
		overflow(t)
		after = listener(t)
		before.Close()
	})
	f.await(t, "/metrics", func(body string) bool { return metric(body, `porthole_resyncs_total{reason="loss"}`) > 0 })
	var status api.Status
	_, body := get(t, f.socket, "GET", "/v1/status")
	if err := json.Unmarshal([]byte(body), &status); err != nil || status.Lost == 0 {
		t.Errorf("status: %v, %s", err, body)
	}
	waitLine(t, f.errs, `time=`) // a line of the log
	_, sockets := get(t, f.socket, "GET", fmt.Sprintf("/v1/sockets?netns=%d", ns))
	own, errs, code := command(t, "ls", "--json", "--netns", fmt.Sprint(ns))
	if code != exitDone || agentKnows.ReplaceAllString(own, "") != agentKnows.ReplaceAllString(sockets, "") || strings.Count(own, "\n") != 1 {
		t.Errorf("the agent has\n%s, ls has\n%s%s", sockets, own, errs)
	}
	port := after.Addr().(*net.TCPAddr).Port
	after.Close() // it is told if the table has the socket
	f.await(t, fmt.Sprintf("/v1/history?port=%d", port), isOurs)
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// What is not mounted, not writable or full is told, where it matters.
func TestAgentMounts(t *testing.T) {
	const everything = `for fs in bpf tracefs debugfs; do
		for at in $(awk -v fs=$fs '$3 == fs { print $2 }' /proc/self/mounts); do umount -l $at || exit; done
	done`
	const noCgroup2 = `for at in $(awk '$3 == "cgroup2" { print $2 }' /proc/self/mounts); do umount -l $at || exit; done`
	for _, c := range []struct {
		name, script, socket string
		want                 string // "": it starts; with a + it starts and says that
	}{
		{"no bpffs, tracefs, debugfs", everything, "", ""},
		{"no cgroup2", noCgroup2, "", "+cgroup2 is mounted nowhere"},
		{"no sysfs", "umount -l /sys", "", "not supported: the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): stat /sys/kernel/btf/vmlinux: no such file or directory"},
		{"/run read-only", "mount -t tmpfs -o ro none /run", agent.DefaultSocket, "porthole: make directory of the socket: mkdir /run/porthole: read-only file system"},
		{"/run full", "mount -t tmpfs -o nr_inodes=1 none /run", agent.DefaultSocket, "porthole: make directory of the socket: mkdir /run/porthole: no space left on device"},
		{"/run/porthole full", "mount -t tmpfs -o nr_inodes=2 none /run; mkdir /run/porthole", agent.DefaultSocket,
			"porthole: lock /run/porthole/porthole.sock: open /run/porthole/porthole.sock.lock: no space left on device"},
		{"/run/porthole full, but for the lock", "mount -t tmpfs -o nr_inodes=3 none /run; mkdir /run/porthole", agent.DefaultSocket,
			"porthole: listen on /run/porthole/porthole.sock: no space left on device"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := trouble(t, c.script, c.socket)
			started := make(chan string, 1)
			var said []string
			heard := make(chan struct{})
			go func() {
				defer close(heard)
				for line := range f.errs {
					said = append(said, line)
					if strings.HasPrefix(line, "socket: ") {
						started <- line
					}
				}
			}()
			select {
			case <-started:
				says, starts := strings.CutPrefix(c.want, "+")
				if c.want != "" && !starts {
					t.Fatal("the agent starts")
				}
				if _, body := get(t, f.socket, "GET", "/v1/status"); !strings.Contains(body, says) {
					t.Errorf("its status does not say that %s: %s", says, body)
				}
				if code, body := get(t, f.socket, "GET", "/v1/sockets"); code != 200 {
					t.Errorf("sockets: %d %s", code, body)
				}
			case <-f.ended:
				<-heard
				if got := strings.Join(said, ""); c.want == "" || f.ProcessState.ExitCode() != exitCant || !strings.Contains(got, c.want) {
					t.Errorf("exit code %d, %s\nwant %q in it", f.ProcessState.ExitCode(), got, c.want)
				}
			case <-time.After(patience):
				t.Fatal("the agent neither starts nor ends")
			}
		})
	}
}

// What is unmounted under an agent, or becomes read-only, does not concern it.
func TestAgentUnmounted(t *testing.T) {
	ns := testutil.NewNetNS(t)
	f := trouble(t, "mount -t tmpfs none /run", agent.DefaultSocket)
	waitLine(t, f.errs, "socket: ")
	f.socket = fmt.Sprintf("/proc/%d/root%s", f.Process.Pid, agent.DefaultSocket)
	root, err := tracer.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	named := func(cgroup string) { // a process in a new cgroup takes ports
		dir := filepath.Join(root, cgroup)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(dir)
		fd, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		resp, err := overUnix(f.socket).Get(fmt.Sprintf("http://porthole/v1/events?event=bind&netns=%d", ns))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		cmd := flooder("bind", time.Second/10)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stream, line := bufio.NewReader(resp.Body), ""
		for err == nil && !strings.Contains(line, fmt.Sprintf(`"pid":%d,`, cmd.Process.Pid)) { // an earlier one's may come late
			line, err = stream.ReadString('\n')
		}
		if want := fmt.Sprintf(`"cgroup":"/%s"`, cgroup); err != nil || !strings.Contains(line, want) {
			t.Errorf("%v, %s\nwant %s in it", err, line, want)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	named(fmt.Sprintf("porthole-test-%d-before", os.Getpid()))
	script := `umount -l $(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts) && mount -o remount,ro /run`
	out, err := exec.Command("nsenter", "-m", "-t", fmt.Sprint(f.Process.Pid), "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	named(fmt.Sprintf("porthole-test-%d-after", os.Getpid()))
	if code := f.stop(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// Namespaces come and go while they are asked for: every answer is whole.
func TestAgentNamespacesVanish(t *testing.T) {
	ns := testutil.NewNetNS(t)
	here := listen(t, "127.0.0.1:0").Port
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	inodes := make(chan uint32, 1)
	churned, enough := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(churned)
		for n := 0; ; n++ {
			select {
			case <-enough:
				t.Logf("%d namespaces", n)
				return
			default:
			}
			gone := make(chan struct{})
			go func() { // its thread ends with it, and so does the namespace
				defer close(gone)
				inode := testutil.NewNetNS(t)
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case inodes <- inode:
				default:
				}
				l.Close()
			}()
			<-gone
		}
	}()
	asked, refused := 0, 0
	for inode := ns; asked < 240; {
		for _, path := range []string{
			"/v1/sockets", "/v1/headroom", "/metrics", fmt.Sprintf("/v1/sockets?netns=%d", inode),
			fmt.Sprintf("/v1/headroom?netns=%d", inode), fmt.Sprintf("/v1/headroom?netns=%d&to=127.0.0.1:80&from=127.0.0.1", inode),
		} {
			code, body := get(t, f.socket, "GET", path)
			gone := code == 400 && strings.Contains(body, "no such network namespace")
			if code != 200 && !gone || path == "/v1/sockets" && !strings.Contains(body, fmt.Sprintf(`"local_port":%d,`, here)) {
				t.Fatalf("%s: %d %s", path, code, body)
			}
			if asked++; gone {
				refused++
			}
		}
		select {
		case inode = <-inodes:
		case <-time.After(patience):
			t.Fatal("there is no other namespace")
		}
	}
	close(enough)
	<-churned
	t.Logf("%d answers, %d of them that the namespace is gone", asked, refused)
}

// Too few files at the start are told. Later the agent lives without, and goes on
// when it has them again.
func TestAgentFiles(t *testing.T) {
	testutil.NewNetNS(t)
	few := trouble(t, "ulimit -n 100", "")
	line := waitLine(t, few.errs, "porthole: ")
	hint := waitLine(t, few.errs, "  ")
	if <-few.ended; few.ProcessState.ExitCode() != exitCant || !strings.Contains(line, "100 files may be open: too many open files: an agent needs 512") || !strings.Contains(hint, "ulimit -n") {
		t.Errorf("exit code %d, %q, %q", few.ProcessState.ExitCode(), line, hint)
	}

	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	limit := func(files uint64) {
		t.Helper()
		if err := unix.Prlimit(f.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: files, Max: 1024}, nil); err != nil {
			t.Fatal(err)
		}
	}
	limit(3)
	conn, err := net.Dial("unix", f.socket) // waits to be accepted
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	awaitLine(t, f.errs, "too many open files; retrying")
	f.freeze(t, func() { overflow(t) })
	awaitLine(t, f.errs, "could not be compared with the kernel's")
	limit(1024)
	f.await(t, "/metrics", func(body string) bool {
		return metric(body, `porthole_read_errors_total{what="table"}`) > 0 && metric(body, `porthole_resyncs_total{reason="loss"}`) > 0
	})
}

// floodEnv makes this binary one that takes ports: what it does, and for how long.
const floodEnv = "PORTHOLE_TEST_FLOOD"

// flooder takes ports and gives them back as fast as it can, and then prints how often.
func flooder(how string, d time.Duration) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s", floodEnv, how, d))
	return cmd
}

// flood is what a flooder does: bind UDP sockets, connect TCP sockets that are refused,
// be refused a port that very many sockets have, or one that few have with many others.
func flood(text string) {
	var how, d string
	if _, err := fmt.Sscan(text, &how, &d); err != nil {
		panic(err)
	}
	last, err := time.ParseDuration(d)
	if err != nil {
		panic(err)
	}
	kind, call, want := unix.SOCK_DGRAM, unix.Bind, error(nil)
	to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	switch how {
	case "connect":
		kind, call, want, to.Port = unix.SOCK_STREAM, unix.Connect, unix.ECONNREFUSED, 1
	case "refused":
		want, to.Port = unix.EADDRINUSE, crowd(to.Addr, 900)
	case "held":
		want, to.Port = unix.EADDRINUSE, crowd(to.Addr, 16)
		runtime.LockOSThread() // those who share end with it
		for range 16 {
			share(last)
		}
	case "wait":
		time.Sleep(last)
		return
	}
	n := 0
	for end := time.Now().Add(last); time.Now().Before(end); n++ {
		fd, err := unix.Socket(unix.AF_INET, kind, 0)
		if err != nil {
			panic(err)
		}
		if err := call(fd, to); err != want && (err == nil || !errors.Is(err, want)) {
			panic(err)
		}
		unix.Close(fd)
	}
	fmt.Println(n)
}

// share starts a process that has every socket this one has, for a time.
func share(d time.Duration) {
	cmd := flooder("wait", d)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
}

// crowd binds so many sockets to a port, which a user may by default, and returns it.
func crowd(addr [4]byte, sockets int) (port int) {
	for range sockets {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			panic(err)
		}
		if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Addr: addr, Port: port})); err != nil {
			panic(err)
		}
		at, err := unix.Getsockname(fd)
		if err != nil {
			panic(err)
		}
		port = at.(*unix.SockaddrInet4).Port
	}
	return port
}

// Whatever a user without privileges does as fast as he can: what others do is seen or
// counted as lost, the agent's memory stays bounded, and it recovers.
func TestAgentFlooded(t *testing.T) {
	for _, how := range []string{"bind", "connect", "refused", "held"} {
		t.Run(how, func(t *testing.T) {
			ns := testutil.NewNetNS(t)
			f := trouble(t, "", "")
			waitLine(t, f.errs, "socket: ")
			resp, err := overUnix(f.socket).Get(fmt.Sprintf("http://porthole/v1/events?netns=%d&event=bind&pid=%d", ns, os.Getpid()))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			all, err := overUnix(f.socket).Get(fmt.Sprintf("http://porthole/v1/events?netns=%d", ns))
			if err != nil {
				t.Fatal(err)
			}
			defer all.Body.Close()
			if how == "held" { // else nobody reads it
				go io.Copy(io.Discard, all.Body)
			}
			cmd := flooder(how, 3*time.Second)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			ended := make(chan string, 1)
			go func() {
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Errorf("%v: %s", err, out)
				}
				ended <- strings.TrimSpace(string(out))
			}()
			const paced = 500
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for range paced {
				<-tick.C
				takePort(t)
			}
			times := <-ended
			seen, lost := 0, uint64(0)
			stream := bufio.NewReader(resp.Body)
			for !t.Failed() && uint64(seen)+lost < paced {
				line, err := stream.ReadBytes('\n')
				if err != nil {
					t.Fatalf("%v: %d binds were seen and %d events lost, of %d", err, seen, lost, paced)
				}
				var row struct {
					Lost  uint64
					Event string
				}
				if err := json.Unmarshal(line, &row); err != nil {
					t.Fatal(err)
				}
				if lost += row.Lost; row.Event == "bind" {
					seen++
				}
			}
			peak := f.peak(t)
			if peak > mostMemory {
				t.Errorf("the agent had %d MB, want at most %d", peak>>20, mostMemory>>20)
			}
			t.Logf("%s times; of %d binds %d seen, %d events lost; the agent had %d MB at most", times, paced, seen, lost, peak>>20)
			f.remembers(t)
		})
	}
}

// takePort takes a port and gives it back.
func takePort(t *testing.T) int {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).Port
}

// isOurs tells whether an answer names this process.
func isOurs(body string) bool { return strings.Contains(body, fmt.Sprintf(`"pid":%d,`, os.Getpid())) }

// remembers waits until the agent tells of a port that was taken and given back: once it
// has read what a flood has left, all is well again.
func (f *faulty) remembers(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		path := fmt.Sprintf("/v1/history?port=%d", takePort(t))
		if _, ok := f.within(t, time.Second, path, isOurs); ok {
			return
		}
	}
	t.Errorf("for %v the agent tells of no port that is taken", patience)
}

// Any user may connect to the metrics: that takes a bounded number of descriptors.
func TestAgentConnections(t *testing.T) {
	testutil.NewNetNS(t)
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	files := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", f.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	const limit = 128
	before, most := files(), 0
	var conns []net.Conn
	for range 2 * limit {
		conn, err := net.DialTimeout("unix", f.socket, time.Second)
		if err != nil {
			break // as many wait as may
		}
		defer conn.Close()
		conns = append(conns, conn)
		most = max(most, files())
	}
	for end := time.Now().Add(patience); most < before+limit && time.Now().Before(end); time.Sleep(time.Millisecond) {
		most = max(most, files())
	}
	if most > before+limit+8 || most < before+limit {
		t.Errorf("%d files are open with %d connections, want %d and %d", most, len(conns), before, limit)
	}
	for _, conn := range conns {
		conn.Close()
	}
	if code, _ := get(t, f.socket, "GET", "/readyz"); code != 200 {
		t.Errorf("then the agent answers with %d", code)
	}
}

// memoryCgroup makes a cgroup that limits memory, of either version, and returns a
// script that enters it.
func memoryCgroup(t *testing.T, limit int) string {
	t.Helper()
	root, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Join(root, file)); err != nil {
		file = "memory.max"
		if root, err = tracer.CgroupRoot(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("porthole-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(limit)), 0); err != nil {
		t.Fatal(err)
	}
	return "echo $$ > " + dir + "/cgroup.procs"
}

// One that has too little is killed by the kernel, but has said why.
func TestAgentLittleMemory(t *testing.T) {
	f := trouble(t, memoryCgroup(t, 40<<20), "")
	awaitLine(t, f.errs, "the cgroup has too little memory for an agent")
}

// An agent whose cgroup has little memory collects garbage before that is used up,
// and lives through a flood of events.
func TestAgentMemory(t *testing.T) {
	testutil.NewNetNS(t)
	const limit = 128 << 20
	f := trouble(t, memoryCgroup(t, limit), "")
	waitLine(t, f.errs, "socket: ")
	_, body := get(t, f.socket, "GET", "/metrics")
	if got := metric(body, "go_gc_gomemlimit_bytes"); got != limit-32<<20 {
		t.Errorf("the limit of Go's memory is %v, want %d", got, limit-32<<20)
	}
	out, err := flooder("refused", 2*time.Second).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	f.remembers(t)
	if code, body := get(t, f.socket, "GET", "/v1/sockets"); code != 200 {
		t.Errorf("sockets: %d %s", code, body)
	}
	t.Logf("the agent had %s at most", f.status(t, "VmHWM"))
	if code := f.stop(t); code != exitDone {
		t.Errorf("exit code %d", code)
	}
}

// awaitLine waits for a line with some words in it.
func awaitLine(t *testing.T, lines lineWriter, want string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("the agent ends and has not said %q", want)
			}
			t.Logf("agent: %s", line)
			if strings.Contains(line, want) {
				return
			}
		case <-timeout:
			t.Fatalf("no line has %q in it", want)
		}
	}
}

// A log that cannot be written, or that nobody reads, does not matter to the agent.
func TestAgentLog(t *testing.T) {
	testutil.NewNetNS(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	unread, stuck, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	defer stuck.Close()
	fd := int(stuck.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for err == nil { // until not a byte more fits
		_, err = unix.Write(fd, make([]byte, 1))
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	for name, stderr := range map[string]*os.File{"a full disk": full, "nobody reads": stuck} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "porthole.sock")
			f := &faulty{Cmd: child(t, "agent", "--socket", socket, "--web.listen-address=", "--tier", testTier()), socket: socket, ended: make(chan struct{})}
			f.Env = append(f.Env, "WATCHDOG_USEC=200000")
			f.Stderr = stderr
			if err := f.Start(); err != nil {
				t.Fatal(err)
			}
			go func() {
				f.Wait()
				close(f.ended)
			}()
			t.Cleanup(func() {
				f.Process.Kill()
				<-f.ended
			})
			for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
				if resp, err := overUnix(socket).Get("http://porthole/readyz"); err == nil {
					resp.Body.Close()
					if resp.StatusCode == http.StatusOK {
						break
					}
				}
				if time.Now().After(end) {
					t.Fatal("the agent does not become ready")
				}
			}
			f.freeze(t, func() { overflow(t) }) // something to log
			f.await(t, "/metrics", func(body string) bool { return metric(body, `porthole_resyncs_total{reason="loss"}`) > 0 })
			if code := f.stop(t); code != exitDone {
				t.Errorf("exit code %d", code)
			}
		})
	}
}
