package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// staleSocket is one that an agent left behind which was killed.
func staleSocket(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dir", "porthole.sock")
	s, err := listenSocket(path)
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
	s, err := listenSocket(path)
	if err != nil {
		t.Fatalf("take over: %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := listenSocket(path); err == nil || !strings.Contains(err.Error(), "another agent answers on "+path) {
		t.Errorf("a second agent: error %v", err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is there still: %v", err)
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
				if s, err := listenSocket(path); err == nil {
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

// One that holds no lock, as another program's, is not taken from it.
func TestSocketOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := listenSocket(path); err == nil || !strings.Contains(err.Error(), "answers on "+path) {
		t.Errorf("error %v", err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 108))
	if _, err := listenSocket(long); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), long) {
		t.Errorf("a path too long for a socket: error %v", err)
	}
}

// Whatever the umask, nobody else may write the directory, hold the lock, or use the
// socket; and a lock is not followed elsewhere.
func TestSocketModes(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	dir := filepath.Join(t.TempDir(), "dir")
	path := filepath.Join(dir, "porthole.sock")
	s, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o755, path: 0o660, path + ".lock": 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %o", path, info.Mode(), err, want)
		}
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	elsewhere := filepath.Join(dir, "elsewhere")
	if err := errors.Join(os.Remove(path+".lock"), os.Symlink(elsewhere, path+".lock")); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(path); !errors.Is(err, unix.ELOOP) {
		t.Errorf("error %v, want %v", err, unix.ELOOP)
	}
	if _, err := os.Stat(elsewhere); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file was made elsewhere: %v", err)
	}
}
