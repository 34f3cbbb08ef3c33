package agent

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

var quiet = slog.New(slog.DiscardHandler)

// staleSocket is one that an agent left behind which was killed.
func staleSocket(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dir", "porthole.sock")
	s, err := listenSocket(path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Listener.Close(), s.lock.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("there is no socket to take over: %v", err)
	}
	return path
}

func TestSocketStale(t *testing.T) {
	path := staleSocket(t)
	s, err := listenSocket(path, quiet)
	if err != nil {
		t.Fatalf("take over: %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := listenSocket(path, quiet); err == nil || !strings.Contains(err.Error(), "another agent answers on "+path) {
		t.Errorf("a second agent: error %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("%v is left: %v", left, err)
	}
}

// Of agents that start at once one gets the socket, and has it then.
func TestSocketRace(t *testing.T) {
	for range 20 {
		path := staleSocket(t)
		var all sync.WaitGroup
		got := make(chan *socket, 8)
		for range cap(got) {
			all.Go(func() {
				if s, err := listenSocket(path, quiet); err == nil {
					got <- s
				} else if !strings.Contains(err.Error(), "another agent") {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if len(got) != 1 {
			t.Fatalf("%d agents have the socket", len(got))
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := (<-got).close(); err != nil {
			t.Fatal(err)
		}
	}
}

// While agents come and go nobody has the socket together with another, though each
// takes the file of the lock away when it ends.
func TestSocketTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "porthole.sock")
	var all sync.WaitGroup
	var have, turns atomic.Int32
	for range 4 {
		all.Go(func() {
			for turns.Load() < 200 && !t.Failed() {
				s, err := listenSocket(path, quiet)
				if err != nil {
					if !strings.Contains(err.Error(), "another agent") {
						t.Error(err)
					}
					continue
				}
				if n := have.Add(1); n != 1 {
					t.Errorf("%d agents have the socket", n)
				}
				turns.Add(1)
				have.Add(-1)
				if err := s.close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("%v is left: %v", left, err)
	}
}

// Nothing that may be at the path of the lock makes an agent wait, and none of it is
// removed.
func TestSocketLockIsNone(t *testing.T) {
	for what, make := range map[string]func(path string) error{
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"socket": func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		},
	} {
		path := filepath.Join(t.TempDir(), "s")
		if err := make(lockOf(path)); err != nil {
			t.Fatal(err)
		}
		if _, err := listenSocket(path, quiet); err == nil || !strings.Contains(err.Error(), lockOf(path)) {
			t.Errorf("%s: error %v, want one that names it", what, err)
		}
		if _, err := os.Lstat(lockOf(path)); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// One that holds no lock, as another program's, is not taken from it.
func TestSocketOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := listenSocket(path, quiet); err == nil || !strings.Contains(err.Error(), "answers on "+path) {
		t.Errorf("error %v", err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 108))
	if _, err := listenSocket(long, quiet); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), long) {
		t.Errorf("a path too long for a socket: error %v", err)
	}
}

// Whatever the umask, everybody may enter the directories, nobody else write them, hold
// the lock, or use the socket; and a lock is not followed elsewhere.
func TestSocketModes(t *testing.T) {
	for _, mask := range []int{0, 0o077, 0o777} {
		testSocketModes(t, mask)
	}
}

func testSocketModes(t *testing.T, mask int) {
	parent := t.TempDir()
	defer unix.Umask(unix.Umask(mask))
	dir := filepath.Join(parent, "new", "dir")
	path := filepath.Join(dir, "porthole.sock")
	s, err := listenSocket(path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{parent + "/new": 0o755, dir: 0o755, path: 0o660, path + ".lock": 0o600 &^ os.FileMode(mask)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %o", path, info.Mode(), err, want)
		}
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	elsewhere := filepath.Join(dir, "elsewhere")
	if err := os.Symlink(elsewhere, path+".lock"); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(path, quiet); !errors.Is(err, unix.ELOOP) {
		t.Errorf("error %v, want %v", err, unix.ELOOP)
	}
	if _, err := os.Stat(elsewhere); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made elsewhere: %v", err)
	}
}

// Where the socket cannot be given to its group it is the owner's alone, and that is said.
func TestSocketGroup(t *testing.T) {
	testutil.RequireRoot(t)
	const gid = 54321
	groups := filepath.Join(t.TempDir(), "group")
	if err := os.WriteFile(groups, fmt.Appendf(nil, "root:x:0:\n%s:x:%d:\n", Group, gid), 0o644); err != nil {
		t.Fatal(err)
	}
	// The thread is not used again: it has lost a capability, and sees another /etc.
	runtime.LockOSThread()
	if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(groups, "/etc/group", "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what  string
		gid   uint32
		mode  os.FileMode
		lines int // in the log
	}{{"with CAP_CHOWN", gid, 0o660, 0}, {"without", 0, 0o600, 1}} {
		var out bytes.Buffer
		path := filepath.Join(t.TempDir(), "s")
		s, err := listenSocket(path, slog.New(slog.NewTextHandler(&out, nil)))
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Gid != c.gid || os.FileMode(st.Mode&0o777) != c.mode {
			t.Errorf("%s: group %d, mode %o, %v; want %d, %o", c.what, st.Gid, st.Mode&0o777, err, c.gid, c.mode)
		}
		if got := strings.Count(out.String(), "\n"); got != c.lines || c.lines > 0 && !strings.Contains(out.String(), "CAP_CHOWN") {
			t.Errorf("%s: the log has %q", c.what, out.String())
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
		dropCapability(t, unix.CAP_CHOWN)
	}
}

// dropCapability takes a capability from the calling thread.
func dropCapability(t *testing.T, n uint) {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[n/32].Effective &^= 1 << (n % 32)
	if err := unix.Capset(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
}
