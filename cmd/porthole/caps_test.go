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
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// argsEnv makes this binary porthole itself, with the arguments in it.
const argsEnv = "PORTHOLE_TEST_ARGS"

func TestMain(m *testing.M) {
	if text := os.Getenv(floodEnv); text != "" {
		flood(text)
		return
	}
	if filepath.Base(os.Args[0]) == "porthole" { // by a link
		os.Exit(runAlone(&env{unasked: true}, os.Args[1:]))
	}
	var args []string
	if text := os.Getenv(argsEnv); text != "" {
		if err := json.Unmarshal([]byte(text), &args); err != nil {
			panic(err)
		}
		os.Exit(runAlone(&env{unasked: true}, args))
	}
	if name := os.Getenv(hostileEnv); name != "" {
		if err := hostileMain(name); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	if name := os.Getenv(ownerEnv); name != "" {
		if err := ownerMain(name); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	if long := os.Getenv(loadEnv); long != "" {
		if err := loadMain(long); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child is porthole as a process of its own.
func child(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe") // in a directory that nobody may enter
	cmd.Env = append(os.Environ(), argsEnv+"="+string(text))
	return cmd
}

// asNobody runs porthole as user 65534 with these capabilities and no others.
func asNobody(t *testing.T, caps []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := child(t, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	for _, name := range caps {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, map[string]uintptr{
			"CAP_BPF": unix.CAP_BPF, "CAP_PERFMON": unix.CAP_PERFMON, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN,
			"CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
		}[name])
	}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// With exactly the capabilities that docs/limits.md names every command works; with
// one less it fails, or says what it cannot tell, or what any user may know, and names the one.
func TestKernelLeastPrivilege(t *testing.T) {
	testutil.NewNetNS(t)
	port := fmt.Sprint(listen(t, "127.0.0.1:0").Port)
	var r doctor.Report
	out, _, _ := command(t, "doctor", "--json", "--tier", testTier())
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("doctor: %v in %q", err, out)
	}
	snapshot := []string{"CAP_BPF", "CAP_PERFMON"}
	if oldMemlock(t) {
		snapshot = append(snapshot, "CAP_SYS_RESOURCE")
	}
	trace := snapshot
	if r.Tier != tracer.TierFentry {
		trace = append(slices.Clone(snapshot), "CAP_NET_ADMIN")
	}
	for _, c := range []struct {
		need []string
		args []string
	}{
		{append(slices.Clone(snapshot), "CAP_DAC_READ_SEARCH"), []string{"who", port}},
		{trace, []string{"tail", "--tier", testTier(), "--duration", "10ms"}},
	} {
		if _, errs, code := asNobody(t, c.need, c.args...); code != exitDone ||
			strings.Contains(errs, "CAP_") && slices.Contains(c.need, "CAP_DAC_READ_SEARCH") {
			t.Errorf("%v with %v: exit code %d, %s", c.args, c.need, code, errs)
		}
		for _, less := range c.need {
			some := slices.DeleteFunc(slices.Clone(c.need), func(name string) bool { return name == less })
			want := exitCant
			if c.args[0] == "who" {
				want = exitDone
			}
			if _, errs, code := asNobody(t, some, c.args...); code != want || !strings.Contains(errs, less) {
				t.Errorf("%v without %s: exit code %d, want %d: %s", c.args, less, code, want, errs)
			}
		}
	}
}

// oldMemlock tells whether BPF maps count as locked memory, as before Linux 5.11,
// and then sets the limit of it to what it is by default until the test ends:
// children inherit it, and commands in this process have lifted it.
func oldMemlock(t *testing.T) bool {
	t.Helper()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(unix.ByteSliceToString(uts.Release[:]), "5.10.") {
		return false
	}
	var lifted unix.Rlimit
	usual := unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}
	if err := errors.Join(unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lifted), unix.Setrlimit(unix.RLIMIT_MEMLOCK, &usual)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &lifted); err != nil {
			t.Error(err)
		}
	})
	return true
}

