package tracer

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
)

// SortSockets orders sockets for reading: by role (listeners first), protocol,
// namespace, local port and address, then remote.
func SortSockets(s []Socket) {
	// Sorting short keys and moving each socket once is several times faster than
	// moving sockets at every step.
	keys := make([]sortKey, len(s))
	for i := range s {
		so := &s[i]
		keys[i] = newSortKey(so.Role, so.Proto, so.NetNS, so.Local, so.Remote, uint32(i))
	}
	sortKeys(keys, func(at uint32) (local, remote netip.AddrPort, id uint64) { return s[at].Local, s[at].Remote, s[at].id })
	sorted := make([]Socket, len(s))
	for i, k := range keys {
		sorted[i] = s[k.at()]
	}
	copy(s, sorted)
}

// sortKey orders most sockets without a look at them: role, protocol, namespace and local
// port; of IPv4 the addresses, local before remote, else 0; the remote port and, in the
// lower half, which socket.
type sortKey [3]uint64

func newSortKey(role Role, proto Proto, netns uint32, local, remote netip.AddrPort, at uint32) sortKey {
	k := sortKey{
		uint64(role)<<52 | uint64(proto&1)<<48 | uint64(netns)<<16 | uint64(local.Port()),
		0,
		uint64(remote.Port())<<32 | uint64(at),
	}
	if local, remote := local.Addr(), remote.Addr(); local.Is4() && remote.Is4() {
		l, r := local.As4(), remote.As4()
		k[1] = uint64(binary.BigEndian.Uint32(l[:]))<<32 | uint64(binary.BigEndian.Uint32(r[:]))
	}
	return k
}

// at is which socket.
func (k *sortKey) at() uint32 { return uint32(k[2]) }

// sortKeys sorts keys; ends tells of a socket what they do not.
func sortKeys(keys []sortKey, ends func(at uint32) (local, remote netip.AddrPort, id uint64)) {
	radixSort(keys)
	for len(keys) > 0 {
		// With the first, those that the keys do not tell from it: of one port all, where not
		// all of them are of connected IPv4 sockets.
		n := 1
		for n < len(keys) && keys[n][0] == keys[0][0] && (keys[0][1] == 0 || keys[n][1] == keys[0][1] && keys[n][2]>>32 == keys[0][2]>>32) {
			n++
		}
		if n > 1 {
			slices.SortFunc(keys[:n], func(a, b sortKey) int {
				localA, remoteA, idA := ends(a.at())
				localB, remoteB, idB := ends(b.at())
				return cmp.Or(localA.Addr().Compare(localB.Addr()), remoteA.Compare(remoteB), cmp.Compare(idA, idB))
			})
		}
		keys = keys[n:]
	}
}

// radixSort sorts keys but for the number of the socket, from the last byte to the first,
// leaving out those bytes that are the same in all: in most lists few are not. To compare
// keys with each other takes five times as long.
func radixSort(keys []sortKey) {
	var differ sortKey
	for i := range keys {
		for word := range differ {
			differ[word] |= keys[i][word] ^ keys[0][word]
		}
	}
	differ[2] &^= math.MaxUint32
	from, to := keys, make([]sortKey, len(keys))
	for word := len(differ) - 1; word >= 0; word-- {
		for shift := 0; shift < 64; shift += 8 {
			if differ[word]>>shift&0xff == 0 {
				continue
			}
			var next [256]uint32 // where the next key with this byte goes
			for i := range from {
				next[byte(from[i][word]>>shift)]++
			}
			sum := uint32(0)
			for b, n := range next {
				next[b], sum = sum, sum+n
			}
			for i := range from {
				b := byte(from[i][word] >> shift)
				to[next[b]] = from[i]
				next[b]++
			}
			from, to = to, from
		}
	}
	if len(keys) > 0 && &from[0] != &keys[0] {
		copy(keys, from)
	}
}
