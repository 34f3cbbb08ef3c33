package identity

import (
	"fmt"
	"sync"
	"syscall"
)

// NetNS is which network namespace. No other ever has its cookie; its inode number is given
// to the next once it is gone. Before Linux 5.12 Cookie is 0, and the number is all there is.
type NetNS struct {
	Inode  uint32
	Cookie uint64
}

// Is tells whether both are the same namespace: by cookie, where both have one.
func (id NetNS) Is(other NetNS) bool {
	if id.Cookie != 0 && other.Cookie != 0 {
		return id.Cookie == other.Cookie
	}
	return id.Inode == other.Inode
}

// NetNSDir is where ip-netns(8) keeps named namespaces.
const NetNSDir = "/run/netns"

// NetNSOfThread returns the inode number of the calling thread's namespace.
func NetNSOfThread() (uint32, error) { return netNSInode("/proc/thread-self/ns/net") }

// netNSOfInit is that of process 1. It is remembered, for who gives up privileges cannot
// look again.
var netNSOfInit = sync.OnceValues(func() (uint32, error) { return netNSInode("/proc/1/ns/net") })

// HostNetNS returns the inode number of the machine's own namespace: that of process
// 1, or, where that may not be read, of this process.
func HostNetNS() (uint32, error) {
	if inode, err := netNSOfInit(); err == nil {
		return inode, nil
	}
	return netNSInode("/proc/self/ns/net")
}

// netNSInode returns the inode number of the namespace that a file refers to.
func netNSInode(path string) (uint32, error) {
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
