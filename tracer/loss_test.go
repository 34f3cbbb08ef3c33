package tracer

import (
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The ring buffer overflows while nobody reads: what was lost is counted, and
// afterwards the table is what the kernel says.
func TestKernelLost(t *testing.T) {
	r := idle(t)
	tr, err := Open(tested(Config{RingBytes: os.Getpagesize()}))
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	const binds = 500
	for range binds {
		fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
		r.bind(fd, "127.0.0.1:0")
		r.close(fd)
	}
	l, at := r.listener(unix.AF_INET, "127.0.0.1:9000") // its events are lost
	stats, err := tr.Stats()
	if err != nil {
		t.Fatal(err)
	}
	// Other processes may have added to both.
	if seen := stats.Submitted + stats.LostRing; seen < 2*binds+2 || stats.LostRing < binds || stats.Submitted == 0 {
		t.Errorf("stats %+v: want %d events, most of them lost", stats, 2*binds+2)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sub := tr.Subscribe(1 << 16)
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- tr.Run(ctx, func(*Snapshot) { close(ready) }) }()
	<-ready
	if got := tr.Table().Port(at.Port()); len(got) == 0 || got[0].Role != RoleListener {
		t.Errorf("after the snapshot the table has %+v on port %d, want the listener", got, at.Port())
	}
	for stats.Resyncs == 0 { // by then the ring buffer has room again
		if stats, err = tr.Stats(); err != nil || ctx.Err() != nil {
			t.Fatalf("wait until the loss is noticed: %v, %v", err, ctx.Err())
		}
		time.Sleep(time.Millisecond)
	}
	r.close(l)
	for { // its close comes through it
		batch, err := sub.Next(ctx, nil)
		if err != nil {
			t.Fatalf("wait for the close of the listener: %v", err)
		}
		for _, ev := range batch {
			if ev.NetNS == r.netns && ev.Type == EventClose && ev.Local == at {
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				return
			}
		}
	}
}

// A close that was lost leaves nothing in the table, once it was reconciled.
func TestKernelLostClose(t *testing.T) {
	r := idle(t)
	tr, err := Open(tested(Config{RingBytes: os.Getpagesize()}))
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	l, at := r.listener(unix.AF_INET, "127.0.0.1:9000")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- tr.Run(ctx, func(*Snapshot) { // the reader waits, so nobody reads
			for range 100 {
				fd := r.socket(unix.AF_INET, unix.SOCK_STREAM)
				r.bind(fd, "127.0.0.1:0")
				r.close(fd)
			}
			r.close(l)
		})
	}()
	var stats Stats
	for stats.Resyncs == 0 || len(tr.Table().Port(at.Port())) > 0 {
		if stats, err = tr.Stats(); err != nil || ctx.Err() != nil {
			t.Fatalf("wait for the table to lose the listener: %v, %v; stats %+v", err, ctx.Err(), stats)
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
