package source

import (
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listenOnly returns a socket that is listened on and never accepts: its queue takes
// backlog+1 connections.
func listenOnly(t *testing.T, backlog int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, backlog)); err != nil {
		t.Fatal(err)
	}
	return path
}

// An agent that does not answer is told from one that is not there, also once the kernel
// queues no more connections for it.
func TestDialSilent(t *testing.T) {
	path := listenOnly(t, 0)
	for range 2 { // the first fills the queue
		begin := time.Now()
		_, err := Dial(path)
		if !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want one of a silent agent on %s", err, path)
		}
		if took := time.Since(begin); took < aliveWithin {
			t.Errorf("gave up after %v", took)
		}
	}
	if _, err := Dial(path + "x"); err == nil || errors.Is(err, ErrSilent) {
		t.Errorf("no agent at all: %v", err)
	}
}

// The first byte of an answer has a limit; what follows has none.
func TestGetSilent(t *testing.T) {
	path := listenOnly(t, 0)
	c := newClient(path)
	c.http.Transport.(*http.Transport).ResponseHeaderTimeout = 10 * time.Millisecond
	if _, err := c.get(t.Context(), "/v1/sockets", nil); !errors.Is(err, ErrSilent) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one of a silent agent on %s", err, path)
	}
}
