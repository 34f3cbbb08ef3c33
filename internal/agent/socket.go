package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Group may use the agent's socket, where the machine has such a group.
const Group = "porthole"

// socket is the unix socket of an agent. The lock beside it lets one agent at a
// time take it over.
type socket struct {
	net.Listener
	path string
	lock *os.File
}

// listenSocket makes the socket, for its owner and Group. One that nobody answers on
// any more is taken over; if somebody does, the error says so.
func listenSocket(path string) (*socket, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of the socket: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another agent answers on %s", path)
	} else if err != nil {
		err = fmt.Errorf("lock %s: %w", path, err)
	} else {
		err = removeStale(path)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	l, err := bindSocket(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), lock.Close())
	}
	return &socket{Listener: l, path: path, lock: lock}, nil
}

// removeStale removes a socket that nobody answers on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another agent answers on %s", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("look who answers on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the socket of an agent that is gone: %w", err)
	}
	return nil
}

// bindSocket lets nobody connect before the socket has its owner and mode.
func bindSocket(path string) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // the listener has its own
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	l, err := openTo(f, path)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return l, nil
}

func openTo(f *os.File, path string) (net.Listener, error) {
	if group, err := user.LookupGroup(Group); err == nil {
		gid, err := strconv.Atoi(group.Gid)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", Group, err)
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, err
	}
	if err := unix.Listen(int(f.Fd()), 128); err != nil {
		return nil, err
	}
	return net.FileListener(f)
}

// close removes the socket. Where that may not be done any more, by who has given up
// privileges or on what is read-only now, the next agent takes it over.
func (s *socket) close() error {
	err := s.Listener.Close()
	if errors.Is(err, net.ErrClosed) { // by its server
		err = nil
	}
	removeErr := os.Remove(s.path)
	if errors.Is(removeErr, fs.ErrPermission) || errors.Is(removeErr, unix.EROFS) {
		removeErr = nil
	}
	return errors.Join(err, removeErr, s.lock.Close())
}
