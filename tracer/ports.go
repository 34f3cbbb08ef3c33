package tracer

import (
	"errors"
	"fmt"
	"slices"
)

// Ports reads every use of an ephemeral port in one pass over the kernel's tables,
// the settings of every namespace, and who holds the sockets. It blocks for about a
// millisecond and for a fraction of a microsecond per port in use.
func (s *Snapshotter) Ports() (*Ports, error) {
	return s.ports(nil, true)
}

// ports is Ports; of sockets that no process holds the table knows who had them.
func (s *Snapshotter) ports(known *Table, withHolders bool) (*Ports, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := newPorts()
	p.names = s.Devices
	var w bpfWalk
	tables, err := s.readSpaces(&w, p)
	if err != nil {
		return nil, err
	}
	var owners [][]bpfRow
	held := newMatcher(s.dec)
	what := bpfWalk{Table: bpfWalkTableWALK_TCP_BIND}
	if withHolders {
		what.Sockets = 1
	}
	keep := func(rows []bpfRow) { owners = append(owners, rows) }
	if err := s.read(&s.portWalk, &w, what, nil, keep); err != nil {
		return nil, err
	}
	what.Table = bpfWalkTableWALK_UDP
	for _, what.Heads = range tables {
		if err := s.read(&s.portWalk, &w, what, nil, keep); err != nil {
			return nil, err
		}
	}
	if w.GaveUp > 0 {
		return nil, fmt.Errorf("read the kernel's port tables: %d hash buckets kept changing", w.GaveUp)
	}
	if withHolders {
		n := 0
		for _, rows := range owners {
			n += len(rows)
		}
		held.reserve(n)
		for _, rows := range owners {
			for i := range rows {
				if rows[i].Socket != 0 {
					held.want(&rows[i])
				}
			}
		}
		if err := s.eachFds(held.add); err != nil {
			return nil, err
		}
	}
	var seen map[uint64]bool // of slots that were read twice
	if w.Restarts > 0 {
		seen = make(map[uint64]bool)
	}
	var users [][]Process
	for _, rows := range owners {
		for some := range slices.Chunk(rows, readAtOnce) {
			users = usersOf(users[:0], some, held, known)
			for i := range some {
				row := &some[i]
				if seen != nil && seen[row.Sock] {
					continue
				} else if seen != nil {
					seen[row.Sock] = true
				}
				p.addOwner(row, users[i])
			}
		}
	}
	return p, nil
}

// usersOf appends for each row the processes that hold the socket, some if there are very many;
// of one that no process holds who had it last, where that was observed.
func usersOf(users [][]Process, rows []bpfRow, held *matcher, known *Table) [][]Process {
	for i := range rows {
		var by []Process
		if rows[i].Socket != 0 {
			by = held.processes(&rows[i])
		}
		users = append(users, by)
	}
	if known != nil {
		known.lastOwners(users, rows)
	}
	return users
}

// NetNamespaces reads which network namespaces there are, of one inode number the newest
// last. It blocks for some microseconds for each. It needs ReadsPorts.
func (s *Snapshotter) NetNamespaces() ([]NetNS, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := newPorts()
	if _, err := s.readSpaces(new(bpfWalk), p); err != nil {
		return nil, err
	}
	return p.NetNamespaces(), nil
}

// readSpaces reads the settings of every namespace, and returns the addresses of the UDP
// tables they have.
func (s *Snapshotter) readSpaces(w *bpfWalk, p *Ports) (udpTables []uint64, err error) {
	var readErr error
	err = s.read(&s.portWalk, w, bpfWalk{Table: bpfWalkTableWALK_NETNS}, nil, func([]bpfRow) {
		rows := make([]bpfNetnsRow, w.Rows)
		if err := readMemory(s.spaces, 0, rows); err != nil {
			readErr = fmt.Errorf("read namespaces: %w", err)
		}
		for i := range rows {
			p.addSpace(&rows[i])
			if !slices.Contains(udpTables, rows[i].UdpTable) {
				udpTables = append(udpTables, rows[i].UdpTable)
			}
		}
	})
	return udpTables, errors.Join(err, readErr)
}

// PortsOf is Ports of sockets that were read in another way, all of one network namespace, of which low
// and high are net.ipv4.ip_local_port_range and reserved tells the ports that are left out. A port counts
// as blocked where a socket listens or is bound now, and no timewait sock as reusable: that the kernel
// blocks more, and which it takes over, only its own tables tell.
func PortsOf(netns NetNS, low, high uint16, reserved func(uint16) bool, devices Devices, sockets []Socket) *Ports {
	p := newPorts()
	p.names = func() (Devices, error) { return devices, nil }
	space := bpfNetnsRow{Netns: netns.Inode, Cookie: netns.Cookie, Low: low, High: high}
	for port := range 1 << 16 {
		if reserved(uint16(port)) {
			space.Reserved[port/64] |= 1 << (port % 64)
		}
	}
	p.addSpace(&space)
	for i := range sockets {
		s := &sockets[i]
		row := bpfRow{Proto: uint8(s.Proto), State: uint8(s.State), Sock: uint64(i) + 1, Flow: flowOf(s.Local, s.Remote)}
		row.Flow.Netns, row.Flow.NetnsCookie, row.Flow.Dev = netns.Inode, netns.Cookie, s.Device
		if s.V6Only {
			row.Flags |= uint16(bpfRowFlagROW_V6ONLY)
		}
		switch s.Role {
		case RoleTimeWait:
			row.Flags |= uint16(bpfRowFlagROW_TIMEWAIT | bpfRowFlagROW_CONNECTED)
		case RoleClient, RoleUnknown:
			row.Flags |= uint16(bpfRowFlagROW_ACTIVE | bpfRowFlagROW_CONNECTED)
		}
		by := make([]Process, len(s.Holders))
		for j := range s.Holders {
			by[j] = s.Holders[j].Process
		}
		p.addOwner(&row, by)
	}
	return p
}
