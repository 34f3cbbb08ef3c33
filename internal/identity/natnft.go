package identity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nft asks for the rules of nftables, which are those of iptables-nft, too. It reads each
// chain and each set when it is needed first: of the thousands that a node has a
// packet passes few.
type nft struct {
	sockets map[int]*nl.SocketHandle
	chains  map[string][]natRule
	sets    map[string]*nftSet
}

// openNFT opens a connection in the calling thread's namespace.
func openNFT() (*nft, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n := &nft{
		sockets: map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}},
		chains:  make(map[string][]natRule), sets: make(map[string]*nftSet),
	}
	within := unix.NsecToTimeval(natWithin.Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&within), s.SetReceiveTimeout(&within)); err != nil {
		n.close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return n, nil
}

func (n *nft) close() { n.sockets[unix.NETLINK_NETFILTER].Close() }

// dumpTries is how often a list is read that changes meanwhile.
const dumpTries = 3

// ask sends a request and hands on the attributes of each answer. Who asks for a list
// (dump) may get some of it twice.
func (n *nft) ask(kind int, flags int, family byte, attrs []*nl.RtAttr, each func(family byte, a nftAttrs)) error {
	for try := 1; ; try++ {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
		req.Sockets = n.sockets
		req.AddRawData([]byte{family, unix.NFNETLINK_V0, 0, 0}) // struct nfgenmsg
		for _, a := range attrs {
			req.AddRawData(a.Serialize())
		}
		err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
			if len(msg) >= 4 {
				each(msg[0], nftAttrs(msg[4:]))
			}
			return true
		})
		if !errors.Is(err, nl.ErrDumpInterrupted) || try == dumpTries {
			return err
		}
	}
}

func nftString(kind int, s string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(s)) }

// nftAttrs is a list of netlink attributes.
type nftAttrs []byte

// each hands on every attribute. What is not well formed ends the list.
func (b nftAttrs) each(do func(kind uint16, value nftAttrs)) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return
		}
		do(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:size])
		b = b[min(len(b), (size+3)&^3):]
	}
}

// get returns the first attribute of a kind, nil if there is none.
func (b nftAttrs) get(kind uint16) nftAttrs {
	var found nftAttrs
	b.each(func(k uint16, value nftAttrs) {
		if k == kind && found == nil {
			found = value
		}
	})
	return found
}

