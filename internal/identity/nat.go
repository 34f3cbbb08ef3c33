package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/tracer"
)

// ErrNATUnread tells that NAT rules could not be read, or not all. The error that wraps it says why.
var ErrNATUnread = errors.New("NAT was not looked at")

// natWithin bounds reading the rules: a node may have very many.
const natWithin = time.Second

// NATTarget is where the NAT rules of a network namespace send what is meant for a port
// of an address that the namespace has.
type NATTarget struct {
	Proto    tracer.Proto
	Addr     netip.Addr // zero: an address of the namespace itself (redirect)
	AddrLast netip.Addr // valid: any from Addr to this
	Port     uint16     //
	PortLast uint16     // not 0: any from Port to this
	By       string     // "nftables" or "iptables", whichever shows the rule
	Chain    string     // that has the rule
	Local    []netip.Addr
	// Outside and Here: the rule is about what arrives from elsewhere, and about what is
	// sent in the namespace itself.
	Outside, Here bool
	// When says what else decides, each of "source", "device", "random", "other"; empty:
	// nothing does.
	When []string
}

// NAT returns where the NAT rules of a network namespace send a new connection to one of
// its ports, in the order of the rules. inode 0: the namespace of the calling thread. Reading them
// takes CAP_NET_ADMIN (and CAP_SYS_ADMIN to enter another namespace), some 100 µs where there
// are no rules, and a second at most. An error wraps ErrNATUnread; what was found until then
// comes with it. IPVS, and what BPF programs do to packets, are not looked at.
func NAT(ctx context.Context, inode uint32, port uint16, protos ...tracer.Proto) ([]NATTarget, error) {
	ctx, cancel := context.WithTimeout(ctx, natWithin)
	defer cancel()
	own, err := NetNSOfThread()
	if err != nil || inode == 0 || inode == own {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return natHere(ctx, port, protos)
	}
	space, err := openNetNS(inode)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNATUnread, err)
	}
	defer space.Close()
	var targets []NATTarget
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread, which is elsewhere then, ends with the goroutine
		if err = unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("%w: enter network namespace %d: %w", ErrNATUnread, inode, err)
			return
		}
		targets, err = natHere(ctx, port, protos)
	}()
	<-done
	return targets, err
}

// natHere is NAT of the calling thread's namespace.
func natHere(ctx context.Context, port uint16, protos []tracer.Proto) (targets []NATTarget, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrNATUnread, err)
		}
	}()
	addrs, err := localAddrs()
	if err != nil {
		return nil, err
	}
	var bases []baseChain
	nft, err := openNFT()
	if err == nil {
		defer nft.close()
		var some []baseChain
		some, err = nft.bases()
		bases = append(bases, some...)
	} else if errors.Is(err, unix.EPROTONOSUPPORT) {
		err = nil // the kernel has no nfnetlink, and so no rules
	}
	if errors.Is(err, unix.EPERM) {
		return nil, err // that goes for the legacy tables, too
	}
	legacy, legacyErr := legacyBases()
	err = errors.Join(err, legacyErr)
	bases = append(bases, legacy...)
	if len(bases) == 0 {
		return nil, err
	}
	slices.SortStableFunc(bases, func(a, b baseChain) int { return int(a.priority) - int(b.priority) })
	for _, proto := range protos {
		found, walkErr := natOf(ctx, bases, addrs, proto, port)
		targets, err = append(targets, found...), errors.Join(err, walkErr)
	}
	return targets, err
}

// maxLocal is how many addresses of a namespace are tried: some have thousands, all alike.
const maxLocal = 64

// natOf sends a packet to each address through the chains.
func natOf(ctx context.Context, bases []baseChain, addrs []netip.Addr, proto tracer.Proto, port uint16) ([]NATTarget, error) {
	if len(addrs) > maxLocal {
		addrs = addrs[:maxLocal]
	}
	w := natWalk{ctx: ctx, outside: make(map[bool]int)}
	for _, addr := range addrs {
		for _, hook := range []uint32{hookPrerouting, hookOutput} {
			if hook == hookPrerouting && addr.IsLoopback() {
				continue // such a packet does not arrive
			} else if hook == hookPrerouting {
				w.outside[addr.Is4()]++
			}
			w.packet = packet{proto: byte(proto), port: port, to: addr, hook: hook}
			if err := w.hook(bases); err != nil {
				return w.targets(), err
			}
		}
	}
	return w.targets(), nil
}

// localAddrs returns the addresses of the calling thread's namespace but for link-local ones
// of IPv6.
func localAddrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("read addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		if prefix, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(prefix.IP); ok && !(addr.Is6() && !addr.Is4In6() && addr.IsLinkLocalUnicast()) {
				out = append(out, addr.Unmap())
			}
		}
	}
	return out, nil
}

// The hooks of netfilter where a destination can be changed.
const (
	hookPrerouting = 0
	hookOutput     = 3
)

// packet is the first one of a connection: what decides, as far as it is known.
type packet struct {
	proto byte
	port  uint16
	to    netip.Addr // an address of the namespace
	hook  uint32
}

// when is why it is not known whether a rule is about a packet: a set.
type when uint8

const (
	whenSource when = 1 << iota // where it comes from, address and port
	whenDevice                  // which device it comes from
	whenRandom                  // chance
	whenOther
)

func (w when) words() []string {
	var out []string
	for i, word := range []string{"source", "device", "random", "other"} {
		if w&(1<<i) != 0 {
			out = append(out, word)
		}
	}
	return out
}

// match tells whether something is about a packet: it is, it is not, or that depends (why
// is not 0 then).
type match struct {
	yes bool
	why when
}

var (
	matches  = match{yes: true}
	differs  = match{}
	dependOn = func(why when) match { return match{why: why} }
)

