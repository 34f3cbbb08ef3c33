package doctor

import (
	"errors"
	"fmt"
	"os"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// View tells what this process cannot see of the machine because of where it runs and of
// what it may do, one sentence each; none: it sees everything.
func View() []string { return view(look()) }

// place is what View is derived from.
type place struct {
	pidNS     bool // not the initial one
	cgroupNS  bool
	cgroup    tracer.CgroupMount
	cgroupErr error // of finding it
	names     error // why cgroups have no names
	process1  error // why it may not be read
}

func look() place {
	p := place{pidNS: tracer.InOtherNamespace("pid"), cgroupNS: tracer.InOtherNamespace("cgroup")}
	if p.cgroup, p.cgroupErr = tracer.FindCgroup(); p.cgroupErr == nil {
		r := identity.NewCgroups(p.cgroup.Path)
		p.names = r.Check()
		r.Close()
	}
	_, p.process1 = os.ReadFile("/proc/1/stat")
	return p
}

func view(p place) []string {
	var out []string
	if p.pidNS {
		out = append(out, "holders outside this pid namespace are not visible; in a container, run it with --pid=host")
	}
	switch {
	case errors.Is(p.cgroupErr, tracer.ErrNotSupported):
		out = append(out, "cgroups and containers are not named: cgroup2 is mounted nowhere; mount it with: mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2; in a container, run it with --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:ro")
	case p.cgroupErr != nil:
		out = append(out, fmt.Sprintf("cgroups and containers are not named: %v", p.cgroupErr))
	case p.names != nil:
		out = append(out, p.names.Error())
	case !p.cgroup.Whole && p.cgroupNS:
		out = append(out, "cgroups outside this cgroup namespace, and their containers, are not named; in a container, run it with --cgroupns=host")
	case !p.cgroup.Whole:
		out = append(out, fmt.Sprintf("cgroups that are not below %s, and their containers, are not named: it is not the root of cgroup2", p.cgroup.Path))
	}
	if p.process1 != nil && !p.pidNS {
		out = append(out, "/proc hides other processes (hidepid, or a security module): whether the owner of a socket has ended, and routes in other network namespaces, are not known")
	}
	return out
}

// partOfCgroups is what is not seen besides where hooks could not be attached at the root
// of the cgroup hierarchy.
const partOfCgroups = "the tracepoint tier sees only what processes below this cgroup root do, not those outside it; " +
	"in a container, run it with --cgroupns=host, or with CAP_DAC_READ_SEARCH"

// ViewOf is View, and what the hooks of a tracer do not see for the same reasons.
func ViewOf(t *tracer.Tracer) []string {
	out := View()
	if t.PartOfCgroups() {
		out = append(out, partOfCgroups)
	}
	return out
}

// PIDs tells whose process numbers are shown, "" where they are those of everybody.
func PIDs() string {
	if tracer.InOtherNamespace("pid") {
		return "process numbers (pid) are the host's, not those of this pid namespace"
	}
	return ""
}
