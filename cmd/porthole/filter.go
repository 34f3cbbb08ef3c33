package main

import (
	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/filter"
)

// addFilters declares the filters of a kind as flags.
func addFilters(cmd *cobra.Command, kind filter.Kind) {
	for _, p := range filter.Params(kind) {
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
func filterValues(cmd *cobra.Command, kind filter.Kind) (map[string][]string, error) {
	values := make(map[string][]string)
	for _, p := range filter.Params(kind) {
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

// parseFilters checks the filters as typed, and returns them both ways.
func parseFilters(cmd *cobra.Command, kind filter.Kind) (*filter.Filter, map[string][]string, error) {
	values, err := filterValues(cmd, kind)
	if err != nil {
		return nil, nil, err
	}
	f, err := filter.Parse(kind, values)
	if err != nil {
		return nil, nil, usagef("--%w", err)
	}
	return f, values, nil
}
