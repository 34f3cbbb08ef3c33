package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xtMatch tells whether a match of iptables is about a packet: of legacy iptables, and of
// iptables-nft, which has what nftables has no expression for.
func xtMatch(name string, rev byte, b []byte, p *packet) match {
	switch name {
	case "comment":
		return matches
	case "tcp":
		return xtTCP(b, p)
	case "udp":
		if p.proto != unix.IPPROTO_UDP || len(b) < 9 {
			return differs
		}
		return both(xtSourcePorts(b, b[8]&1 != 0), xtPorts(b[4:], p.port).xor(b[8]&2 != 0))
	case "multiport":
		return xtMultiport(rev, b, p)
	case "addrtype":
		return xtAddrType(rev, b)
	case "state":
		const isNew = 8
		if len(b) >= 4 {
			return is(binary.NativeEndian.Uint32(b)&isNew != 0)
		}
	case "statistic":
		return dependOn(whenRandom)
	case "recent", "iprange":
		return dependOn(whenSource)
	}
	return dependOn(whenOther)
}

// both is so where each is.
func both(a, b match) match {
	if a == differs || b == differs {
		return differs
	}
	return match{yes: a.yes && b.yes, why: a.why | b.why}
}

// xtPorts is a range of ports in the machine's byte order.
func xtPorts(b []byte, port uint16) match {
	return is(binary.NativeEndian.Uint16(b) <= port && port <= binary.NativeEndian.Uint16(b[2:]))
}

// xtSourcePorts is a range of the other end's ports.
func xtSourcePorts(b []byte, invert bool) match {
	if !invert && binary.NativeEndian.Uint16(b) == 0 && binary.NativeEndian.Uint16(b[2:]) == 0xffff {
		return matches
	}
	return dependOn(whenSource)
}

// xtTCP reads a struct xt_tcp.
func xtTCP(b []byte, p *packet) match {
	if p.proto != unix.IPPROTO_TCP || len(b) < 12 {
		return differs
	}
	const source, dest, flags = 1, 2, 4
	const syn = 2
	option, mask, want, invert := b[8], b[9], b[10], b[11]
	m := both(xtSourcePorts(b, invert&source != 0), xtPorts(b[4:], p.port).xor(invert&dest != 0))
	m = both(m, is(syn&mask == want).xor(invert&flags != 0))
	if option != 0 {
		m = both(m, dependOn(whenOther))
	}
	return m
}

// xtMultiport reads a struct xt_multiport or xt_multiport_v1.
func xtMultiport(rev byte, b []byte, p *packet) match {
	const destination, most = 1, 15
	if len(b) < 2+2*most || rev > 0 && len(b) < 2+3*most+1 {
		return dependOn(whenOther)
	}
	if b[0] != destination {
		return dependOn(whenSource)
	}
	has := false
	for i := 0; i < int(min(b[1], most)); i++ {
		low := binary.NativeEndian.Uint16(b[2+2*i:])
		high := low
		if rev > 0 && b[2+2*most+i] != 0 && i+1 < most {
			i++
			high = binary.NativeEndian.Uint16(b[2+2*i:])
		}
		has = has || low <= p.port && p.port <= high
	}
	return is(has).xor(rev > 0 && b[2+3*most] != 0)
}

// xtAddrType reads a struct xt_addrtype_info or xt_addrtype_info_v1: the packet's
// destination is of type LOCAL.
func xtAddrType(rev byte, b []byte) match {
	if len(b) < 8 || rev == 0 && len(b) < 12 {
		return dependOn(whenOther)
	}
	source, dest := binary.NativeEndian.Uint16(b), binary.NativeEndian.Uint16(b[2:])
	flags := binary.NativeEndian.Uint32(b[4:])
	invertDest, device := flags&2 != 0, flags&(4|8) != 0
	if rev == 0 {
		invertDest, device = binary.NativeEndian.Uint32(b[8:]) != 0, false
	}
	m := matches
	if dest != 0 {
		m = is(dest&(1<<unix.RTN_LOCAL) != 0).xor(invertDest)
	}
	if source != 0 {
		m = both(m, dependOn(whenSource))
	}
	if device {
		m = both(m, dependOn(whenDevice))
	}
	return m
}

