package identity

import (
	"regexp"
	"strings"
)

// Container is what is known of one; Name only where its runtime keeps it in a
// file of the host.
type Container struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// Label names the container for people: its name, or the start of its id. The
// name is what its runtime wrote and may hold any characters.
func (c *Container) Label() string {
	if c.Name != "" {
		return c.Name
	}
	return c.ID[:min(12, len(c.ID))]
}

// Cgroup is what a cgroup id stands for. The zero value: not known.
type Cgroup struct {
	Path      string     // below the root of the cgroup v2 hierarchy
	Container *Container // nil: none
}

// Docker, podman, containerd and CRI-O name the cgroup after the container: 64
// hexadecimal digits, alone or as PREFIX-ID.scope.
var idPattern = regexp.MustCompile(`^(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?$`)

// containerOfPath returns the container id in a cgroup path, "" when it has none. Of
// nested containers it is the innermost.
func containerOfPath(path string) string {
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if id := containerIDOf(parts[i]); id != "" {
			return id
		}
	}
	return ""
}

// containerIDOf returns the container id in the name of a cgroup.
func containerIDOf(name string) string {
	if m := idPattern.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return ""
}
