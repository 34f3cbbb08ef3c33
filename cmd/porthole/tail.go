package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

type tailOptions struct {
	filters  filterFlags
	duration time.Duration
	count    uint64
	jsonRows bool
	sockets  bool
	cfg      tracer.Config
}

// tailQueue is how many events may wait for a slow terminal.
const tailQueue = 1 << 17

func newTail(e *env) *cobra.Command {
	var o tailOptions
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Follow binds, listens, connects, accepts and closes as they happen",
		Long: "Follow binds, listens, connects, accepts and closes as they happen, in every\n" +
			"network namespace. Filters can be repeated or comma-separated; all must match.\n" +
			"Stop it with Ctrl-C.",
		Example: "  porthole tail\n" +
			"  porthole tail --event bind --port 8080\n" +
			"  porthole tail --comm nginx --json --duration 10s",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return tail(cmd.Context(), e, &o) },
	}
	flags := cmd.Flags()
	flags.DurationVar(&o.duration, "duration", 0, "stop after this time, as 90s or 5m")
	flags.Uint64Var(&o.count, "count", 0, "stop after this many events")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	flags.BoolVarP(&o.cfg.Established, "verbose", "v", false, "also TCP handshakes that ended well (established)")
	flags.BoolVar(&o.sockets, "sockets", false, "first the sockets there are, as ls; then events, without a gap or a double")
	addTier(cmd, &o.cfg.Tier)
	flags.BoolVar(&o.cfg.NoSyscallHooks, "no-syscall-hooks", false, "leave out the hooks that cost every system call; see doctor")
	o.filters.add(cmd)
	o.filters.addEvent(cmd)
	return cmd
}

func tail(ctx context.Context, e *env, o *tailOptions) error {
	f, err := o.filters.parse()
	if err != nil {
		return err
	}
	if o.duration < 0 {
		return usagef("--duration: %v: want a positive time", o.duration)
	}
	t, err := tracer.Open(o.cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stopWhenUnread(ctx, e.stdout, stop)
	names := newNames(e)
	defer names.Cgroups.Close()
	p := &eventPrinter{e: e, o: o, f: f, names: names, out: bufio.NewWriterSize(e.stdout, 1<<16)}

	sub := t.Subscribe(tailQueue)
	ready := make(chan *tracer.Snapshot, 1)
	ended := make(chan error, 1)
	go func() { ended <- t.Run(ctx, func(s *tracer.Snapshot) { ready <- s }) }()
	select {
	case snap := <-ready:
		err = p.start(t, snap)
	case err = <-ended:
		return err
	}
	if o.duration > 0 {
		timer := time.AfterFunc(o.duration, stop)
		defer timer.Stop()
	}
	if err == nil {
		err = p.follow(t, sub)
	}
	stop()
	return errors.Join(err, <-ended, p.end(t, sub))
}

// eventPrinter writes events until it has written enough.
type eventPrinter struct {
	e       *env
	o       *tailOptions
	f       *filter
	names   *render.Names
	out     *bufio.Writer
	written uint64
	looked  time.Time // when tellLost last looked
	lost    uint64    // told of: lost in the kernel
	late    uint64    // told of: lost for want of room in the queue
}

// start tells that the hooks are attached, and with --sockets what there is.
func (p *eventPrinter) start(t *tracer.Tracer, snap *tracer.Snapshot) error {
	if p.o.sockets {
		sockets := slices.DeleteFunc(snap.Sockets, func(s tracer.Socket) bool { return !p.f.matchSocket(p.names, &s) })
		write := func() error { return p.names.Sockets(p.out, p.e.style, sockets) }
		if p.o.jsonRows {
			write = func() error { return p.names.SocketsJSON(p.out, sockets) }
		}
		if err := errors.Join(write(), p.out.Flush()); err != nil {
			return err
		}
	}
	attached := 0
	for _, h := range t.Hooks() {
		if h.Attached {
			attached++
		}
	}
	fmt.Fprintf(p.e.stderr, "attached: %s tier, %d hooks\n", t.Tier(), attached)
	if p.o.jsonRows {
		return nil
	}
	_, err := fmt.Fprintln(p.out, p.e.style.Bold(render.EventHead))
	return errors.Join(err, p.out.Flush())
}

// follow writes events until the tracer ends, --count is reached or nobody
// reads.
func (p *eventPrinter) follow(t *tracer.Tracer, sub *tracer.Subscription) error {
	var events []tracer.Event
	var line []byte
	for {
		var err error
		if events, err = sub.Next(context.Background(), events); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for i := range events {
			ev := &events[i]
			if !p.f.matchEvent(p.names, ev) {
				continue
			}
			if p.o.jsonRows {
				row := p.names.Event(ev)
				line = append(row.AppendJSON(line[:0]), '\n')
				_, err = p.out.Write(line)
			} else {
				_, err = p.out.WriteString(p.names.EventLine(p.e.style, ev) + "\n")
			}
			if err != nil {
				return err
			}
			if p.written++; p.written == p.o.count {
				return p.out.Flush()
			}
		}
		if err := p.out.Flush(); err != nil {
			return err
		}
		if err := p.tellLost(t, sub); err != nil {
			return err
		}
	}
}

// tellLost says at most every second what was lost since it last did.
func (p *eventPrinter) tellLost(t *tracer.Tracer, sub *tracer.Subscription) error {
	if time.Since(p.looked) < time.Second {
		return nil
	}
	p.looked = time.Now()
	stats, err := t.Stats()
	if err != nil {
		return err
	}
	if lost := stats.Lost() + stats.Bad; lost > p.lost {
		fmt.Fprintf(p.e.stderr, "lost %d events in the kernel\n", lost-p.lost)
		p.lost = lost
	}
	if late := sub.Lost(); late > p.late {
		fmt.Fprintf(p.e.stderr, "lost %d events: the output is too slow\n", late-p.late)
		p.late = late
	}
	return nil
}

// end tells how much was written and how much was lost.
func (p *eventPrinter) end(t *tracer.Tracer, sub *tracer.Subscription) error {
	stats, err := t.Stats()
	if err != nil {
		return err
	}
	fmt.Fprintf(p.e.stderr, "%d events, %d lost\n", p.written, stats.Lost()+stats.Bad+sub.Lost())
	return nil
}

// stopWhenUnread calls stop when stdout is a pipe whose reader has gone, also
// while there is nothing to write.
func stopWhenUnread(ctx context.Context, stdout io.Writer, stop func()) {
	f, ok := stdout.(*os.File)
	if !ok {
		return
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return
	}
	go func() {
		for ctx.Err() == nil {
			fds := []unix.PollFd{{Fd: int32(f.Fd())}} // no events asked for: only POLLERR ends the wait
			if n, err := unix.Poll(fds, -1); n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				stop()
				return
			}
		}
	}()
}
