package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/agent"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

// agentOptions say whether a command asks the agent.
type agentOptions struct {
	ask    bool
	socket string
}

func (o *agentOptions) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.ask, "agent", false, "ask the agent; without, that is done where the kernel may not be asked")
	addSocketFlag(cmd, &o.socket)
}

func addSocketFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", agent.DefaultSocket, "unix socket of the agent")
}

// useAgent returns a client where the agent is to be asked: with --agent, and where
// own, which is why the command cannot do it on its own, wraps ErrNotPermitted and
// an agent answers. Without either it returns own, and a nil client.
func useAgent(o *agentOptions, own error) (*source.Client, error) {
	if !o.ask && !errors.Is(own, tracer.ErrNotPermitted) {
		return nil, own
	}
	c, err := source.Dial(o.socket)
	if err == nil || o.ask {
		return c, err
	}
	return nil, fmt.Errorf("%w; %w", own, err)
}

// askAgent is c.Get with errors as those of commands: what the agent does not
// accept is wrong usage. It tells on stderr when sockets may be missing.
func askAgent(ctx context.Context, e *env, c *source.Client, path string, values map[string][]string) (*source.Answer, error) {
	answer, err := c.Get(ctx, path, values)
	var refused *source.Error
	if errors.As(err, &refused) && refused.Code == http.StatusBadRequest {
		return nil, usageError{err}
	}
	if err != nil {
		return nil, err
	}
	tellUnfinished(e, answer.Unfinished)
	return answer, nil
}

// tellUnfinished says that a snapshot has holes.
func tellUnfinished(e *env, slots int) {
	if slots > 0 {
		fmt.Fprintf(e.stderr, "%d slots of the kernel's tables did not hold still: sockets may be missing\n", slots)
	}
}
