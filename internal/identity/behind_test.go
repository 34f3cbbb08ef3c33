package identity

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// The namespace of a child counts where it is not the one that is asked from, whichever thread began it.
func TestNetNSOfChild(t *testing.T) {
	testutil.RequireRoot(t)
	own, err := NetNSOfThread()
	if err != nil {
		t.Fatal(err)
	}
	pid := uint32(os.Getpid())
	if got := NetNSOfChild(pid, own); got != 0 {
		t.Errorf("without a child: %d", got)
	}
	child := exec.Command("sleep", "60")
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	want := NetNSOfFile("/proc/" + strconv.Itoa(child.Process.Pid) + "/ns/net")
	if got := NetNSOfChild(pid, own); got == 0 || got != want {
		t.Errorf("%d, want %d", got, want)
	}
	if got := NetNSOfChild(pid, want); got != 0 {
		t.Errorf("asked from there: %d", got)
	}
}
