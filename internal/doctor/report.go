// Package doctor tells what porthole can see on this machine, and why not more.
package doctor

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// Report is the JSON of doctor.
type Report struct {
	OK           bool            `json:"ok"`
	Error        string          `json:"error,omitempty"`
	Tier         tracer.Tier     `json:"tier,omitempty"`
	Kernel       string          `json:"kernel"`
	Arch         string          `json:"arch"`
	BTF          bool            `json:"btf"`
	Cgroup2      string          `json:"cgroup2,omitempty"`
	UserNS       bool            `json:"user_namespace,omitempty"`
	MissingCaps  []string        `json:"missing_capabilities"`
	Hooks        []Hook          `json:"hooks"`
	NotSeen      []string        `json:"not_seen"`
	PartialView  []string        `json:"partial_view"`
	Capabilities map[string]bool `json:"capabilities"`
}

// Hook is one hook that was tried.
type Hook struct {
	Hook     string      `json:"hook"`
	Tier     tracer.Tier `json:"tier,omitempty"`
	Attached bool        `json:"attached"`
	Reason   string      `json:"reason,omitempty"`
	Lost     string      `json:"lost_without_it,omitempty"`
}

// Machine reports what can be said before anything is attached.
func Machine() (*Report, error) {
	r := &Report{MissingCaps: []string{}, Hooks: []Hook{}, NotSeen: []string{}, PartialView: append([]string{}, View()...), Capabilities: tracer.Capabilities()}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("read kernel version: %w", err)
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
	r.UserNS = tracer.InOtherNamespace("user")
	return r, nil
}

// hidden is not seen in either tier.
const hidden = "processes that this kernel hides from BPF programs, as process 1: sockets that only they hold show without one"

// Attached adds what became of the hooks.
func (r *Report) Attached(t *tracer.Tracer) {
	r.OK, r.Tier = true, t.Tier()
	for _, h := range t.Hooks() {
		r.Hooks = append(r.Hooks, Hook{h.Hook, h.Tier, h.Attached, h.Reason, h.Lost})
	}
	r.NotSeen = append(r.NotSeen, t.NotSeen()...)
	if hides, err := t.HidesProcesses(); err == nil && hides && !tracer.InOtherNamespace("pid") {
		r.NotSeen = append(r.NotSeen, hidden)
	}
	r.PartialView = append([]string{}, ViewOf(t)...)
}

// CountAttached is how many hooks are attached.
func (r *Report) CountAttached() int {
	n := 0
	for _, h := range r.Hooks {
		if h.Attached {
			n++
		}
	}
	return n
}

// refused is why the kernel refuses the fentry tier, if it refuses every hook of
// it for the same reason.
func (r *Report) refused() string {
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

// verdict says in a line what porthole can do here.
func (r *Report) verdict(style render.Style) string {
	missed := len(r.NotSeen) + len(r.PartialView)
	switch {
	case !r.OK && r.UserNS:
		return style.Red("porthole cannot trace here: it runs in a user namespace")
	case !r.OK && len(r.MissingCaps) > 0:
		return style.Red("porthole cannot trace here: it lacks " + strings.Join(r.MissingCaps, ", "))
	case !r.OK:
		return style.Red("porthole cannot trace here")
	case len(r.PartialView) > 0:
		return fmt.Sprintf("porthole works here, but sees only a part of the machine: %s, listed below", thing(missed))
	case missed > 0:
		return fmt.Sprintf("porthole works here; you will miss %s, listed below", thing(missed))
	}
	return "porthole works here, and sees everything"
}

func thing(n int) string {
	if n == 1 {
		return "1 thing"
	}
	return fmt.Sprintf("%d things", n)
}

// Text writes the report for people, but for the hooks: first in one line whether porthole works.
func (r *Report) Text(out io.Writer, style render.Style) error {
	var b strings.Builder
	w := style.Wrapper(&b)
	yes := func(ok bool, good, bad string) string {
		if ok {
			return good
		}
		return style.Red(bad)
	}
	line := func(name, text string) { fmt.Fprintln(&b, style.Wrap(14, fmt.Sprintf("%-13s %s", name, text))) }
	fmt.Fprintf(w, "%s\n\n", r.verdict(style))
	line("kernel", r.Kernel+" "+r.Arch)
	line("BTF", yes(r.BTF, "yes", "no"))
	line("cgroup2", yes(r.Cgroup2 != "", r.Cgroup2, "not mounted"))
	missing := "missing " + strings.Join(r.MissingCaps, ", ")
	if r.UserNS {
		missing = "those of a user namespace, which do not count; needed on the host: " + strings.Join(r.MissingCaps, ", ")
	}
	line("capabilities", yes(len(r.MissingCaps) == 0, "all that are needed", missing))
	tier := string(r.Tier)
	if why := r.refused(); why != "" {
		tier += ", not fentry: " + why
	}
	line("tier", yes(r.OK, tier, "none: porthole cannot trace here"))
	if len(r.Hooks) > 0 {
		line("hooks", fmt.Sprintf("%d attached (-v lists them)", r.CountAttached()))
	}
	list(w, "not seen in this tier", r.NotSeen)
	list(w, "not seen from here", r.PartialView)
	_, err := io.WriteString(out, b.String())
	return err
}

// HooksText writes what became of each hook.
func (r *Report) HooksText(out io.Writer, style render.Style) error {
	if len(r.Hooks) == 0 {
		return nil
	}
	var b strings.Builder
	w := style.Wrapper(&b)
	fmt.Fprintf(w, "\n%s\n", style.Bold("HOOK                        ATTACHED"))
	why := r.refused()
	for _, h := range r.Hooks {
		attached := "yes"
		switch {
		case why != "" && h.Tier == tracer.TierFentry: // the tier says so
			continue
		case !h.Attached && h.Lost == "": // nothing to worry about
			attached = "no: " + h.Reason
		case !h.Attached:
			attached = style.Red("no: " + h.Reason)
		}
		fmt.Fprintf(w, "%-27s %s\n", h.Hook, attached)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// list writes sentences below a heading, if there are any.
func list(b io.Writer, head string, sentences []string) {
	if len(sentences) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s:\n", head)
	for _, s := range sentences {
		fmt.Fprintf(b, "- %s\n", s)
	}
}