// xtTarget is what a target of iptables does with a packet.
func xtTarget(name string, rev byte, b []byte, p *packet) outcome {
	to := NATTarget{By: byIPTables, Port: p.port}
	switch name {
	case "DNAT", "REDIRECT", "NETMAP":
		if !to.xtRange(name, rev, b, p) {
			return outcome{verdict: ends}
		}
		return outcome{verdict: rewrites, to: to}
	case "ACCEPT", "DROP", "MASQUERADE", "SNAT", "QUEUE", "NFQUEUE", "REJECT":
		return outcome{verdict: ends}
	case "RETURN":
		return outcome{verdict: returns}
	}
	return outcome{} // LOG, MARK, ...
}

// xtRange reads where a target leads: a struct nf_nat_ipv4_multi_range_compat, nf_nat_range or
// nf_nat_range2.
func (t *NATTarget) xtRange(name string, rev byte, b []byte, p *packet) bool {
	const mapIPs, specified = 1, 2
	var first, last netip.Addr
	var flags uint32
	var ports []byte
	switch {
	case p.to.Is4() && (rev == 0 || name != "DNAT"):
		if len(b) < 20 || binary.NativeEndian.Uint32(b) == 0 {
			return false
		}
		flags, ports = binary.NativeEndian.Uint32(b[4:]), b[16:20]
		first, last = netip.AddrFrom4([4]byte(b[8:12])), netip.AddrFrom4([4]byte(b[12:16]))
	case len(b) < 40:
		return false
	case p.to.Is4():
		flags, ports = binary.NativeEndian.Uint32(b), b[36:40]
		first, last = netip.AddrFrom4([4]byte(b[4:8])), netip.AddrFrom4([4]byte(b[20:24]))
	default:
		flags, ports = binary.NativeEndian.Uint32(b), b[36:40]
		first, last = netip.AddrFrom16([16]byte(b[4:20])), netip.AddrFrom16([16]byte(b[20:36]))
	}
	if flags&mapIPs != 0 && name != "REDIRECT" {
		t.setAddrs(first, last, name == "NETMAP", p)
	}
	if flags&specified != 0 {
		t.Port = binary.BigEndian.Uint16(ports)
		if last := binary.BigEndian.Uint16(ports[2:]); last != t.Port {
			t.PortLast = last
		}
	}
	return true
}

// deviceIs tells whether a packet comes in by a device of a name, or whose name begins so; invert:
// by none. One by a device that is named nowhere else is not worth a word.
func deviceIs(name string, prefix, invert bool, p *packet) match {
	switch {
	case name == "" && prefix:
		return is(!invert)
	case p.hook == hookOutput, name == "lo" && !prefix: // what comes in by lo has passed the other hook
		return is(invert)
	case invert:
		return matches
	}
	return dependOn(whenDevice)
}

// Sizes and places in the structures of legacy iptables, which are those of ip6tables but for
// the addresses at their beginning.
type xtLayout struct {
	addr, // bytes of an address
	proto, invflags, flags, // in struct ipt_ip
	target, next, // in struct ipt_entry
	elems int
	level int
	file  string
}

var xtLayouts = []xtLayout{
	{addr: 4, proto: 80, flags: 82, invflags: 83, target: 88, next: 90, elems: 112, level: unix.IPPROTO_IP, file: "ip_tables_names"},
	{addr: 16, proto: 128, flags: 131, invflags: 132, target: 140, next: 142, elems: 168, level: unix.IPPROTO_IPV6, file: "ip6_tables_names"},
}

// legacyBases are the chains of legacy iptables of the calling thread's namespace that
// change destinations.
func legacyBases() ([]baseChain, error) {
	var out []baseChain
	var errs []error
	for i := range xtLayouts {
		l := &xtLayouts[i]
		names, err := tableNames(l.file)
		if err != nil {
			errs = append(errs, fmt.Errorf("list the tables of iptables: %w", err))
			continue
		}
		if !slices.Contains(names, "nat") {
			continue
		}
		t, err := readXT(l)
		if err != nil {
			errs = append(errs, fmt.Errorf("read the nat table of iptables: %w", err))
			continue
		}
		for _, hook := range []uint32{hookPrerouting, hookOutput} {
			const dstnat = -100
			out = append(out, baseChain{
				set: t, chain: strconv.Itoa(int(t.hooks[hook])), hook: hook, priority: dstnat, v4: l.addr == 4, v6: l.addr != 4,
			})
		}
	}
	return out, errors.Join(errs...)
}

