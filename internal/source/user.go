package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/diag"
	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/query"
	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// User is what the kernel tells every user: about the sockets of the network namespace that this process
// is in, and who holds them as far as /proc says. What it cannot tell it leaves out, and says so.
type User struct {
	Why error // more is not possible
}

// PartialView implements Source.
func (u *User) PartialView() []string {
	out := []string{
		fmt.Sprintf("only the sockets of this network namespace are shown, and only the processes of this user; to see all, run it as root or start an agent (%v)", u.Why),
	}
	if !tellsBound() {
		out = append(out, "TCP sockets that are bound, and neither listen nor are connected, are not known: that takes Linux 6.8")
	}
	return out
}

// PIDs implements Source: those of /proc are of this process's namespace.
func (u *User) PIDs() string { return "" }

// Elsewhere implements Source.
func (u *User) Elsewhere() string { return "" }

// Names implements Source.
func (u *User) Names(context.Context) (*identity.Names, error) { return identity.Load(nil), nil }

// Partial implements Source.
func (u *User) Partial() bool { return true }

// tellsBound tells whether the kernel tells users about TCP sockets that are only bound.
func tellsBound() bool {
	var uts unix.Utsname
	var major, minor int
	if err := unix.Uname(&uts); err != nil {
		return false
	}
	_, err := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 8)
}

// notKnown is an error of a question that takes more rights.
func (u *User) notKnown(what string) error { return fmt.Errorf("%s: %w", what, u.Why) }

// read reads the sockets of this namespace that pass, on one port or all (0), ordered as
// tracer.SortSockets does.
func (u *User) read(names *identity.Names, f *query.Filter) ([]tracer.Socket, identity.NetNS, error) {
	own, err := identity.OwnNetNS()
	if err != nil {
		return nil, own, err
	}
	if err := u.fits(names, f, own); err != nil {
		return nil, own, err
	}
	sockets, err := diag.Sockets(tracer.NetNS(own))
	if err != nil {
		return nil, own, err
	}
	holders, err := identity.NewProcesses(false).OwnHolders()
	if err != nil {
		return nil, own, err
	}
	for i := range sockets {
		s := &sockets[i]
		if s.Inode != 0 {
			s.Holders = holders[s.Inode]
		}
		if len(s.Holders) == 0 && s.Role != tracer.RoleTimeWait && s.Role != tracer.RoleOrphan {
			s.NoHolder = tracer.NoHolderOutOfSight
		}
	}
	tracer.SortSockets(sockets)
	return sockets, own, nil
}

// fits fails where a filter asks for what is not known.
func (u *User) fits(names *identity.Names, f *query.Filter, own identity.NetNS) error {
	if f == nil {
		return nil
	}
	if err := f.Locate(names.NetNS); err != nil {
		return err
	}
	f.NameDevices(names.Device)
	if f.Any() {
		return u.notKnown("look for a unit, a container or a pod")
	}
	for _, wanted := range f.NetNS() {
		if id, err := wanted.ID(); err != nil {
			return err
		} else if !id.Is(own) {
			return u.notKnown("look into another network namespace")
		}
	}
	return nil
}

// ownDevices are the names of the devices of this namespace.
func ownDevices(own identity.NetNS) tracer.Devices {
	all, err := net.Interfaces()
	if err != nil {
		return nil // then they are shown by their numbers
	}
	out := make(tracer.Devices, len(all))
	for _, d := range all {
		out[tracer.DeviceID{NetNS: own.Inode, NetNSCookie: own.Cookie, Index: uint32(d.Index)}] = d.Name
	}
	return out
}

// userNames are the names that a user may know: none of cgroups.
func userNames() *identity.Names {
	devices := sync.OnceValue(func() tracer.Devices {
		own, err := identity.OwnNetNS()
		if err != nil {
			return nil
		}
		return ownDevices(own)
	})
	return &identity.Names{
		Services: identity.LoadServices(), Cgroups: identity.NewCgroups(""), NetNS: identity.NewNetNSNames(nil), Partial: true,
		Device: func(id tracer.DeviceID) string { return devices().Name(id) },
	}
}