// An agent that is ready has given up, in every thread, what it needs no more; all of
// it works.
func TestKernelAgentConfined(t *testing.T) {
	ns := testutil.NewNetNS(t)
	port := listen(t, "127.0.0.1:0").Port
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	resp, err := overUnix(f.socket).Get(fmt.Sprintf("http://porthole/v1/events?netns=%d&event=bind,close", ns))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	taken := takePort(t)
	lines := bufio.NewReader(resp.Body)
	for _, event := range []string{"bind", "close"} {
		line, err := lines.ReadString('\n')
		want := fmt.Sprintf(`"event":%q,"proto":"udp","local_ip":"127.0.0.1","local_port":%d,`, event, taken)
		if err != nil || !strings.Contains(line, want) {
			t.Errorf("%v, %s\nwant %s in it", err, line, want)
		}
	}
	for _, c := range []struct {
		path string
		code int
		want string
	}{
		{fmt.Sprintf("/v1/sockets?netns=%d", ns), 200, fmt.Sprintf(`"local_port":%d,`, port)},
		{fmt.Sprintf("/v1/ports/%d", port), 200, fmt.Sprintf(`"pid":%d,`, os.Getpid())},
		{fmt.Sprintf("/v1/history?port=%d", taken), 200, fmt.Sprintf(`"pid":%d,`, os.Getpid())},
		{fmt.Sprintf("/v1/headroom?netns=%d", ns), 200, fmt.Sprintf(`"netns":%d,`, ns)},
		{fmt.Sprintf("/v1/headroom?netns=%d&to=127.0.0.1:80", ns), 200, `"local_ip":"127.0.0.1"`},
		{"/v1/sockets?netns=host", 200, ""},
		{"/v1/status", 200, `"ready":true`},
		{"/metrics", 200, `porthole_read_errors_total{what="ports"} 0`},
	} {
		if code, body := get(t, f.socket, "GET", c.path); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s\nwant %d and %s in it", c.path, code, body, c.code, c.want)
		}
	}
	kept := fmt.Sprintf("%016x", 1<<unix.CAP_BPF|1<<unix.CAP_DAC_READ_SEARCH)
	none := fmt.Sprintf("%016x", 0)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", f.Process.Pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, path := range threads {
		for key, want := range map[string]string{
			"CapEff": kept, "CapPrm": kept, "CapInh": none, "CapAmb": none, "CapBnd": none, "NoNewPrivs": "1",
		} {
			if got := statusOf(t, path, key); got != want {
				t.Errorf("%s: %s %s, want %s", path, key, got, want)
			}
		}
	}
}

// A confined agent cannot enter another namespace, and says what helps.
func TestKernelAgentConfinedElsewhere(t *testing.T) {
	testutil.NewNetNS(t)
	f := trouble(t, "", "")
	waitLine(t, f.errs, "socket: ")
	elsewhere := func(name string) uint32 {
		inode := make(chan uint32)
		keep := make(chan struct{})
		t.Cleanup(func() { close(keep) })
		go func() {
			ns := testutil.NewNetNS(t)
			if name != "" {
				testutil.NameNetNS(t, name)
			}
			inode <- ns
			<-keep
		}()
		return <-inode
	}
	other, named := elsewhere(""), elsewhere(fmt.Sprintf("confined-%d", os.Getpid())) // of which a file is found, and entering it is refused
	for _, c := range []struct {
		path string
		code int
		want string
	}{
		{fmt.Sprintf("/v1/headroom?netns=%d&to=127.0.0.1:80&from=127.0.0.1", other), 200, `"local_ip":"127.0.0.1"`},
		{fmt.Sprintf("/v1/headroom?netns=%d&to=127.0.0.1:80", other), 403, "not permitted: an agent has given up what that takes; give it from, the local address"},
		{fmt.Sprintf("/v1/headroom?netns=%d&to=127.0.0.1:80&from=127.0.0.1", named), 200, `"local_ip":"127.0.0.1"`},
		{fmt.Sprintf("/v1/headroom?netns=%d&to=127.0.0.1:80", named), 403, "not permitted: that takes CAP_SYS_ADMIN: an agent has given up what that takes; give it from, the local address"},
	} {
		if code, body := get(t, f.socket, "GET", c.path); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s\nwant %d and %s in it", c.path, code, body, c.code, c.want)
		}
	}
}