// xtTable is the nat table of legacy iptables.
type xtTable struct {
	layout  *xtLayout
	hooks   [5]uint32 // offsets of the chains the kernel calls
	entries []byte
	chains  map[string][]natRule // by the offset of their first rule
	names   map[int]string       // of chains, by the same
}

// readXT reads it whole, as the kernel hands it out.
func readXT(l *xtLayout) (*xtTable, error) {
	family := unix.AF_INET
	if l.addr != 4 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	const getInfo, getEntries = 64, 65
	const tries = 3
	for range tries {
		info := make([]byte, 84) // struct ipt_getinfo
		copy(info, "nat")
		if err := getsockopt(fd, l.level, getInfo, info); err != nil {
			return nil, err
		}
		size := binary.NativeEndian.Uint32(info[80:])
		const head = 40 // of struct ipt_get_entries
		const most = 64 << 20
		if size > most {
			return nil, errManyRules
		}
		b := make([]byte, head+size)
		copy(b, "nat")
		binary.NativeEndian.PutUint32(b[32:], size)
		if err := getsockopt(fd, l.level, getEntries, b); errors.Is(err, unix.EAGAIN) {
			continue // it was replaced
		} else if err != nil {
			return nil, err
		}
		t := &xtTable{layout: l, entries: b[head:], chains: make(map[string][]natRule)}
		for i := range t.hooks {
			t.hooks[i] = binary.NativeEndian.Uint32(info[36+4*i:])
		}
		t.names = t.chainNames()
		return t, nil
	}
	return nil, unix.EAGAIN
}

