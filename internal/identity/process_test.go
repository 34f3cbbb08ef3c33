package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// startOf is the start time of a process as the kernel's programs would tell it, to a tick.
func startOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	st, err := parseStat(b)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(st.start)*tick - bootShift()
}

// child starts a process that waits, with these arguments behind its own.
func child(t *testing.T, args ...string) tracer.Process {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.Args = append([]string{"sleep", "600"}, args...)
	if len(args) > 0 { // which sleep would not take
		cmd = exec.Command("sh", append([]string{"-c", "echo; read wait", "sh"}, args...)...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close() })
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// In the midst of execve(2) a process has no command line.
	testutil.Await(t, "the command line of the child", func() bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		return err != nil || len(line) > 0
	})
	return tracer.Process{PID: uint32(cmd.Process.Pid), Start: startOf(t, cmd.Process.Pid)}
}

func TestProcess(t *testing.T) {
	p := child(t)
	got, err := NewProcesses(true).Look(p)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(got.Exe, "/sleep") && !strings.HasSuffix(got.Exe, "/coreutils") || !slices.Equal(got.Args, []string{"sleep", "600"}) || got.ArgsCut || got.ArgsErr != nil {
		t.Errorf("program %q, arguments %q", got.Exe, got.Args)
	}
	if age := time.Since(got.Started); age < -time.Second || age > time.Minute {
		t.Errorf("started %v", got.Started)
	}
	if got.PPID != uint32(os.Getpid()) || len(got.Parents) == 0 || got.Parents[0].PID != uint32(os.Getpid()) || got.Parents[0].Comm == "" {
		t.Errorf("parent %d, parents %+v, want this process first", got.PPID, got.Parents)
	}
	if again, err := NewProcesses(true).Look(p); err != nil || !again.Started.Round(10*time.Millisecond).Equal(got.Started.Round(10*time.Millisecond)) {
		t.Errorf("started %v, then %v: %v", got.Started, again.Started, err)
	}
	if without, err := NewProcesses(false).Look(p); err != nil || without.Args != nil || without.Exe == "" {
		t.Errorf("without arguments: %+v, %v", without, err)
	}
}

// The data of a process that got the pid of another is not told of that.
func TestProcessAnother(t *testing.T) {
	p := child(t)
	p.Start -= 5 * tick
	if got, err := NewProcesses(true).Look(p); !errors.Is(err, ErrProcessGone) || got.Exe != "" || got.Args != nil || got.Parents != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := NewProcesses(true).Look(tracer.Process{PID: 1 << 22}); !errors.Is(err, ErrProcessGone) {
		t.Errorf("a pid that nobody has: %v", err)
	}
}

// Command lines are whatever users like.
func TestProcessHostileArgs(t *testing.T) {
	hostile := "a\x1b[2J\xff\u202e"
	long := strings.Repeat("x", 64<<10)
	got, err := NewProcesses(true).Look(child(t, hostile, long))
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for _, a := range got.Args {
		size += len(a) + 1
	}
	if !slices.Contains(got.Args, hostile) || !got.ArgsCut || size > maxArgs+1 {
		t.Errorf("%d bytes, cut %v", size, got.ArgsCut)
	}
}

// A command line that does not come holds nobody up, and after some have not come nobody waits.
func TestProcessStuck(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "5")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	stat := "5 (a) b) S 0 " + strings.Repeat("0 ", 17) + "700 " + strings.Repeat("0 ", 30)
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "cmdline") // to open it waits for a writer
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	ps := NewProcesses(true)
	ps.root, ps.shift = root, 0
	begin := time.Now()
	for range 3 * maxStuck {
		got, err := ps.Look(tracer.Process{PID: 5, Start: 700 * tick})
		if err != nil || got.ArgsErr == nil || got.Args != nil {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	if took := time.Since(begin); took > 2*maxStuck*argsWithin {
		t.Errorf("it took %v", took)
	}
	for range maxStuck { // lets them end
		w, err := os.OpenFile(fifo, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if _, err := w.WriteString("x\x00"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestForwardOf(t *testing.T) {
	for _, c := range []struct {
		args  string
		proto tracer.Proto
		port  uint16
		want  Forward
	}{
		{"/usr/bin/docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80", tracer.TCP, 8080, Forward{By: "docker-proxy", To: addrPort("172.17.0.2:80")}},
		{"docker-proxy --container-ip=fd00::2 --container-port=80", tracer.TCP, 8080, Forward{By: "docker-proxy", To: addrPort("[fd00::2]:80")}},
		{"docker-proxy -container-ip bad", tracer.TCP, 8080, Forward{By: "docker-proxy"}},
		{"/usr/bin/conmon --api-version 1 -c 8d2f -u 8d2f -r /usr/bin/crun -n shop-api --exit-dir /run --exit-command /usr/bin/podman", tracer.TCP, 8080, Forward{By: "conmon", ContainerID: "8d2f", Container: "shop-api", Runtime: "podman"}},
		{"/usr/bin/pasta --config-net -t 8080-8081:80-81 -t 127.0.0.1/9000:90 -u none --netns /run/user/1000/netns/x", tracer.TCP, 8081, Forward{By: "pasta", To: addrPort(":81"), NetNSFile: "/run/user/1000/netns/x"}},
		{"pasta -t 8080-8081:80-81 -t 127.0.0.1/9000:90 --netns /x", tracer.TCP, 9000, Forward{By: "pasta", To: addrPort(":90"), NetNSFile: "/x"}},
		{"pasta -t 8080 -u 53:5353 --netns /x", tracer.UDP, 53, Forward{By: "pasta", To: addrPort(":5353"), NetNSFile: "/x"}},
		{"pasta -t auto --netns /x", tracer.TCP, 80, Forward{By: "pasta", NetNSFile: "/x"}},
		{"slirp4netns --mtu=65520 -c -r 3 --netns-type=path /run/user/1000/netns/cni tap0", tracer.TCP, 80, Forward{By: "slirp4netns", NetNSFile: "/run/user/1000/netns/cni"}},
		{"rootlessport", tracer.TCP, 80, Forward{By: "rootlessport"}},
	} {
		got, ok := ForwardOf("", strings.Fields(c.args), c.proto, addrPort(fmt.Sprintf(":%d", c.port)))
		if !ok || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.args, got, ok, c.want)
		}
	}
	if f, ok := ForwardOf("nginx", []string{"nginx: worker"}, tracer.TCP, addrPort(":80")); ok {
		t.Errorf("nginx leads to %+v", f)
	}
	if f, ok := ForwardOf("docker-proxy", nil, tracer.TCP, addrPort(":80")); !ok || f.By != "docker-proxy" {
		t.Errorf("without arguments: %+v, %v", f, ok)
	}
}

func TestTrieHas(t *testing.T) {
	trie := []byte("Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.88.0.0\n        /16 link UNICAST\n     |-- 10.88.0.5\n        /32 host LOCAL\n     |-- 10.88.255.255\n        /32 link BROADCAST\n")
	for addr, want := range map[string]bool{"10.88.0.5": true, "10.88.0.0": false, "10.88.255.255": false, "10.88.0.50": false} {
		if got := trieHas(trie, addrPort(addr+":1").Addr()); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

// addrPort reads an address and port; no address: the port alone.
func addrPort(s string) netip.AddrPort {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			panic(err)
		}
		return netip.AddrPortFrom(netip.Addr{}, uint16(n))
	}
	return netip.MustParseAddrPort(s)
}
