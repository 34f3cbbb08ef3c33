package identity

import (
	"os"
	"runtime"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// The machine's own namespace is the same one from wherever it is asked for: a thread that is in
// another does not take that for it.
func TestHostNetNS(t *testing.T) {
	want, err := HostNetNS()
	if err != nil {
		t.Fatal(err)
	}
	ns := testutil.NewNetNS(t)
	if inode, is := hostOfThread(); is {
		t.Errorf("namespace %d is taken for the machine's own", inode)
	}
	host, err := tracer.HostNetNS()
	if err != nil {
		t.Fatal(err)
	}
	if host.Inode != want || host.Inode == ns {
		t.Errorf("the kernel's first namespace is %d, want %d; made here: %d", host.Inode, want, ns)
	}
}

// A process that is in the machine's own namespace needs no privileges to know it.
func TestHostOfThread(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	want, err := tracer.HostNetNS()
	if err != nil {
		t.Fatal(err)
	}
	own, err := NetNSOfThread()
	if err != nil {
		t.Fatal(err)
	}
	inode, is := hostOfThread()
	if is != (own == want.Inode) || is && inode != own {
		t.Errorf("in namespace %d: %d, %t; the machine's own is %d", own, inode, is, want.Inode)
	}
	if _, err := os.Stat("/proc/sys/net/core/somaxconn"); err != nil {
		t.Errorf("every namespace has this setting: %v", err)
	}
}
