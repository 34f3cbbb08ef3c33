package tracer

import (
	"fmt"
	"os"
	"path"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// Tier is a set of hooks that together see everything porthole reports.
type Tier string

const (
	// TierFentry uses BPF trampolines at the entry and exit of kernel functions.
	TierFentry Tier = "fentry"
	// TierTracepoint uses tracepoints and cgroup programs, for kernels that refuse
	// trampolines.
	TierTracepoint Tier = "tracepoint"
)

// probe is one hook of the kernel.
type probe struct {
	// progs are the program's generated names: one, or one for each form the kernel's
	// function has had, see pick.
	progs   []string
	params  int     // how many the function has, in its first form; 0: not a function
	hook    string  // what the kernel calls the hook
	tier    Tier    // "" belongs to every tier
	parts   bpfPart // what it reports, in its tier
	syscall bool    // at every system call or io_uring request, off with Config.NoSyscallHooks
	uring   bool    // sees io_uring where hookUring is not attached, else is not needed
	new     string  // the Linux that has the tracepoint first; "": all have it
	lost    string  // what is not seen without it
}

const (
	partBind     = bpfPartPART_BIND
	partListen   = bpfPartPART_LISTEN
	partConnect  = bpfPartPART_CONNECT
	partAccept   = bpfPartPART_ACCEPT
	partImplicit = bpfPartPART_IMPLICIT
	partPeer     = bpfPartPART_PEER
	partUDPClose = bpfPartPART_UDP_CLOSE
)

// parts is all that a tier reports by hooks of its own. Where the kernel refuses
// one hook of the fentry tier, the whole part is left to the tracepoint tier. In
// the order they are attached.
var parts = []bpfPart{partUDPClose, partBind, partListen, partConnect, partAccept, partImplicit, partPeer}

// probes lists every hook.
var probes = []probe{
	{progs: []string{bpfProgPhState}, hook: "tp_btf/inet_sock_set_state", lost: "TCP closes, failed connects"},
	{progs: []string{bpfProgPhCgroupX}, hook: "tp_btf/cgroup_mkdir", lost: "the names of cgroups that are gone within milliseconds, and of containers that are"},
	{progs: []string{bpfProgPhDestroy}, hook: "tp_btf/tcp_destroy_sock", lost: "closes of bound TCP sockets"},

	fentry(partBind, "fexit/__inet_bind", 4, "IPv4 binds", bpfProgPhBind4Fx),
	fentry(partBind, "fexit/__inet6_bind", 4, "IPv6 binds", bpfProgPhBind6Fx),
	fentry(partListen, "fexit/inet_csk_listen_start", 1, "listens", bpfProgPhListenFx1, bpfProgPhListenFx2),
	fentry(partListen, "fexit/inet_listen", 2, "listens of sockets that cannot", bpfProgPhListenFx),
	fentry(partConnect, "fexit/inet_hash_connect", 2, "IPv4 TCP connects", bpfProgPhHash4Fx),
	fentry(partConnect, "fexit/inet6_hash_connect", 2, "IPv6 TCP connects", bpfProgPhHash6Fx),
	fentry(partConnect, "fexit/tcp_v4_connect", 3, "IPv4 TCP connects refused because there is no route", bpfProgPhTcp4Fx),
	fentry(partConnect, "fexit/tcp_v6_connect", 3, "IPv6 TCP connects refused because there is no route", bpfProgPhTcp6Fx),
	fentry(partAccept, "fentry/security_sock_graft", 2, "accepts", bpfProgPhAcceptFe),
	fentry(partImplicit, "fexit/inet_autobind", 1, "implicit binds by UDP", bpfProgPhAutobindFx),
	fentry(partPeer, "fexit/__ip4_datagram_connect", 3, "IPv4 UDP connects", bpfProgPhUdp4Fx),
	fentry(partPeer, "fexit/__ip6_datagram_connect", 3, "IPv6 UDP connects", bpfProgPhUdp6Fx),
	fentry(partPeer, "fexit/__udp_disconnect", 2, "UDP sockets that leave their peer", bpfProgPhUnpeerFx),
	fentry(partUDPClose, "fentry/udp_destroy_sock", 1, "closes of IPv4 UDP sockets", bpfProgPhClose4Fe),
	fentry(partUDPClose, "fentry/udpv6_destroy_sock", 1, "closes of IPv6 UDP sockets", bpfProgPhClose6Fe),

	tracepoint(partUDPClose, "cgroup/sock_release", "UDP closes", bpfProgPhReleaseE),
	tracepoint(partBind, "cgroup/bind4", "requested port of an IPv4 bind", bpfProgPhBind4E),
	tracepoint(partBind, "cgroup/bind6", "requested port of an IPv6 bind", bpfProgPhBind6E),
	tracepoint(partBind, "cgroup/post_bind4", "IPv4 binds", bpfProgPhBind4X),
	tracepoint(partBind, "cgroup/post_bind6", "IPv6 binds", bpfProgPhBind6X),
	tracepoint(partConnect|partListen, "sockops", "TCP connects, listens", bpfProgPhSockops),
	tracepoint(partImplicit, "cgroup/connect4", "implicit binds by IPv4 UDP connect", bpfProgPhConnect4E),
	tracepoint(partImplicit, "cgroup/connect6", "implicit binds by IPv6 UDP connect", bpfProgPhConnect6E),
	{progs: []string{bpfProgPhPeername4X}, hook: "cgroup/getpeername4", tier: TierTracepoint, parts: partAccept, uring: true, lost: "IPv4 accepts by io_uring with an address"},
	{progs: []string{bpfProgPhPeername6X}, hook: "cgroup/getpeername6", tier: TierTracepoint, parts: partAccept, uring: true, lost: "IPv6 accepts by io_uring with an address"},
	tracepoint(partImplicit, "cgroup/sendmsg4", "implicit binds by IPv4 datagrams", bpfProgPhSendmsg4E),
	tracepoint(partImplicit, "cgroup/sendmsg6", "implicit binds by IPv6 datagrams", bpfProgPhSendmsg6E),
	{
		progs: []string{bpfProgPhErrorX}, hook: "tp_btf/inet_sk_error_report", tier: TierTracepoint, parts: partPeer,
		new: "5.15", lost: "that SOCK_DESTROY (ss -K) took the port from a UDP socket, before the socket is closed",
	},
	{
		progs: []string{bpfProgPhSysX}, hook: hookSyscall, tier: TierTracepoint, syscall: true,
		parts: partBind | partListen | partConnect | partAccept | partImplicit | partPeer,
		lost: "accepts without an address, refused binds and listens, UDP connects, TCP connects refused before a SYN, " +
			"implicit binds by datagrams that cannot be sent",
	},
	{
		progs: []string{bpfProgPhUringX, bpfProgPhUringCqeX}, hook: hookUring, tier: TierTracepoint, syscall: true,
		parts: partAccept | partImplicit | partPeer,
		lost:  "accepts by io_uring without an address, UDP connects by it, implicit binds by datagrams it cannot send",
	},
}

// hookSyscall is at the end of every system call.
const hookSyscall = "tp_btf/sys_exit"

// skippedCalls is what is not seen in a kernel of syscallsPreempted.
const skippedCalls = "system calls that end while another task is stopped in " + hookSyscall + " on the same processor (Linux 7.2 and newer; they count as lost)"

// syscallsPreempted tells whether the kernel may give the processor to another task within
// a program of hookSyscall, as since 7.2: that task's calls skip the program. The
// function came with it.
func syscallsPreempted(kernel *btf.Spec) bool {
	var fn *btf.Func
	return kernel.TypeByName("trace_call_bpf_faultable", &fn) == nil
}

// hookUring is at the end of every io_uring request.
const hookUring = "tp_btf/io_uring_complete"

func fentry(part bpfPart, hook string, params int, lost string, progs ...string) probe {
	return probe{progs: progs, params: params, hook: hook, tier: TierFentry, parts: part, lost: lost}
}

func tracepoint(parts bpfPart, hook, lost, prog string) probe {
	return probe{progs: []string{prog}, hook: hook, tier: TierTracepoint, parts: parts, lost: lost}
}

// blindSpots is what cannot be seen even with every hook attached: parts are
// those it concerns, of a tier ("": both).
var blindSpots = []struct {
	tier  Tier
	parts bpfPart
	what  string
}{
	{TierFentry, partBind | partConnect, "binds and connects refused by a security module or a cgroup program, before TCP and UDP know of them"},
	{TierTracepoint, partAccept, "accepts by io_uring into its own table of files, or while its completion queue is full (the socket shows at the next snapshot)"},
	{TierTracepoint, partBind | partListen | partConnect | partPeer, "binds, listens and UDP connects refused to io_uring, its TCP connects that find no route, its UDP connects with IOSQE_CQE_SKIP_SUCCESS"},
	{TierTracepoint, partBind | partListen | partPeer | partAccept, "the same calls, and accepts, of 32-bit programs on a 64-bit kernel"},
	{TierTracepoint, partUDPClose, "closes of UDP sockets the kernel itself owns"},
	{TierTracepoint, partBind | partListen | partConnect | partPeer, "binds, listens and connects refused to the kernel itself (NFS, for one), and its UDP connects"},
	{TierTracepoint, partImplicit, "the port of a UDP socket whose first datagram cannot be sent by io_submit(2) or by a 32-bit program on a 64-bit kernel (the socket shows at the next snapshot)"},
	{TierTracepoint, partBind, "that a bind was refused by another program of post_bind4 or post_bind6 that is attached to the root cgroup after porthole's, before Linux 5.18 to any: it is reported as done, then as refused"},
	{TierTracepoint, partConnect, "a TCP connect that fails because there is no memory, or no route for the port it got, is reported as EADDRNOTAVAIL"},
	{"", 0, "binds and connects that are refused because their address is neither IPv4 nor IPv6"},
	{"", 0, "paths that the peer of an MPTCP connection opens after the first (they show at the next snapshot)"},
}

// HookStatus is what became of one hook.
type HookStatus struct {
	Hook     string // the kernel's name
	Tier     Tier   // "" belongs to every tier
	Attached bool
	Reason   string // why not, "" when attached
	Lost     string // what is not seen without it, "" when other hooks see it
}

// KernelBTF is the file in which the kernel describes its types.
const KernelBTF = "/sys/kernel/btf/vmlinux"

// The oldest kernel that has every program type, map and helper used here.
const minMajor, minMinor = 5, 10

// load loads the program of one hook. opts has the maps all programs share.
func (p *probe) load(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions) (*ebpf.Program, error) {
	name, err := p.pick(opts.Cache)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", p.hook, err)
	}
	if spec.Programs[name] == nil {
		return nil, fmt.Errorf("load %s: no program %s", p.hook, name)
	}
	prog, err := loadProgram(spec, name, opts)
	if err != nil {
		return nil, explain("load "+p.hook, err)
	}
	return prog, nil
}

