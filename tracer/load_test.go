package tracer

import (
	"context"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// However the first sockets come into the table, what happened before they did is in it and is
// not told, and what happens then is.
func TestKernelLoad(t *testing.T) {
	for name, wants := range map[string]bool{"with a snapshot": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			r := idle(t)
			before, _ := r.listener(unix.AF_INET, "127.0.0.1:5001")
			tr, err := Open(tested(Config{}))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			begin, ended := make(chan struct{}), make(chan error, 1)
			run := sync.OnceFunc(func() { close(begin) })
			var ready func(*Snapshot)
			if wants {
				ready = func(snap *Snapshot) {
					if n := len(inNetNS(snap.Sockets, r.netns)); n != 1 {
						t.Errorf("the snapshot has %d sockets, want 1", n)
					}
				}
			}
			go func() { <-begin; ended <- tr.Run(ctx, ready) }()
			t.Cleanup(func() {
				run()
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if err := tr.Close(); err != nil {
					t.Error(err)
				}
			})
			r.use(tr)
			r.close(before)
			r.listener(unix.AF_INET, "127.0.0.1:5002") // while events collect
			run()
			select {
			case <-tr.Ready():
			case err := <-ended:
				ended <- err
				t.Fatal("Run has ended")
			}
			if got := inNetNS(tr.Table().All(), r.netns); len(got) != 1 || got[0].Local.Port() != 5002 || len(got[0].Holders) != 1 {
				t.Errorf("the table has %+v, want the listener on 5002 with its holder", got)
			}
			r.listener(unix.AF_INET, "127.0.0.1:5003")
			for _, ev := range r.events(2) {
				if ev.Local.Port() != 5003 {
					t.Errorf("told after the table was loaded: %v of port %d", ev.Type, ev.Local.Port())
				}
			}
			testutil.Await(t, "the table has both", func() bool { return len(inNetNS(tr.Table().All(), r.netns)) == 2 })
		})
	}
}

// inNetNS are the sockets of a namespace.
func inNetNS(sockets []Socket, netns uint32) (out []Socket) {
	for _, s := range sockets {
		if s.NetNS == netns {
			out = append(out, s)
		}
	}
	return out
}
