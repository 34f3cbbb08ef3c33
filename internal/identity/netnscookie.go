package identity

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nsGetID is NS_GET_ID, _IOR(0xb7, 13, __u64): since Linux 6.18 a namespace has an id that
// no other ever has, which of a network namespace is its cookie.
const nsGetID = 0x8008b70d

// cookieOf returns the id of the namespace that a file refers to.
func cookieOf(fd int) (uint64, error) {
	var id uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), nsGetID, uintptr(unsafe.Pointer(&id))); errno != 0 {
		return 0, fmt.Errorf("read the id of a namespace: %w", errno)
	}
	return id, nil
}

// filesTellCookies tells whether cookieOf returns cookies in this kernel: whether it does
// of this thread's namespace.
func filesTellCookies() bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return false
	}
	defer f.Close()
	id, err := cookieOf(int(f.Fd()))
	if err != nil {
		return false
	}
	cookie, err := ownCookie()
	return err == nil && cookie == id
}

// ownCookie is the cookie of this thread's namespace.
func ownCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("read the cookie of a network namespace: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read the cookie of a network namespace: %w", err)
	}
	return cookie, nil
}

// OwnNetNS is the network namespace of the calling thread, with its cookie where the kernel has one.
func OwnNetNS() (NetNS, error) {
	inode, err := NetNSOfThread()
	if err != nil {
		return NetNS{}, err
	}
	cookie, err := ownCookie()
	if err != nil {
		cookie = 0 // before Linux 5.12
	}
	return NetNS{Inode: inode, Cookie: cookie}, nil
}
