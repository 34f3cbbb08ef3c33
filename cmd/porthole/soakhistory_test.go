package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// soakFlood makes connections to a listener of its own, binds that are refused and others, as fast as it can.
const soakFlood = `import socket
l = socket.create_server(("127.0.0.1", 0), backlog=64); at = l.getsockname()
while True:
    for n in range(100):
        c = socket.create_connection(at); a, _ = l.accept()
        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"); c.close(); a.close() # with a reset: no port waits
    for n in range(10):
        try: socket.create_server(at)
        except OSError: pass
        socket.create_server(("127.0.0.1", 0)).close()
`

// soakDisk is a file system of the test's own, and what fills it up.
func soakDisk(t *testing.T) (dir string, fill, free func()) {
	t.Helper()
	dir = t.TempDir()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16M"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	fill = func() {
		f, err := os.Create(ballast)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 1<<12))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return dir, fill, func() { os.Remove(ballast) }
}

// An agent whose disk fills up again and again, while connections, refused binds and clients flood it: it answers all
// the time, what it cannot write is counted, it writes again once it can, listeners of the test are in its history, and
// neither its memory nor the history grow. For as long as PORTHOLE_SOAK says; without it two rounds are enough.
func TestSoakHistory(t *testing.T) {
	testutil.NewNetNS(t)
	end := time.Now()
	if text := os.Getenv("PORTHOLE_SOAK"); text != "" {
		long, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		end = end.Add(long)
	}
	dir, fill, free := soakDisk(t)
	socket := filepath.Join(t.TempDir(), "s")
	history := filepath.Join(dir, "history")
	agent := child(t, "agent", "--socket", socket, "--web.listen-address=", "--tier", testTier(), "--history.dir", history, "--history.max-size", "8MiB")
	log := new(bytes.Buffer)
	out, err := agent.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Process.Kill() })
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		log.ReadFrom(out)
	}()
	testutil.Await(t, "the agent", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	testutil.Await(t, "every socket is known", func() bool {
		code, _ := get(t, socket, "GET", "/readyz")
		return code == 200
	})
	// In a cgroup of its own: what a flood may take of the history is that of its cgroup.
	own, err := ownCgroup()
	if err != nil {
		t.Fatal(err)
	}
	cgroup := filepath.Join(own, fmt.Sprintf("porthole-soak-%d", os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(cgroup) })
	in, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	flooding := exec.Command("python3", "-c", soakFlood)
	flooding.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.Fd())}
	if err := flooding.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flooding.Process.Kill(); flooding.Wait() })
	unread, err := net.Dial("unix", socket) // a client that asks for every event and reads none
	if err != nil {
		t.Fatal(err)
	}
	defer unread.Close()
	fmt.Fprintf(unread, "GET /v1/events HTTP/1.1\r\nHost: porthole\r\n\r\n")

	metric := func(name string) float64 {
		t.Helper()
		_, body := get(t, socket, "GET", "/metrics")
		for line := range strings.Lines(body) {
			if text, ok := strings.CutPrefix(line, name+" "); ok {
				v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}
	const records, full = "porthole_history_records_total", `porthole_history_lost_total{reason="full"}`
	var seen []int // ports of listeners that the history has to have
	most, told := 0, time.Now()
	for round := 0; round < 2 || time.Now().Before(end); round++ {
		fill()
		before := metric(full)
		testutil.Await(t, "what does not fit is counted", func() bool { return metric(full) > before })
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if code, body := get(t, socket, "GET", "/v1/history?limit=20&failures=true"); code != 200 || strings.Count(body, "\n") != 20 {
			t.Errorf("round %d, the disk is full: history answers %d, %d lines", round, code, strings.Count(body, "\n"))
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("round %d: an answer takes %v while the disk is full", round, took)
		}
		free()
		before = metric(records)
		testutil.Await(t, "it is written again", func() bool { return metric(records) > before })
		l.Close()
		m, err := net.Listen("tcp4", "127.0.0.1:0") // now that there is room
		if err != nil {
			t.Fatal(err)
		}
		port := m.Addr().(*net.TCPAddr).Port
		m.Close()
		testutil.Await(t, "a listener is in the history", func() bool {
			_, body := get(t, socket, "GET", fmt.Sprintf("/v1/history?port=%d&listeners=true&limit=5", port))
			return strings.Contains(body, fmt.Sprintf(`"pid":%d,`, os.Getpid()))
		})
		seen = append(seen, port)
		size := int64(0)
		files, err := os.ReadDir(history)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				size += info.Size()
			}
		}
		if size > 8<<20 {
			t.Errorf("round %d: the history has %d bytes", round, size)
		}
		rss := residentKB(t, agent.Process.Pid)
		switch {
		case round < 5:
			most = max(most, rss)
		case rss > most+32<<10:
			t.Fatalf("round %d: %d kB resident, %d in the first rounds", round, rss, most)
		}
		if time.Since(told) > time.Minute || !time.Now().Before(end) {
			told = time.Now()
			t.Logf("round %d: %.0f records, %.0f folded, lost: %.0f full, %.0f slow, %.0f events; %d kB on disk, %d kB resident", round, metric(records),
				metric("porthole_history_folded_total"), metric(full), metric(`porthole_history_lost_total{reason="slow"}`), metric(`porthole_history_lost_total{reason="events"}`), size>>10, rss)
		}
	}
	// A flood of one cgroup is bounded among the ports, so these outlive it, as far as their segments reach.
	if _, body := get(t, socket, "GET", fmt.Sprintf("/v1/history?port=%d&listeners=true&limit=5", seen[len(seen)-1])); !strings.Contains(body, fmt.Sprintf(`"pid":%d,`, os.Getpid())) {
		t.Errorf("the last listener is gone: %s", body)
	}
	flooding.Process.Kill()
	agent.Process.Signal(syscall.SIGTERM)
	<-logged
	if err := agent.Wait(); err != nil {
		t.Errorf("the agent ends with %v", err)
	}
	if n := strings.Count(log.String(), "cannot be written"); n == 0 || strings.Count(log.String(), "panic") > 0 {
		t.Errorf("log:\n%s", log)
	}
}

// residentKB is what of a process is in memory.
func residentKB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb
}
