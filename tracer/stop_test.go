package tracer

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/porthole-dev/porthole/internal/testutil"
	"golang.org/x/sys/unix"
)

// Run ends though events come as fast as it reads them.
func TestKernelRunEnds(t *testing.T) {
	r := idle(t)
	tr, err := Open(tested(Config{}))
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	r.tracer = tr
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- tr.Run(ctx, nil) }()
	<-tr.Ready()
	var flood sync.WaitGroup
	var enough atomic.Bool
	for range runtime.NumCPU() + 1 {
		flood.Go(func() {
			runtime.LockOSThread() // for good: its namespace goes with it
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Error(err)
			}
			for !enough.Load() {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
				if err != nil {
					t.Error(err)
					return
				}
				_ = unix.Bind(fd, &unix.SockaddrInet4{}) // a flood may run out of ports
				_ = unix.Close(fd)
			}
		})
	}
	testutil.Await(t, "the flood is read", func() bool { return stats(t, tr).Decoded >= 1000 })
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("Run reads events for ever")
	}
	enough.Store(true)
	flood.Wait()
}
