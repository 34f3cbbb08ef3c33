package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// stopWithin is how long a command that ends itself has from the first signal on: to
	// take trampolines away takes the kernel seconds.
	stopWithin = 10 * time.Second
	// unreadFor is how long a write may take once the command is to end.
	unreadFor = time.Second
)

// errUnread is an output that nobody reads while the command is to end.
var errUnread = errors.New("the output is not being read: its end is not written")

// gentleness is how a command ends at a signal.
type gentleness struct {
	itself atomic.Bool  // it ends itself
	by     atomic.Int32 // the signal that it is to end itself for, 0: none yet
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. It ends the
// process at once unless gentle says that the command ends itself, and then at the second
// signal or after stopWithin: whatever the command is waiting for, a pipe or the kernel.
func untilSignal(gentle *gentleness) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		sig := <-signals
		if gentle.itself.Load() {
			number, _ := sig.(syscall.Signal)
			gentle.by.Store(int32(number))
			cancel()
			select {
			case sig = <-signals:
			case <-time.After(stopWithin):
			}
		}
		die(sig) // and ctx not canceled: the command could end first, with an error
	}()
	return ctx
}

// signaled ends porthole by a signal, as an error of a command that has ended itself.
type signaled syscall.Signal

func (s signaled) Error() string { return syscall.Signal(s).String() }

// bySignal is the signal that the command is to end for, as an error that has the process end by it too;
// nil: there was none.
func (e *env) bySignal() error {
	if e.gentle == nil || e.gentle.by.Load() == 0 {
		return nil
	}
	return signaled(e.gentle.by.Load())
}

// die ends the process as the signal does: the parent sees which. The kernel takes the
// programs and maps back.
func die(sig os.Signal) {
	number, _ := sig.(syscall.Signal)
	signal.Reset(sig)
	_ = syscall.Kill(os.Getpid(), number)
	// Not reached, unless the signal is ignored here, or this is process 1 of a container.
	time.Sleep(100 * time.Millisecond)
	os.Exit(128 + int(number))
}

// endsItself says that the command ends soon after its context has: a signal gives it
// the time.
func (e *env) endsItself() {
	if e.gentle != nil {
		e.gentle.itself.Store(true)
	}
}

// letGo is e with outputs that a command does not wait for once ctx has ended.
func (e *env) letGo(ctx context.Context) *env {
	own := *e
	own.stdout, own.stderr = &output{ctx: ctx, to: e.stdout}, &output{ctx: ctx, to: e.stderr}
	return &own
}

// output writes to a pipe or terminal that may never take it. Once ctx has ended a write
// has unreadFor; what it does not take then is left, and every later write fails. It is
// used by one goroutine.
type output struct {
	ctx   context.Context
	to    io.Writer
	buf   []byte // being written, also by a write that was left
	stuck bool
}

func (o *output) Write(b []byte) (int, error) {
	if o.stuck {
		return 0, errUnread
	}
	type written struct {
		n   int
		err error
	}
	o.buf = append(o.buf[:0], b...)
	done := make(chan written, 1)
	go func() {
		n, err := o.to.Write(o.buf)
		done <- written{n, err}
	}()
	select {
	case w := <-done:
		return w.n, w.err
	case <-o.ctx.Done():
	}
	select {
	case w := <-done:
		return w.n, w.err
	case <-time.After(unreadFor):
		o.stuck = true
		return 0, errUnread
	}
}
