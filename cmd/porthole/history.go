package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/internal/store"
)

type historyOptions struct {
	agent    agentOptions
	dir      string
	limit    int
	jsonRows bool
	hideArgs bool
	moments  map[string]*string
	kinds    map[string]*bool
}

func newHistory(e *env) *cobra.Command {
	o := historyOptions{moments: make(map[string]*string), kinds: make(map[string]*bool)}
	cmd := &cobra.Command{
		Use:   "history [PORT[/tcp|/udp]]",
		Short: "Show who had which port, and calls that got none",
		Long: "Show who had which port, the latest first, and calls that failed to get one, as\n" +
			"far back as the agent remembers: with --history.dir, over restarts. Without an\n" +
			"agent, root reads what one has left on disk. UNTIL has a ? where the end is not\n" +
			"known, as after a crash of the agent, and FOR a > where the beginning is not.\n" +
			"Times are 1h (ago), 03:12, \"yesterday 03:00\", 2026-11-27 03:00 or RFC 3339.\n" +
			"Exits with 1 when there is nothing to show.",
		Example: "  porthole history 5000\n" +
			"  porthole history --listeners --since yesterday\n" +
			"  porthole history --failures --unit shop.service\n" +
			"  porthole history --at \"yesterday 03:12\" --json -n 0",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("unexpected argument %q; see %s --help", args[1], cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: completePorts(e, &o.agent),
		RunE:              func(cmd *cobra.Command, args []string) error { return history(cmd, e, &o, args) },
	}
	flags := cmd.Flags()
	for _, m := range []struct{ name, usage string }{
		{"since", "only what had its port at this `TIME` or later"},
		{"until", "only what had its port at this `TIME` or before"},
		{"at", "only what had its port at this `TIME`"},
	} {
		o.moments[m.name] = flags.String(m.name, "", m.usage)
	}
	for _, k := range []struct{ name, usage string }{
		{"listeners", "listeners and sockets bound by bind(); can be combined with the next two"},
		{"connections", "everything else that had a port"},
		{"failures", "calls that got no port and who was in the way, and connections that failed, but were not reset"},
	} {
		o.kinds[k.name] = flags.Bool(k.name, false, k.usage)
	}
	flags.IntVarP(&o.limit, "limit", "n", 50, "`ROWS` to show; 0: all")
	flags.StringVar(&o.dir, "history.dir", store.DefaultDir, "`DIRECTORY` where an agent keeps its history")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	addNoArgs(cmd, &o.hideArgs)
	addFilters(cmd, e, &o.agent, query.OfHistory)
	o.agent.add(cmd)
	return cmd
}

func history(cmd *cobra.Command, e *env, o *historyOptions, args []string) error {
	values, err := filterValues(cmd, query.OfHistory)
	if err != nil {
		return err
	}
	if port, ok := values["port"]; ok {
		delete(values, "port")
		values[query.EitherPort] = port
	}
	if len(args) == 1 {
		if err := atPort(values, args[0]); err != nil {
			return err
		}
	}
	for name, given := range o.moments {
		if cmd.Flags().Changed(name) {
			values[name] = []string{*given}
		}
	}
	none := !*o.kinds["listeners"] && !*o.kinds["connections"] && !*o.kinds["failures"]
	for name, given := range o.kinds {
		if *given || none {
			values[name] = []string{"true"}
		}
	}
	if o.limit < 0 {
		return usagef("--limit: %d: want a number from 0 up", o.limit)
	}
	rows, err := o.show(cmd.Context(), e, values)
	if err == nil && rows == 0 {
		return errNo
	}
	return err
}

// atPort asks about local ports as people write them.
func atPort(values query.Values, word string) error {
	ends, err := query.ParseEndsWord(word)
	if err != nil {
		return err
	}
	if len(values["lport"]) > 0 {
		return usagef("--lport: not with an argument, which is a local port too")
	}
	values["lport"] = []string{fmt.Sprintf("%d-%d", ends.Port, ends.Last)}
	if ends.Last == ends.Port {
		values["lport"] = []string{strconv.Itoa(int(ends.Port))}
	}
	if len(ends.Protos) == 1 && len(values["proto"]) == 0 {
		values["proto"] = []string{ends.Protos[0].String()}
	}
	return nil
}

// show writes the rows that are asked for, and tells how many those were.
func (o *historyOptions) show(ctx context.Context, e *env, values query.Values) (rows int, err error) {
	now := time.Now()
	q, err := query.ParseHistory(values, now)
	if err != nil {
		return 0, err
	}
	if o.limit > 0 {
		q.Limit = o.limit + 1 // one more tells whether there are more
	}
	past, err := o.ask(ctx, e, q)
	if err != nil {
		return 0, err
	}
	defer past.Close()
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	page := historyPage{out: out, style: e.style, asJSON: o.jsonRows, now: now}
	more := false
	for row, err := range past.Rows {
		if err != nil {
			return rows, errors.Join(err, page.flush())
		}
		if more = o.limit > 0 && rows == o.limit; more {
			break
		}
		if o.hideArgs {
			row.HideArgs()
		}
		if err := page.add(row); err != nil {
			return rows, err
		}
		rows++
	}
	if err := cmp.Or(page.flush(), out.Flush()); err != nil {
		return rows, err
	}
	if more {
		fmt.Fprintf(e.stderr, "porthole: these are the latest %d; -n 0 shows all\n", rows)
	}
	if lacking := past.Lacking(); lacking != "" {
		fmt.Fprintf(e.stderr, "porthole: %s\n", lacking)
	}
	if rows == 0 && !o.jsonRows {
		fmt.Fprintln(e.stderr, "porthole: nothing of that kind is in the history")
	}
	return rows, nil
}

// ask asks the agent, or else reads what one has left on disk.
func (o *historyOptions) ask(ctx context.Context, e *env, q *query.History) (*source.Past, error) {
	local := &source.Local{Dir: o.dir}
	if o.agent.local || e.unasked && !o.agent.named && !o.agent.ask {
		return local.Past(ctx, q)
	}
	agent, err := o.agent.dial()
	if err == nil {
		return agent.Past(ctx, q)
	}
	if o.agent.ask {
		return nil, err
	}
	past, localErr := local.Past(ctx, q)
	if localErr != nil {
		return nil, fmt.Errorf("%w; %w", localErr, err)
	}
	return past, nil
}

// historyPage writes rows, so many at once: columns are as wide as those of a page need.
type historyPage struct {
	out    *bufio.Writer
	style  render.Style
	asJSON bool
	now    time.Time
	rows   []render.Tenancy
}

const pageRows = 1000

func (p *historyPage) add(row *render.Tenancy) error {
	if p.asJSON {
		return render.WriteJSON(p.out, row)
	}
	if p.rows = append(p.rows, *row); len(p.rows) == pageRows {
		return p.flush()
	}
	return nil
}

func (p *historyPage) flush() error {
	if len(p.rows) == 0 {
		return nil
	}
	err := render.HistoryText(p.out, p.style, p.rows, p.now)
	p.rows = p.rows[:0]
	return err
}

// hadAt answers who had ports at a time.
func (o *whoOptions) hadAt(ctx context.Context, e *env, asked []string) error {
	h := historyOptions{agent: o.agent, dir: o.dir, jsonRows: o.jsonRows, hideArgs: o.hideArgs}
	all := 0
	for _, word := range asked {
		values := maps.Clone(o.where)
		if err := atPort(values, word); err != nil {
			return err
		}
		values["at"], values["listeners"], values["connections"] = []string{o.at}, []string{"true"}, []string{"true"}
		rows, err := h.show(ctx, e, values)
		if err != nil {
			return err
		}
		all += rows
	}
	if all == 0 {
		return errNo
	}
	return nil
}
