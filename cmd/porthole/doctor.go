package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// report is the JSON of doctor.
type report struct {
	OK           bool            `json:"ok"`
	Error        string          `json:"error,omitempty"`
	Tier         tracer.Tier     `json:"tier,omitempty"`
	Kernel       string          `json:"kernel"`
	Arch         string          `json:"arch"`
	BTF          bool            `json:"btf"`
	Cgroup2      string          `json:"cgroup2,omitempty"`
	MissingCaps  []string        `json:"missing_capabilities"`
	Hooks        []hookRow       `json:"hooks"`
	NotSeen      []string        `json:"not_seen"`
	Capabilities map[string]bool `json:"capabilities"`
}

type hookRow struct {
	Hook     string      `json:"hook"`
	Tier     tracer.Tier `json:"tier,omitempty"`
	Attached bool        `json:"attached"`
	Reason   string      `json:"reason,omitempty"`
	Lost     string      `json:"lost_without_it,omitempty"`
}

func newDoctor(e *env) *cobra.Command {
	var jsonRow bool
	var cfg tracer.Config
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what porthole can see on this machine, and why not more",
		Long: "Attach every hook once and tell which could be, and what is not seen without\n" +
			"the others. Exits with 3 when porthole cannot trace here.",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return doctor(e, jsonRow, cfg) },
	}
	cmd.Flags().BoolVar(&jsonRow, "json", false, "one JSON object")
	addTier(cmd, &cfg.Tier)
	cmd.Flags().BoolVar(&cfg.NoSyscallHooks, "no-syscall-hooks", false, "as tail with this flag would see")
	return cmd
}

func doctor(e *env, jsonRow bool, cfg tracer.Config) error {
	r := report{MissingCaps: []string{}, Hooks: []hookRow{}, NotSeen: []string{}, Capabilities: tracer.Capabilities()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	r.Kernel, r.Arch = unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Machine[:])
	_, err := os.Stat(tracer.KernelBTF)
	r.BTF = err == nil
	if root, err := tracer.CgroupRoot(); err == nil {
		r.Cgroup2 = root
	}
	for name, has := range r.Capabilities {
		if !has {
			r.MissingCaps = append(r.MissingCaps, name)
		}
	}
	slices.Sort(r.MissingCaps)
	failed := r.try(cfg)
	if failed != nil {
		r.Error = failed.Error()
	}
	if jsonRow {
		if err := json.NewEncoder(e.stdout).Encode(r); err != nil {
			return err
		}
	} else if err := r.text(e); err != nil {
		return err
	}
	return failed
}

// try attaches every hook and detaches it again.
func (r *report) try(cfg tracer.Config) error {
	t, err := tracer.Open(cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	r.OK, r.Tier = true, t.Tier()
	for _, h := range t.Hooks() {
		r.Hooks = append(r.Hooks, hookRow{h.Hook, h.Tier, h.Attached, h.Reason, h.Lost})
	}
	r.NotSeen = append(r.NotSeen, t.NotSeen()...)
	return nil
}

// refused is why the kernel refuses the fentry tier, if it refuses every hook of
// it for the same reason.
func (r *report) refused() string {
	why := ""
	for _, h := range r.Hooks {
		if h.Tier != tracer.TierFentry {
			continue
		}
		if h.Attached || why != "" && h.Reason != why {
			return ""
		}
		why = h.Reason
	}
	return why
}

func (r *report) text(e *env) error {
	var b strings.Builder
	yes := func(ok bool, good, bad string) string {
		if ok {
			return good
		}
		return e.style.Red(bad)
	}
	fmt.Fprintf(&b, "kernel        %s %s\n", r.Kernel, r.Arch)
	fmt.Fprintf(&b, "BTF           %s\n", yes(r.BTF, "yes", "no"))
	fmt.Fprintf(&b, "cgroup2       %s\n", yes(r.Cgroup2 != "", r.Cgroup2, "not mounted"))
	fmt.Fprintf(&b, "capabilities  %s\n", yes(len(r.MissingCaps) == 0, "all that are needed", "missing "+strings.Join(r.MissingCaps, ", ")))
	tier := string(r.Tier)
	if why := r.refused(); why != "" {
		tier += ", not fentry: " + why
	}
	fmt.Fprintf(&b, "tier          %s\n", yes(r.OK, tier, "none: porthole cannot trace here"))
	if _, err := fmt.Fprint(e.stdout, b.String()); err != nil {
		return err
	}
	if len(r.Hooks) == 0 {
		return nil
	}
	lines := [][]string{{"HOOK", "ATTACHED"}}
	for _, h := range r.Hooks {
		if r.refused() != "" && h.Tier == tracer.TierFentry {
			continue
		}
		lines = append(lines, []string{h.Hook, yes(h.Attached, "yes", "no: "+h.Reason)})
	}
	fmt.Fprintln(e.stdout)
	if err := render.Table(e.stdout, e.style, lines); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, "\nnot seen in this tier:")
	for _, s := range r.NotSeen {
		if _, err := fmt.Fprintf(e.stdout, "  %s\n", s); err != nil {
			return err
		}
	}
	return nil
}
