package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

type headroomOptions struct {
	agent    agentOptions
	to, from string
	top      int
	jsonRows bool
}

func newHeadroom(e *env) *cobra.Command {
	var o headroomOptions
	cmd := &cobra.Command{
		Use:   "headroom",
		Short: "Tell how many ephemeral ports are left, and who has the others",
		Long: "Tell how many ephemeral ports are left before connect(), bind() to port 0 or UDP\n" +
			"gets none, for each destination, in every network namespace, and who has the\n" +
			"others; the fullest come first. FREE is the number of calls that would succeed\n" +
			"now. A destination's own ports are USED; those that a bound socket has are\n" +
			"blocked for every destination. Filters can be repeated or comma-separated; all\n" +
			"must match.",
		Example: "  porthole headroom\n" +
			"  porthole headroom --to 192.0.2.1:443     also without a connection there\n" +
			"  porthole headroom --netns blue --json",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runHeadroom(cmd, e, &o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.to, "to", "", "only this destination, as 192.0.2.1:443 or [fe80::1%eth0]:443")
	flags.StringVar(&o.from, "from", "", "with --to: from this local address, not the one that the route has")
	flags.IntVar(&o.top, "top", 20, "lines to show of each network namespace; 0: all")
	flags.BoolVar(&o.jsonRows, "json", false, "one JSON object a line")
	addFilters(cmd, query.OfHeadroom)
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
	q, err := query.ParseHeadroom(values)
	if err != nil {
		return usagef("--%w", err)
	}
	c, err := useAgent(&o.agent, tracer.CheckSnapshot())
	if err != nil {
		return err
	}
	var rows []render.Headroom
	tellPIDs(e.stderr)
	if c == nil {
		tellView(e, doctor.View())
		rows, err = readHeadroom(q)
	} else {
		tellView(e, c.PartialView)
		rows, err = askHeadroom(cmd.Context(), e, c, values)
	}
	if err != nil {
		return err
	}
	return writeHeadroom(e, o, rows)
}

// readHeadroom reads the kernel's tables once.
func readHeadroom(q *query.Headroom) ([]render.Headroom, error) {
	debug.SetGCPercent(-1) // as for ls
	debug.SetMemoryLimit(256 << 20)
	s, err := tracer.NewSnapshotter(tracer.ReadsPorts)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	ports, err := s.Ports()
	if err != nil {
		return nil, err
	}
	names := identity.Load(func() ([]tracer.NetNS, error) { return ports.NetNamespaces(), nil })
	defer names.Cgroups.Close()
	found, err := q.Answer(ports, names.NetNS)
	if errors.Is(err, query.ErrNoDevice) || errors.Is(err, identity.ErrNoNetNS) || errors.Is(err, tracer.ErrNoNetNS) || errors.Is(err, identity.ErrUnreachable) {
		return nil, usageError{err}
	}
	if errors.Is(err, identity.ErrNotPermitted) {
		return nil, fmt.Errorf("look up the route: %w; with --from there is no need to", err)
	}
	devices, devicesErr := deviceNames(found, ports)
	return render.New(&devices).Headrooms(found), errors.Join(err, devicesErr)
}

// deviceNames are names of the devices of headrooms alone.
func deviceNames(found []tracer.Headroom, ports *tracer.Ports) (names identity.Names, err error) {
	if slices.ContainsFunc(found, func(h tracer.Headroom) bool { return h.Device != 0 }) {
		devices, err := ports.Devices()
		if err != nil {
			return names, err
		}
		names.Device = devices.Name
	}
	return names, nil
}

// askHeadroom asks the agent. A destination is meant to be seen from the namespace of
// the one who asks.
func askHeadroom(ctx context.Context, e *env, c *source.Client, values map[string][]string) ([]render.Headroom, error) {
	if values["to"] != nil && values["netns"] == nil {
		own, err := identity.NetNSOfThread()
		if err != nil {
			return nil, err
		}
		values["netns"] = []string{strconv.FormatUint(uint64(own), 10)}
	}
	answer, err := askAgent(ctx, e, c, "/v1/headroom", values)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	return decodeRows[render.Headroom](answer)
}

// decodeRows reads objects a line each.
func decodeRows[T any](from io.Reader) ([]T, error) {
	var rows []T
	for dec := json.NewDecoder(from); ; {
		var row T
		if err := dec.Decode(&row); errors.Is(err, io.EOF) {
			return rows, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the agent's answer: %w", err)
		}
		rows = append(rows, row)
	}
}

func writeHeadroom(e *env, o *headroomOptions, rows []render.Headroom) error {
	out := bufio.NewWriterSize(e.stdout, 1<<16)
	if o.jsonRows {
		for i := range rows {
			if err := render.WriteJSON(out, &rows[i]); err != nil {
				return err
			}
		}
		return out.Flush()
	}
	names := identity.Load(nil)
	defer names.Cgroups.Close()
	if err := render.New(names).HeadroomText(out, e.style, rows, o.top); err != nil {
		return err
	}
	return out.Flush()
}
