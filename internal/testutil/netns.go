// Package testutil helps tests that touch the kernel.
package testutil

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireRoot fails the test when it may not trace: a test that did not run
// proves nothing.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run it with sudo make test")
	}
}

// NewNetNS puts the test's goroutine into a network namespace of its own, with
// lo up, and returns its inode number. The goroutine's thread ends with it, and
// so does the namespace once nothing uses it. Children that the goroutine starts
// are in the namespace, other goroutines are not.
func NewNetNS(t testing.TB) uint32 {
	t.Helper()
	RequireRoot(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare network namespace: %v", err)
	}
	if err := UpLoopback(); err != nil {
		t.Fatal(err)
	}
	var own unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		t.Fatalf("look at the network namespace: %v", err)
	}
	return uint32(own.Ino)
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

// netNSDir is where ip-netns(8) keeps named namespaces.
const netNSDir = "/run/netns"

// NameNetNS gives the namespace of the goroutine a name, as ip-netns(8) does.
func NameNetNS(t testing.TB, name string) {
	t.Helper()
	if err := os.MkdirAll(netNSDir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(netNSDir, name)
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		t.Fatalf("name the namespace: %v", err)
	}
}

// UnnameNetNS takes a name away, if it was given.
func UnnameNetNS(t testing.TB, name string) {
	t.Helper()
	path := filepath.Join(netNSDir, name)
	if _, err := os.Stat(path); err != nil {
		return
	}
	if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
		t.Error(err)
	}
}

// WriteSysctl sets a net sysctl ("ipv4/ip_local_port_range") of the namespace
// the goroutine is in.
func WriteSysctl(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
		t.Fatalf("set %s to %q: %v", name, value, err)
	}
}
