package tracer

// Range is the ephemeral ports of a network namespace.
type Range struct {
	Low, High uint16 // net.ipv4.ip_local_port_range, both ends included
	reserved  [1024]uint64
}

// Has reports whether a port is in the range.
func (r *Range) Has(port uint16) bool { return port >= r.Low && port <= r.High }

// Reserved reports whether a port is in ip_local_reserved_ports.
func (r *Range) Reserved(port uint16) bool { return r.reserved[port/64]&(1<<(port%64)) != 0 }

// Ranges reads the range of every network namespace.
func (s *Snapshotter) Ranges() (map[NetNS]*Range, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loadPorts != nil {
		if err := s.loadPorts(); err != nil {
			return nil, explain("load snapshot programs", err)
		}
		s.loadPorts = nil
	}
	var w bpfWalk
	p := newPorts()
	if _, err := s.readSpaces(&w, p); err != nil {
		return nil, err
	}
	out := make(map[NetNS]*Range, len(p.spaces))
	for netns, space := range p.spaces {
		out[netns] = &Range{space.low, space.high, space.reserved}
	}
	return out, nil
}

// Ranges is that of Snapshotter.
func (t *Tracer) Ranges() (map[NetNS]*Range, error) { return t.snap.Ranges() }
