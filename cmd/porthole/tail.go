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

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

type tailOptions struct {
	agent    agentOptions
	hooks    hookOptions
	duration time.Duration
	count    uint64
	jsonRows bool
	wide     bool
	verbose  bool
	sockets  bool
	noProbes bool
	told     bool // what is attached
	oneNetNS bool // asked for
}

func newTail(e *env) *cobra.Command {
	var o tailOptions
	cmd := &cobra.Command{
		Use:   "tail [PORT...]",
		Short: "Follow binds, listens, connects, accepts and closes as they happen",
		Long: "Follow binds, listens, connects, accepts and closes as they happen, in every\n" +
			"network namespace. With a PORT, such as 8080, 80-90 or 127.0.0.1:8080, show only\n" +
			"events with that port or address on either side. Filters can be repeated or\n" +
			"comma-separated; all must match. Stop it with Ctrl-C. Exits with 1 when it ends\n" +
			"before --count events.\n\n" +
			"The text, but not --json, leaves out the probes of getaddrinfo(): UDP sockets\n" +
			"that are only connected to port 0, and closed. At the end it says how many.",
		Example: "  porthole tail\n" +
			"  porthole tail --event bind --port 8080\n" +
			"  porthole tail --comm nginx --json --duration 10s",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: completePorts(e, &o.agent),
		RunE:              func(cmd *cobra.Command, args []string) error { return tail(cmd, e, &o, args) },
	}
	flags := cmd.Flags()
	flags.DurationVar(&o.duration, "duration", 0, "stop after this `TIME`, such as 90s or 5m")
	flags.Uint64Var(&o.count, "count", 0, "stop after this `NUMBER` of events")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	addWide(cmd, &o.wide)
	flags.BoolVarP(&o.verbose, "verbose", "v", false, "also TCP handshakes that ended well (established)")
	flags.BoolVar(&o.sockets, "sockets", false, "first list the sockets there are, like ls; then events, with no gap or overlap")
	flags.BoolVar(&o.noProbes, "no-probes", true, "leave out the probes of getaddrinfo(), which send nothing; --no-probes=false shows them")
	o.hooks.add(cmd)
	addFilters(cmd, e, &o.agent, query.OfEvents)
	o.agent.add(cmd)
	return cmd
}

// tail follows events by hooks of its own, or the agent's.
func tail(cmd *cobra.Command, e *env, o *tailOptions, ends []string) error {
	values, err := filterValues(cmd, query.OfEvents)
	if err != nil {
		return err
	}
	if err := addEnds(values, ends); err != nil {
		return err
	}
	o.oneNetNS = len(values["netns"]) == 1
	if o.verbose {
		values["verbose"] = []string{"true"}
	}
	q, err := query.ParseEvents(values)
	if err != nil {
		return err
	}
	if o.duration < 0 {
		return usagef("--duration: %v: want a positive time", o.duration)
	}
	if o.jsonRows && cmd.Flags().Changed("no-probes") && o.noProbes {
		return usagef("--no-probes: not with --json, which has every event")
	}
	if o.agent.ask && o.sockets {
		return usagef("--sockets: not with --agent, which cannot tell sockets and events without a gap or a double")
	}
	return follow(cmd.Context(), e, o, func(ctx context.Context) (source.Events, error) { return o.begin(ctx, e, q) })
}

// begin begins the stream that there is.
func (o *tailOptions) begin(ctx context.Context, e *env, q *query.Events) (source.Events, error) {
	if err := o.hooks.check(&o.agent); err != nil {
		return nil, err
	}
	if o.sockets {
		o.agent.local = true
	}
	src, err := o.agent.open(e, &source.Local{Hooks: o.hooks.config()}, tracer.CheckTrace(o.hooks.tier))
	if err != nil {
		return nil, err
	}
	return src.Events(ctx, q)
}

// follow writes the events of a stream until ctx ends or there are enough.
func follow(ctx context.Context, e *env, o *tailOptions, begin func(context.Context) (source.Events, error)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopWhenUnread(ctx, e.stdout, cancel)
	e = e.letGo(ctx)
	events, err := begin(ctx)
	if errors.Is(err, context.Canceled) {
		return nil
	} else if err != nil {
		return err
	}
	defer events.Close()
	e.endsItself()
	p := &eventPrinter{e: e, o: o, events: events, style: wideOr(e.style, o.wide), out: bufio.NewWriterSize(e.stdout, 1<<16)}
	p.style.OneNetNS = o.oneNetNS
	err = p.start()
	if o.duration > 0 {
		timer := time.AfterFunc(o.duration, func() { cancel(nil) })
		defer timer.Stop()
	}
	if err == nil {
		err = p.follow()
	}
	cancel(nil)
	p.await()
	lost, endErr := events.End()
	p.end(lost)
	return cmp.Or(errors.Join(err, endErr), p.short(ctx))
}

// eventPrinter writes events until it has written enough.
type eventPrinter struct {
	e       *env
	o       *tailOptions
	events  source.Events
	out     *bufio.Writer
	style   render.Style
	written uint64
	line    []byte

	probes probes
	row    render.Event
	ahead  chan happening // what Next returns, where it was not waited for; nil: it is not called
	mptcp  bool           // told what that is
}

// happening is what Next has returned.
type happening struct {
	what source.Happened
	err  error
}

