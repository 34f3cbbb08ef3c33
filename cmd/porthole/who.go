package main

import (
	"bufio"
	"cmp"
	"context"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
)

func newWho(e *env) *cobra.Command {
	var jsonRow, hideArgs bool
	var o agentOptions
	cmd := &cobra.Command{
		Use:   "who PORT[/tcp|/udp]",
		Short: "Say who has a port",
		Long: "Say who has a local port, in every network namespace: listeners first, clients\n" +
			"apart; what runs it and how to stop that; where NAT leads it; and, where an agent\n" +
			"is asked, who had it before. Exits with 1 when nobody has it, or has it where\n" +
			"--netns, --container and --pod say.",
		Example: "  porthole who 8080\n  porthole who 53/udp --json\n  porthole who 8080 --netns host",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("want one port, as 8080 or 53/udp; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := query.ParsePortWord(args[0])
			if err != nil {
				return err
			}
			values, err := filterValues(cmd, query.OfPort)
			if err != nil {
				return err
			}
			if err := q.Narrow(values); err != nil {
				return err
			}
			q.NoArgs = hideArgs
			return who(cmd.Context(), e, &o, q, jsonRow)
		},
	}
	cmd.Flags().BoolVar(&jsonRow, "json", false, "one JSON object")
	addNoArgs(cmd, &hideArgs)
	addFilters(cmd, query.OfPort)
	o.add(cmd)
	return cmd
}

func who(ctx context.Context, e *env, o *agentOptions, q query.Port, asJSON bool) error {
	src, err := openSource(e, o)
	if err != nil {
		return err
	}
	if !asJSON {
		q.Limit = render.MaxShown
	}
	answer, err := src.Port(ctx, q)
	if err != nil {
		return err
	}
	defer answer.Close()
	tellUnfinished(e, answer.Unfinished())
	tellNote(e, answer.Note())
	tellView(e, src.PartialView())
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	if asJSON {
		tellPIDs(e.stderr)
	} else {
		tellPIDs(out)
	}
	if err := cmp.Or(write(out, e.style, asJSON, answer), out.Flush()); err != nil {
		return err
	}
	if !answer.Held() {
		return errNo
	}
	return nil
}

// addNoArgs declares --no-args.
func addNoArgs(cmd *cobra.Command, hide *bool) {
	cmd.Flags().BoolVar(hide, "no-args", false, "leave out command lines, which can hold secrets")
}
