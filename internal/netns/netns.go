// Package netns names network namespaces, which the kernel knows by number.
package netns

import (
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dir is where ip-netns(8) keeps named namespaces.
const Dir = "/run/netns"

// OfThread returns the inode number of the calling thread's namespace.
func OfThread() (uint32, error) { return inodeOf("/proc/thread-self/ns/net") }

// ofInit is that of process 1. It is remembered, for who gives up privileges cannot
// look again.
var ofInit = sync.OnceValues(func() (uint32, error) { return inodeOf("/proc/1/ns/net") })

// Host returns the inode number of the machine's own namespace: that of process
// 1, or, where that may not be read, of this process.
func Host() (uint32, error) {
	if inode, err := ofInit(); err == nil {
		return inode, nil
	}
	return inodeOf("/proc/self/ns/net")
}

// inodeOf returns the inode number of the namespace that a file refers to.
func inodeOf(path string) (uint32, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	// Who may not follow a link of /proc is told of the directory it is in, on Linux 5.10.
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return 0, fmt.Errorf("stat %s: %w", path, syscall.EACCES)
	}
	return uint32(st.Ino), nil
}

// UpLoopback brings up lo in the namespace of the calling thread: a new one has
// it down. It needs CAP_NET_ADMIN there.
func UpLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
