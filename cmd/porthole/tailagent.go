package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
)

// errAgentEnded ends a tail that did not want to.
var errAgentEnded = errors.New("the agent ended")

// tailAgent follows the agent's events.
func tailAgent(ctx context.Context, e *env, o *tailOptions, c *source.Client, values map[string][]string) error {
	status, _, err := askStatus(ctx, e, c)
	if err != nil {
		return err
	}
	return followAgent(ctx, e, o, c, values, func() {
		tellView(e, c.PartialView)
		tellPIDs(e.stderr)
		tellAttached(e, status.Tier, status.CountAttached())
	})
}

// followAgent writes the agent's events until ctx ends or there are enough, and
// calls attached before the first.
func followAgent(ctx context.Context, e *env, o *tailOptions, c *source.Client, values map[string][]string, attached func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopWhenUnread(ctx, e.stdout, cancel)
	e = e.letGo(ctx)
	if o.verbose {
		values["verbose"] = []string{"true"}
	}
	body, err := askAgent(ctx, e, c, "/v1/events", values)
	if err != nil {
		return err
	}
	defer body.Close()
	e.endsItself()
	attached()
	if o.duration > 0 {
		timer := time.AfterFunc(o.duration, func() { cancel(nil) })
		defer timer.Stop()
	}
	names := identity.Load(nil)
	defer names.Cgroups.Close()
	p := &agentTail{eventPrinter: newEventPrinter(e, o, names), in: bufio.NewReaderSize(body, 1<<16)}
	if err = p.head(); err == nil {
		err = p.follow()
	}
	if ctx.Err() != nil {
		err = p.out.Flush() // this end was asked for; what could not be written still cannot
	}
	p.end(p.lost)
	return cmp.Or(err, p.short(ctx))
}

// agentTail follows the events of the agent.
type agentTail struct {
	*eventPrinter
	in   *bufio.Reader
	lost uint64
}

// follow writes events until there are enough or the stream ends.
func (p *agentTail) follow() error {
	for {
		line, err := p.in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return errors.Join(p.out.Flush(), errAgentEnded)
		} else if err != nil {
			return fmt.Errorf("read the agent's events: %w", err)
		}
		if enough, err := p.take(line); enough || err != nil {
			return err
		}
		if p.in.Buffered() == 0 {
			if err := p.out.Flush(); err != nil {
				return err
			}
		}
	}
}

// take writes one line of the stream; those that tell what was lost go to stderr.
func (p *agentTail) take(line []byte) (enough bool, err error) {
	if bytes.HasPrefix(line, []byte(`{"lost":`)) {
		var lost api.Lost
		if err := json.Unmarshal(line, &lost); err != nil {
			return false, fmt.Errorf("read the agent's events: %w", err)
		}
		p.lost += lost.Lost
		if lost.By == api.ByKernel {
			tellLostKernel(p.e, lost.Lost)
		} else {
			tellLostLate(p.e, lost.Lost)
		}
		return false, nil
	}
	if p.o.jsonRows {
		return p.raw(line)
	}
	var row render.Event
	if err := json.Unmarshal(line, &row); err != nil {
		return false, fmt.Errorf("read the agent's events: %w", err)
	}
	return p.event(&row)
}
