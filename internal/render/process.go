package render

import (
	"net/netip"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

// maxLookups is how many processes are looked up for an answer: those of the first sockets, which
// are listeners.
const maxLookups = 512

// lookups are the processes of an answer, each looked up once.
type lookups struct {
	of    *identity.Processes
	known map[processID]*Process
}

type processID struct {
	pid   uint32
	start time.Duration
}

func (n Renderer) lookups() *lookups {
	return &lookups{of: n.Processes, known: make(map[processID]*Process)}
}

// process looks a process up; nil: it has ended, or is not to be looked up.
func (l *lookups) process(p *tracer.Process) *Process {
	id := processID{p.PID, p.Start}
	known, ok := l.known[id]
	if ok || l.of == nil || len(l.known) >= maxLookups {
		return known
	}
	if found, err := l.of.Look(*p); err == nil {
		known = &Process{
			Exe: found.Exe, Args: found.Args, ArgsCut: found.ArgsCut, ArgsUnread: found.ArgsErr != nil,
			Started: Stamp{found.Started}, PPID: found.PPID, Parents: found.Parents,
		}
	}
	l.known[id] = known
	return known
}

// Forward is where connections to a port are led, in JSON: by a process that holds the port for
// another (By is its name), or by NAT (By is nftables or iptables). What is not known is absent.
type Forward struct {
	By       string       `json:"by"`
	Proto    string       `json:"proto"`
	IP       netip.Addr   `json:"ip,omitzero"`      // absent: of NAT, an address of the namespace itself
	IPLast   netip.Addr   `json:"ip_last,omitzero"` // any from ip to this
	Port     uint16       `json:"port,omitempty"`
	PortLast uint16       `json:"port_last,omitempty"`
	Chain    string       `json:"chain,omitempty"`
	LocalIPs []netip.Addr `json:"local_ips,omitempty"` // only what is sent to these
	From     string       `json:"from,omitempty"`      // only from outside, or from here
	When     []string     `json:"when,omitempty"`      // what else decides
	NetNS    uint32       `json:"netns,omitempty"`     // where it leads
	Cookie   uint64       `json:"netns_cookie,omitempty"`
	Holders  []Holder     `json:"holders,omitempty"` // who has it there
	Place
}

// NATForward makes the row of a target of NAT; who is there is not looked for.
func NATForward(to *identity.NATTarget) Forward {
	f := Forward{
		By: to.By, Proto: to.Proto.String(), IP: to.Addr, IPLast: to.AddrLast, Port: to.Port, PortLast: to.PortLast,
		Chain: to.Chain, LocalIPs: to.Local, When: to.When,
	}
	switch {
	case !to.Outside:
		f.From = "here"
	case !to.Here:
		f.From = "outside"
	}
	return f
}

// natForward makes the row of a target of NAT in a namespace.
func (n Renderer) natForward(to *identity.NATTarget, from identity.NetNS) Forward {
	f := NATForward(to)
	if to.Addr.IsValid() && !to.AddrLast.IsValid() && to.PortLast == 0 {
		n.behind(&f, to.Proto, netip.AddrPortFrom(to.Addr, to.Port), from, 0)
	}
	return f
}

// behind adds who has the port where it leads.
func (n Renderer) behind(f *Forward, proto tracer.Proto, to netip.AddrPort, from identity.NetNS, netns uint32) {
	if n.Behind == nil || to.Port() == 0 {
		return
	}
	seen := n.lookups()
	for _, so := range n.Behind(proto, to, from, netns) {
		if f.NetNS != 0 && f.Cookie != so.NetNSCookie {
			continue // the address is that of several: of the first
		}
		f.NetNS, f.Cookie = so.NetNS, so.NetNSCookie
		for i := range so.Holders {
			h := &so.Holders[i]
			f.Holders = append(f.Holders, Holder{
				PID: h.PID, Comm: h.Comm, FD: h.FD, IOUring: h.Ring, UID: &h.UID, Process: seen.process(&h.Process), Place: n.place(&h.Process),
			})
		}
		if f.Container == nil && f.Pod == nil && f.Unit == "" && len(so.Holders) > 0 {
			f.Place = n.placeOf(&so)
		}
	}
}

// inside adds the container that listens in the namespace where a port is led, to nobody knows which port
// of it; none where several do.
func (n Renderer) inside(f *Forward, proto tracer.Proto, from identity.NetNS, netns uint32) {
	if n.Behind == nil {
		return
	}
	for _, so := range n.Behind(proto, netip.AddrPort{}, from, netns) {
		place := n.placeOf(&so)
		if place.Container == nil || f.Container != nil && f.Container.ID != place.Container.ID {
			f.Place = Place{}
			return
		}
		f.NetNS, f.Cookie, f.Place = so.NetNS, so.NetNSCookie, place
	}
}

// addForward adds where a holder of a socket leads its connections.
func (n Renderer) addForward(row *Socket, s *tracer.Socket, h *Holder) {
	if len(row.ForwardsTo) > 0 {
		return
	}
	var args []string
	if h.Process != nil {
		args = h.Args
	}
	to, ok := identity.ForwardOf(h.Comm, args, s.Proto, s.Local)
	if !ok {
		return
	}
	f := Forward{By: to.By, Proto: s.Proto.String(), IP: to.To.Addr(), Port: to.To.Port()}
	var netns uint32
	if to.NetNSFile != "" {
		if netns = identity.NetNSOfFile(to.NetNSFile); netns != 0 {
			f.NetNS = netns
		}
	}
	own := identity.NetNS{Inode: s.NetNS, Cookie: s.NetNSCookie}
	if to.By == "rootlessport" { // where it leads was on its standard input; its child is there
		netns = identity.NetNSOfChild(h.PID, s.NetNS)
	}
	if netns != 0 && to.To.Port() == 0 {
		n.inside(&f, s.Proto, own, netns)
	}
	n.behind(&f, s.Proto, to.To, own, netns)
	if to.ContainerID != "" && f.Container == nil {
		f.Container = &identity.Container{ID: to.ContainerID, Name: to.Container, Runtime: to.Runtime}
	}
	row.ForwardsTo = append(row.ForwardsTo, f)
}