// next waits for what happens next, or with lines that are held back no longer than those are; ok is
// false then.
func (p *eventPrinter) next() (h happening, ok bool) {
	if len(p.probes.queue) == 0 && p.ahead == nil {
		h.what, h.err = p.events.Next()
		return h, true
	}
	if p.ahead == nil {
		p.ahead = make(chan happening, 1)
		go func() {
			var h happening
			h.what, h.err = p.events.Next()
			p.ahead <- h
		}()
	}
	var over <-chan time.Time
	if len(p.probes.queue) > 0 {
		over = time.After(p.probes.wait())
	}
	select {
	case h = <-p.ahead:
		p.ahead = nil
		return h, true
	case <-over:
		return h, false
	}
}

// await waits for the call of Next that goes on: events are for one goroutine at a time.
func (p *eventPrinter) await() {
	if p.ahead != nil {
		<-p.ahead
		p.ahead = nil
	}
}

// start tells that the hooks are attached, and with --sockets what there is.
func (p *eventPrinter) start() error {
	if p.o.sockets {
		if err := cmp.Or(write(p.out, p.style, p.o.jsonRows, p.events.Sockets()), p.out.Flush()); err != nil {
			return err
		}
	}
	if !p.o.told {
		begun := p.events.Begun()
		tellView(p.e, begun.PartialView)
		tellNote(p.e, begun.Note)
		tellPIDs(begun.PIDs, p.e.notes())
		tellAttached(p.e, begun.Tier, begun.Hooks)
	}
	if p.o.jsonRows {
		return nil
	}
	_, err := fmt.Fprintln(p.out, render.EventHead(p.style))
	return cmp.Or(err, p.out.Flush())
}

// follow writes events until they end, --count is reached or nobody reads.
func (p *eventPrinter) follow() error {
	for {
		h, ok := p.next()
		switch {
		case !ok:
			if enough, err := p.release(); enough || err != nil {
				return err
			}
			if err := p.out.Flush(); err != nil {
				return err
			}
			continue
		case h.err != nil:
			p.probes.giveUp()
			_, err := p.release()
			if errors.Is(h.err, io.EOF) { // this end was asked for
				h.err = nil
			}
			return errors.Join(h.err, err, p.out.Flush())
		case h.what == source.Loss:
			p.probes.giveUp() // what is missing may be a peer
			p.tellLost(p.events.Lost())
			continue
		case h.what == source.Pause:
			if err := p.out.Flush(); err != nil {
				return err
			}
			if p.e.width != nil && !p.o.wide {
				p.style.Width = p.e.width()
			}
			continue
		}
		if enough, err := p.event(); enough || err != nil {
			return err
		}
	}
}

// event writes one event; enough says that it was the last one wanted.
func (p *eventPrinter) event() (enough bool, err error) {
	if p.o.jsonRows {
		if p.line, err = p.events.AppendJSON(p.line[:0]); err != nil {
			return true, err
		}
		return p.write(p.line)
	}
	if p.line, err = p.events.AppendText(p.line[:0], p.style); err != nil {
		return true, err
	}
	if err := p.events.Row(&p.row); err != nil {
		return true, err
	}
	if p.row.MPTCP && !p.mptcp {
		p.mptcp = true
		fmt.Fprintln(p.e.notes(), "mptcp: Multipath TCP, with which programs in Go listen by default; an ordinary TCP port to everybody else")
	}
	if !p.o.noProbes {
		return p.write(p.line)
	}
	p.probes.add(&p.row, p.line)
	return p.release()
}

// release writes what is no longer held back.
func (p *eventPrinter) release() (enough bool, err error) {
	for line := p.probes.next(); line != nil; line = p.probes.next() {
		if enough, err := p.write(line); enough || err != nil {
			return enough, err
		}
	}
	return false, nil
}

func (p *eventPrinter) write(line []byte) (enough bool, err error) {
	if _, err := p.out.Write(line); err != nil {
		return true, err
	}
	if p.written++; p.written == p.o.count {
		return true, p.out.Flush()
	}
	return false, nil
}

func (p *eventPrinter) tellLost(lost api.Lost) {
	if lost.By == api.ByKernel {
		fmt.Fprintf(p.e.notes(), "lost %d events in the kernel\n", lost.Lost)
		return
	}
	fmt.Fprintf(p.e.notes(), "lost %d events: the output is too slow\n", lost.Lost)
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
	events := "events"
	if p.written == 1 {
		events = "event"
	}
	fmt.Fprintf(p.e.notes(), "%d %s, %d lost\n", p.written, events, lost)
	if p.probes.left > 0 {
		what := "probes"
		if p.probes.left == 1 {
			what = "probe"
		}
		fmt.Fprintf(p.e.notes(), "porthole: left out %d %s of getaddrinfo() (%d events): --no-probes=false shows them\n", p.probes.left, what, p.probes.events)
	}
}

// tellAttached says that events are followed from now on.
func tellAttached(e *env, tier tracer.Tier, hooks int) {
	fmt.Fprintf(e.notes(), "attached: %s tier, %d hooks\n", tier, hooks)
}

// stopWhenUnread calls stop with EPIPE when stdout is a pipe, or a socket as of ssh, whose
// reader has gone, also while there is nothing to write.
func stopWhenUnread(ctx context.Context, stdout io.Writer, stop func(error)) {
	f, ok := stdout.(*os.File)
	if !ok {
		return
	}
	if info, err := f.Stat(); err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
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
