package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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
// time take it over, and goes with it.
type socket struct {
	net.Listener
	path string
	lock *os.File
}

// lockOf is the path of the lock of a socket.
func lockOf(path string) string { return path + ".lock" }

// listenSocket makes the socket, for its owner and Group. One that nobody answers on
// any more is taken over; if somebody does, the error says so.
func listenSocket(path string, log *slog.Logger) (*socket, error) {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("make directory of the socket: %w", err)
	}
	lock, err := takeLock(path)
	if err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, errors.Join(err, dropLock(path, lock))
	}
	l, err := bindSocket(path, log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), dropLock(path, lock))
	}
	return &socket{Listener: l, path: path, lock: lock}, nil
}

// makeDir is os.MkdirAll for everybody to enter, whatever the umask.
func makeDir(dir string) error {
	var missing []string
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, d)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, d := range missing {
		if err := os.Chmod(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// takeLock takes the lock of a socket. Its file may be removed by the agent that has it
// when that ends: then the lock is of a file that is there no more, and is tried anew.
func takeLock(path string) (*os.File, error) {
	for {
		lock, err := openLock(lockOf(path))
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("another agent answers on %s", path), lock.Close())
		} else if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
		}
		if isAt(lock, lockOf(path)) {
			return lock, nil
		}
		if err := lock.Close(); err != nil {
			return nil, err
		}
	}
}

// isAt tells whether a path is of an open file still.
func isAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, there)
}

// openLock opens the file of a lock. Of what else may be there none is opened for good: a
// fifo would wait for a writer.
func openLock(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := lock.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is there and is no regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// dropLock removes the file of a lock, then gives the lock up: whoever gets it after that
// sees that the file is not there any more. Where it may not be removed it stays.
func dropLock(path string, lock *os.File) error {
	var err error
	if isAt(lock, lockOf(path)) {
		err = removeIfMay(lockOf(path))
	}
	return errors.Join(err, lock.Close())
}

// removeIfMay removes a file unless that may not be done any more: by who has given up
// privileges, or on what is read-only now.
func removeIfMay(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
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
func bindSocket(path string, log *slog.Logger) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close() // the listener has its own
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	l, err := openTo(f, path, log)
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return l, nil
}

func openTo(f *os.File, path string, log *slog.Logger) (net.Listener, error) {
	mode := fs.FileMode(0o660)
	if group, err := user.LookupGroup(Group); err == nil {
		gid, err := strconv.Atoi(group.Gid)
		if err != nil {
			return nil, fmt.Errorf("group %s: %w", Group, err)
		}
		err = os.Chown(path, -1, gid)
		if errors.Is(err, fs.ErrPermission) {
			log.Warn("the socket is for its owner alone: to give it to the group takes CAP_CHOWN, or to run with that group", "group", Group)
			mode = 0o600
		} else if err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, err
	}
	if err := unix.Listen(int(f.Fd()), 128); err != nil {
		return nil, err
	}
	return net.FileListener(f)
}

// close removes the socket. Where that may not be done any more, the next agent takes it
// over.
func (s *socket) close() error {
	err := s.Listener.Close()
	if errors.Is(err, net.ErrClosed) { // by its server
		err = nil
	}
	return errors.Join(err, removeIfMay(s.path), dropLock(s.path, s.lock))
}
