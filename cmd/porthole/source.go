package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/agent"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

// agentOptions say whether a command asks the agent.
type agentOptions struct {
	ask, local bool
	socket     string
	named      bool          // the user has named the socket
	within     time.Duration // as of source.Choice
	less       bool          // as of source.Choice
}

func (o *agentOptions) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.ask, "agent", false, "query the running agent, and fail if there is none (default: if it answers)")
	cmd.Flags().BoolVar(&o.local, "local", false, "query the kernel, even if an agent is running")
	addSocketFlag(cmd, &o.socket)
	preRun(cmd, func() error {
		o.named = cmd.Flags().Changed("socket")
		if o.ask && o.local {
			return usagef("--local: not with --agent; see %s --help", cmd.CommandPath())
		}
		return nil
	})
}

// preRun has a command begin with f.
func preRun(cmd *cobra.Command, f func() error) {
	cmd.PreRunE = func(*cobra.Command, []string) error { return f() }
}

func addSocketFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", agent.DefaultSocket, "unix socket of the agent")
}

// open returns where a command has its answers from. cannot is why the kernel cannot be asked.
func (o *agentOptions) open(e *env, kernel *source.Local, cannot error) (source.Source, error) {
	c := source.Choice{Socket: o.socket, Kernel: kernel, Cannot: cannot, Within: o.within, Less: o.less, Tell: func(note string) { tellView(e, []string{note}) }}
	switch {
	case o.ask:
		c.Ask = source.AskAgent
	case o.local:
		c.Ask = source.AskKernel
	case e.unasked && !o.named && !errors.Is(cannot, tracer.ErrNotPermitted):
		c.Socket = ""
	}
	return source.Open(c)
}

// openSource returns where a command that asks once has its answer from. Without privileges, and
// without an agent, that is what the kernel tells every user.
func openSource(e *env, o *agentOptions) (source.Source, error) {
	some := *o
	some.less = true
	return openWhole(e, &some)
}

// openWhole is openSource of a command whose answer would be wrong without what is then missing.
func openWhole(e *env, o *agentOptions) (source.Source, error) {
	src, err := o.open(e, &source.Local{}, tracer.CheckSnapshot())
	if err != nil {
		return nil, err
	}
	// A command that ends at once need not collect what it throws away, as long as
	// it stays small.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	return src, nil
}

// tellUnfinished says that a snapshot has holes.
func tellUnfinished(e *env, slots int) {
	if slots > 0 {
		fmt.Fprintf(e.notes(), "warning: %d hash buckets kept changing while they were read; some sockets may be missing\n", slots)
	}
}

// tellNote says what a filter can match nothing of.
func tellNote(e *env, note string) {
	if note != "" {
		fmt.Fprintln(e.notes(), note)
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
func writeAll(e *env, style render.Style, asJSON bool, answer source.Report) error {
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	return cmp.Or(write(out, style, asJSON, answer), out.Flush())
}
