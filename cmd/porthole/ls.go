package main

import (
	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/query"
)

type lsOptions struct {
	agent    agentOptions
	jsonRows bool
}

func newLs(e *env) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List every socket with a port, and the processes that hold it",
		Long: "List every socket with a port, in every network namespace, and the processes\n" +
			"that hold it. Filters can be repeated or comma-separated; all must match.",
		Example: "  porthole ls -tulpn              what listens, as ss -tulpn\n" +
			"  porthole ls --exposed           what others can reach, but for a firewall\n" +
			"  porthole ls -t --state TIME-WAIT\n" +
			"  porthole ls --lport 8080 --json",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return ls(cmd, e, &o) },
	}
	flags := cmd.Flags()
	flags.BoolP("all", "a", false, "accepted as in ss: all sockets are shown anyway")
	flags.BoolP("numeric", "n", false, "accepted as in ss: numbers are shown anyway")
	flags.BoolP("processes", "p", false, "accepted as in ss: processes are shown anyway")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	addFilters(cmd, query.OfSockets)
	o.agent.add(cmd)
	return cmd
}

func ls(cmd *cobra.Command, e *env, o *lsOptions) error {
	values, err := filterValues(cmd, query.OfSockets)
	if err != nil {
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
	tellPIDs(e.stderr)
	return writeAll(e, o.jsonRows, answer)
}
