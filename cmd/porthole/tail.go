package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// compareEvery is how often what is known is compared with the kernel's tables: closes that
// the kernel does not tell are noticed then.
const compareEvery = 30 * time.Second

type tailOptions struct {
	agent    agentOptions
	hooks    hookOptions
	duration time.Duration
	count    uint64
	jsonRows bool
	verbose  bool
	sockets  bool
}

// tailQueue is how many events may wait for a slow terminal: 16 MB.
const tailQueue = 1 << 16

func newTail(e *env) *cobra.Command {
	var o tailOptions
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Follow binds, listens, connects, accepts and closes as they happen",
		Long: "Follow binds, listens, connects, accepts and closes as they happen, in every\n" +
			"network namespace. Filters can be repeated or comma-separated; all must match.\n" +
			"Stop it with Ctrl-C. Exits with 1 when it ends before --count events.",
		Example: "  porthole tail\n" +
			"  porthole tail --event bind --port 8080\n" +
			"  porthole tail --comm nginx --json --duration 10s",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return tail(cmd, e, &o) },
	}
	flags := cmd.Flags()
	flags.DurationVar(&o.duration, "duration", 0, "stop after this time, as 90s or 5m")
	flags.Uint64Var(&o.count, "count", 0, "stop after this many events")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "also TCP handshakes that ended well (established)")
	flags.BoolVar(&o.sockets, "sockets", false, "first the sockets there are, as ls; then events, without a gap or a double")
	o.hooks.add(cmd)
	addFilters(cmd, query.OfEvents)
	o.agent.add(cmd)
	return cmd
}

// tail follows events by hooks of its own, or the agent's.
func tail(cmd *cobra.Command, e *env, o *tailOptions) error {
	f, values, err := parseFilters(cmd, query.OfEvents)
	if err != nil {
		return err
	}
	if o.duration < 0 {
		return usagef("--duration: %v: want a positive time", o.duration)
	}
	if o.agent.ask && o.sockets {
		return usagef("--sockets: not with --agent, which cannot tell sockets and events without a gap or a double")
	}
	var t *tracer.Tracer
	if !o.agent.ask {
		cfg := o.hooks.config()
		cfg.Reconcile = compareEvery
		cfg.Established = o.verbose
		t, err = tracer.Open(cfg)
	}
	if t == nil && !o.sockets {
		c, err := o.hooks.useAgent(&o.agent, err)
		if err != nil {
			return err
		}
		return tailAgent(cmd.Context(), e, o, c, values)
	}
	if err != nil {
		return err
	}
	defer t.Close()
	return tailOwn(cmd.Context(), e, o, t, f)
}

func tailOwn(ctx context.Context, e *env, o *tailOptions, t *tracer.Tracer, f *query.Filter) error {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() { cancel(nil) }
	defer stop()
	stopWhenUnread(ctx, e.stdout, cancel)
	e = e.letGo(ctx)
	names := identity.Load(t.NetNamespaces)
	defer names.Cgroups.Close()
	names.Device = t.DeviceName
	if err := locate(f, names); err != nil {
		return err
	}
	p := &ownTail{eventPrinter: newEventPrinter(e, o, names), t: t, sub: t.Subscribe(tailQueue), f: f}

	ready := make(chan *tracer.Snapshot, 1)
	ended := make(chan error, 1)
	go func() { ended <- t.Run(ctx, func(s *tracer.Snapshot) { ready <- s }) }()
	var err error
	select {
	case snap := <-ready:
		e.endsItself()
		err = p.start(snap)
	case err = <-ended:
		return err
	}
	if o.duration > 0 {
		timer := time.AfterFunc(o.duration, stop)
		defer timer.Stop()
	}
	if err == nil {
		err = p.follow()
	}
	stop()
	err = errors.Join(err, <-ended)
	lost, statsErr := p.lostNow()
	p.end(lost)
	return cmp.Or(errors.Join(err, statsErr), p.short(ctx))
}

// eventPrinter writes events until it has written enough.
type eventPrinter struct {
	e       *env
	o       *tailOptions
	names   *identity.Names
	out     *bufio.Writer
	json    render.Encoder
	written uint64
	line    []byte
}

func newEventPrinter(e *env, o *tailOptions, names *identity.Names) *eventPrinter {
	return &eventPrinter{e: e, o: o, names: names, out: bufio.NewWriterSize(e.stdout, 1<<16)}
}

// head writes what stands above the events.
func (p *eventPrinter) head() error {
	if p.o.jsonRows {
		return nil
	}
	_, err := fmt.Fprintln(p.out, p.e.style.Bold(render.EventHead))
	return errors.Join(err, p.out.Flush())
}

