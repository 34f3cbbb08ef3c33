package render

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/porthole-dev/porthole/internal/container"
	"github.com/porthole-dev/porthole/internal/netns"
	"github.com/porthole-dev/porthole/internal/services"
	"github.com/porthole-dev/porthole/tracer"
)

// Names knows the words for numbers: services, cgroups, namespaces.
type Names struct {
	Services services.Names
	Cgroups  *container.Resolver
	NetNS    *netns.Names
	// Device names network devices, "" where it does not know; nil: it never does. It may be
	// called by several goroutines at once.
	Device func(tracer.DeviceID) string
	// Range is the ephemeral range of a network namespace other than the one that the answer is
	// given from; nil: it is that, or not known.
	Range func(tracer.NetNS) *tracer.Range
}

// device is the name of a device, or where that is not known its index.
func (n *Names) device(id tracer.DeviceID) (name string, index uint32) {
	if id.Index == 0 {
		return "", 0
	}
	if n.Device != nil {
		name = n.Device(id)
	}
	if name != "" {
		return name, 0
	}
	return "", id.Index
}

// DeviceName is the name of a device, or where that is not known its index, so that it can
// be shown on a terminal.
func (n *Names) DeviceName(id tracer.DeviceID) string {
	name, index := n.device(id)
	if name != "" {
		return Safe(name)
	}
	return strconv.FormatUint(uint64(index), 10)
}

// scope is the name of a device where it is the scope of an address.
func scope(device string, local, remote netip.Addr) string {
	if tracer.IsScoped(local) || tracer.IsScoped(remote) {
		return device
	}
	return ""
}

// LoadNames reads them from this machine. What cannot be read has no name; whether
// cgroups have one, Cgroups.Check tells. living lists the network namespaces there are, and
// may be nil. The caller closes Cgroups.
func LoadNames(living func() ([]tracer.NetNS, error)) *Names {
	root, err := tracer.CgroupRoot()
	if err != nil {
		root = "" // then nothing is said of cgroups
	}
	n := &Names{Services: services.Load(), Cgroups: container.NewResolver(root)}
	if living == nil {
		n.NetNS = netns.NewNames(nil)
		return n
	}
	n.NetNS = netns.NewNames(func() ([]netns.ID, error) {
		all, err := living()
		ids := make([]netns.ID, len(all))
		for i, space := range all {
			ids[i] = netns.ID(space)
		}
		return ids, err
	})
	return n
}

// netNSName is the name that a network namespace had at a time, or its inode number.
func (n *Names) netNSName(id netns.ID, at time.Time) string {
	if name := n.NetNS.Name(id, at); name != "" {
		return Safe(name)
	}
	return strconv.FormatUint(uint64(id.Inode), 10)
}
