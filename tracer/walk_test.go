package tracer

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
	"golang.org/x/sys/unix"
)

// Namespaces that have hash tables of their own, where the kernel knows such (6.1 for TCP, 6.2 for
// UDP), have them walked; the sockets of each are there once.
func TestKernelOwnTables(t *testing.T) {
	testutil.NewNetNS(t)
	for _, name := range []string{"udp_child_hash_entries", "tcp_child_ehash_entries"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte("256"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	const spaces = 20
	want := make(map[uint32]netip.AddrPort)
	for range spaces {
		netns, fd, err := socketElsewhere()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		name, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		at := name.(*unix.SockaddrInet4)
		want[netns] = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	}
	for _, oldKernel := range []bool{false, true} {
		s, err := newSnapshotter(ReadsSockets, oldKernel)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var w bpfWalk
		tables, err := s.ownTables(&w)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat("/proc/sys/net/ipv4/udp_child_hash_entries"); err == nil && len(tables.udp) < spaces {
			t.Errorf("%d UDP tables, want one for each of %d namespaces", len(tables.udp), spaces)
		}
		snap, err := s.Take(0)
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[uint32][]netip.AddrPort)
		for _, so := range snap.Sockets {
			if _, ok := want[so.NetNS]; ok && so.Proto == UDP {
				found[so.NetNS] = append(found[so.NetNS], so.Local)
				if !slices.ContainsFunc(so.Holders, func(h Holder) bool { return int(h.PID) == os.Getpid() }) {
					t.Errorf("%v in namespace %d is held by %+v, want this process", so.Local, so.NetNS, so.Holders)
				}
			}
		}
		for netns, local := range want {
			if got := found[netns]; len(got) != 1 || got[0] != local {
				t.Errorf("old kernel %v: namespace %d has %v, want %v once", oldKernel, netns, got, local)
			}
		}
	}
}

// socketElsewhere makes a namespace, as a child of that of the caller, that is there as long
// as a UDP socket in it.
func socketElsewhere() (netns uint32, fd int, err error) {
	parent, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, -1, err
	}
	defer unix.Close(parent)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: its namespace goes with it
		done <- func() error {
			if err := errors.Join(unix.Setns(parent, unix.CLONE_NEWNET), unix.Unshare(unix.CLONE_NEWNET), testutil.UpLoopback()); err != nil {
				return err
			}
			var own unix.Stat_t
			if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
				return err
			}
			netns = uint32(own.Ino)
			var err error
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		}()
	}()
	err = <-done
	return netns, fd, err
}
