package tracer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Tier is a set of hooks that together see everything porthole reports.
type Tier string

// TierTracepoint uses tracepoints and cgroup programs, and no BPF trampolines.
const TierTracepoint Tier = "tracepoint"

// probe is one hook of the kernel.
type probe struct {
	prog    string // the program's generated name
	hook    string // what the kernel calls the hook
	tier    Tier   // "" belongs to every tier
	syscall bool   // a system call hook, off with Config.NoSyscallHooks
	marked  bool   // attach only after older UDP sockets were marked
	lost    string // what is not seen without it
}

// probes lists every hook, in the order they are attached.
var probes = []probe{
	{prog: bpfProgPhState, hook: "tp_btf/inet_sock_set_state", lost: "TCP closes, failed connects"},
	{prog: bpfProgPhDestroy, hook: "tp_btf/tcp_destroy_sock", lost: "closes of bound TCP sockets"},
	{prog: bpfProgPhReleaseE, hook: "cgroup/sock_release", tier: TierTracepoint, lost: "UDP closes"},
	{prog: bpfProgPhBind4E, hook: "cgroup/bind4", tier: TierTracepoint, lost: "requested port of an IPv4 bind"},
	{prog: bpfProgPhBind6E, hook: "cgroup/bind6", tier: TierTracepoint, lost: "requested port of an IPv6 bind"},
	{prog: bpfProgPhBind4X, hook: "cgroup/post_bind4", tier: TierTracepoint, lost: "IPv4 binds"},
	{prog: bpfProgPhBind6X, hook: "cgroup/post_bind6", tier: TierTracepoint, lost: "IPv6 binds"},
	{prog: bpfProgPhSockops, hook: "sockops", tier: TierTracepoint, lost: "TCP connects, listens"},
	{prog: bpfProgPhConnect4E, hook: "cgroup/connect4", tier: TierTracepoint, lost: "implicit binds by IPv4 UDP connect"},
	{prog: bpfProgPhConnect6E, hook: "cgroup/connect6", tier: TierTracepoint, lost: "implicit binds by IPv6 UDP connect"},
	{prog: bpfProgPhPeername4X, hook: "cgroup/getpeername4", tier: TierTracepoint, lost: "IPv4 accepts by io_uring with an address"},
	{prog: bpfProgPhPeername6X, hook: "cgroup/getpeername6", tier: TierTracepoint, lost: "IPv6 accepts by io_uring with an address"},
	{
		prog: bpfProgPhSysX, hook: "tp_btf/sys_exit", tier: TierTracepoint, syscall: true,
		lost: "accepts without an address, refused binds and listens, UDP connects, TCP connects refused before a SYN",
	},
	{prog: bpfProgPhSendmsg4E, hook: "cgroup/sendmsg4", tier: TierTracepoint, marked: true, lost: "implicit binds by IPv4 datagrams"},
	{prog: bpfProgPhSendmsg6E, hook: "cgroup/sendmsg6", tier: TierTracepoint, marked: true, lost: "implicit binds by IPv6 datagrams"},
}

// markProbe is the iterator of markUDP.
var markProbe = probe{prog: bpfProgPhMarkUdp, hook: "iter/task_file"}

// blindSpots is what a tier cannot see even with every hook attached.
var blindSpots = map[Tier][]string{
	TierTracepoint: {
		"accepts by io_uring without an address (the socket shows at the next snapshot)",
		"binds, listens and UDP connects refused to io_uring, and UDP connects by it",
		"the same calls, and accepts, of 32-bit programs on a 64-bit kernel",
		"closes of UDP sockets the kernel itself owns",
		"a connect that fails with ENOMEM is reported as EADDRNOTAVAIL",
		"holders that are outside the pid namespace porthole runs in",
	},
}

// HookStatus is what became of one hook.
type HookStatus struct {
	Hook     string // the kernel's name
	Attached bool
	Reason   string // why not, "" when attached
	Lost     string // what is not seen without it
}

// BlindSpots returns what a tier cannot see even with every hook attached, one
// sentence each.
func BlindSpots(t Tier) []string { return blindSpots[t] }

// KernelBTF is the file in which the kernel describes its types.
const KernelBTF = "/sys/kernel/btf/vmlinux"

// loadSpec reads the BPF object and checks what every program needs.
func loadSpec() (*ebpf.CollectionSpec, error) {
	if _, err := os.Stat(KernelBTF); err != nil {
		return nil, fmt.Errorf("%w: the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): %w", ErrNotSupported, err)
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read BPF object: %w", err)
	}
	return spec, nil
}

// kernelTypes starts to decode the kernel's BTF and returns a function that waits
// for it. Every program loaded with the cache is spared the decoding, which takes
// longer than all else about loading it.
func kernelTypes() func() *btf.Cache {
	cache := btf.NewCache()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = cache.Kernel() // on error the load fails, and tells why
	}()
	return func() *btf.Cache {
		<-done
		return cache
	}
}

// CgroupRoot returns where the cgroup v2 hierarchy is mounted. The error wraps
// ErrNotSupported when it is mounted nowhere.
func CgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return unescapeMount(fields[1]), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	return "", fmt.Errorf("%w: no cgroup2 mount; mount one with: mount -t cgroup2 none /sys/fs/cgroup/unified", ErrNotSupported)
}

// unescapeMount undoes the escapes of proc_pid_mounts(5).
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// load loads the program of one hook. opts has the maps all programs share.
func (p *probe) load(spec *ebpf.CollectionSpec, opts ebpf.CollectionOptions) (*ebpf.Program, error) {
	one := spec.Copy()
	if one.Programs[p.prog] == nil {
		return nil, fmt.Errorf("load %s: no program %s", p.hook, p.prog)
	}
	one.Programs = map[string]*ebpf.ProgramSpec{p.prog: one.Programs[p.prog]}
	coll, err := ebpf.NewCollectionWithOptions(one, opts)
	if err != nil {
		return nil, explain("load "+p.hook, err)
	}
	defer coll.Close()
	return coll.DetachProgram(p.prog), nil
}

// attach attaches a loaded program; the link keeps it.
func (p *probe) attach(prog *ebpf.Program, as ebpf.AttachType, cgroup string) (link.Link, error) {
	var l link.Link
	var err error
	if prog.Type() == ebpf.Tracing {
		l, err = link.AttachTracing(link.TracingOptions{Program: prog})
	} else {
		l, err = link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: as, Program: prog})
	}
	if err != nil {
		return nil, explain("attach "+p.hook, err)
	}
	return l, nil
}

// clockNow reads a kernel clock, in nanoseconds.
func clockNow(clock int32) int64 {
	var ts unix.Timespec
	// The clocks used here exist on every supported kernel.
	_ = unix.ClockGettime(clock, &ts)
	return ts.Nano()
}

// boottime is the present CLOCK_BOOTTIME, nanoseconds.
func boottime() uint64 { return uint64(clockNow(unix.CLOCK_BOOTTIME)) }

// markUDP runs the iterator that marks UDP sockets which have a port already.
func markUDP(prog *ebpf.Program) error {
	it, err := link.AttachIter(link.IterOptions{Program: prog})
	if err != nil {
		return explain("attach "+markProbe.hook, err)
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return explain("open "+markProbe.hook, err)
	}
	defer r.Close()
	for {
		_, err := r.Read(make([]byte, 1))
		switch {
		case err == io.EOF: // every descriptor was seen
			return nil
		case err != nil && !errors.Is(err, unix.EAGAIN): // EAGAIN: a million of them, and more to come
			return fmt.Errorf("read %s: %w", markProbe.hook, err)
		}
	}
}
