package main

import (
	"bytes"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/query"
)

type lsOptions struct {
	agent    agentOptions
	tree     treeOption
	jsonRows bool
	wide     bool
	noHeader bool
}

func newLs(e *env) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls [PORT...]",
		Short: "List every socket with a port, and the processes that hold it",
		Long: "List every socket with a port, in every network namespace, and the processes\n" +
			"that hold it. With a PORT, such as 8080, 80-90, http, 127.0.0.1:8080 or 53/udp,\n" +
			"list only sockets with that port or address on either side. Filters can be\n" +
			"repeated or comma-separated; all must match. Most spellings of ss, netstat and\n" +
			"lsof work too, such as -tlnp, -i :8080, -u USER, 'sport = :80' and state\n" +
			"listening. On a terminal, values that do not fit are cut, unless --wide or -o\n" +
			"wide is given; a pipe or a file gets them whole.",
		Example: "  porthole ls -tulpn              what listens, as ss -tulpn\n" +
			"  porthole ls :8080               as lsof -i :8080\n" +
			"  porthole ls --exposed           what others can reach, but for a firewall\n" +
			"  porthole ls --exposed --since 1h\n" +
			"  porthole ls -t --state TIME-WAIT\n" +
			"  porthole ls --lport 8080 --json",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: completePorts(e, &o.agent),
		RunE:              func(cmd *cobra.Command, args []string) error { return ls(cmd, e, &o, args) },
	}
	flags := cmd.Flags()
	flags.BoolP("all", "a", false, "accepted for ss: all sockets are shown anyway")
	flags.BoolP("numeric", "n", false, "accepted for ss: numbers are shown anyway")
	flags.BoolP("processes", "p", false, "accepted for ss: processes are shown anyway")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	addWide(cmd, &o.wide)
	flags.BoolVar(&o.noHeader, "no-header", false, "leave out the headings")
	addFilters(cmd, e, &o.agent, query.OfSockets)
	o.tree.add(cmd)
	complete(cmd, e, &o.agent, "tree")
	o.agent.add(cmd)
	return cmd
}

func ls(cmd *cobra.Command, e *env, o *lsOptions, ends []string) error {
	values, err := filterValues(cmd, query.OfSockets)
	if err != nil {
		return err
	}
	if err := addEnds(values, ends); err != nil {
		return err
	}
	if err := o.tree.narrow(values); err != nil {
		return err
	}
	q, err := query.ParseSockets(values)
	if err != nil {
		return err
	}
	src, err := openSource(e, &o.agent)
	if err != nil {
		return err
	}
	answer, err := src.Sockets(cmd.Context(), q)
	if err != nil {
		return err
	}
	defer answer.Close()
	tellUnfinished(e, answer.Unfinished())
	tellNote(e, answer.Note())
	tellView(e, src.PartialView())
	tellPIDs(src.PIDs(), e.notes())
	if o.noHeader && !o.jsonRows {
		bodyOf := *e
		bodyOf.stdout = &withoutHeading{to: e.stdout}
		e = &bodyOf
	}
	style := wideOr(e.style, o.wide)
	style.OneNetNS = len(values["netns"]) == 1
	if err := writeAll(e, style, o.jsonRows, answer); err != nil {
		return err
	}
	if n := answer.Undated(); n > 0 {
		what := "1 more socket matches, but it is not known when it took its port"
		if n > 1 {
			what = fmt.Sprintf("%d more sockets match, but it is not known when they took their ports", n)
		}
		fmt.Fprintf(e.notes(), "porthole: %s: only an agent knows that, of sockets that it saw take one\n", what)
	}
	return nil
}

// addEnds makes arguments values of the filter of ends.
func addEnds(values query.Values, words []string) error {
	for _, word := range words {
		ends, err := query.ParseEndsWord(word)
		if err == nil {
			err = ends.NoHost(word)
		}
		if err != nil {
			return err
		}
		values["end"] = append(values["end"], word)
	}
	return nil
}

// withoutHeading leaves the first line out.
type withoutHeading struct {
	to   io.Writer
	over bool // the line
}

// Write implements io.Writer.
func (w *withoutHeading) Write(b []byte) (int, error) {
	rest := b
	if !w.over {
		if _, rest, w.over = bytes.Cut(b, []byte{'\n'}); !w.over {
			return len(b), nil
		}
	}
	n, err := w.to.Write(rest)
	return len(b) - len(rest) + n, err
}
