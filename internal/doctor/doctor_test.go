package doctor

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// What is not seen follows from where a process runs, one sentence for each thing.
func TestView(t *testing.T) {
	whole := tracer.CgroupMount{Path: "/sys/fs/cgroup", Whole: true}
	below := tracer.CgroupMount{Path: "/sys/fs/cgroup"}
	for _, c := range []struct {
		name string
		from place
		want []string // one in each sentence
	}{
		{"the machine itself", place{cgroup: whole}, nil},
		{"a cgroup namespace that still has the host's mount", place{cgroup: whole, cgroupNS: true}, nil},
		{"a pid namespace", place{cgroup: whole, pidNS: true}, []string{"--pid=host"}},
		{"a pid namespace, its process 1 unreadable", place{cgroup: whole, pidNS: true, process1: errors.New("hidden")}, []string{"--pid=host"}},
		{"hidepid", place{cgroup: whole, process1: errors.New("hidden")}, []string{"hidepid"}},
		{"a cgroup namespace", place{cgroup: below, cgroupNS: true}, []string{"--cgroupns=host"}},
		{"a bind mount", place{cgroup: below}, []string{"not below /sys/fs/cgroup"}},
		{"no cgroup2", place{cgroupErr: fmt.Errorf("%w: nowhere", tracer.ErrNotSupported)}, []string{"mkdir -p /run/cgroup2 && mount"}},
		{"no /proc", place{cgroupErr: errors.New("open /proc/self/mounts: gone")}, []string{"/proc/self/mounts: gone"}},
		{"without a capability", place{cgroup: whole, names: errors.New("takes CAP_DAC_READ_SEARCH")}, []string{"CAP_DAC_READ_SEARCH"}},
		{"a container", place{cgroup: below, cgroupNS: true, pidNS: true}, []string{"--pid=host", "--cgroupns=host"}},
	} {
		got := view(c.from)
		if len(got) != len(c.want) {
			t.Errorf("%s: %q, want %d sentences", c.name, got, len(c.want))
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: %q, want %q in it", c.name, got[i], want)
			}
		}
	}
}

// hooks are those of a report: attached, refused for a reason, or of no need.
func hooks(fentry, tracepoint string) []Hook {
	return []Hook{
		{Hook: "fexit/one", Tier: tracer.TierFentry, Attached: fentry == "", Reason: fentry},
		{Hook: "fexit/two", Tier: tracer.TierFentry, Attached: fentry == "", Reason: fentry},
		{Hook: "cgroup/post_bind4", Tier: tracer.TierTracepoint, Attached: tracepoint == "", Reason: tracepoint, Lost: "binds"},
		{Hook: "tp_btf/both", Attached: true},
	}
}

// The text has every line that a person needs to see what is wrong, and none that says
// that all is well where it is not.
func TestReportText(t *testing.T) {
	well := Report{OK: true, Kernel: "6.12.0", Arch: "x86_64", BTF: true, Cgroup2: "/sys/fs/cgroup", Tier: tracer.TierFentry, Hooks: hooks("", "switched off")}
	refused := well
	refused.Tier, refused.Hooks = tracer.TierTracepoint, hooks("BPF trampolines are refused", "")
	refused.NotSeen, refused.PartialView = []string{"this"}, []string{"that"}
	one := well
	one.Hooks = hooks("", "")
	one.Hooks[1].Attached, one.Hooks[1].Reason = false, "not in this kernel"
	for _, c := range []struct {
		name      string
		r         Report
		first     string // line
		has, lack []string
	}{
		{"all is well", well, "porthole works here, and sees everything", []string{"kernel        6.12.0 x86_64", "capabilities  all that are needed", "tier          fentry\n", "no: switched off"}, []string{"not seen", "none"}},
		{"no trampolines", refused, "porthole works here, but sees only a part of the machine: 2 things, listed below", []string{"tracepoint, not fentry: BPF trampolines are refused", "not seen in this tier:\n- this\n", "not seen from here:\n- that\n"}, []string{"fexit/one"}},
		{"one hook is missing", one, "porthole works here, and sees everything", []string{"tier          fentry\n", "fexit/two", "no: not in this kernel"}, []string{"not fentry"}},
		{"nothing works", Report{MissingCaps: []string{"CAP_BPF", "CAP_PERFMON"}}, "porthole cannot trace here: it lacks CAP_BPF, CAP_PERFMON",
			[]string{"BTF           no", "cgroup2       not mounted", "missing CAP_BPF, CAP_PERFMON", "none: porthole cannot trace here"}, []string{"HOOK", "all that are needed"}},
		{"a user namespace", Report{MissingCaps: []string{"CAP_BPF"}, UserNS: true}, "porthole cannot trace here: it runs in a user namespace", []string{"those of a user namespace, which do not count", "CAP_BPF"}, []string{"all that are needed", "missing"}},
	} {
		var b strings.Builder
		if err := errors.Join(c.r.Text(&b, render.Style{}), c.r.HooksText(&b, render.Style{})); err != nil {
			t.Fatal(err)
		}
		if first, _, _ := strings.Cut(b.String(), "\n"); first != c.first {
			t.Errorf("%s: begins with %q, want %q", c.name, first, c.first)
		}
		for _, want := range c.has {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, b.String())
			}
		}
		for _, bad := range c.lack {
			if strings.Contains(b.String(), bad) {
				t.Errorf("%s: %q in\n%s", c.name, bad, b.String())
			}
		}
	}
}

// What stands in red is what is wrong.
func TestReportColor(t *testing.T) {
	var b strings.Builder
	r := Report{OK: true, BTF: true, Tier: tracer.TierFentry, Hooks: hooks("", "")}
	if err := r.Text(&b, render.Style{Color: true}); err != nil {
		t.Fatal(err)
	}
	style := render.Style{Color: true}
	if red := style.Red("not mounted"); !strings.Contains(b.String(), red) || strings.Count(b.String(), "\x1b[31m") != 1 {
		t.Errorf("want %q alone in red:\n%q", red, b.String())
	}
}

// Only what is attached counts.
func TestCountAttached(t *testing.T) {
	r := Report{Hooks: hooks("refused", "")}
	if got := r.CountAttached(); got != 2 {
		t.Errorf("%d hooks, want 2", got)
	}
}

// The machine is read without anything being attached, by anybody.
func TestMachine(t *testing.T) {
	r, err := Machine()
	if err != nil {
		t.Fatal(err)
	}
	if r.OK || r.Kernel == "" || r.Arch == "" || r.Hooks == nil || r.NotSeen == nil || r.PartialView == nil || r.MissingCaps == nil || len(r.Capabilities) != 3 {
		t.Errorf("the machine is %+v", r)
	}
	for name, has := range r.Capabilities {
		if has == strings.Contains(strings.Join(r.MissingCaps, " "), name) {
			t.Errorf("%s: in effect %t, missing: %q", name, has, r.MissingCaps)
		}
	}
}
