package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/api"
	"github.com/porthole-dev/porthole/internal/doctor"
	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

type doctorOptions struct {
	agent   agentOptions
	hooks   hookOptions
	jsonRow bool
}

func newDoctor(e *env) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what porthole can see on this machine, and why not more",
		Long: "Attach every hook once and tell which could be, and what is not seen without\n" +
			"the others. Exits with 3 when porthole cannot trace here.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.hooks.useAgent(&o.agent, tracer.CheckTrace(o.hooks.tier))
			if c != nil {
				return doctorAgent(cmd.Context(), e, o.jsonRow, c)
			}
			if o.agent.ask {
				return err
			}
			return examine(e, &o, err)
		},
	}
	cmd.Flags().BoolVar(&o.jsonRow, "json", false, "one JSON object")
	o.hooks.add(cmd)
	o.agent.add(cmd)
	return cmd
}

// examine tries to trace, unless it is known why that will fail.
func examine(e *env, o *doctorOptions, failed error) error {
	r, err := doctor.Machine()
	if err != nil {
		return err
	}
	if failed == nil {
		failed = try(r, o.hooks.config())
	}
	if failed != nil {
		r.Error = failed.Error()
	}
	if o.jsonRow {
		err = json.NewEncoder(e.stdout).Encode(r)
	} else {
		err = r.Text(e.stdout, e.style)
	}
	if err != nil {
		return err
	}
	return failed
}

// try attaches every hook and detaches it again.
func try(r *doctor.Report, cfg tracer.Config) error {
	t, err := tracer.Open(cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	r.Attached(t)
	return nil
}

// doctorAgent tells what the agent sees, and how it is.
func doctorAgent(ctx context.Context, e *env, jsonRow bool, c *source.Client) error {
	status, text, err := askStatus(ctx, e, c)
	if err != nil {
		return err
	}
	if jsonRow {
		_, err := e.stdout.Write(text)
		return err
	}
	if err := status.Text(e.stdout, e.style); err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "\nagent %s since %s: %d events, %d lost, %d clients\n", status.Version,
		status.Since.Local().Format("2006-01-02 15:04:05"), status.Events, status.Lost, status.Clients)
	return err
}

// askStatus returns the agent's status, and as it was sent.
func askStatus(ctx context.Context, e *env, c *source.Client) (*api.Status, []byte, error) {
	body, err := askAgent(ctx, e, c, "/v1/status", nil)
	if err != nil {
		return nil, nil, err
	}
	defer body.Close()
	var text bytes.Buffer
	var status api.Status
	if err := json.NewDecoder(io.TeeReader(body, &text)).Decode(&status); err != nil {
		return nil, nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	return &status, text.Bytes(), nil
}
