package query

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// Headroom asks how many more ports there are: towards a destination, or all there is.
type Headroom struct {
	values Values
	filter *Filter
	own    bool           // to is seen from the namespace of this thread
	to     netip.AddrPort // not valid: all
	from   netip.Addr     // not valid: the address the route has
	device string         // of the sockets that connect, by name or index; "": they are bound to none
}

// ErrNoDevice tells that a namespace has no device of that name.
var ErrNoDevice = errors.New("no such network device")

// ParseHeadroom reads the parameters: filters, to and from. The error names the value and
// what is accepted, and is a *Wrong.
func ParseHeadroom(values Values) (*Headroom, error) {
	q := &Headroom{values: values}
	return q, wrongParam(q.parse())
}

func (q *Headroom) parse() error {
	filters := make(Values)
	var from scoped
	var err error
	for name, given := range q.values {
		switch name {
		case "to":
			var to scoped
			to, err = one(given, parseTo)
			q.to, q.device = to.end, to.device
		case "from":
			from, err = one(given, parseFrom)
			q.from = from.end.Addr()
		default:
			filters[name] = given
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if q.filter, err = ParseFilter(OfHeadroom, filters); err != nil {
		return err
	}
	if !q.to.IsValid() {
		if q.from.IsValid() {
			return errors.New("from: wants to, the destination, beside it")
		}
		return nil
	}
	if q.device == "" {
		q.device = from.device
	}
	if from.device != "" && from.device != q.device {
		return fmt.Errorf("from: device %q: the destination is on %q", from.device, q.device)
	}
	return q.about(filters)
}

// about checks a question about a destination.
func (q *Headroom) about(filters map[string][]string) error {
	for name, given := range filters {
		if name != "netns" && len(given) > 0 {
			return fmt.Errorf("%s: a destination has one answer, which no filter but netns goes with", name)
		}
	}
	if q.from.IsValid() && q.from.Is4() != q.to.Addr().Is4() {
		return fmt.Errorf("from: %s: want an address of the family of %s", q.from, q.to.Addr())
	}
	if q.device == "" && (tracer.IsScoped(q.to.Addr()) || q.from.IsValid() && tracer.IsScoped(q.from)) {
		return fmt.Errorf("to: %s: want the device of a link-local address too, as [fe80::1%%eth0]:443", q.to)
	}
	if len(filters["netns"]) > 1 {
		return fmt.Errorf("netns: %q: want one", filters["netns"])
	}
	q.own = len(filters["netns"]) == 0
	return nil
}

func one[T any](given []string, parse func(string) (T, error)) (T, error) {
	if len(given) != 1 {
		var none T
		return none, fmt.Errorf("%q: want one", given)
	}
	return parse(given[0])
}

// scoped is an end, or one without a port, and a device.
type scoped struct {
	end    netip.AddrPort
	device string
}

func parseTo(s string) (scoped, error) {
	to, device, err := parseEnd(s)
	if err != nil || to.Port() == 0 || to.Addr().IsUnspecified() {
		return scoped{}, fmt.Errorf("%q: want an address and a port, as 192.0.2.1:443, [2001:db8::1]:443 or [fe80::1%%eth0]:443", s)
	}
	return scoped{to, device}, nil
}

func parseFrom(s string) (scoped, error) {
	from, device, err := parseAddr(s)
	if err != nil || from.IsUnspecified() {
		return scoped{}, fmt.Errorf("%q: want an address, as 192.0.2.1, 2001:db8::1 or fe80::1%%eth0", s)
	}
	return scoped{netip.AddrPortFrom(from, 0), device}, nil
}

// Filter is the filters of the question.
func (q *Headroom) Filter() *Filter { return q.filter }

// Note says what the filters can match nothing of, as Filter.Note.
func (q *Headroom) Note(cgroups *identity.Cgroups) string { return q.filter.Note(cgroups) }

// Values are what the question was read from, and the namespace of this thread, where the
// destination is seen from that; if it is not asked here, the one who answers sees it from his own.
func (q *Headroom) Values(here bool) (Values, error) {
	values := maps.Clone(q.values)
	if !q.own || !here {
		return values, nil
	}
	own, err := identity.NetNSOfThread()
	if err != nil {
		return nil, err
	}
	values["netns"] = []string{strconv.FormatUint(uint64(own), 10)}
	return values, nil
}

// Answer picks what was asked for; the fullest comes first. names are those of the machine
// whose ports these are. The error wraps identity.ErrNotPermitted, or is a *Wrong that wraps
// tracer.ErrNoNetNS, ErrNoDevice, identity.ErrNoNetNS or identity.ErrUnreachable.
func (q *Headroom) Answer(ports *tracer.Ports, names *identity.Names) ([]tracer.Headroom, error) {
	found, err := q.answer(ports, names)
	return found, notThere(err, false, tracer.ErrNoNetNS, ErrNoDevice, identity.ErrNoNetNS, identity.ErrUnreachable)
}

func (q *Headroom) answer(ports *tracer.Ports, names *identity.Names) ([]tracer.Headroom, error) {
	if err := q.filter.Locate(names.NetNS); err != nil {
		return nil, err
	}
	inodes, err := q.among(ports)
	if err != nil {
		return nil, err
	}
	if !q.to.IsValid() {
		all := ports.All()
		return slices.DeleteFunc(all, func(h tracer.Headroom) bool { return !q.filter.Headroom(names.Cgroups, &h) }), nil
	}
	device, err := q.index(ports, inodes[0])
	if err != nil {
		return nil, err
	}
	from, err := identity.RouteSource(inodes[0], q.to.Addr(), q.from, int(device))
	if err != nil && !(q.from.IsValid() && errors.Is(err, identity.ErrNotPermitted)) {
		return nil, err
	}
	if q.from.IsValid() {
		from = q.from
	}
	h, err := ports.Connect(inodes[0], from, q.to, device)
	if err != nil {
		return nil, err
	}
	return []tracer.Headroom{h}, nil
}

// index is that of the device asked about, 0: none is.
func (q *Headroom) index(ports *tracer.Ports, inode uint32) (uint32, error) {
	if q.device == "" {
		return 0, nil
	}
	devices, err := ports.Devices()
	if err != nil {
		return 0, err
	}
	if i := devices.Index(inode, q.device); i != 0 {
		return i, nil
	}
	return 0, fmt.Errorf("%w: %q in network namespace %d", ErrNoDevice, q.device, inode)
}

// among returns the inode numbers of the namespaces that are asked about, each of which
// there was when ports was read.
func (q *Headroom) among(ports *tracer.Ports) ([]uint32, error) {
	var inodes []uint32
	if q.own {
		inode, err := identity.NetNSOfThread()
		if err != nil {
			return nil, err
		}
		inodes = append(inodes, inode)
	}
	for _, wanted := range q.filter.NetNS() {
		id, err := wanted.ID()
		if err != nil {
			return nil, err
		}
		// Of two that had a number one after the other ports looks at the later.
		there := func(s tracer.NetNS) bool { return identity.NetNS(s).Is(id) }
		if all := ports.NetNamespaces(); !slices.ContainsFunc(all, there) {
			return nil, fmt.Errorf("%w: inode number %d", tracer.ErrNoNetNS, id.Inode)
		}
		inodes = append(inodes, id.Inode)
	}
	return inodes, nil
}
