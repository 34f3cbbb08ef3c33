package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/tracer"
)

// treeOption is --tree: processes and their descendants.
type treeOption struct{ pids []string }

func (o *treeOption) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&o.pids, "tree", nil, "`PID` of a process, and its descendants as they are now")
}

// maxTree is how many values a filter may have.
const maxTree = 1000

// errTreeGone tells that the process of --tree has ended.
var errTreeGone = errors.New("there is no such process")

// narrow adds the processes to the filter of process ids; without --tree it does nothing. With --pid
// too only those that are both pass.
func (o *treeOption) narrow(values query.Values) error {
	if len(o.pids) == 0 {
		return nil
	}
	if tracer.InOtherNamespace("pid") {
		return errors.New("--tree: process numbers in sockets are the host's, not those of this pid namespace")
	}
	children, err := identity.Children()
	if err != nil {
		return fmt.Errorf("--tree: %w", err)
	}
	var tree []string
	for _, given := range o.pids {
		root, err := strconv.ParseUint(given, 10, 32)
		if err != nil || root == 0 {
			return usagef("--tree: %q: want a process id", given)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", root)); err != nil {
			return usageError{fmt.Errorf("--tree: %q: %w", given, errTreeGone)}
		}
		for todo := []uint32{uint32(root)}; len(todo) > 0; todo = todo[1:] {
			pid := strconv.FormatUint(uint64(todo[0]), 10)
			if given := values["pid"]; len(given) == 0 || slices.Contains(given, pid) {
				tree = append(tree, pid)
			}
			todo = append(todo, children[todo[0]]...)
		}
	}
	if len(tree) == 0 {
		return usagef("--tree: none of --pid is among the processes")
	}
	slices.Sort(tree)
	if tree = slices.Compact(tree); len(tree) > maxTree {
		return usagef("--tree: %d processes: want at most %d", len(tree), maxTree)
	}
	values["pid"] = tree
	return nil
}
