package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/agent"
	"github.com/porthole-dev/porthole/internal/render"
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

// useAgent returns the agent where it is to be asked: with --agent, and where own, which is
// why the command cannot do it on its own, wraps ErrNotPermitted and an agent answers. Without
// either it returns own, and no agent.
func useAgent(o *agentOptions, own error) (*source.Remote, error) {
	if !o.ask && !errors.Is(own, tracer.ErrNotPermitted) {
		return nil, own
	}
	r, err := source.Dial(o.socket)
	if err == nil || o.ask {
		return r, err
	}
	return nil, fmt.Errorf("%w; %w", own, err)
}

// openSource returns where a command that asks once has its answer from.
func openSource(o *agentOptions) (source.Source, error) {
	r, err := useAgent(o, tracer.CheckSnapshot())
	if err != nil {
		return nil, err
	}
	if r != nil {
		return r, nil
	}
	// A command that ends at once need not collect what it throws away, as long as
	// it stays small.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	return &source.Local{}, nil
}

// tellUnfinished says that a snapshot has holes.
func tellUnfinished(e *env, slots int) {
	if slots > 0 {
		fmt.Fprintf(e.stderr, "%d slots of the kernel's tables did not hold still: sockets may be missing\n", slots)
	}
}

// tellNote says what a filter can match nothing of.
func tellNote(e *env, note string) {
	if note != "" {
		fmt.Fprintln(e.stderr, note)
	}
}

// write writes an answer in one of its forms.
func write(out io.Writer, style render.Style, asJSON bool, answer source.Report) error {
	if asJSON {
		return answer.JSON(out)
	}
	return answer.Text(out, style)
}

// writeAll writes an answer to stdout, and what there is of it before an error.
func writeAll(e *env, asJSON bool, answer source.Report) error {
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	return cmp.Or(write(out, e.style, asJSON, answer), out.Flush())
}
