package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/tracer"
)

// addFilters declares the filters of a kind as flags.
func addFilters(cmd *cobra.Command, kind query.Kind) {
	for _, p := range query.Params(kind) {
		if p.Bool {
			cmd.Flags().BoolP(p.Name, p.Short, false, p.Usage)
		} else {
			cmd.Flags().StringSliceP(p.Name, p.Short, nil, p.Usage)
		}
		if p.Accepts != nil {
			_ = cmd.RegisterFlagCompletionFunc(p.Name, // fails only for a flag that does not exist
				cobra.FixedCompletions(p.Accepts, cobra.ShellCompDirectiveNoFileComp))
		}
	}
}

// filterValues are the filters as typed.
func filterValues(cmd *cobra.Command, kind query.Kind) (map[string][]string, error) {
	values := make(map[string][]string)
	for _, p := range query.Params(kind) {
		flag := cmd.Flags().Lookup(p.Name)
		if !flag.Changed {
			continue
		}
		if p.Bool {
			values[p.Name] = []string{flag.Value.String()}
			continue
		}
		list, err := cmd.Flags().GetStringSlice(p.Name)
		if err != nil {
			return nil, err
		}
		values[p.Name] = list
	}
	return values, nil
}

// locate looks for the network namespaces of a filter on this machine.
func locate(f *query.Filter, names *identity.Names) error {
	err := f.Locate(names.NetNS)
	if errors.Is(err, identity.ErrNoNetNS) || errors.Is(err, identity.ErrNotPermitted) {
		return usagef("--%w", err)
	}
	return err
}

// livingNow lists the network namespaces there are, for commands that have no tracer.
func livingNow() ([]tracer.NetNS, error) {
	s, err := tracer.NewSnapshotter(tracer.ReadsPorts)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return s.NetNamespaces()
}

// parseFilters checks the filters as typed, and returns them both ways.
func parseFilters(cmd *cobra.Command, kind query.Kind) (*query.Filter, map[string][]string, error) {
	values, err := filterValues(cmd, kind)
	if err != nil {
		return nil, nil, err
	}
	f, err := query.ParseFilter(kind, values)
	if err != nil {
		return nil, nil, usagef("--%w", err)
	}
	return f, values, nil
}