// pick names the program for the form that the function has in this kernel: the
// number of its parameters, from the least, or of hookUring, what they are. Where a
// program looks for its function's result depends on that number: for another than is
// known there is no program.
func (p *probe) pick(types *btf.Cache) (string, error) {
	if p.params == 0 && p.hook != hookUring {
		return p.progs[0], nil
	}
	kernel, err := types.Kernel()
	if err != nil {
		return "", err
	}
	if p.hook == hookUring {
		return pickUring(kernel), nil
	}
	var fn *btf.Func
	if err := kernel.TypeByName(path.Base(p.hook), &fn); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	proto, ok := fn.Type.(*btf.FuncProto)
	if !ok || len(proto.Params) < p.params || len(proto.Params) >= p.params+len(p.progs) {
		return "", fmt.Errorf("%w: %s has an unknown signature", ErrNotSupported, p.hook)
	}
	return p.progs[len(proto.Params)-p.params], nil
}

// hasTracepoint tells whether the kernel has the tracepoint of a tp_btf hook.
func hasTracepoint(kernel *btf.Spec, hook string) bool {
	var def *btf.Typedef
	return kernel.TypeByName("btf_trace_"+path.Base(hook), &def) == nil
}

// attach attaches a loaded program; the link keeps it.
func (p *probe) attach(prog *ebpf.Program, as ebpf.AttachType, cgroup *os.File) (link.Link, error) {
	var l link.Link
	var err error
	if prog.Type() == ebpf.Tracing {
		l, err = link.AttachTracing(link.TracingOptions{Program: prog})
	} else {
		path := fmt.Sprintf("/proc/self/fd/%d", cgroup.Fd())
		l, err = link.AttachCgroup(link.CgroupOptions{Path: path, Attach: as, Program: prog})
	}
	if err != nil {
		return nil, explain("attach "+p.hook, err)
	}
	return l, nil
}

// pickUring picks by the arguments of io_uring_complete, which are (ring, request, user
// data, result, flags ...), and since 6.17 (ring, request, struct io_uring_cqe *). "": the
// kernel has no io_uring, or none that tells the request, as before 5.18.
func pickUring(kernel *btf.Spec) string {
	var def *btf.Typedef
	if kernel.TypeByName("btf_trace_io_uring_complete", &def) != nil {
		return ""
	}
	function, ok := def.Type.(*btf.Pointer)
	if !ok {
		return ""
	}
	proto, ok := function.Target.(*btf.FuncProto)
	if !ok || len(proto.Params) < 4 { // the first is not the tracepoint's
		return ""
	}
	if _, ok := proto.Params[2].Type.(*btf.Pointer); !ok {
		return ""
	}
	if _, ok := proto.Params[3].Type.(*btf.Pointer); ok {
		return bpfProgPhUringCqeX
	}
	return bpfProgPhUringX
}
