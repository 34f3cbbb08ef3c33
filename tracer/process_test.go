package tracer

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// helpers are what a child of the tests can do; see TestMain. Sockets are from
// descriptor 3 on.
var helpers = map[string]func() error{
	"bind-privileged":     helperBindPrivileged,
	"accept":              helperAccept,
	"exit":                helperExit,
	"hang":                helperHang,
	"churn":               helperChurn,
	"connect-refused":     helperConnectRefused,
	"bind-refused":        helperBindRefused,
	"udp-connect-refused": helperUDPConnectRefused,
	"worker":              helperWorker,
	"motion-churn":        helperMotionChurn,
	"motion-files":        helperMotionFiles,
	"motion-fork":         helperMotionFork,
	"motion-leader":       helperMotionLeader,
	"motion-tables":       helperMotionTables,
	"motion-pass":         helperMotionPass,
}

// helperAccept takes one connection from the listener it inherited.
func helperAccept() error {
	fd, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, 3, 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

// helperExit binds a port and exits at once.
func helperExit() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Port: 7001, Addr: [4]byte{127, 0, 0, 1}})
}

// helperHang connects to port 9000, says so on descriptor 3, and waits to be
// killed.
func helperHang() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 9000, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if _, err := unix.Write(3, []byte("x")); err != nil {
		return err
	}
	_, err = unix.Poll(nil, -1)
	return err
}

// helperChurn opens and closes connections to its own listener, keeping a few,
// until it is killed.
func helperChurn() error {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Port: 9000, Addr: [4]byte{127, 0, 0, 1}}
	if err := errors.Join(unix.Bind(l, to), unix.Listen(l, 128)); err != nil {
		return err
	}
	var kept []int
	for {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(c, to); err != nil {
			return err
		}
		s, _, err := unix.Accept(l)
		if err != nil {
			return err
		}
		if kept = append(kept, s, c); len(kept) > 40 { // the server closes first: TIME-WAIT takes no client port
			unix.Close(kept[0])
			unix.Close(kept[1])
			kept = kept[2:]
		}
	}
}

// A child accepts on the listener its parent opened.
func TestKernelAcceptInChild(t *testing.T) {
	r := record(t, Config{})
	l, to := r.listener(unix.AF_INET, "127.0.0.1:0")
	r.events(0)
	cmd := r.child("accept", l)
	client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(client, to)
	from := r.local(client)
	child := r.wait(cmd)
	r.awaitClosed(client)
	r.close(client)
	r.expectBy([]int{os.Getpid(), child, child, os.Getpid()},
		fmt.Sprintf("connect tcp %s > %s", from, to), fmt.Sprintf("accept tcp %s > %s", to, from),
		closeLine("server time_wait", from, to), closeLine("client", from, to))
}

// accept() was waiting before porthole started.
func TestKernelAcceptBlockedBefore(t *testing.T) {
	r := idle(t)
	l, to := r.listener(unix.AF_INET, "127.0.0.1:0")
	cmd := r.child("accept", l)
	awaitBlocked(t, cmd.Process.Pid)
	r.start(Config{})
	client := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.connect(client, to)
	from := r.local(client)
	child := r.wait(cmd)
	got := r.events(0)
	if len(got) < 2 || line(&got[1]) != fmt.Sprintf("accept tcp %s > %s", to, from) || int(got[1].Process.PID) != child {
		t.Fatalf("got\n%s\nwant an accept by %d second", lines(got), child)
	}
}

// A process that lives a millisecond is named, and its sockets close with it.
func TestKernelShortLived(t *testing.T) {
	r := record(t, Config{})
	for range rounds {
		pid := r.wait(r.child("exit"))
		got := r.expect(pid, "bind tcp 127.0.0.1:7001 asked 7001", "close tcp 127.0.0.1:7001")
		comm, err := os.ReadFile("/proc/self/comm")
		if err != nil {
			t.Fatal(err)
		}
		if got[0].Process.Comm+"\n" != string(comm) || got[0].Process.Start == 0 {
			t.Fatalf("by %+v, want name %q and a start time", got[0].Process, comm)
		}
	}
}

// SIGKILL closes like any exit.
func TestKernelKilled(t *testing.T) {
	r := record(t, Config{})
	l, to := r.listener(unix.AF_INET, "127.0.0.1:9000")
	r.events(0)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	cmd := r.child("hang", pipe[1])
	server := r.accept(l)
	if _, err := unix.Read(pipe[0], make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // says that it was killed
	r.awaitClosed(server)
	from := peerOf(t, server)
	r.close(server)
	r.expectBy([]int{cmd.Process.Pid, os.Getpid(), cmd.Process.Pid, os.Getpid()},
		fmt.Sprintf("connect tcp %s > %s", from, to), fmt.Sprintf("accept tcp %s > %s", to, from),
		closeLine("client time_wait", from, to), closeLine("server", from, to))
}

// A thread acts, the process is named: its leader's pid and name.
func TestKernelThread(t *testing.T) {
	r := record(t, Config{})
	if unix.Gettid() == os.Getpid() {
		t.Fatal("the test runs on the main thread; it must not")
	}
	if err := unix.Prctl(unix.PR_SET_NAME, uintptrOf("a-thread\x00"), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
	r.bind(fd, "127.0.0.1:7001")
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	got := r.expect(os.Getpid(), "bind tcp 127.0.0.1:7001 asked 7001")
	if got[0].Process.Comm+"\n" != string(comm) {
		t.Errorf("by %q, want %q", got[0].Process.Comm, comm)
	}
	r.close(fd)
}

func peerOf(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getpeername(fd)
	if err != nil { // reset meanwhile
		t.Fatalf("getpeername: %v", err)
	}
	a := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
}
