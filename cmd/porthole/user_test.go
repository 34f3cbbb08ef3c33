package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/testutil"
)

// bound makes a socket that has a port and neither listens nor is connected.
func bound(t *testing.T, typ int, addr string, port int, prepare func(fd int) error) {
	t.Helper()
	family, to := unix.AF_INET6, unix.Sockaddr(nil)
	if ip := net.ParseIP(addr); ip.To4() != nil {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte(ip.To4()), Port: port}
	} else {
		to = &unix.SockaddrInet6{Addr: [16]byte(ip), Port: port}
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if prepare != nil {
		if err := prepare(fd); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(fd, to); err != nil {
		t.Fatal(err)
	}
}

// populate makes sockets of each kind.
func populate(t *testing.T) {
	t.Helper()
	server := listen(t, "127.0.0.1:20101")
	listen(t, "[::1]:20101")
	listen(t, "[::]:20102")
	for i := range 3 {
		c, err := net.DialTCP("tcp", nil, server)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte(strings.Repeat("x", 10*i))); err != nil {
			t.Fatal(err)
		}
	}
	only := func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1) }
	bound(t, unix.SOCK_DGRAM, "0.0.0.0", 20201, nil)
	bound(t, unix.SOCK_DGRAM, "::", 20202, only)
	bound(t, unix.SOCK_DGRAM, "127.0.0.1", 20203, func(fd int) error { return unix.BindToDevice(fd, "lo") })
	conn, err := net.Dial("udp", "127.0.0.1:20201")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if newerThan68(t) {
		bound(t, unix.SOCK_STREAM, "127.0.0.1", 20301, nil)
	}
}

func newerThan68(t *testing.T) bool {
	t.Helper()
	var uts unix.Utsname
	var major, minor int
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 8
}

// known are the rows of ls --json as far as a user may know them.
func known(t *testing.T, out string) []string {
	t.Helper()
	var rows []string
	for line := range strings.Lines(out) {
		var s render.Socket
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		rows = append(rows, fmt.Sprint(s.Proto, s.State, s.Role, s.LocalIP, s.LocalPort, s.RemoteIP, s.RemotePort, s.Device, s.NetNS, s.Cookie, s.Inode, s.V6Only && s.State != "ESTAB", backlog(&s)))
	}
	slices.Sort(rows)
	return rows
}

func backlog(s *render.Socket) string {
	if s.Backlog == nil {
		return ""
	}
	return fmt.Sprint(*s.Backlog, *s.BacklogMax)
}

// Without privileges and without an agent the same sockets of the namespace are shown, with what any
// user may know of them, and it is said that this is not all.
func TestKernelUserSockets(t *testing.T) {
	ns := testutil.NewNetNS(t)
	populate(t)
	all, _, _ := command(t, "ls", "--json", "--netns", fmt.Sprint(ns))
	out, errs, code := asNobody(t, nil, "ls", "--json")
	if code != exitDone || !strings.Contains(errs, "CAP_BPF") || !strings.Contains(errs, "of this user") {
		t.Errorf("exit code %d, stderr %q", code, errs)
	}
	if strings.Count(out, `"partial":true`) != strings.Count(out, "\n") || strings.Contains(out, `"pid"`) {
		t.Errorf("rows are not marked, or have holders of another user:\n%s", out)
	}
	got, want := known(t, out), known(t, all)
	if len(want) < 13 || !slices.Equal(got, want) {
		t.Errorf("a user sees\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"ls -i :20101 -sTCP:LISTEN", exitDone, "127.0.0.1:20101"},
		{"who 20102", exitDone, "a process of another user listens on *:20102"},
		{"who 20109", exitNo, "nothing uses 20109/tcp or 20109/udp in this network namespace"},
		{"who 20108-20109", exitNo, "nothing uses ports 20108-20109 in this network namespace"},
		{"who 20109 --json", exitNo, `"partial":true`},
		{"headroom --to 127.0.0.1:20101", exitDone, "127.0.0.1:20101"},
		{"check 20102", exitNo, "address already in use (EADDRINUSE)\nin the way, as far as"},
		{"check 20109", exitDone, "would succeed"},
		{"check 80", exitNo, "EACCES"},
		{"check 127.0.0.1 20101", exitDone, "connected from"},
		{"wait 20102/tcp 20101", exitDone, "20102/tcp: somebody listens"},
		{"wait 20109 --timeout 10ms", exitNo, "nobody listened within"},
		{"wait 20109 --free", exitDone, "nobody listens"},
		{"free", exitDone, "\n"},
		{"wait 20101/tcp --free --pid 1 --timeout 0", exitCant, ""}, {"wait 20101/tcp --free --comm python3 --timeout 0", exitCant, ""},
		{"ls --unit x", exitCant, ""}, {"ls --agent", exitCant, ""}, {"tail", exitCant, ""}, {"diff /dev/null", exitCant, ""},
	} {
		out, errs, code := asNobody(t, nil, strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out, c.want) || c.want == "" && out != "" {
			t.Errorf("%s: exit code %d, want %d, and %q in\n%s\nstderr %s", c.args, code, c.code, c.want, out, errs)
		}
	}
}

// The processes of the user himself are shown as those that hold his sockets.
func TestKernelUserHolders(t *testing.T) {
	testutil.NewNetNS(t)
	cmd := exec.Command("/usr/bin/python3", "-c", `import socket, sys
s = socket.create_server(("127.0.0.1", 20101)); print(s.fileno(), flush=True); sys.stdin.read()`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	var fd int
	if _, err := fmt.Fscan(out, &fd); err != nil {
		t.Fatal(err)
	}
	rows, _, _ := asNobody(t, nil, "ls", "--json", "--comm", "python3")
	if want := fmt.Sprintf(`"holders":[{"pid":%d,"comm":"python3","fd":%d}]`, cmd.Process.Pid, fd); !strings.Contains(rows, want) {
		t.Errorf("want %s in\n%s", want, rows)
	}
	text, _, _ := asNobody(t, nil, "who", "20101")
	for _, want := range []string{fmt.Sprintf("python3 (pid %d, user nobody)", cmd.Process.Pid), "listens on 127.0.0.1:20101", "create_server"} {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in\n%s", want, text)
		}
	}
}
