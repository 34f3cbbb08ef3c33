package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
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
	far        source.Far    // its URL "": none is asked elsewhere
	within     time.Duration // as of source.Choice
	less       bool          // as of source.Choice
}

func (o *agentOptions) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.ask, "agent", false, "query the running agent, and fail if there is none (default: if it answers)")
	cmd.Flags().BoolVar(&o.local, "local", false, "query the kernel, even if an agent is running")
	addSocketFlag(cmd, &o.socket)
	addFar(cmd, &o.far)
	preRun(cmd, func() error {
		o.named = cmd.Flags().Changed("socket")
		if o.ask && o.local {
			return usagef("--local: not with --agent; see %s --help", cmd.CommandPath())
		}
		return o.checkFar(cmd)
	})
}

// urlFlag is the flag of an agent elsewhere.
const urlFlag = "agent.url"

// farFlags are those of an agent elsewhere.
func farFlags() []string {
	return []string{urlFlag, "agent.ca-file", "agent.cert-file", "agent.key-file"}
}

func addFar(cmd *cobra.Command, far *source.Far) {
	flags := cmd.Flags()
	flags.StringVar(&far.URL, urlFlag, "", "`URL` of an agent on another machine, such as https://web1:9656: query it, and nothing on this one")
	flags.StringVar(&far.CAFile, "agent.ca-file", "", "`FILE` with the CA certificates for --agent.url (default: the system's)")
	flags.StringVar(&far.CertFile, "agent.cert-file", "", "`FILE` with your certificate for --agent.url")
	flags.StringVar(&far.KeyFile, "agent.key-file", "", "`FILE` with the key of that certificate")
	_ = cmd.RegisterFlagCompletionFunc(urlFlag, cobra.NoFileCompletions) // fails only for a flag that does not exist
}

// checkFar refuses what would be of this machine where an agent elsewhere is asked.
func (o *agentOptions) checkFar(cmd *cobra.Command) error {
	flags := cmd.Flags()
	if !flags.Changed(urlFlag) {
		for _, name := range farFlags() {
			if flags.Changed(name) {
				return usagef("--%s: want --%s too", name, urlFlag)
			}
		}
		return nil
	}
	if err := source.CheckURL(o.far.URL); err != nil {
		return usagef("--%s: %w", urlFlag, err)
	}
	for name, why := range map[string]string{
		"local": "which is not this machine", "socket": "which has no socket here", "history.dir": "which has its own history",
		"tree": "whose processes are not in /proc here: --pid takes their numbers",
	} {
		if flags.Changed(name) {
			return usagef("--%s: not with --%s, %s", name, urlFlag, why)
		}
	}
	if f := flags.Lookup("uid"); f != nil && f.Changed {
		given, err := flags.GetStringSlice("uid")
		if err != nil {
			return err
		}
		for _, user := range given {
			if _, err := strconv.ParseUint(user, 10, 32); err != nil {
				return usagef("--uid: %q: want a number with --%s: the names of users are those of this machine", user, urlFlag)
			}
		}
	}
	if o.far.CertFile == "" || o.far.KeyFile == "" {
		return usagef("--%s: want --agent.cert-file and --agent.key-file too: an agent answers nobody without a certificate", urlFlag)
	}
	o.ask = true
	return nil
}

// words are the flags of an agent elsewhere, as they are typed; none where none is asked.
func (o *agentOptions) words() []string {
	if o.far.URL == "" {
		return nil
	}
	words := []string{"--" + urlFlag, o.far.URL}
	if o.far.CAFile != "" {
		words = append(words, "--agent.ca-file", o.far.CAFile)
	}
	return append(words, "--agent.cert-file", o.far.CertFile, "--agent.key-file", o.far.KeyFile)
}

// onlyHere has a command that asks about this machine refuse an agent elsewhere; instead says what to do.
func onlyHere(cmd *cobra.Command, instead string) {
	for _, name := range farFlags() {
		if cmd.Flags().Lookup(name) == nil {
			addFar(cmd, new(source.Far))
		}
		_ = cmd.Flags().MarkHidden(name) // fails only for a flag that does not exist
	}
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		for _, name := range farFlags() {
			if cmd.Flags().Changed(name) {
				return usagef("--%s: not with %s, which is about this machine; %s", name, cmd.Name(), instead)
			}
		}
		if check == nil {
			return nil
		}
		return check(cmd, args)
	}
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
	case o.far.URL != "":
		c.Far = &o.far
	case o.ask:
		c.Ask = source.AskAgent
	case o.local:
		c.Ask = source.AskKernel
	case e.unasked && !o.named && !errors.Is(cannot, tracer.ErrNotPermitted):
		c.Socket = ""
	}
	return source.Open(c)
}

// dial returns the agent that is to be asked.
func (o *agentOptions) dial() (*source.Remote, error) {
	if o.far.URL != "" {
		return source.DialFar(o.far)
	}
	return source.Dial(o.socket)
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
