package query

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Places lets pass what runs in one of some units, in one of some containers and in one of some
// pods; where none is given, any will do. The zero value lets everything pass.
type Places struct{ unit, container, pod []string }

// parsePlaces takes names: each may be a pattern, with *, ? and [...].
func parsePlaces(p *parser) Places {
	return Places{each(p, "unit", glob), each(p, "container", glob), each(p, "pod", glob)}
}

func glob(s string) (string, error) {
	if _, err := path.Match(s, ""); err != nil {
		return "", fmt.Errorf("%q: want a name, or a pattern with * and ?", s)
	}
	return s, nil
}

// Any tells whether anything is asked for.
func (p *Places) Any() bool { return len(p.unit)+len(p.container)+len(p.pod) > 0 }

// Match tells whether a cgroup is in the places.
func (p *Places) Match(c identity.Cgroup) bool {
	return (len(p.unit) == 0 || matchAny(p.unit, c, isUnit)) &&
		(len(p.container) == 0 || matchAny(p.container, c, isContainer)) &&
		(len(p.pod) == 0 || matchAny(p.pod, c, isPod))
}

// match is Match of where a process runs. What it takes is only looked up where anything is asked for.
func (p *Places) match(cgroups *identity.Cgroups, process *tracer.Process) bool {
	return !p.Any() || p.Match(cgroups.Of(process))
}

func matchAny(patterns []string, c identity.Cgroup, is func(pattern string, c identity.Cgroup) bool) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return is(pattern, c) })
}

// isUnit: a unit's name, .service may be left out as for systemctl(1).
func isUnit(pattern string, c identity.Cgroup) bool {
	return c.Unit != "" && (matches(pattern, c.Unit) || !strings.Contains(pattern, ".") && matches(pattern+".service", c.Unit))
}

// isContainer: a container's name, or the start of its id.
func isContainer(pattern string, c identity.Cgroup) bool {
	return pattern != "" && c.Container != nil && (matches(pattern, c.Container.Name) || strings.HasPrefix(c.Container.ID, pattern) || matches(pattern, c.Container.ID))
}

// isPod: NAMESPACE/NAME, or the name in any namespace, or its uid.
func isPod(pattern string, c identity.Cgroup) bool {
	if c.Pod == nil {
		return false
	}
	if namespace, name, ok := strings.Cut(pattern, "/"); ok {
		return matches(namespace, c.Pod.Namespace) && matches(name, c.Pod.Name)
	}
	return matches(pattern, c.Pod.Name) || pattern != "" && pattern == c.Pod.UID
}

// matches: a * stands for slashes, too.
func matches(pattern, name string) bool {
	ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(name, "/", "\x00"))
	return name != "" && (ok && err == nil || pattern == name)
}

// matchAll tells whether each pattern matches any of these.
func (p *Places) matchAll(all []identity.Cgroup) bool {
	each := func(patterns []string, is func(string, identity.Cgroup) bool) bool {
		return !slices.ContainsFunc(patterns, func(pattern string) bool {
			return !slices.ContainsFunc(all, func(c identity.Cgroup) bool { return is(pattern, c) })
		})
	}
	return each(p.unit, isUnit) && each(p.container, isContainer) && each(p.pod, isPod)
}

// maxListed is how many names are listed where none matches.
const maxListed = 8

// Note says which of the names match nothing that runs, and what does; "" where all do.
func (p *Places) Note(cgroups *identity.Cgroups) string {
	if !p.Any() {
		return ""
	}
	if p.matchAll(cgroups.Known()) { // to look for all that runs takes its time
		return ""
	}
	running := cgroups.Running()
	var notes []string
	for _, kind := range []struct {
		what     string
		patterns []string
		is       func(pattern string, c identity.Cgroup) bool
		name     func(c identity.Cgroup) string
	}{
		{"unit", p.unit, isUnit, unitAlone},
		{"container", p.container, isContainer, identity.Cgroup.ContainerName},
		{"pod", p.pod, isPod, identity.Cgroup.PodName},
	} {
		for _, pattern := range kind.patterns {
			if !slices.ContainsFunc(running, func(c identity.Cgroup) bool { return kind.is(pattern, c) }) {
				notes = append(notes, fmt.Sprintf("no %s matches %s; running here: %s", kind.what, identity.Safe(pattern), listed(running, kind.name)))
			}
		}
	}
	return strings.Join(notes, "\n")
}

// unitAlone is the name of a unit, but of one that is a container's: people know that by the container's.
func unitAlone(c identity.Cgroup) string {
	if c.ContainerName() != "" {
		return ""
	}
	return c.UnitName()
}

// listed lists names, each once and so many of them.
func listed(running []identity.Cgroup, name func(identity.Cgroup) string) string {
	var all []string
	for _, c := range running {
		if s := name(c); s != "" {
			all = append(all, identity.Safe(s))
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	switch n := len(all); {
	case n == 0:
		return "none"
	case n > maxListed:
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxListed], ", "), n-maxListed)
	}
	return strings.Join(all, ", ")
}