// Sockets implements Source. The error wraps tracer.ErrNotPermitted where a filter asks for what is not
// known: other network namespaces, units, containers.
func (u *User) Sockets(_ context.Context, q *query.Sockets) (SocketsAnswer, error) {
	a := &localSockets{names: userNames(), undated: q.Undated}
	sockets, _, err := u.read(a.names, q.Filter)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	a.note = q.Note(a.names.Cgroups)
	if q.Filter != nil && q.ByProcess() {
		unknown := 0
		for i := range sockets {
			if sockets[i].NoHolder == tracer.NoHolderOutOfSight {
				unknown++
			}
		}
		if unknown > 0 {
			a.note = strings.TrimPrefix(a.note+fmt.Sprintf("\nwhether such a process has any of %d other sockets is not known: they are of other users", unknown), "\n")
		}
	}
	a.sockets = render.SocketsOf(sockets, func(s *tracer.Socket) bool { return q.Socket(a.names.Cgroups, s) })
	return a, nil
}

// Port implements Source. The error is as that of Sockets.
func (u *User) Port(ctx context.Context, q query.Port) (PortAnswer, error) {
	names := userNames()
	names.Processes = identity.NewProcesses(!q.NoArgs)
	a := &userPort{q: q, names: names}
	var own identity.NetNS
	sockets, own, err := u.read(names, q.Filter())
	if err == nil {
		a.at.NetNS = own
		a.at.Pool, err = identity.ReadPool()
	}
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	a.at.NAT, a.at.NATUnread = identity.NAT(ctx, own.Inode, q.Number, q.Protos...)
	a.sockets = render.SocketsOf(sockets, func(s *tracer.Socket) bool { return s.Local.Port() == q.Number })
	return a, nil
}

// userPort is an answer about a port.
type userPort struct {
	held
	q       query.Port
	names   *identity.Names
	at      render.PortPlace
	sockets render.Sockets
}

func (a *userPort) Unfinished() int { return 0 }
func (a *userPort) Note() string    { return a.q.Note(a.names.Cgroups) }
func (a *userPort) Close() error    { return a.names.Cgroups.Close() }

func (a *userPort) JSON(w io.Writer) error {
	a.w = w
	return render.New(a.names).PortJSON(a, a.q, &a.at, a.sockets, func(func(tracer.Tenancy) bool) {})
}

func (a *userPort) Text(w io.Writer, style render.Style) error {
	var text bytes.Buffer
	if err := a.JSON(&text); err != nil {
		return err
	}
	var answer render.Port
	if err := json.Unmarshal(text.Bytes(), &answer); err != nil {
		return fmt.Errorf("read an answer: %w", err)
	}
	answer.Where = a.q.Where()
	return render.New(a.names).PortText(w, style, &answer)
}

// Headroom implements Source: ports that were blocked by a bind() in the past are not known, and so there
// may be fewer free.
func (u *User) Headroom(_ context.Context, q *query.Headroom) (*Headroom, error) {
	names := userNames()
	defer names.Cgroups.Close()
	sockets, own, err := u.read(names, nil)
	if err != nil {
		return nil, err
	}
	if err := u.fits(names, q.Filter(), own); err != nil {
		return nil, err
	}
	pool, err := identity.ReadPool()
	if err != nil {
		return nil, err
	}
	found, err := q.Answer(tracer.PortsOf(tracer.NetNS(own), pool.Low, pool.High, pool.Reserved, ownDevices(own), sockets), names)
	if err != nil {
		return nil, err
	}
	return &Headroom{render.New(names).Headrooms(found), q.Note(names.Cgroups)}, nil
}

// Events implements Source: the kernel tells no user.
func (u *User) Events(context.Context, *query.Events) (Events, error) {
	return nil, u.notKnown("follow events")
}

// Report implements Source.
func (u *User) Report(ctx context.Context) (MachineReport, error) {
	return (&Local{Cannot: u.Why}).Report(ctx)
}
