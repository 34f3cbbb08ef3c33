package identity

import (
	"path"
	"regexp"
	"strconv"
	"strings"
)

// The names of runtimes, as Container.Runtime has them.
const (
	runtimeDocker     = "docker"
	runtimePodman     = "podman"
	runtimeContainerd = "containerd"
	runtimeCRIO       = "cri-o"
	runtimeLXC        = "lxc"
	runtimeNspawn     = "nspawn"
	runtimeMachined   = "machined"
	runtimeBuildKit   = "buildkit"
	runtimeECS        = "ecs"
)

// claim is what the name of a cgroup says: that it is a container's. Anybody may give a
// cgroup such a name where he may make cgroups.
type claim struct {
	part    int    // which part of the path says so
	id      string // of the container; its name where named
	named   bool   // the runtime has no ids
	runtime string // as the name tells, where no runtime has files of it; "": several give such names
	// namespace is of containerd, where the name tells it. Any two directories look like one of its
	// containers: only its files tell that there is one.
	namespace string
}

var (
	// Docker, podman, containerd and CRI-O name the cgroup after the container: 64
	// hexadecimal digits, alone or as PREFIX-ID.scope.
	idPattern       = regexp.MustCompile(`^(?:([a-z-]+)-)?([0-9a-f]{64})(?:\.scope)?$`)
	buildKitPattern = regexp.MustCompile(`^[0-9a-z]{25}$`)
	ecsPattern      = regexp.MustCompile(`^[0-9a-f]{32}-[0-9]+$`)
	nspawnPattern   = regexp.MustCompile(`^systemd-nspawn@(.+)\.service$`)
	machinePattern  = regexp.MustCompile(`^machine-(.+)\.scope$`)
)

// prefixes are what runtimes put before the id, as far as that tells which of them it was.
var prefixes = map[string]string{
	"docker": runtimeDocker, "libpod": runtimePodman, "libpod-payload": runtimePodman,
	"cri-containerd": runtimeContainerd, "nerdctl": runtimeContainerd, "crio": runtimeCRIO,
}

// claims are the containers that a path names, the innermost first.
func claims(parts []string) []claim {
	var out []claim
	for i := len(parts) - 1; i >= 0; i-- {
		if c, ok := claimOf(parts, i); ok {
			c.part = i
			out = append(out, c)
		}
	}
	return out
}

// claimOf tells what a part of a path says.
func claimOf(parts []string, i int) (claim, bool) {
	name, parent := parts[i], ""
	if i > 0 {
		parent = parts[i-1]
	}
	if m := idPattern.FindStringSubmatch(name); m != nil {
		switch prefix := m[1]; {
		case strings.HasSuffix(prefix, "conmon"): // the runtime's own process beside the container
			return claim{}, false
		case prefix == "" && parent == "libpod_parent": // a pod of podman's
			return claim{}, false
		case prefix == "" && parent == runtimeDocker:
			return claim{id: m[2], runtime: runtimeDocker}, true
		default:
			return claim{id: m[2], runtime: prefixes[prefix]}, true
		}
	}
	switch {
	case parent == "lxc.payload", parent == "lxc" && i == 1:
		return claim{id: name, named: true, runtime: runtimeLXC}, true
	case strings.HasPrefix(name, "lxc.payload.") && name != "lxc.payload.":
		return claim{id: strings.TrimPrefix(name, "lxc.payload."), named: true, runtime: runtimeLXC}, true
	case parent == runtimeBuildKit && buildKitPattern.MatchString(name):
		return claim{id: name, runtime: runtimeBuildKit}, true
	case i > 1 && parts[i-2] == runtimeECS && ecsPattern.MatchString(name):
		return claim{id: name, runtime: runtimeECS}, true
	}
	if m := nspawnPattern.FindStringSubmatch(name); m != nil {
		inside := i+1 == len(parts) || parts[i+1] != "supervisor" // which is nspawn itself
		return claim{id: unescapeUnit(m[1]), named: true, runtime: runtimeNspawn}, inside
	}
	if m := machinePattern.FindStringSubmatch(name); m != nil && parent == "machine.slice" {
		machine := unescapeUnit(m[1])
		return claim{id: machine, named: true, runtime: runtimeMachined}, !strings.HasPrefix(machine, "qemu-") // libvirt's virtual machines
	}
	if i == 1 && !ofSystemd(parent) && !ofSystemd(name) {
		return claim{id: name, named: true, runtime: runtimeContainerd, namespace: parent}, true
	}
	return claim{}, false
}

// agrees tells whether the place of a cgroup is the one that a runtime asked for in the
// configuration of a container (cgroupsPath of OCI): a path, or SLICE:PREFIX:NAME of systemd.
// exact is false where the paths that are known do not begin where the runtime's do.
func agrees(place, asked string, exact bool) bool {
	switch f := strings.Split(asked, ":"); {
	case asked == "":
		return true // it does not say
	case len(f) == 3:
		asked = scopePath(f[0], f[1], f[2])
	case !path.IsAbs(asked): // below where the runtime runs
		exact = false
	}
	asked = path.Join("/", asked)
	return place == asked || !exact && strings.HasSuffix(place, asked)
}

// scopePath is where systemd has a scope: a slice a-b.slice is in a.slice.
func scopePath(slice, prefix, name string) string {
	if slice == "" {
		slice = "system.slice"
	}
	out := "/"
	stem := strings.TrimSuffix(slice, ".slice")
	for i := range stem {
		if stem[i] == '-' && i > 0 {
			out = path.Join(out, stem[:i]+".slice")
		}
	}
	if stem != "-" {
		out = path.Join(out, slice)
	}
	if strings.HasSuffix(name, ".slice") {
		return path.Join(out, name)
	}
	if prefix != "" {
		name = prefix + "-" + name
	}
	return path.Join(out, name+".scope")
}

// unescapeUnit is the reverse of systemd-escape(1), but for slashes.
func unescapeUnit(s string) string {
	var out strings.Builder
	for len(s) > 0 {
		if strings.HasPrefix(s, `\x`) && len(s) >= 4 {
			if c, err := strconv.ParseUint(s[2:4], 16, 8); err == nil {
				out.WriteByte(byte(c))
				s = s[4:]
				continue
			}
		}
		out.WriteByte(s[0])
		s = s[1:]
	}
	return out.String()
}
