package main

import (
	"cmp"
	"context"

	"github.com/spf13/cobra"

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
		RunE: func(cmd *cobra.Command, _ []string) error { return examine(cmd.Context(), e, &o) },
	}
	cmd.Flags().BoolVar(&o.jsonRow, "json", false, "one JSON object")
	o.hooks.add(cmd)
	o.agent.add(cmd)
	return cmd
}

// examine writes a report also where there is an error, which it then tells.
func examine(ctx context.Context, e *env, o *doctorOptions) error {
	remote, err := o.hooks.useAgent(&o.agent, tracer.CheckTrace(o.hooks.tier))
	var src source.Source = remote
	if remote == nil {
		if o.agent.ask {
			return err
		}
		src = &source.Local{Hooks: o.hooks.config(), Cannot: err}
	}
	report, err := src.Report(ctx)
	if report == nil {
		return err
	}
	return cmp.Or(write(e.stdout, e.style, o.jsonRow, report), err)
}
