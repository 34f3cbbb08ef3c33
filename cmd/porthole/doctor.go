package main

import (
	"cmp"
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/source"
	"github.com/porthole-dev/porthole/tracer"
)

type doctorOptions struct {
	agent   agentOptions
	hooks   hookOptions
	jsonRow bool
	verbose bool
}

func newDoctor(e *env) *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say whether porthole works here, and what it does not see",
		Long: "Attach every hook once, and say whether porthole works here, then why not, or\n" +
			"what it does not see. Exits with 3 when porthole cannot trace here.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return examine(cmd.Context(), e, &o) },
	}
	cmd.Flags().BoolVar(&o.jsonRow, "json", false, "one JSON object")
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "list every hook, too")
	o.hooks.add(cmd)
	o.agent.add(cmd)
	return cmd
}

// examine writes a report also where there is an error, which it then tells.
func examine(ctx context.Context, e *env, o *doctorOptions) error {
	if err := o.hooks.check(&o.agent); err != nil {
		return err
	}
	kernel := &source.Local{Hooks: o.hooks.config(), Cannot: tracer.CheckTrace(o.hooks.tier)}
	var src source.Source = kernel
	// It is about this machine: an agent has only what can be seen of that without privileges.
	if o.agent.ask || !o.agent.local && errors.Is(kernel.Cannot, tracer.ErrNotPermitted) {
		open, err := o.agent.open(e, kernel, kernel.Cannot)
		switch {
		case err == nil:
			src = open
		case o.agent.ask:
			return err
		default:
			kernel.Cannot = err
		}
	}
	report, err := src.Report(ctx)
	if report == nil {
		return err
	}
	wrote := write(e.stdout, e.style, o.jsonRow, report)
	if wrote == nil && o.verbose && !o.jsonRow {
		wrote = report.HooksText(e.stdout, e.style)
	}
	return cmp.Or(wrote, err)
}
