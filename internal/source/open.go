package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/tracer"
)

// Ask says whom to ask.
type Ask uint8

// Whom to ask.
const (
	AskAny    Ask = iota // an agent that answers, else the kernel
	AskAgent             // an agent, and nobody else
	AskKernel            // the kernel, whether there is an agent or not
)

// soonWithin is how long an agent may take to say that it lives where the kernel can be asked
// instead.
const soonWithin = time.Second

// Choice is what decides who is asked.
type Choice struct {
	Ask    Ask
	Far    *Far              // an agent elsewhere, which then is asked and nobody else; nil: none
	Socket string            // of the agent; "": there is none
	Kernel *Local            // how the kernel is asked
	Cannot error             // why the kernel cannot be; nil: it can
	Less   bool              // then what it tells every user will do
	Within time.Duration     // that an agent may take to say that it lives, if less than usual; 0: as usual
	Tell   func(note string) // called with a sentence where an agent is there and is not asked
}

// Open returns who answers. With AskAny that is an agent where one answers and sees no less than
// this process, and where it fails the kernel, if that can be asked; with Less it is a User where
// neither can. Else the error wraps Cannot then.
func Open(c Choice) (Source, error) {
	if c.Far != nil {
		return openFar(c)
	}
	if c.Ask == AskKernel || c.Ask == AskAny && c.Socket == "" {
		return kernel(c)
	}
	within := aliveWithin
	if c.Ask == AskAny && c.Cannot == nil {
		within = soonWithin
	}
	if c.Within > 0 {
		within = min(within, c.Within)
	}
	agent, err := dial(c.Socket, within)
	switch {
	case c.Ask == AskAgent:
		if err != nil {
			return nil, err // no Source that holds a nil
		}
		return agent, nil
	case err == nil && c.Cannot != nil:
		return agent, nil
	case err == nil && len(agent.partialView) > len(doctor.View()):
		c.Tell(fmt.Sprintf("the agent on %s sees less than this process: querying the kernel", c.Socket))
		return kernel(c)
	case err == nil:
		return &preferred{Remote: agent, kernel: c.Kernel, tell: c.Tell}, nil
	case errors.Is(c.Cannot, tracer.ErrNotPermitted) && !c.Less:
		return nil, fmt.Errorf("%w; %w", c.Cannot, err)
	case errors.Is(err, fs.ErrPermission):
		if _, err := os.Lstat(c.Socket); err == nil { // else it is not known whether there is one
			c.Tell(fmt.Sprintf("only root and members of group porthole may query the agent on %s, if the group was there when it started: querying the kernel", c.Socket))
		}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED): // there is none
	default:
		c.Tell(fmt.Sprintf("%v: querying the kernel", err))
	}
	return kernel(c)
}

func openFar(c Choice) (Source, error) {
	within := aliveWithin
	if c.Within > 0 {
		within = min(within, c.Within)
	}
	agent, err := dialFar(*c.Far, within)
	if err != nil {
		return nil, err // no Source that holds a nil
	}
	return agent, nil
}

func kernel(c Choice) (Source, error) {
	if c.Less && errors.Is(c.Cannot, tracer.ErrNotPermitted) {
		return &User{c.Cannot}, nil
	}
	if c.Cannot != nil {
		return nil, c.Cannot
	}
	return c.Kernel, nil
}

// preferred asks the agent, and the kernel what the agent cannot answer: it has fewer
// privileges, or clients enough, or is of another version.
type preferred struct {
	*Remote
	kernel *Local
	tell   func(string)
	failed atomic.Bool // the agent has not answered, which was told
}

// instead tells whether the kernel is to be asked for what the agent has not answered. What is asked
// again and again says so once.
func (p *preferred) instead(ctx context.Context, err error) bool {
	switch {
	case err == nil:
		p.failed.Store(false)
		return false
	case ctx.Err() != nil:
		return false
	}
	if !p.failed.Swap(true) {
		p.tell(fmt.Sprintf("the agent has no answer: querying the kernel (%v)", err))
	}
	return true
}

// Sockets implements Source.
func (p *preferred) Sockets(ctx context.Context, q *query.Sockets) (SocketsAnswer, error) {
	a, err := p.Remote.Sockets(ctx, q)
	if p.instead(ctx, err) {
		return p.kernel.Sockets(ctx, q)
	}
	return a, err
}

// Port implements Source.
func (p *preferred) Port(ctx context.Context, q query.Port) (PortAnswer, error) {
	a, err := p.Remote.Port(ctx, q)
	if p.instead(ctx, err) {
		return p.kernel.Port(ctx, q)
	}
	return a, err
}

// Headroom implements Source.
func (p *preferred) Headroom(ctx context.Context, q *query.Headroom) (*Headroom, error) {
	h, err := p.Remote.Headroom(ctx, q)
	if p.instead(ctx, err) {
		return p.kernel.Headroom(ctx, q)
	}
	return h, err
}

// Events implements Source. Where the agent ends, the kernel is followed.
func (p *preferred) Events(ctx context.Context, q *query.Events) (Events, error) {
	events, err := p.Remote.Events(ctx, q)
	if p.instead(ctx, err) {
		return p.kernel.Events(ctx, q)
	} else if err != nil {
		return nil, err
	}
	return &preferredEvents{Events: events, ctx: ctx, from: p, q: q}, nil
}

type preferredEvents struct {
	Events
	ctx  context.Context
	from *preferred
	q    *query.Events
	lost uint64 // of those of the agent, once it has ended
}

// Next implements Events.
func (s *preferredEvents) Next() (Happened, error) {
	happened, err := s.Events.Next()
	if !errors.Is(err, ErrEnded) {
		return happened, err
	}
	lost, endErr := s.Events.End()
	s.lost += lost
	s.from.tell("the agent ended: following the kernel; events of the time between are missing")
	next, err := s.from.kernel.Events(s.ctx, s.q)
	if err != nil {
		return Pause, errors.Join(ErrEnded, endErr, err)
	}
	err = s.Events.Close()
	s.Events = next
	return Pause, err
}

// End implements Events.
func (s *preferredEvents) End() (uint64, error) {
	lost, err := s.Events.End()
	return s.lost + lost, err
}

// Name is who a source asks first, in a word: "agent" or "kernel".
func Name(s Source) string {
	switch s.(type) {
	case *Remote, *preferred:
		return "agent"
	}
	return "kernel"
}
