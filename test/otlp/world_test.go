package otlp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// TestMain is what is run in a unit or a pod as well.
func TestMain(m *testing.M) {
	if job := os.Getenv("OTLP_TEST_JOB"); job != "" {
		if err := work(strings.Fields(job)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	leave := ownCgroup()
	code := m.Run()
	leave()
	os.Exit(code)
}

// ownCgroup moves the process into a cgroup of its own, because the history has a budget for each. It returns what moves it back.
func ownCgroup() func() {
	root, err := cgroup2()
	if err != nil {
		return func() {} // the agent says so
	}
	had, _ := os.ReadFile("/proc/self/cgroup")
	back := root
	for line := range strings.Lines(string(had)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			back = filepath.Join(root, path)
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("porthole-test-otlp-%d", os.Getpid()))
	enter := func(dir string) error { return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0) }
	if os.Mkdir(dir, 0o755) != nil || enter(dir) != nil {
		_ = os.Remove(dir)
		return func() {}
	}
	return func() {
		_ = enter(back)
		_ = os.Remove(dir)
	}
}

// work does what processes elsewhere are to do.
func work(job []string) error {
	n, err := strconv.Atoi(job[len(job)-1])
	if err != nil {
		return err
	}
	switch job[0] {
	case "binds": // are refused
		return refusedBinds(n)
	case "exhaust": // connects until there are no ports left, then n times more
		return exhaust(job[1], n)
	}
	return fmt.Errorf("no such job: %v", job)
}

func refusedBinds(n int) error {
	fd, port, err := bound(0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	for range n {
		if fd, _, err := bound(port); err == nil {
			syscall.Close(fd)
			return fmt.Errorf("port %d could be bound twice", port)
		}
	}
	return nil
}

// bound is a TCP socket that is bound to a port of every address.
func bound(port uint16) (fd int, got uint16, err error) {
	return testutil.BoundTCP(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
}

// exhaust leaves no ephemeral port towards a destination, then tries to connect to it n times more.
func exhaust(to string, n int) error {
	const ports = 4
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40003"), 0); err != nil {
		return err
	}
	l, err := net.Listen("tcp4", to)
	if err != nil {
		return err
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr)
	to4 := &syscall.SockaddrInet4{Addr: [4]byte(at.IP.To4()), Port: at.Port}
	refused := 0
	for range ports + n { // not by package net, which tries again
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		if err := syscall.Connect(fd, to4); err == syscall.EADDRNOTAVAIL {
			refused++
		} else if err != nil {
			return err
		}
	}
	if refused != n {
		return fmt.Errorf("%d of %d connects were refused, want %d", refused, ports+n, n)
	}
	return nil
}

// world is a network namespace of its own, of a thread.
type world struct {
	*testing.T
	netns uint64
	do    chan func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, do: make(chan func())}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Stat("/proc/thread-self/ns/net", &st)
		}
		w.netns = st.Ino
		failed <- err
		for f := range w.do {
			f()
		}
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(w.do) })
	return w
}

// in does something in the namespace.
func (w *world) in(f func() error) {
	w.Helper()
	done := make(chan error, 1)
	w.do <- func() { done <- f() }
	if err := <-done; err != nil {
		w.Fatal(err)
	}
}

// sockets makes so many listeners, one after the other, and a bind that is refused for each.
func (w *world) sockets(n int) {
	w.Helper()
	w.in(func() error {
		for range n {
			fd, port, err := bound(0)
			if err != nil {
				return err
			}
			if err := syscall.Listen(fd, 1); err != nil {
				return err
			}
			if _, _, err := bound(port); err == nil {
				return fmt.Errorf("port %d could be bound twice", port)
			}
			if err := syscall.Close(fd); err != nil {
				return err
			}
		}
		return nil
	})
}

// listen listens on a port, and is closed again.
func (w *world) listen(port uint16) {
	w.Helper()
	w.in(func() error {
		fd, _, err := bound(port)
		if err == nil {
			err = syscall.Listen(fd, 1)
		}
		if err == nil {
			err = syscall.Close(fd)
		}
		return err
	})
}

// cgroup2 is where the hierarchy is mounted.
func cgroup2() (string, error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("no cgroup2 is mounted")
}

// inUnit does a job in the cgroup that systemd would give a service.
func inUnit(t *testing.T, unit string, job ...string) {
	t.Helper()
	root, err := cgroup2()
	if err != nil {
		t.Fatal(err)
	}
	slice := filepath.Join(root, "system.slice")
	_, err = os.Stat(slice)
	made := os.IsNotExist(err)
	dir := filepath.Join(slice, unit)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(dir)
		if made {
			_ = os.Remove(slice)
		}
	})
	group, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "OTLP_TEST_JOB="+strings.Join(job, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd()), Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", job, err, out)
	}
}

// inPod does a job in a container of containerd's, with the annotations of CRI.
func inPod(t *testing.T, namespace, pod string, job ...string) {
	t.Helper()
	dir := t.TempDir()
	const state = "/run/k0s/containerd" // one of the places that k0s and others have theirs in, and most machines have not
	if _, err := os.Stat(state); err == nil {
		t.Fatalf("%s is there already", state)
	}
	t.Cleanup(func() {
		_ = os.RemoveAll(state)
		_ = os.Remove(filepath.Dir(state))
	})
	socket := filepath.Join(dir, "containerd.sock")
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", filepath.Join(dir, "root"), state, socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctr := func(args ...string) (string, error) {
		out, err := exec.Command("timeout", append([]string{"60", "ctr", "-a", socket, "-n", "k8s.io"}, args...)...).CombinedOutput()
		return string(out), err
	}
	containerd := &server{
		t: t, name: "containerd", args: []string{"-c", config}, log: filepath.Join(dir, "containerd.log"),
		ready: func() bool { _, err := ctr("version"); return err == nil },
	}
	containerd.start()
	t.Cleanup(containerd.kill)
	root := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "work"), own, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	out, err := ctr("run", "--rm", "--privileged", "--rootfs", "--env", "OTLP_TEST_JOB="+strings.Join(job, " "),
		"--annotation", "io.kubernetes.cri.sandbox-name="+pod, "--annotation", "io.kubernetes.cri.sandbox-namespace="+namespace,
		"--annotation", "io.kubernetes.cri.sandbox-uid=uid-of-"+pod, "--annotation", "io.kubernetes.cri.container-name=api",
		"--annotation", "io.kubernetes.cri.container-type=container", root, id, "/work")
	if err != nil {
		t.Fatalf("ctr run: %v: %s", err, out)
	}
}