// number is an attribute of 32 bits, 0 if there is none.
func (b nftAttrs) number(kind uint16) uint32 {
	if v := b.get(kind); len(v) == 4 {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

func (b nftAttrs) text(kind uint16) string { return text(b.get(kind)) }

// nftFamilies are those whose chains see IP packets, and which.
var nftFamilies = map[byte]struct{ v4, v6 bool }{
	unix.NFPROTO_IPV4: {v4: true}, unix.NFPROTO_IPV6: {v6: true}, unix.NFPROTO_INET: {true, true},
}

// bases are the chains where destinations are changed.
func (n *nft) bases() ([]baseChain, error) {
	var out []baseChain
	err := n.ask(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, nil, func(family byte, a nftAttrs) {
		hook := a.get(unix.NFTA_CHAIN_HOOK)
		at := hook.number(unix.NFTA_HOOK_HOOKNUM)
		of, ok := nftFamilies[family]
		if !ok || hook == nil || a.text(unix.NFTA_CHAIN_TYPE) != "nat" || at != hookPrerouting && at != hookOutput {
			return
		}
		b := baseChain{
			set: n, chain: nftChain(family, a.text(unix.NFTA_CHAIN_TABLE), a.text(unix.NFTA_CHAIN_NAME)), hook: at,
			priority: int32(hook.number(unix.NFTA_HOOK_PRIORITY)), v4: of.v4, v6: of.v6,
		}
		if !slices.ContainsFunc(out, func(o baseChain) bool { return o.chain == b.chain }) {
			out = append(out, b)
		}
	})
	switch {
	case err == nil:
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("that takes CAP_NET_ADMIN: %w", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // the kernel has no nftables
		return nil, nil
	default:
		return nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	return out, nil
}

// nftChain names a chain for rules: its family, table and name.
func nftChain(family byte, table, name string) string {
	return string(family) + table + "\x00" + name
}

// rules implements ruleset.
func (n *nft) rules(chain string) ([]natRule, error) {
	if known, ok := n.chains[chain]; ok {
		return known, nil
	}
	family := chain[0]
	table, name, _ := strings.Cut(chain[1:], "\x00")
	var out []natRule
	attrs := []*nl.RtAttr{nftString(unix.NFTA_RULE_TABLE, table), nftString(unix.NFTA_RULE_CHAIN, name)}
	seen := make(map[string]bool) // by handle, where the list was read again
	err := n.ask(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, family, attrs, func(_ byte, a nftAttrs) {
		// Linux before 4.18 ignores which chain is asked for.
		if a.text(unix.NFTA_RULE_TABLE) != table || a.text(unix.NFTA_RULE_CHAIN) != name || seen[string(a.get(unix.NFTA_RULE_HANDLE))] {
			return
		}
		seen[string(a.get(unix.NFTA_RULE_HANDLE))] = true
		rule := &nftRule{nft: n, family: family, table: table, chain: name}
		a.get(unix.NFTA_RULE_EXPRESSIONS).each(func(_ uint16, e nftAttrs) {
			rule.exprs = append(rule.exprs, nftExpr{e.text(unix.NFTA_EXPR_NAME), slices.Clone(e.get(unix.NFTA_EXPR_DATA))})
		})
		out = append(out, rule)
	})
	if err != nil {
		return nil, fmt.Errorf("read the rules of chain %s: %w", name, err)
	}
	n.chains[chain] = out
	return out, nil
}

// nftRule is a list of expressions that are evaluated one after the other.
type nftRule struct {
	nft          *nft
	family       byte
	table, chain string
	exprs        []nftExpr
}

type nftExpr struct {
	name string
	data nftAttrs
}

// nftRegs are registers by words of four bytes, and why what is in them is not known.
type nftRegs struct {
	data [20][4]byte
	why  [20]when
}

// regWord is the first word of a register.
func regWord(reg uint32) int {
	if reg >= unix.NFT_REG32_00 {
		return int(reg - unix.NFT_REG32_00)
	}
	return int(reg-unix.NFT_REG_1) * 4
}

// get returns n bytes from a register on, and why they are not known.
func (r *nftRegs) get(reg uint32, n int) ([]byte, when) { return r.from(regWord(reg), n) }

// from is get, by word.
func (r *nftRegs) from(first, n int) ([]byte, when) {
	var out []byte
	var why when
	for i := first; len(out) < n; i++ {
		if i < 0 || i >= len(r.data) {
			return make([]byte, n), whenOther
		}
		out = append(out, r.data[i][:]...)
		why |= r.why[i]
	}
	return out[:n], why
}

// set puts bytes into a register. Those of a whole register that are not given are zero.
func (r *nftRegs) set(reg uint32, b []byte, why when) {
	for i := regWord(reg); i >= 0 && i < len(r.data); i++ {
		r.data[i] = [4]byte{}
		n := copy(r.data[i][:], b)
		r.why[i] = why
		if b = b[n:]; len(b) == 0 {
			return
		}
	}
}

// unknown makes n bytes of a register unknown.
func (r *nftRegs) unknown(reg uint32, n int, why when) { r.set(reg, make([]byte, max(n, 1)), why) }

// outcomes implements natRule.
func (r *nftRule) outcomes(p *packet) []outcome {
	return r.from(0, nftRegs{}, p, 0)
}

var nextRule = []outcome{{verdict: goOn}}

// from goes on with expression i.
func (r *nftRule) from(i int, regs nftRegs, p *packet, why when) []outcome {
	for ; i < len(r.exprs); i++ {
		e := &r.exprs[i]
		m, out := r.expr(e, &regs, p)
		if out != nil { // the last that counts
			return r.leave(out, why)
		}
		if m.fork != nil {
			return r.fork(i, regs, p, why, m)
		}
		switch {
		case m.yes:
		case m.why == 0:
			if why == 0 {
				return nextRule
			}
			return []outcome{{verdict: goOn, why: why}}
		default:
			why |= m.why
		}
	}
	return []outcome{{verdict: goOn, why: why}}
}

// leave adds that the rule may not be about the packet.
func (r *nftRule) leave(out []outcome, why when) []outcome {
	if why == 0 {
		return out
	}
	for i := range out {
		out[i].why |= why
	}
	return append(out, outcome{verdict: goOn, why: why})
}

// exprResult is a match, or what a lookup may find.
type exprResult struct {
	match
	fork    []*nftElem // each is possible
	nothing bool       // that it finds none is possible, too
	dreg    uint32
}

// fork goes on with each element that a lookup may find.
func (r *nftRule) fork(i int, regs nftRegs, p *packet, why when, m exprResult) []outcome {
	var out []outcome
	for _, e := range m.fork {
		if e.verdict != nil {
			out = append(out, r.leave([]outcome{r.verdict(e.verdict, m.why)}, why)...)
			continue
		}
		now := regs
		if m.dreg != 0 {
			now.set(m.dreg, e.data, 0)
		}
		out = append(out, r.from(i+1, now, p, why|m.why)...)
	}
	if m.nothing || len(m.fork) == 0 {
		out = append(out, outcome{verdict: goOn, why: why | m.why})
	}
	return out
}

// verdict makes an outcome of a verdict in netlink's form.
func (r *nftRule) verdict(v nftAttrs, why when) outcome {
	o := outcome{why: why}
	code := int32(v.number(unix.NFTA_VERDICT_CODE))
	switch code {
	case unix.NFT_JUMP, unix.NFT_GOTO:
		o.verdict, o.chain = jumps, nftChain(r.family, r.table, v.text(unix.NFTA_VERDICT_CHAIN))
		if code == unix.NFT_GOTO {
			o.verdict = goesTo
		}
	case unix.NFT_RETURN:
		o.verdict = returns
	case unix.NFT_CONTINUE, unix.NFT_BREAK:
		o.verdict = goOn
	default:
		o.verdict = ends
	}
	return o
}

// expr evaluates one expression: whether the rule goes on, or how it ends.
func (r *nftRule) expr(e *nftExpr, regs *nftRegs, p *packet) (exprResult, []outcome) {
	a := e.data
	passes := exprResult{match: matches}
	switch e.name {
	case "counter", "log", "objref", "notrack", "dynset", "last", "dup":
		return passes, nil
	case "meta", "ct", "fib", "payload", "numgen", "hash", "socket", "rt", "osf", "exthdr", "xfrm", "tunnel":
		r.load(e, regs, p)
		return passes, nil
	case "immediate":
		data := a.get(unix.NFTA_IMMEDIATE_DATA)
		if v := data.get(unix.NFTA_DATA_VERDICT); v != nil {
			return passes, []outcome{r.verdict(v, 0)}
		}
		regs.set(a.number(unix.NFTA_IMMEDIATE_DREG), data.get(unix.NFTA_DATA_VALUE), 0)
		return passes, nil
	case "bitwise":
		nftBitwise(a, regs)
		return passes, nil
	case "byteorder":
		nftByteorder(a, regs)
		return passes, nil
	case "cmp":
		return exprResult{match: nftCmp(a, regs, p)}, nil
	case "range":
		from, to := a.get(unix.NFTA_RANGE_FROM_DATA).get(unix.NFTA_DATA_VALUE), a.get(unix.NFTA_RANGE_TO_DATA).get(unix.NFTA_DATA_VALUE)
		have, why := regs.get(a.number(unix.NFTA_RANGE_SREG), len(from))
		if why != 0 {
			return exprResult{match: dependOn(why)}, nil
		}
		in := is(bytes.Compare(have, from) >= 0 && bytes.Compare(have, to) <= 0)
		return exprResult{match: in.xor(a.number(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ)}, nil
	case "lookup":
		return r.lookup(a, regs), nil
	case "nat", "redir":
		return passes, r.rewrite(e, regs, p)
	case "masq", "reject", "queue", "synproxy", "tproxy":
		return passes, []outcome{{verdict: ends}}
	case "match":
		return exprResult{match: xtMatch(a.text(unix.NFTA_MATCH_NAME), byte(a.number(unix.NFTA_MATCH_REV)), a.get(unix.NFTA_MATCH_INFO), p)}, nil
	case "target":
		o := xtTarget(a.text(unix.NFTA_TARGET_NAME), byte(a.number(unix.NFTA_TARGET_REV)), a.get(unix.NFTA_TARGET_INFO), p)
		o.to.Chain = r.chain
		if o.verdict == goOn {
			return passes, nil
		}
		return passes, []outcome{o}
	}
	return exprResult{match: dependOn(whenOther)}, nil // limit, quota, connlimit, and what is newer
}

// load puts something about the packet into a register.
func (r *nftRule) load(e *nftExpr, regs *nftRegs, p *packet) {
	a := e.data
	switch e.name {
	case "meta":
		if dreg := a.number(unix.NFTA_META_DREG); dreg != 0 {
			nftMeta(a.number(unix.NFTA_META_KEY), dreg, regs, p)
		}
	case "ct":
		dreg := a.number(unix.NFTA_CT_DREG)
		switch key := a.number(unix.NFTA_CT_KEY); {
		case dreg == 0:
		case key == unix.NFT_CT_STATE:
			const isNew = 8 // the first packet of a connection is all that nat chains see
			regs.set(dreg, binary.NativeEndian.AppendUint32(nil, isNew), 0)
		case key == unix.NFT_CT_DIRECTION:
			regs.set(dreg, []byte{0}, 0)
		default:
			regs.unknown(dreg, 16, whenOther)
		}
	case "fib":
		const addrType, saddr, daddr = 3, 1, 2
		dreg, flags := a.number(unix.NFTA_FIB_DREG), a.number(unix.NFTA_FIB_FLAGS)
		switch {
		case a.number(unix.NFTA_FIB_RESULT) == addrType && flags&daddr != 0 && flags&saddr == 0:
			regs.set(dreg, binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL), 0)
		case flags&saddr != 0:
			regs.unknown(dreg, 16, whenSource)
		default:
			regs.unknown(dreg, 16, whenOther)
		}
	case "payload":
		if dreg := a.number(unix.NFTA_PAYLOAD_DREG); dreg != 0 {
			b, why := p.bytes(a.number(unix.NFTA_PAYLOAD_BASE), int(a.number(unix.NFTA_PAYLOAD_OFFSET)), int(a.number(unix.NFTA_PAYLOAD_LEN)))
			regs.set(dreg, b, why)
		}
	case "numgen":
		regs.unknown(a.number(unix.NFTA_NG_DREG), 4, whenRandom)
	case "hash":
		const dreg = 2 // NFTA_HASH_DREG
		regs.unknown(a.number(dreg), 4, whenRandom)
	default: // into whichever register
		for i := range regs.why {
			regs.why[i] |= whenOther
		}
	}
}

func nftMeta(key, dreg uint32, regs *nftRegs, p *packet) {
	name := func(s string) []byte { return append([]byte(s), make([]byte, unix.IFNAMSIZ-len(s))...) }
	switch key {
	case unix.NFT_META_L4PROTO:
		regs.set(dreg, []byte{p.proto}, 0)
	case unix.NFT_META_NFPROTO:
		regs.set(dreg, []byte{p.family()}, 0)
	case unix.NFT_META_PROTOCOL:
		regs.set(dreg, binary.BigEndian.AppendUint16(nil, map[bool]uint16{true: unix.ETH_P_IP, false: unix.ETH_P_IPV6}[p.to.Is4()]), 0)
	case unix.NFT_META_IIFNAME, unix.NFT_META_OIFNAME:
		switch {
		case p.hook == hookPrerouting && key == unix.NFT_META_IIFNAME:
			regs.set(dreg, name(""), whenDevice)
		case p.hook == hookOutput && key == unix.NFT_META_OIFNAME:
			regs.set(dreg, name("lo"), 0)
		default:
			regs.set(dreg, name(""), 0)
		}
	case unix.NFT_META_IIF, unix.NFT_META_OIF, unix.NFT_META_IIFTYPE, unix.NFT_META_OIFTYPE, unix.NFT_META_IIFGROUP, unix.NFT_META_OIFGROUP:
		regs.unknown(dreg, 4, whenDevice)
	default:
		regs.unknown(dreg, 16, whenOther)
	}
}

func (p *packet) family() byte {
	if p.to.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}

// bytes returns some of the packet's headers, and why they are not known.
func (p *packet) bytes(base uint32, offset, n int) ([]byte, when) {
	known := make([]byte, 64)
	why := slices.Repeat([]when{whenOther}, len(known))
	put := func(at int, b ...byte) {
		copy(known[at:], b)
		for i := range b {
			why[at+i] = 0
		}
	}
	hide := func(at, n int) {
		for i := range n {
			why[at+i] = whenSource
		}
	}
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && p.to.Is4():
		put(9, p.proto)
		hide(12, 4)
		put(16, p.to.AsSlice()...)
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER:
		put(6, p.proto)
		hide(8, 16)
		put(24, p.to.AsSlice()...)
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		hide(0, 2)
		put(2, byte(p.port>>8), byte(p.port))
	}
	if offset < 0 || n < 0 || offset+n > len(known) {
		return make([]byte, max(n, 0)), whenOther
	}
	var all when
	for _, w := range why[offset : offset+n] {
		all |= w
	}
	return known[offset : offset+n], all
}

func nftBitwise(a nftAttrs, regs *nftRegs) {
	const bitwiseOp = 6 // NFTA_BITWISE_OP
	n := int(a.number(unix.NFTA_BITWISE_LEN))
	sreg, dreg := a.number(unix.NFTA_BITWISE_SREG), a.number(unix.NFTA_BITWISE_DREG)
	have, why := regs.get(sreg, n)
	mask, xor := a.get(unix.NFTA_BITWISE_MASK).get(unix.NFTA_DATA_VALUE), a.get(unix.NFTA_BITWISE_XOR).get(unix.NFTA_DATA_VALUE)
	if a.number(bitwiseOp) != 0 || len(mask) != n || len(xor) != n { // shifts
		regs.unknown(dreg, n, why|whenOther)
		return
	}
	for i := range have {
		have[i] = have[i]&mask[i] ^ xor[i]
	}
	regs.set(dreg, have, why)
}

func nftByteorder(a nftAttrs, regs *nftRegs) {
	n, size := int(a.number(unix.NFTA_BYTEORDER_LEN)), int(a.number(unix.NFTA_BYTEORDER_SIZE))
	have, why := regs.get(a.number(unix.NFTA_BYTEORDER_SREG), n)
	if size > 0 && binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		for part := range slices.Chunk(have, size) {
			slices.Reverse(part)
		}
	}
	regs.set(a.number(unix.NFTA_BYTEORDER_DREG), have, why)
}

func nftCmp(a nftAttrs, regs *nftRegs, p *packet) match {
	want := a.get(unix.NFTA_CMP_DATA).get(unix.NFTA_DATA_VALUE)
	have, why := regs.get(a.number(unix.NFTA_CMP_SREG), len(want))
	op := a.number(unix.NFTA_CMP_OP)
	if why == whenDevice {
		return deviceIs(text(want), len(want) < unix.IFNAMSIZ, op == unix.NFT_CMP_NEQ, p)
	} else if why != 0 {
		return dependOn(why)
	}
	c := bytes.Compare(have, want)
	switch op {
	case unix.NFT_CMP_EQ:
		return is(c == 0)
	case unix.NFT_CMP_NEQ:
		return is(c != 0)
	case unix.NFT_CMP_LT:
		return is(c < 0)
	case unix.NFT_CMP_LTE:
		return is(c <= 0)
	case unix.NFT_CMP_GT:
		return is(c > 0)
	}
	return is(c >= 0)
}

// rewrite is what a rule makes of the destination.
func (r *nftRule) rewrite(e *nftExpr, regs *nftRegs, p *packet) []outcome {
	a := e.data
	to := NATTarget{By: byNFT, Chain: r.chain, Port: p.port}
	var why when
	port := func(low, high uint16) {
		if reg := a.number(low); reg != 0 {
			b, w := regs.get(reg, 2)
			why |= w
			to.Port = binary.BigEndian.Uint16(b)
		}
		if reg := a.number(high); reg != 0 && reg != a.number(low) {
			if b, w := regs.get(reg, 2); w == 0 && binary.BigEndian.Uint16(b) != to.Port {
				to.PortLast = binary.BigEndian.Uint16(b)
			}
		}
	}
	if e.name == "redir" {
		port(unix.NFTA_REDIR_REG_PROTO_MIN, unix.NFTA_REDIR_REG_PROTO_MAX)
		return []outcome{{verdict: rewrites, to: to, why: why}}
	}
	const dnat = 1
	if a.number(unix.NFTA_NAT_TYPE) != dnat {
		return []outcome{{verdict: ends}}
	}
	family := a.number(unix.NFTA_NAT_FAMILY)
	if (family == unix.NFPROTO_IPV4 || family == unix.NFPROTO_IPV6) && family != uint32(p.family()) {
		return nextRule // of a table for both
	}
	size := map[uint32]int{unix.NFPROTO_IPV4: 4, unix.NFPROTO_IPV6: 16}[family]
	if low := a.number(unix.NFTA_NAT_REG_ADDR_MIN); low != 0 && size != 0 {
		b, w := regs.get(low, size)
		why |= w
		first, _ := netip.AddrFromSlice(b)
		last := first
		if high := a.number(unix.NFTA_NAT_REG_ADDR_MAX); high != 0 && high != low {
			b, w := regs.get(high, size)
			why |= w
			last, _ = netip.AddrFromSlice(b)
		}
		const netmap = 1 << 6
		to.setAddrs(first, last, a.number(unix.NFTA_NAT_FLAGS)&netmap != 0, p)
	}
	port(unix.NFTA_NAT_REG_PROTO_MIN, unix.NFTA_NAT_REG_PROTO_MAX)
	if why != 0 { // to where is not known
		return []outcome{{verdict: ends, why: why}, {verdict: goOn, why: why}}
	}
	return []outcome{{verdict: rewrites, to: to}}
}

// setAddrs sets where a rule leads: anywhere from first to last, or as netmap has it to the
// one that has the place in the network that the packet's has in its own.
func (t *NATTarget) setAddrs(first, last netip.Addr, netmap bool, p *packet) {
	t.Addr = first
	if first == last {
		return
	}
	if a, b, old := first.AsSlice(), last.AsSlice(), p.to.AsSlice(); netmap && len(old) == len(a) {
		for i := range a {
			hosts := a[i] ^ b[i]
			a[i] = a[i]&^hosts | old[i]&hosts
		}
		t.Addr, _ = netip.AddrFromSlice(a)
		return
	}
	t.AddrLast = last
}

const (
	byNFT      = "nftables"
	byIPTables = "iptables"
)

// nftSet is a set or map.
type nftSet struct {
	interval bool
	fields   []int // of a concatenation, bytes each
	elems    []*nftElem
}

type nftElem struct {
	key, keyEnd []byte
	data        []byte
	verdict     nftAttrs
	end         bool // of the interval that the element before begins
	rest        bool // stands for whatever no other does
}

// set reads a set.
func (n *nft) set(family byte, table, name string) (*nftSet, error) {
	id := nftChain(family, table, name)
	if known, ok := n.sets[id]; ok {
		return known, nil
	}
	s := new(nftSet)
	err := n.ask(unix.NFT_MSG_GETSET, 0, family, []*nl.RtAttr{nftString(unix.NFTA_SET_TABLE, table), nftString(unix.NFTA_SET_NAME, name)}, func(_ byte, a nftAttrs) {
		s.interval = a.number(unix.NFTA_SET_FLAGS)&unix.NFT_SET_INTERVAL != 0
		const concat, length = 2, 1 // NFTA_SET_DESC_CONCAT, NFTA_SET_FIELD_LEN
		a.get(unix.NFTA_SET_DESC).get(concat).each(func(_ uint16, field nftAttrs) {
			s.fields = append(s.fields, int(field.number(length)))
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read set %s: %w", name, err)
	}
	attrs := []*nl.RtAttr{nftString(unix.NFTA_SET_ELEM_LIST_TABLE, table), nftString(unix.NFTA_SET_ELEM_LIST_SET, name)}
	err = n.ask(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, family, attrs, func(_ byte, a nftAttrs) {
		a.get(unix.NFTA_SET_ELEM_LIST_ELEMENTS).each(func(_ uint16, e nftAttrs) { s.elems = append(s.elems, nftElemOf(e)) })
	})
	if err != nil {
		return nil, fmt.Errorf("read the elements of set %s: %w", name, err)
	}
	slices.SortStableFunc(s.elems, func(a, b *nftElem) int { return bytes.Compare(a.key, b.key) })
	n.sets[id] = s
	return s, nil
}

func nftElemOf(a nftAttrs) *nftElem {
	const keyEnd, rest = 10, 2 // NFTA_SET_ELEM_KEY_END, NFT_SET_ELEM_CATCHALL
	value := func(kind uint16) []byte { return slices.Clone(a.get(kind).get(unix.NFTA_DATA_VALUE)) }
	flags := a.number(unix.NFTA_SET_ELEM_FLAGS)
	return &nftElem{
		key: value(unix.NFTA_SET_ELEM_KEY), keyEnd: value(keyEnd), data: value(unix.NFTA_SET_ELEM_DATA),
		verdict: slices.Clone(a.get(unix.NFTA_SET_ELEM_DATA).get(unix.NFTA_DATA_VERDICT)),
		end:     flags&unix.NFT_SET_ELEM_INTERVAL_END != 0, rest: flags&rest != 0,
	}
}

// maxFork is how many elements are followed of those that a lookup may find.
const maxFork = 256

// lookup looks for a register in a set.
func (r *nftRule) lookup(a nftAttrs, regs *nftRegs) exprResult {
	s, err := r.nft.set(r.family, r.table, a.text(unix.NFTA_LOOKUP_SET))
	if err != nil {
		return exprResult{match: dependOn(whenOther)}
	}
	var found []*nftElem
	var rest *nftElem
	var why when
	for i, e := range s.elems {
		if e.rest {
			rest = e
			continue
		}
		m := s.has(i, a.number(unix.NFTA_LOOKUP_SREG), regs)
		if m.yes {
			found, why = []*nftElem{e}, 0
			break
		} else if m.why != 0 {
			found = append(found, e)
			why |= m.why
		}
	}
	if rest != nil && (len(found) == 0 || why != 0) {
		found = append(found, rest)
	}
	isMap := slices.ContainsFunc(s.elems, func(e *nftElem) bool { return e.verdict != nil || len(e.data) > 0 })
	switch {
	case isMap && len(found) > maxFork:
		return exprResult{match: dependOn(whenOther)}
	case isMap && len(found) > 0:
		return exprResult{match: match{why: why}, fork: found, nothing: why&^whenRandom != 0 && rest == nil, dreg: a.number(unix.NFTA_LOOKUP_DREG)}
	}
	m := match{yes: len(found) > 0 && why == 0, why: why}
	return exprResult{match: m.xor(a.number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0)}
}

// has tells whether element i is about what a register has.
func (s *nftSet) has(i int, reg uint32, regs *nftRegs) match {
	e := s.elems[i]
	if e.end {
		return differs
	}
	high, open := e.keyEnd, false
	switch {
	case high != nil:
	case s.interval && len(s.fields) < 2: // up to the element that ends it, or to the end
		high = bytes.Repeat([]byte{0xff}, len(e.key))
		for _, after := range s.elems[i+1:] {
			if !after.rest && bytes.Compare(after.key, e.key) > 0 {
				high, open = after.key, true
				break
			}
		}
	default:
		high = e.key
	}
	fields := s.fields
	if len(fields) < 2 && (s.interval || len(e.key) <= 4) {
		fields = []int{len(e.key)}
	} else if len(fields) < 2 { // a concatenation whose parts the kernel does not tell: word by word
		fields = slices.Repeat([]int{4}, (len(e.key)+3)/4)
	}
	all, at := matches, 0
	for _, n := range fields {
		n = min(n, len(e.key)-at, len(high)-at)
		if n <= 0 {
			break
		}
		have, why := regs.from(regWord(reg)+at/4, n)
		low, up := e.key[at:at+n], high[at:at+n]
		at += (n + 3) &^ 3
		if why != 0 {
			all.yes, all.why = false, all.why|why
			continue
		}
		c := bytes.Compare(have, up)
		if bytes.Compare(have, low) < 0 || c > 0 || c == 0 && open {
			return differs
		}
	}
	return all
}
