package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

func newWho(e *env) *cobra.Command {
	var jsonRow bool
	var o agentOptions
	cmd := &cobra.Command{
		Use:   "who PORT[/tcp|/udp]",
		Short: "Say who has a port",
		Long: "Say who has a local port, in every network namespace: listeners first, clients\n" +
			"apart; and, where an agent is asked, who had it before. Exits with 1 when nobody\n" +
			"has it.",
		Example: "  porthole who 8080\n  porthole who 53/udp --json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("want one port, as 8080 or 53/udp; see %s --help", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := query.ParsePortWord(args[0])
			if err != nil {
				return usageError{err}
			}
			c, err := useAgent(&o, tracer.CheckSnapshot())
			switch {
			case err != nil:
				return err
			case c != nil:
				return whoAgent(cmd.Context(), e, c, q, jsonRow)
			}
			return who(e, q, jsonRow)
		},
	}
	cmd.Flags().BoolVar(&jsonRow, "json", false, "one JSON object")
	o.add(cmd)
	return cmd
}

func who(e *env, q query.Port, jsonRow bool) error {
	pool, err := identity.ReadPool()
	if err != nil {
		return err
	}
	own, err := identity.NetNSOfThread()
	if err != nil {
		return err
	}
	var ranges map[tracer.NetNS]*tracer.Range // of other namespaces, where one has the port
	rows, err := readRows(e, q.Number, func(s *tracer.Snapshotter, rows *tracer.Rows) (err error) {
		for i := range rows.Len() {
			if rows.NetNS(i).Inode != own {
				ranges, err = s.Ranges()
				break
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	names := identity.Load(nil)
	defer names.Cgroups.Close()
	names.Device = rows.Devices.Name
	names.Range = func(ns tracer.NetNS) *tracer.Range { return render.OtherRange(ranges[ns], pool) }
	tellView(e, doctor.View())
	if jsonRow {
		tellPIDs(e.stderr)
		all := render.SocketsOfRows(rows, func(*tracer.Socket) bool { return true })
		w := heldWriter{w: e.stdout}
		return w.ends(render.New(names).PortJSON(&w, q, pool, all, func(func(tracer.Tenancy) bool) {}))
	}
	return whoText(e, names, render.New(names).PortInBrief(q, pool, rows))
}

// whoText writes an answer in words.
func whoText(e *env, names *identity.Names, answer *render.Port) error {
	out := bufio.NewWriter(e.stdout)
	tellPIDs(out)
	if err := render.New(names).PortText(out, e.style, answer); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if !answer.Held() {
		return errNo
	}
	return nil
}

// heldWriter hands an answer in JSON on, and sees whether anybody has the port.
type heldWriter struct {
	w    io.Writer
	head []byte // up to the first socket
	held bool
}

// listBegins is what comes before the first socket. It is in no string, which has quotes
// escaped.
const listBegins = `"sockets":[`

// Write implements io.Writer.
func (h *heldWriter) Write(b []byte) (int, error) {
	if !h.held && len(h.head) < 8192 {
		h.head = append(h.head, b[:min(len(b), 4096)]...)
		if _, list, ok := bytes.Cut(h.head, []byte(listBegins)); ok && len(list) > 0 {
			h.held = list[0] != ']'
		}
	}
	return h.w.Write(b)
}

// ends is how who ends once the answer is written.
func (h *heldWriter) ends(err error) error {
	if err == nil && !h.held {
		err = errNo
	}
	return err
}

// whoAgent says what the agent knows.
func whoAgent(ctx context.Context, e *env, c *source.Client, q query.Port, jsonRow bool) error {
	if !jsonRow {
		q.Limit = render.MaxShown
	}
	body, err := askAgent(ctx, e, c, fmt.Sprintf("/v1/ports/%d", q.Number), q.Values())
	if err != nil {
		return err
	}
	defer body.Close()
	tellView(e, c.PartialView)
	if jsonRow {
		tellPIDs(e.stderr)
		w := heldWriter{w: e.stdout}
		_, err := io.Copy(&w, body)
		return w.ends(err)
	}
	var answer render.Port
	if err := json.NewDecoder(body).Decode(&answer); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	names := identity.Load(nil)
	defer names.Cgroups.Close()
	return whoText(e, names, &answer)
}
