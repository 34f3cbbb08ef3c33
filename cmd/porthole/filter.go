package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
)

// addFilters declares the filters of a kind as flags.
func addFilters(cmd *cobra.Command, e *env, o *agentOptions, kind query.Kind) {
	for _, p := range query.Params(kind) {
		if p.Bool {
			cmd.Flags().BoolP(p.Name, p.Short, false, p.Usage)
		} else {
			cmd.Flags().StringSliceP(p.Name, p.Short, nil, p.Usage)
		}
		complete(cmd, e, o, p.Name)
		if p.Accepts != nil {
			_ = cmd.RegisterFlagCompletionFunc(p.Name, // fails only for a flag that does not exist
				cobra.FixedCompletions(p.Accepts, cobra.ShellCompDirectiveNoFileComp))
		}
	}
}

// nameOf tells the name by which a filter knows where a process runs; nil: it is of something else.
func nameOf(filter string) func(identity.Cgroup) string {
	switch filter {
	case "unit":
		return identity.Cgroup.UnitName
	case "container":
		return identity.Cgroup.ContainerName
	case "pod":
		return identity.Cgroup.PodName
	}
	return nil
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
		list, err := filterValue(cmd, p.Name)
		if err != nil {
			return nil, err
		}
		values[p.Name] = list
	}
	return values, nil
}

// filterValue is what was typed for one filter: with nothing, as from a variable that is not set, it
// would let everything pass.
func filterValue(cmd *cobra.Command, name string) ([]string, error) {
	list, err := cmd.Flags().GetStringSlice(name)
	if err == nil && (len(list) == 0 || slices.Contains(list, "")) {
		return nil, &query.Wrong{Err: fmt.Errorf("--%s: an empty value: want one, or no --%[1]s", name)}
	}
	return list, err
}
