package main

import (
	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/query"
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
func filterValues(cmd *cobra.Command, kind query.Kind) (query.Values, error) {
	values := make(query.Values)
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
