package identity

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"github.com/porthole-dev/porthole/tracer"
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

// HostNetNS returns the inode number of the machine's own namespace, the one that the kernel starts
// with. It is remembered, for who gives up privileges cannot look again.
func HostNetNS() (uint32, error) { return hostNetNS() }

var hostNetNS = sync.OnceValues(func() (uint32, error) {
	if inode, ok := hostOfThread(); ok {
		return inode, nil
	}
	if !tracer.InOtherNamespace("pid") { // there process 2 is kthreadd, which never leaves where the kernel started it
		if inode, err := netNSInode("/proc/2/ns/net"); err == nil {
			return inode, nil
		}
	}
	host, err := tracer.HostNetNS()
	return host.Inode, err
})

// onlyOfHost is a setting that only the machine's own namespace has.
const onlyOfHost = "/proc/sys/net/core/netdev_max_backlog"

// hostOfThread returns the inode number of the calling thread's namespace; false: it is not the
// machine's own, or may not be.
func hostOfThread() (uint32, bool) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, err := os.Stat(onlyOfHost); err != nil {
		return 0, false
	}
	inode, err := NetNSOfThread()
	return inode, err == nil
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
