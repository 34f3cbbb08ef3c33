package tracer

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Reach is which network namespace is the machine's own, and which can be reached from others, at
// one moment.
type Reach struct {
	// Host is the namespace that the kernel starts with.
	Host NetNS

	inside map[NetNS]bool // has devices, and none but loopback is up
}

// FromOutside tells whether a namespace can be reached from another: it has a network device that
// is up and no loopback. Of a namespace that is not known it is true.
func (r *Reach) FromOutside(ns NetNS) bool { return !r.inside[ns] }

// Exposed tells whether others can reach a socket that waits for them: it is not on a loopback address or
// lo, and of a namespace that can be reached. Firewalls are not looked at. Of nil the namespace does not
// count.
func (r *Reach) Exposed(s *Socket) bool {
	return !s.Local.Addr().IsLoopback() && s.Device != loopbackIndex &&
		(r == nil || r.FromOutside(NetNS{Inode: s.NetNS, Cookie: s.NetNSCookie}))
}

// loopbackIndex is the index of lo in every network namespace.
const loopbackIndex = 1

// Reach reads it. It blocks as Devices does, and is safe for concurrent use.
func (s *Snapshotter) Reach() (*Reach, error) {
	devices := make(map[DeviceID]uint32) // flags
	end, err := s.readDevices(func(row *bpfDeviceRow) { devices[DeviceID{row.Netns, row.Cookie, row.Index}] = row.Flags })
	if err != nil {
		return nil, err
	}
	r := &Reach{Host: NetNS{end.InitNetns, end.InitCookie}, inside: make(map[NetNS]bool)}
	for id := range devices {
		r.inside[NetNS{id.NetNS, id.NetNSCookie}] = true
	}
	for id, flags := range devices {
		if flags&unix.IFF_UP != 0 && flags&unix.IFF_LOOPBACK == 0 {
			delete(r.inside, NetNS{id.NetNS, id.NetNSCookie})
		}
	}
	return r, nil
}

// Reach is Snapshotter.Reach.
func (t *Tracer) Reach() (*Reach, error) { return t.snap.Reach() }

// HostNetNS is the network namespace that the kernel starts with, whichever this process is in. It
// loads a program for that: the error is as of NewSnapshotter.
func HostNetNS() (ns NetNS, err error) {
	s, err := NewSnapshotter(0)
	if err != nil {
		return NetNS{}, err
	}
	defer s.Close()
	r, err := s.Reach()
	if err == nil && r.Host.Inode == 0 {
		err = fmt.Errorf("%w: the first network namespace was not found", ErrNotSupported)
	}
	if err != nil {
		return NetNS{}, err
	}
	return r.Host, nil
}
