package main

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/internal/store"
	"github.com/porthole-dev/porthole/internal/top"
	"github.com/porthole-dev/porthole/tracer"
)

type topOptions struct {
	agent    agentOptions
	hooks    hookOptions
	interval time.Duration
}

func newTop(e *env) *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top [WORD...]",
		Short: "Show ports, connections, events and history, live",
		Long: "Show ports, connections by destination, events and history, live on a terminal.\n" +
			"Press ? for the keys: / filters with the same flags, enter shows what who says\n" +
			"about the port, K ends a process, with your own rights and after a question. A\n" +
			"filter that does not apply to a view, such as --event to ports, is ignored\n" +
			"there. Each WORD is searched for in ports, pids, names, units, containers, pods\n" +
			"and addresses.",
		Example: "  porthole top\n" +
			"  porthole top 8080\n" +
			"  porthole top --unit shop.service\n" +
			"  porthole top --exposed --proto tcp",
		ValidArgsFunction: completePorts(e, &o.agent),
		RunE:              func(cmd *cobra.Command, args []string) error { return runTop(cmd, e, &o, args) },
	}
	cmd.Flags().DurationVar(&o.interval, "interval", 2*time.Second, "`TIME` between updates, such as 1s or 500ms")
	o.hooks.add(cmd)
	addFilters(cmd, e, &o.agent, top.Kinds)
	o.agent.add(cmd)
	return cmd
}

// errNoTerminal is what top needs and does not have.
var errNoTerminal = errors.New("top needs a terminal: for a pipe or a file there are porthole ls, tail and headroom, each with --json")

// terminals are stdin and stdout, if they are a terminal that top can draw on.
func terminals(e *env) (in, out *os.File, err error) {
	out, ok := e.stdout.(*os.File)
	if !ok || !term.IsTerminal(int(out.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, nil, usageError{errNoTerminal}
	}
	if os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" {
		return nil, nil, usagef("top cannot draw on this terminal (TERM=%q): there are porthole ls, tail and headroom", os.Getenv("TERM"))
	}
	return os.Stdin, out, nil
}

func runTop(cmd *cobra.Command, e *env, o *topOptions, words []string) error {
	if o.interval < 100*time.Millisecond {
		return usagef("--interval: %v: want 100ms or more", o.interval)
	}
	values, err := filterValues(cmd, top.Kinds)
	if err != nil {
		return err
	}
	text := top.FilterText(values, words...)
	if err := top.Check(text); err != nil {
		return usageError{err}
	}
	if err := o.hooks.check(&o.agent); err != nil {
		return err
	}
	in, out, err := terminals(e)
	if err != nil {
		return err
	}
	notes := newNotes()
	o.agent.less = true // than root sees
	quiet := *e
	quiet.stderr, quiet.errStyle = notes, render.Style{} // whole lines
	src, err := o.agent.open(&quiet, &source.Local{Hooks: o.hooks.config(), Dir: store.DefaultDir}, tracer.CheckSnapshot())
	if err != nil {
		return err
	}
	names, err := src.Names(cmd.Context())
	if err != nil {
		return err
	}
	defer names.Cgroups.Close()
	from := source.Name(src)
	if o.agent.far.URL != "" {
		from += " " + strings.Trim(strings.TrimPrefix(o.agent.far.URL, "https:"), "/")
	}
	e.endsItself()
	err = top.Run(cmd.Context(), top.Config{
		Source: src, From: from, Names: names, Reach: o.agent.words(), Filter: text, Interval: o.interval,
		Color: e.style.Color, ASCII: !isUTF8(),
		Partial: src.PartialView(), Foreign: src.PIDs(), Elsewhere: src.Elsewhere(), Notes: notes.lines, In: in, Out: out,
	})
	return cmp.Or(err, e.bySignal())
}

// isUTF8 tells whether the user's locale is one of UTF-8, as locale(7) finds it.
func isUTF8() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// notes is stderr while the terminal is drawn on: each line is shown there.
type notes struct {
	lines chan string

	mu   sync.Mutex
	part []byte
}

func newNotes() *notes { return &notes{lines: make(chan string, 16)} }

// Write implements io.Writer. A line that there is no room for is not shown.
func (n *notes) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.part = append(n.part, b...)
	for {
		line, rest, ok := bytes.Cut(n.part, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		n.part = rest
		select {
		case n.lines <- strings.TrimPrefix(string(line), "porthole: "):
		default:
		}
	}
}
