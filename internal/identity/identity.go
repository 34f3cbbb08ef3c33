// Package identity tells what a number is called: a cgroup and the container it belongs to, a
// network namespace, a network device, a port. One concern a file.
package identity

import (
	"net/netip"
	"regexp"
	"strconv"
	"time"

	"github.com/porthole-dev/porthole/tracer"
)

// Names knows the words for numbers: services, cgroups, namespaces.
type Names struct {
	Services Services
	Cgroups  *Cgroups
	NetNS    *NetNSNames
	// Processes looks processes up; nil: only their names are known.
	Processes *Processes
	// Device names network devices, "" where it does not know; nil: it never does. It may be
	// called by several goroutines at once.
	Device func(tracer.DeviceID) string
	// Range is the ephemeral range of a network namespace other than the one that the answer is
	// given from; nil: it is that, or not known.
	Range func(tracer.NetNS) *tracer.Range
	// Behind finds who has an address and port that is reached from a namespace, in another one:
	// in netns, if that is not 0; see Behind. nil: it is not looked for.
	Behind func(proto tracer.Proto, to netip.AddrPort, from NetNS, netns uint32) []tracer.Socket
	// User names users; nil: as of UserName.
	User func(uid uint32) string
	// Elsewhere is the machine that all of this is about, in words, where that is not this one; "": it is.
	Elsewhere string
	// Partial: sockets are read with the rights of an ordinary user, to whom not all is told.
	Partial bool
}

// Load reads them from this machine. What cannot be read has no name; whether
// cgroups have one, Cgroups.Check tells. living lists the network namespaces there are, and
// may be nil. The caller closes Cgroups.
func Load(living func() ([]tracer.NetNS, error)) *Names {
	root, err := tracer.CgroupRoot()
	if err != nil {
		root = "" // then nothing is said of cgroups
	}
	n := &Names{Services: LoadServices(), Cgroups: NewCgroups(root)}
	if living == nil {
		n.NetNS = NewNetNSNames(nil)
		return n
	}
	n.NetNS = NewNetNSNames(func() ([]NetNS, error) {
		all, err := living()
		ids := make([]NetNS, len(all))
		for i, space := range all {
			ids[i] = NetNS(space)
		}
		return ids, err
	})
	return n
}

// Follow has a tracer tell of the devices it sees, of the cgroups that are made and of those that it
// refers to. Call it before the tracer runs.
func (n *Names) Follow(t *tracer.Tracer) {
	n.Device, n.Cgroups.InUse = t.DeviceName, t.Cgroups
	t.OnCgroup(n.Cgroups.Made)
}

// UserName is the name of a user, or his number, so that it can be shown on a terminal.
func (n *Names) UserName(uid uint32) string {
	if n.User != nil {
		return n.User(uid)
	}
	return UserName(uid)
}

// DeviceOrIndex is the name of a device, or where that is not known its index.
func (n *Names) DeviceOrIndex(id tracer.DeviceID) (name string, index uint32) {
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
	name, index := n.DeviceOrIndex(id)
	if name != "" {
		return Safe(name)
	}
	return strconv.FormatUint(uint64(index), 10)
}

// randomName is what CNI plugins, Docker and podman call network namespaces.
var randomName = regexp.MustCompile(`^(?:(?:cni|netns)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{12})?$`)

// IsRandom tells whether the name of a network namespace says nothing: a program made it up, or it is
// "".
func IsRandom(name string) bool { return randomName.MatchString(name) }

// NetNSName is the name that a network namespace had at a time, or its inode number, so that
// it can be shown on a terminal.
func (n *Names) NetNSName(id NetNS, at time.Time) string {
	if name := n.NetNS.Name(id, at); name != "" {
		return Safe(name)
	}
	return strconv.FormatUint(uint64(id.Inode), 10)
}
