package render

import (
	"github.com/porthole-dev/porthole/internal/container"
	"github.com/porthole-dev/porthole/internal/netns"
	"github.com/porthole-dev/porthole/internal/services"
	"github.com/porthole-dev/porthole/tracer"
)

// Names knows the words for numbers: services, cgroups, namespaces.
type Names struct {
	Services services.Names
	Cgroups  *container.Resolver
	NetNS    map[uint32]string
	HostNS   uint32 // namespace that text output does not name
}

// LoadNames reads them from this machine. What cannot be read has no name; whether
// cgroups have one, Cgroups.Check tells. The caller closes Cgroups.
func LoadNames() *Names {
	root, err := tracer.CgroupRoot()
	if err != nil {
		root = "" // then nothing is said of cgroups
	}
	n := &Names{Services: services.Load(), Cgroups: container.NewResolver(root), NetNS: netns.Names()}
	if host, err := netns.Host(); err == nil {
		n.HostNS = host
	}
	return n
}