// event writes one event; enough says that it was the last one wanted.
func (p *eventPrinter) event(row *render.Event) (enough bool, err error) {
	if p.o.jsonRows {
		p.line = append(p.json.AppendEvent(p.line[:0], row), '\n')
	} else {
		p.line = append(append(p.line[:0], render.New(p.names).EventLine(p.e.style, row)...), '\n')
	}
	return p.raw(p.line)
}

// raw writes the line of an event.
func (p *eventPrinter) raw(line []byte) (enough bool, err error) {
	if _, err := p.out.Write(line); err != nil {
		return true, err
	}
	if p.written++; p.written == p.o.count {
		return true, p.out.Flush()
	}
	return false, nil
}

// short is the error of a tail that ended, with ctx, before it had --count events.
func (p *eventPrinter) short(ctx context.Context) error {
	if p.written < p.o.count && !errors.Is(context.Cause(ctx), syscall.EPIPE) {
		return errNo
	}
	return nil
}

// end tells how much was written and how much was lost.
func (p *eventPrinter) end(lost uint64) {
	fmt.Fprintf(p.e.stderr, "%d events, %d lost\n", p.written, lost)
}

// tellAttached says that events are followed from now on.
func tellAttached(e *env, tier tracer.Tier, hooks int) {
	fmt.Fprintf(e.stderr, "attached: %s tier, %d hooks\n", tier, hooks)
}

func tellLostKernel(e *env, n uint64) { fmt.Fprintf(e.stderr, "lost %d events in the kernel\n", n) }
func tellLostLate(e *env, n uint64) {
	fmt.Fprintf(e.stderr, "lost %d events: the output is too slow\n", n)
}

// ownTail follows the events of its own tracer.
type ownTail struct {
	*eventPrinter
	t      *tracer.Tracer
	sub    *tracer.Subscription
	f      *query.Filter
	looked time.Time // when tellLost last looked
	lost   uint64    // told of: lost in the kernel
	late   uint64    // told of: lost for want of room in the queue
}

// start tells that the hooks are attached, and with --sockets what there is.
func (p *ownTail) start(snap *tracer.Snapshot) error {
	if p.o.sockets {
		sockets := render.SocketsOf(snap.Sockets, func(s *tracer.Socket) bool { return p.f.Socket(p.names.Cgroups, s) })
		write := func() error { return render.New(p.names).SocketsText(p.out, p.e.style, sockets) }
		if p.o.jsonRows {
			write = func() error { return render.New(p.names).SocketsJSON(p.out, sockets) }
		}
		if err := errors.Join(write(), p.out.Flush()); err != nil {
			return err
		}
	}
	tellView(p.e, doctor.ViewOf(p.t))
	tellPIDs(p.e.stderr)
	attached := 0
	for _, h := range p.t.Hooks() {
		if h.Attached {
			attached++
		}
	}
	tellAttached(p.e, p.t.Tier(), attached)
	return p.head()
}

// follow writes events until the tracer ends, --count is reached or nobody
// reads.
func (p *ownTail) follow() error {
	var events []tracer.Event
	for {
		var err error
		if events, err = p.sub.Next(context.Background(), events); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for i := range events {
			if !p.f.Event(p.names.Cgroups, &events[i]) {
				continue
			}
			row := render.New(p.names).Event(&events[i])
			if enough, err := p.event(&row); enough || err != nil {
				return err
			}
		}
		if err := p.out.Flush(); err != nil {
			return err
		}
		if err := p.tellLost(); err != nil {
			return err
		}
	}
}

// tellLost says at most every second what was lost since it last did.
func (p *ownTail) tellLost() error {
	if time.Since(p.looked) < time.Second {
		return nil
	}
	p.looked = time.Now()
	stats, err := p.t.Stats()
	if err != nil {
		return err
	}
	if lost := stats.Lost() + stats.Bad; lost > p.lost {
		tellLostKernel(p.e, lost-p.lost)
		p.lost = lost
	}
	if late := p.sub.Lost(); late > p.late {
		tellLostLate(p.e, late-p.late)
		p.late = late
	}
	return nil
}

// lostNow is everything lost so far.
func (p *ownTail) lostNow() (uint64, error) {
	stats, err := p.t.Stats()
	return stats.Lost() + stats.Bad + p.sub.Lost(), err
}

// stopWhenUnread calls stop with EPIPE when stdout is a pipe whose reader has gone,
// also while there is nothing to write.
func stopWhenUnread(ctx context.Context, stdout io.Writer, stop func(error)) {
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
				stop(syscall.EPIPE)
				return
			}
		}
	}()
}
