package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/internal/store"
)

type whoOptions struct {
	agent    agentOptions
	hideArgs bool
	jsonRows bool
	at, dir  string
	where    query.Values
}

func newWho(e *env) *cobra.Command {
	var o whoOptions
	cmd := &cobra.Command{
		Use:   "who PORT[/tcp|/udp]...",
		Short: "Say who has a port",
		Long: "Say who has a local port, in every network namespace: listeners first, clients\n" +
			"separately; what runs it and how to stop that; where NAT sends it; and, if an\n" +
			"agent runs, who had it before. Of a range, only ports in use are shown. Exits\n" +
			"with 1 when none of them is in use, or not in the given --netns, --container or\n" +
			"--pod.",
		Example: "  porthole who 8080\n  porthole who 53/udp --json\n  porthole who 8080 --netns host\n" +
			"  porthole who 80 443 8000-8100\n  porthole who 5000 --at 03:12",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("want a port, as 8080 or 53/udp; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: completePorts(e, &o.agent),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			asked := make([]query.Ends, len(args))
			for i, word := range args {
				if asked[i], err = query.ParseEndsWord(word); err != nil {
					return err
				}
			}
			if o.where, err = filterValues(cmd, query.OfPort); err != nil {
				return err
			}
			if err := new(query.Port).Narrow(o.where); err != nil {
				return err
			}
			if cmd.Flags().Changed("at") {
				return o.hadAt(cmd.Context(), e, args)
			}
			return runWho(cmd.Context(), e, &o, asked)
		},
	}
	cmd.Flags().BoolVar(&o.jsonRows, "json", false, "one JSON object a line, for each port")
	cmd.Flags().StringVar(&o.at, "at", "", "who had it at this `TIME`, such as 03:12 or \"yesterday 03:00\"; see history")
	cmd.Flags().StringVar(&o.dir, "history.dir", store.DefaultDir, "with --at: `DIRECTORY` where an agent keeps its history")
	addNoArgs(cmd, &o.hideArgs)
	addFilters(cmd, e, &o.agent, query.OfPort)
	o.agent.add(cmd)
	return cmd
}

// runWho answers about each port, and of ranges about those that somebody has.
func runWho(ctx context.Context, e *env, o *whoOptions, asked []query.Ends) error {
	src, err := openSource(e, &o.agent)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	tellView(e, src.PartialView())
	if o.jsonRows {
		tellPIDs(src.PIDs(), e.notes())
	} else {
		tellPIDs(src.PIDs(), out)
	}
	held, first := false, true
	for _, ends := range asked {
		ports := []uint16{ends.Port}
		if ends.Last != ends.Port {
			if ports, err = heldPorts(ctx, e, src, o, ends); err != nil {
				return err
			}
			if len(ports) == 0 && !o.jsonRows {
				separate(out, &first)
				where := ""
				if src.Partial() {
					where = " in this network namespace"
				}
				fmt.Fprintf(out, "nothing uses ports %d-%d%s\n", ends.Port, ends.Last, where)
			}
		}
		for _, port := range ports {
			if !o.jsonRows {
				separate(out, &first)
			}
			is, err := whoHas(ctx, e, o, src, query.Port{Number: port, Protos: ends.Protos, Limit: query.Unlimited, NoArgs: o.hideArgs}, out)
			if err != nil {
				return err
			}
			held = held || is
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if !held {
		return errNo
	}
	return nil
}

// separate writes an empty line before everything but the first.
func separate(out *bufio.Writer, first *bool) {
	if !*first {
		_ = out.WriteByte('\n') // keeps the error
	}
	*first = false
}

// heldPorts are the ports of a range that somebody has, ascending.
func heldPorts(ctx context.Context, e *env, src source.Source, o *whoOptions, ends query.Ends) ([]uint16, error) {
	values := maps.Clone(o.where)
	values["lport"] = []string{fmt.Sprintf("%d-%d", ends.Port, ends.Last)}
	for _, proto := range ends.Protos {
		values["proto"] = append(values["proto"], proto.String())
	}
	rows, _, err := socketRows(ctx, e, src, values)
	var ports []uint16
	for i := range rows {
		ports = append(ports, rows[i].LocalPort)
	}
	slices.Sort(ports)
	return slices.Compact(ports), err
}

// whoHas writes the answer about one port, and tells whether anybody has it.
func whoHas(ctx context.Context, e *env, o *whoOptions, src source.Source, q query.Port, out *bufio.Writer) (held bool, err error) {
	if err := q.Narrow(o.where); err != nil {
		return false, err
	}
	if !o.jsonRows {
		q.Limit = render.MaxShown
	}
	answer, err := src.Port(ctx, q)
	if err != nil {
		return false, err
	}
	defer answer.Close()
	tellUnfinished(e, answer.Unfinished())
	tellNote(e, answer.Note())
	if err := write(out, e.style, o.jsonRows, answer); err != nil {
		return false, cmp.Or(err, out.Flush())
	}
	return answer.Held(), nil
}

// addNoArgs declares --no-args.
func addNoArgs(cmd *cobra.Command, hide *bool) {
	cmd.Flags().BoolVar(hide, "no-args", false, "leave out command lines, which can hold secrets")
}
