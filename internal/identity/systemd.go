package identity

import (
	"fmt"
	"slices"
	"strings"
)

// unitTypes are the endings of units that have cgroups and are no slices.
var unitTypes = []string{".service", ".scope", ".socket", ".mount", ".swap"}

// isUnit tells whether systemd has such a cgroup of a unit.
func isUnit(name string) bool {
	return slices.ContainsFunc(unitTypes, func(ending string) bool { return len(name) > len(ending) && strings.HasSuffix(name, ending) })
}

// ofSystemd tells whether a cgroup is named like those that systemd makes.
func ofSystemd(name string) bool { return isUnit(name) || strings.HasSuffix(name, ".slice") }

// unitOf is the unit of a cgroup: the first in its path that is no slice, and where that is
// the service manager of a user (user is his uid), the first below it. part is where it is in the
// path; "": the cgroup is of no unit.
func unitOf(parts []string) (unit string, part int, user *uint32) {
	unit, part = firstUnit(parts, 0)
	var uid uint32
	if n, _ := fmt.Sscanf(unit, "user@%d.service", &uid); n != 1 || unit != fmt.Sprintf("user@%d.service", uid) {
		return unit, part, nil
	}
	if below, at := firstUnit(parts, part+1); below != "" {
		return below, at, &uid
	}
	return unit, part, nil
}

func firstUnit(parts []string, from int) (string, int) {
	for i := from; i < len(parts); i++ {
		// The kernel could take a name without it for one of its own files.
		if name := strings.TrimPrefix(parts[i], "_"); isUnit(name) {
			return name, i
		}
	}
	return "", 0
}
