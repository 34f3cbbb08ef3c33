package tracer

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// Every namespace is listed, also one without a socket, by number and by cookie.
func TestKernelNetNamespaces(t *testing.T) {
	own := NetNS{Inode: testutil.NewNetNS(t)}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if own.Cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil && err != unix.ENOPROTOOPT { // before Linux 5.12
		t.Fatal(err)
	}
	s, err := NewSnapshotter(ReadsPorts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.NetNamespaces()
	if err != nil || !slices.Contains(all, own) {
		t.Errorf("namespaces %v (%v), want %v among them", all, err, own)
	}
}
