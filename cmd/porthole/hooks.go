package main

import (
	"github.com/spf13/cobra"

	"github.com/porthole-dev/porthole/tracer"
)

// hookOptions say which hooks to attach.
type hookOptions struct {
	tier           tracer.Tier
	noSyscallHooks bool
}

func (o *hookOptions) add(cmd *cobra.Command) {
	cmd.Flags().Var(tierFlag{&o.tier}, "tier", "`TIER` of hooks to use: auto, fentry or tracepoint; see doctor")
	_ = cmd.RegisterFlagCompletionFunc("tier", // fails only for a flag that does not exist
		cobra.FixedCompletions([]string{"auto", "fentry", "tracepoint"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().BoolVar(&o.noSyscallHooks, "no-syscall-hooks", false, "leave out the hooks that cost every system call; see doctor")
}

func (o *hookOptions) config() tracer.Config {
	return tracer.Config{Tier: o.tier, NoSyscallHooks: o.noSyscallHooks}
}

// check refuses these options for an agent, which cannot follow them: it has its hooks. Where
// they are given no agent is asked.
func (o *hookOptions) check(a *agentOptions) error {
	if *o == (hookOptions{}) {
		return nil
	}
	if a.ask {
		return usagef("--tier, --no-syscall-hooks: not with --agent, whose hooks are attached already")
	}
	a.local = true
	return nil
}

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
