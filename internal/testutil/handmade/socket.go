// Package handmade makes sockets for tests that need no kernel.
package handmade

import (
	"net/netip"

	"github.com/porthole-dev/porthole/tracer"
)

// Process is a process for a hand-made socket.
func Process(pid, uid uint32, comm string) tracer.Process {
	return tracer.Process{PID: pid, UID: uid, Comm: comm}
}

// HeldBy gives each process a descriptor, from 3 on.
func HeldBy(processes ...tracer.Process) []tracer.Holder {
	holders := make([]tracer.Holder, len(processes))
	for i, p := range processes {
		holders[i] = tracer.Holder{Process: p, FD: uint32(3 + i)}
	}
	return holders
}

// Socket is a hand-made socket of a namespace, of its first holder's user; remote ""
// is none.
func Socket(netns uint32, proto tracer.Proto, role tracer.Role, local, remote string, holders ...tracer.Holder) tracer.Socket {
	s := tracer.Socket{Proto: proto, Role: role, State: tracer.StateEstablished, Local: netip.MustParseAddrPort(local), NetNS: netns, Holders: holders}
	switch role {
	case tracer.RoleListener:
		s.State = tracer.StateListen
	case tracer.RoleBound:
		s.State = tracer.StateUnconn
	case tracer.RoleTimeWait:
		s.State = tracer.StateTimeWait
	}
	if remote != "" {
		s.Remote = netip.MustParseAddrPort(remote)
	}
	if len(holders) > 0 {
		s.UID = holders[0].UID
	}
	return s
}
