package main

import (
	"bufio"
	"context"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
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
			"  porthole ls -t --state TIME-WAIT\n" +
			"  porthole ls --lport 8080 --json",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, values, err := parseFilters(cmd, query.OfSockets)
			if err != nil {
				return err
			}
			c, err := useAgent(&o.agent, tracer.CheckSnapshot())
			switch {
			case err != nil:
				return err
			case c != nil:
				return lsAgent(cmd.Context(), e, &o, c, values)
			}
			return ls(e, &o, f)
		},
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

func ls(e *env, o *lsOptions, f *query.Filter) error {
	names := identity.Load(livingNow)
	defer names.Cgroups.Close()
	if err := locate(f, names); err != nil {
		return err
	}
	rows, err := readRows(e, f.LocalPort(), nil)
	if err != nil {
		return err
	}
	tellView(e, doctor.View())
	tellPIDs(e.stderr)
	names.Device = rows.Devices.Name
	sockets := render.SocketsOfRows(rows, func(s *tracer.Socket) bool { return f.Socket(names.Cgroups, s) })
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	if o.jsonRows {
		err = render.New(names).SocketsJSON(out, sockets)
	} else {
		err = render.New(names).SocketsText(out, e.style, sockets)
	}
	if err != nil {
		return err
	}
	return out.Flush()
}

// lsAgent lists what the agent sees.
func lsAgent(ctx context.Context, e *env, o *lsOptions, c *source.Client, values map[string][]string) error {
	answer, err := askAgent(ctx, e, c, "/v1/sockets", values)
	if err != nil {
		return err
	}
	defer answer.Close()
	tellView(e, c.PartialView)
	tellPIDs(e.stderr)
	if o.jsonRows {
		_, err := io.Copy(e.stdout, answer)
		return err
	}
	rows, err := decodeRows[render.Socket](answer)
	if err != nil {
		return err
	}
	names := identity.Load(nil)
	defer names.Cgroups.Close()
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	if err := render.New(names).RowsText(out, e.style, rows); err != nil {
		return err
	}
	return out.Flush()
}

// readRows reads the kernel's sockets once; port 0 means all. also, if not nil, reads what
// else is needed.
func readRows(e *env, port uint16, also func(*tracer.Snapshotter, *tracer.Rows) error) (*tracer.Rows, error) {
	// A command that ends at once need not collect what it throws away, as long as
	// it stays small.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	s, err := tracer.NewSnapshotter(tracer.ReadsSockets)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	rows, err := s.Rows(port)
	if err != nil {
		return nil, err
	}
	tellUnfinished(e, rows.Unfinished)
	if also != nil {
		err = also(s, rows)
	}
	return rows, err
}