// not turns it round.
func (m match) not() match { return match{yes: !m.yes && m.why == 0, why: m.why} }

// xor turns it round if told to.
func (m match) xor(invert bool) match {
	if invert {
		return m.not()
	}
	return m
}

func is(yes bool) match { return match{yes: yes} }

// verdict is what a rule does with a packet.
type verdict uint8

const (
	goOn verdict = iota // with the next rule
	ends                // accepts, drops: no rule after it counts
	returns
	jumps
	goesTo
	rewrites // the destination: ends, too
)

// outcome is one way a rule may go. why 0: it is the only one.
type outcome struct {
	verdict verdict
	chain   string // of jumps and goesTo
	to      NATTarget
	why     when
}

// natRule tells how a rule may go for a packet.
type natRule interface {
	outcomes(p *packet) []outcome
}

// ruleset has chains by name.
type ruleset interface {
	rules(chain string) ([]natRule, error)
}

// baseChain is a chain that the kernel calls.
type baseChain struct {
	set      ruleset
	chain    string
	hook     uint32
	priority int32
	v4, v6   bool
}

// natWalk goes through chains as the kernel does, both ways where it is not known which the
// kernel takes.
type natWalk struct {
	ctx    context.Context
	packet packet
	steps  int
	found  []found
	finds  int // how often something was
	// outside counts the addresses that packets can come to from elsewhere, of IPv4 and not.
	outside map[bool]int
}

// found is a target and for which packets.
type found struct {
	to  NATTarget // without what the others tell
	why when
	at  []packet
}

var errManyRules = errors.New("there are too many rules")

const (
	maxDepth = 16      // of chains, as in the kernel
	maxSteps = 4 << 20 // rules
)

// flows is a set: how a chain may end.
type flows uint8

const (
	flowEnds  flows = 1 << iota // with a verdict
	flowFalls                   // returns to its caller
)

func (w *natWalk) hook(bases []baseChain) error {
	var why when
	for _, b := range bases {
		if b.hook != w.packet.hook || w.packet.to.Is4() && !b.v4 || w.packet.to.Is6() && !b.v6 {
			continue
		}
		before := w.finds
		_, split, err := w.chain(b.set, b.chain, why, 0)
		if err != nil {
			return err
		}
		// A chain after one that rewrote the destination is not asked.
		if w.finds > before {
			if split == 0 {
				return nil
			}
			why |= split
		}
	}
	return nil
}

// chain goes through a chain. split is what decides between its ends.
func (w *natWalk) chain(set ruleset, name string, why when, depth int) (all flows, split when, err error) {
	if depth > maxDepth {
		return flowEnds, 0, nil // the kernel drops it
	}
	rules, err := set.rules(name)
	if err != nil {
		return 0, 0, err
	}
	for _, rule := range rules {
		if w.steps++; w.steps > maxSteps {
			return all, split, errManyRules
		} else if w.steps&0x3ff == 0 && w.ctx.Err() != nil {
			return all, split, w.ctx.Err()
		}
		next, left, by := false, false, when(0)
		for _, o := range rule.outcomes(&w.packet) {
			// That a rule lets the packets of some device pass says little of the others.
			if o.why != whenDevice || o.verdict == rewrites {
				by |= o.why
			}
			switch o.verdict {
			case goOn:
				next = true
			case ends:
				all, left = all|flowEnds, true
			case returns:
				all, left = all|flowFalls, true
			case rewrites:
				w.find(o.to, why|o.why)
				all, left = all|flowEnds, true
			case jumps, goesTo:
				sub, subSplit, err := w.chain(set, o.chain, why|o.why, depth+1)
				if err != nil {
					return all, split, err
				}
				by |= subSplit
				if sub&flowEnds != 0 {
					all, left = all|flowEnds, true
				}
				switch {
				case sub&flowFalls == 0:
				case o.verdict == jumps:
					next = true
				default:
					all, left = all|flowFalls, true
				}
			}
		}
		if left {
			split |= by
			why |= by
		}
		if !next {
			return all, split, nil
		}
	}
	return all | flowFalls, split, nil
}

// find keeps a target, each once.
func (w *natWalk) find(to NATTarget, why when) {
	if !to.Addr.IsValid() && to.Port == w.packet.port && to.PortLast == 0 {
		return // it stays where it was
	}
	w.finds++
	for i := range w.found {
		f := &w.found[i]
		if f.why == why && f.to.Addr == to.Addr && f.to.AddrLast == to.AddrLast && f.to.Port == to.Port && f.to.PortLast == to.PortLast &&
			f.to.By == to.By && f.to.Chain == to.Chain {
			if !slices.Contains(f.at, w.packet) {
				f.at = append(f.at, w.packet)
			}
			return
		}
	}
	w.found = append(w.found, found{to, why, []packet{w.packet}})
}

// targets are what was found.
func (w *natWalk) targets() []NATTarget {
	var out []NATTarget
	for _, f := range w.found {
		to := f.to
		to.Proto, to.When = tracer.Proto(f.at[0].proto), f.why.words()
		reached := 0
		for _, p := range f.at {
			if p.hook == hookPrerouting {
				reached++
				to.Outside = true
			} else {
				to.Here = true
			}
			if !slices.Contains(to.Local, p.to) {
				to.Local = append(to.Local, p.to)
			}
		}
		if reached > 0 && reached == w.outside[f.at[0].to.Is4()] {
			to.Local = nil // all there are
		}
		out = append(out, to)
	}
	return out
}

// tableNames reads which legacy tables a namespace has: to ask for one makes it.
func tableNames(file string) ([]string, error) {
	b, err := os.ReadFile("/proc/thread-self/net/" + file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return strings.Fields(string(b)), nil
}

// text is a string of the kernel, up to its NUL.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}
