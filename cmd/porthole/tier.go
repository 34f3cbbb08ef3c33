package main

import (
	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/tracer"
)

// tierFlag is the value of --tier. It keeps "" for auto, as tracer.Config does.
type tierFlag struct{ tier *tracer.Tier }

func (f tierFlag) Type() string { return "tier" }

func (f tierFlag) String() string {
	if f.tier == nil || *f.tier == "" {
		return "auto"
	}
	return string(*f.tier)
}

func (f tierFlag) Set(s string) error {
	switch tier := tracer.Tier(s); tier {
	case tracer.TierFentry, tracer.TierTracepoint:
		*f.tier = tier
	case "auto":
		*f.tier = ""
	default:
		return usagef("want one of fentry, tracepoint, auto")
	}
	return nil
}

// addTier adds --tier to a command that attaches hooks.
func addTier(cmd *cobra.Command, tier *tracer.Tier) {
	cmd.Flags().Var(tierFlag{tier}, "tier", "hooks to use: auto, fentry or tracepoint; see doctor")
	_ = cmd.RegisterFlagCompletionFunc("tier", // fails only for a flag that does not exist
		cobra.FixedCompletions([]string{"auto", "fentry", "tracepoint"}, cobra.ShellCompDirectiveNoFileComp))
}
