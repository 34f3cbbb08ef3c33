package identity

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/porthole-dev/porthole/tracer"
)

// Behind finds who has an address and port in another network namespace than the one it is
// reached from: of the sockets of the port, those that are bound to the address, or to any in a
// namespace that has it. netns, if not 0, is that namespace; then an address that is not valid stands
// for any. It reads a file of /proc for each namespace.
func Behind(sockets []tracer.Socket, proto tracer.Proto, to netip.Addr, from NetNS, netns uint32) []tracer.Socket {
	var out []tracer.Socket
	has := make(map[NetNS]bool)
	for _, s := range sockets {
		id := NetNS{Inode: s.NetNS, Cookie: s.NetNSCookie}
		if s.Proto != proto || s.Role != tracer.RoleListener && s.Role != tracer.RoleBound || id.Is(from) || len(s.Holders) == 0 {
			continue
		}
		any := s.Local.Addr().IsUnspecified() && (s.Local.Addr().Is4() == to.Is4() || !s.V6Only)
		switch {
		case netns != 0 && s.NetNS != netns:
			continue
		case netns == 0 && !to.IsValid():
			continue
		case to.IsValid() && s.Local.Addr() != to && !any:
			continue
		case netns == 0: // the address may be that of several
			known, ok := has[id]
			if !ok {
				known = hasAddr(s.Holders[0].PID, to)
				has[id] = known
			}
			if !known {
				continue
			}
		}
		out = append(out, s)
	}
	return out
}

// BehindRows is Names.Behind of whoever reads the sockets of a port; a port is read once.
func BehindRows(read func(port uint16) (*tracer.Rows, error)) func(tracer.Proto, netip.AddrPort, NetNS, uint32) []tracer.Socket {
	known := make(map[uint16][]tracer.Socket)
	return func(proto tracer.Proto, to netip.AddrPort, from NetNS, netns uint32) []tracer.Socket {
		sockets, ok := known[to.Port()]
		if !ok {
			if rows, err := read(to.Port()); err == nil { // else it is not known
				sockets = listenersOf(rows)
			}
			known[to.Port()] = sockets
		}
		return Behind(sockets, proto, to.Addr(), from, netns)
	}
}

// listenersOf are the sockets that take connections or datagrams from anybody.
func listenersOf(rows *tracer.Rows) []tracer.Socket {
	var out []tracer.Socket
	for i := range rows.Len() {
		if role, _ := rows.Kind(i); role == tracer.RoleListener || role == tracer.RoleBound {
			var so tracer.Socket
			rows.Read(i, &so)
			rows.Cut(&so)
			out = append(out, so)
		}
	}
	return out
}

// maxAddrFile is how much of a list of addresses is read.
const maxAddrFile = 4 << 20

// hasAddr tells whether the network namespace of a process has an address.
func hasAddr(pid uint32, addr netip.Addr) bool {
	dir, err := (&Processes{root: "/proc"}).open(pid)
	if err != nil {
		return false
	}
	defer dir.close()
	if addr.Is4() {
		b, err := dir.read("net/fib_trie", maxAddrFile)
		return err == nil && trieHas(b, addr)
	}
	b, err := dir.read("net/if_inet6", maxAddrFile)
	return err == nil && bytes.Contains(b, []byte(hex.EncodeToString(addr.AsSlice())+" "))
}

// trieHas looks for an address of the namespace itself in /proc/net/fib_trie:
//
//	|-- 10.88.0.5
//	   /32 host LOCAL
func trieHas(trie []byte, addr netip.Addr) bool {
	leaf := []byte("|-- " + addr.String() + "\n")
	for {
		_, rest, found := bytes.Cut(trie, leaf)
		if !found {
			return false
		}
		for line := range bytes.Lines(rest) {
			if line = bytes.TrimSpace(line); !bytes.HasPrefix(line, []byte("/")) {
				break
			}
			if bytes.Equal(line, []byte("/32 host LOCAL")) {
				return true
			}
		}
		trie = rest
	}
}

// NetNSOfChild is the inode number of the network namespace of a process's child, where that is not own;
// 0: it has none such, or that may not be known.
func NetNSOfChild(pid, own uint32) uint32 {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // of each its own
	for _, name := range threads {
		b, _ := os.ReadFile(name)
		for child := range strings.FieldsSeq(string(b)) {
			if inode, err := netNSInode("/proc/" + child + "/ns/net"); err == nil && inode != own {
				return inode
			}
		}
	}
	return 0
}

// NetNSOfFile is the inode number of the namespace that a file refers to, 0 where that is not
// known.
func NetNSOfFile(path string) uint32 {
	inode, err := netNSInode(path)
	if err != nil {
		return 0
	}
	return inode
}
