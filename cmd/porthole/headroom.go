package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
)

type headroomOptions struct {
	agent    agentOptions
	to, from string
	top      int
	jsonRows bool
	wide     bool
}

func newHeadroom(e *env) *cobra.Command {
	var o headroomOptions
	cmd := &cobra.Command{
		Use:   "headroom",
		Short: "Show how many ephemeral ports are left, and who has the others",
		Long: "Show for each destination, in every network namespace, how many ephemeral ports\n" +
			"are left before connect(), bind() to port 0 or UDP fails, and who has the\n" +
			"others; the fullest come first. FREE is the number of calls that would succeed\n" +
			"now. USED ports are those of the destination itself; the ports of bound sockets\n" +
			"are blocked for every destination. Filters can be repeated or comma-separated;\n" +
			"all must match.",
		Example: "  porthole headroom\n" +
			"  porthole headroom --to 192.0.2.1:443     also without a connection there\n" +
			"  porthole headroom --netns blue --json",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runHeadroom(cmd, e, &o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.to, "to", "", "only this `DESTINATION`, such as 192.0.2.1:443 or [fe80::1%eth0]:443")
	flags.StringVar(&o.from, "from", "", "with --to: from this local `ADDRESS` instead of the one the route uses")
	flags.IntVar(&o.top, "top", 20, "`LINES` to show for each network namespace; 0: all; not given: none where all are below 1 %")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	addWide(cmd, &o.wide)
	addFilters(cmd, e, &o.agent, query.OfHeadroom)
	o.agent.add(cmd)
	return cmd
}

func runHeadroom(cmd *cobra.Command, e *env, o *headroomOptions) error {
	if o.top < 0 {
		return usagef("--top: %d: want a number from 0 up", o.top)
	}
	values, err := filterValues(cmd, query.OfHeadroom)
	if err != nil {
		return err
	}
	for name, given := range map[string]string{"to": o.to, "from": o.from} {
		if cmd.Flags().Changed(name) {
			values[name] = []string{given}
		}
	}
	if _, where := values["netns"]; !cmd.Flags().Changed("top") && (len(values) == 0 || len(values) == 1 && where) {
		o.top = render.Busy
	}
	q, err := query.ParseHeadroom(values)
	if err != nil {
		return err
	}
	src, err := openSource(e, &o.agent)
	if err != nil {
		return err
	}
	tellPIDs(src.PIDs(), e.notes())
	tellView(e, src.PartialView())
	if src.Partial() {
		tellView(e, []string{"how many ports are free is not exact: which ones a bind() has blocked, and which in TIME-WAIT connect() takes over, only root or an agent can know"})
	}
	answer, err := src.Headroom(cmd.Context(), q)
	if errors.Is(err, identity.ErrNotPermitted) {
		return fmt.Errorf("look up the route: %w; with --from there is no need to", err)
	} else if err != nil {
		return err
	}
	tellNote(e, answer.Note)
	return writeHeadroom(cmd.Context(), e, o, src, answer.Rows)
}

func writeHeadroom(ctx context.Context, e *env, o *headroomOptions, src source.Source, rows []render.Headroom) error {
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	if o.jsonRows {
		for i := range rows {
			if err := render.WriteJSON(out, &rows[i]); err != nil {
				return err
			}
		}
		return out.Flush()
	}
	names, err := src.Names(ctx)
	if err != nil {
		return err
	}
	defer names.Cgroups.Close()
	if err := render.New(names).HeadroomText(out, wideOr(e.style, o.wide), rows, o.top); err != nil {
		return err
	}
	return out.Flush()
}
