package main

import (
	"slices"
	"time"

	"github.com/porthole-dev/porthole/internal/render"
	"github.com/porthole-dev/porthole/tracer"
)

// getaddrinfo(3) connects a UDP socket to each address that a name has, to port 0, to learn from which
// of its own addresses that would be reached; nothing is sent. Such a probe is told by all that happens
// to its socket: the kernel picks its port, it is connected to port 0, as often as it likes and nowhere
// else, and it is closed. Whatever else happens, or does not happen soon, makes it a socket like any
// other. What is written meanwhile waits behind it, so that the order stays.
//
// Probes towards the port of a service are not told from flows: what connects to port 443 may send.

const (
	// probeFor is how long a probe may take.
	probeFor = 100 * time.Millisecond
	// probeLines is how many lines wait at most.
	probeLines = 10_000
)

// probes holds lines of events back until it is known whether they are of a probe.
type probes struct {
	open   map[probeSocket]*probe
	queue  []heldLine
	left   int // probes that were left out
	events int // theirs
}

// probeSocket is a UDP socket while it has its port.
type probeSocket struct {
	netns  uint32
	cookie uint64
	port   uint16
	pid    uint32
}

type probe struct {
	socket probeSocket
	state  probeState
	peer   bool // it was connected
	since  time.Time
}

type probeState uint8

const (
	probeOpen   probeState = iota // it may still be one
	probeShown                    // it is none
	probeHidden                   // it is one
)

// heldLine is an event in words.
type heldLine struct {
	text []byte
	of   *probe // nil: it waits for others only
}

// add takes the line of an event.
func (p *probes) add(ev *render.Event, line []byte) {
	held := heldLine{text: slices.Clone(line)}
	if ev.Proto == tracer.UDP.String() {
		held.of = p.socketOf(ev)
	}
	p.queue = append(p.queue, held)
	if len(p.queue) > probeLines {
		p.giveUp()
	}
}

// socketOf is the probe that an event may be of; nil: of none.
func (p *probes) socketOf(ev *render.Event) *probe {
	key := probeSocket{ev.NetNS, ev.Cookie, ev.LocalPort, ev.PID}
	known := p.open[key]
	fine := ev.Error == "" && ev.PID != 0 && ev.LocalPort != 0
	switch {
	case fine && ev.Event == tracer.EventBind.String() && ev.Implicit:
		if known != nil { // its close was not seen
			p.show(known)
		}
		if p.open == nil {
			p.open = make(map[probeSocket]*probe)
		}
		known = &probe{socket: key, since: time.Now()}
		p.open[key] = known
		return known
	case known == nil:
		return nil
	case fine && ev.Event == tracer.EventConnect.String() && ev.RemotePort == 0:
		known.peer = true
		return known
	case fine && ev.Event == tracer.EventClose.String() && ev.RemotePort == 0 && known.peer:
		known.state = probeHidden
		delete(p.open, key)
		p.left++
		return known
	}
	p.show(known)
	return nil
}

func (p *probes) show(is *probe) {
	is.state = probeShown
	delete(p.open, is.socket)
}

// wait is how long the first line is still held back.
func (p *probes) wait() time.Duration {
	if len(p.queue) == 0 || p.queue[0].of == nil {
		return 0
	}
	return probeFor - time.Since(p.queue[0].of.since)
}

// giveUp shows all that are not known to be probes: events were lost, or there are no more.
func (p *probes) giveUp() {
	for _, is := range p.open {
		p.show(is)
	}
}

// next takes the first line that can be written; nil: there is none yet.
func (p *probes) next() []byte {
	for len(p.queue) > 0 {
		first := p.queue[0]
		if first.of != nil && first.of.state == probeOpen {
			if p.wait() > 0 {
				return nil
			}
			p.show(first.of)
		}
		p.queue = p.queue[1:]
		if first.of == nil || first.of.state == probeShown {
			return first.text
		}
		p.events++
	}
	p.queue = nil
	return nil
}