func getsockopt(fd, level, name int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// xtRule is an entry of a table.
type xtRule struct {
	t     *xtTable
	chain string
	b     []byte
	after int // offset of the next
}

// entry reads the entry at an offset.
func (t *xtTable) entry(at int) (b []byte, ok bool) {
	if at < 0 || at+t.layout.elems > len(t.entries) {
		return nil, false
	}
	size := int(binary.NativeEndian.Uint16(t.entries[at+t.layout.next:]))
	if size < t.layout.elems || at+size > len(t.entries) {
		return nil, false
	}
	return t.entries[at : at+size], true
}

// xtHead is the size of what is before the data of a match or target: its size, name and
// revision.
const xtHead = 32

// xtElem takes a match or target apart.
func xtElem(b []byte) (name string, rev byte, data []byte, size int) {
	if len(b) < xtHead {
		return "", 0, nil, 0
	}
	size = int(binary.NativeEndian.Uint16(b))
	if size < xtHead || size > len(b) {
		return "", 0, nil, 0
	}
	return text(b[2:31]), b[31], b[xtHead:size], size
}

// target is the target of an entry.
func (l *xtLayout) targetOf(b []byte) (name string, rev byte, data []byte) {
	at := int(binary.NativeEndian.Uint16(b[l.target:]))
	if at > len(b) {
		return "", 0, nil
	}
	name, rev, data, _ = xtElem(b[at:])
	return name, rev, data
}

// xtChainHead is the target of the entry before the first of a chain that users made.
const xtChainHead = "ERROR"

// chainNames reads the names of chains that users made.
func (t *xtTable) chainNames() map[int]string {
	names := map[int]string{int(t.hooks[hookPrerouting]): "PREROUTING", int(t.hooks[hookOutput]): "OUTPUT"}
	for at := 0; ; {
		b, ok := t.entry(at)
		if !ok {
			return names
		}
		at += len(b)
		if name, _, data := t.layout.targetOf(b); name == xtChainHead {
			names[at] = text(data)
		}
	}
}

// rules implements ruleset: a chain is the offset of its first rule.
func (t *xtTable) rules(chain string) ([]natRule, error) {
	if known, ok := t.chains[chain]; ok {
		return known, nil
	}
	first, err := strconv.Atoi(chain)
	if err != nil {
		return nil, err
	}
	var out []natRule
	for at := first; ; {
		b, ok := t.entry(at)
		if !ok {
			break
		}
		if name, _, _ := t.layout.targetOf(b); name == xtChainHead {
			break // the next chain, or the end
		}
		if _, begins := t.names[at]; begins && at != first {
			break
		}
		at += len(b)
		out = append(out, &xtRule{t, t.names[first], b, at})
	}
	t.chains[chain] = out
	return out, nil
}

// outcomes implements natRule.
func (r *xtRule) outcomes(p *packet) []outcome {
	m := r.head(p)
	l := r.t.layout
	end := int(binary.NativeEndian.Uint16(r.b[l.target:]))
	for at := l.elems; at < end && m != differs; {
		name, rev, data, size := xtElem(r.b[at:])
		if size == 0 {
			m = differs
			break
		}
		m = both(m, xtMatch(name, rev, data, p))
		at += size
	}
	if m == differs {
		return nextRule
	}
	o := r.verdict(p)
	if o.verdict == goOn {
		return nextRule
	}
	if m.why == 0 {
		return []outcome{o}
	}
	o.why = m.why
	return []outcome{o, {verdict: goOn, why: m.why}}
}

// head tells whether what every entry has is about the packet: addresses, devices, protocol.
func (r *xtRule) head(p *packet) match {
	const viaIn, viaOut, sourceIP, destIP, fragment, proto = 1, 2, 8, 0x10, 0x20, 0x40
	l, b := r.t.layout, r.b
	n, inv := l.addr, b[l.invflags]
	dst, srcMask, dstMask := b[n:2*n], b[2*n:3*n], b[3*n:4*n]
	m := matches
	if to := p.to.AsSlice(); len(to) == n {
		eq := true
		for i := range to {
			eq = eq && to[i]&dstMask[i] == dst[i]
		}
		m = is(eq).xor(inv&destIP != 0)
	}
	if slices.ContainsFunc(srcMask, func(c byte) bool { return c != 0 }) || inv&sourceIP != 0 {
		m = both(m, dependOn(whenSource))
	}
	if want := binary.NativeEndian.Uint16(b[l.proto:]); want != 0 {
		m = both(m, is(want == uint16(p.proto)).xor(inv&proto != 0))
	}
	if inv&fragment != 0 {
		return differs
	}
	in, out := b[4*n:4*n+16], b[4*n+16:4*n+32]
	inMask, outMask := b[4*n+32:4*n+48], b[4*n+48:4*n+64]
	if name, prefix := text(in), !xtWhole(in, inMask); name != "" {
		m = both(m, deviceIs(name, prefix, inv&viaIn != 0, p))
	}
	if name := text(out); name != "" {
		m = both(m, is(p.hook == hookOutput && (name == "lo" || name == "l" && !xtWhole(out, outMask))).xor(inv&viaOut != 0))
	}
	return m
}

// xtWhole tells whether all of a device's name counts: then its NUL does.
func xtWhole(name, mask []byte) bool {
	n := len(text(name))
	return n < len(mask) && mask[n] != 0
}

// verdict is what the entry's target does.
func (r *xtRule) verdict(p *packet) outcome {
	const gotoFlag, xtReturn = 2, -5
	name, rev, data := r.t.layout.targetOf(r.b)
	if name != "" {
		o := xtTarget(name, rev, data, p)
		o.to.Chain = r.chain
		return o
	}
	if len(data) < 4 {
		return outcome{verdict: ends}
	}
	switch v := int32(binary.NativeEndian.Uint32(data)); {
	case v == xtReturn:
		return outcome{verdict: returns}
	case v < 0:
		return outcome{verdict: ends}
	case int(v) == r.after:
		return outcome{} // no target
	default:
		flags := r.b[r.t.layout.flags]
		if r.t.layout.addr != 4 {
			const v6Goto = 4
			if flags&v6Goto != 0 {
				return outcome{verdict: goesTo, chain: strconv.Itoa(int(v))}
			}
		} else if flags&gotoFlag != 0 {
			return outcome{verdict: goesTo, chain: strconv.Itoa(int(v))}
		}
		return outcome{verdict: jumps, chain: strconv.Itoa(int(v))}
	}
}
