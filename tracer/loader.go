package tracer

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// lruPerCPU is how many entries the tables that forget have at least, for each processor.
const lruPerCPU = 512

func (t *Tracer) openMaps(spec *ebpf.CollectionSpec, cfg Config) error {
	spec.Maps[bpfMapEvents].MaxEntries = uint32(cfg.RingBytes)
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	// Each processor keeps up to 128 free entries to itself: a table that is small for
	// that forgets what was just written.
	for _, name := range []string{bpfMapPendings, bpfMapSpareNotes} {
		spec.Maps[name].MaxEntries = max(spec.Maps[name].MaxEntries, uint32(lruPerCPU*cpus))
	}
	for name, value := range map[string]any{
		bpfVarSyscallHooks: !cfg.NoSyscallHooks,
		bpfVarWakeBytes:    uint32(cfg.RingBytes / 8),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	coll, err := createMaps(spec)
	if err != nil {
		return err
	}
	t.maps, t.partsVar, t.establishedVar = coll.Maps, coll.Variables[bpfVarTracepointParts], coll.Variables[bpfVarWantEstablished]
	return t.SetEstablished(cfg.Established)
}

// attach attaches every hook of the tier, or none. Hooks that see the end of
// sockets come first: of a socket whose beginning is seen the end must be too.
func (t *Tracer) attach(spec *ebpf.CollectionSpec, cfg Config) error {
	kernel, err := t.snap.kernel.Kernel()
	if err != nil {
		return explain("read the kernel's BTF", err)
	}
	opts, err := loadOptions(t.maps, t.snap.kernel)
	if err != nil {
		return err
	}
	t.preempted = syscallsPreempted(kernel)
	l := loader{t: t, spec: spec, opts: opts, kernel: kernel, uring: !cfg.NoSyscallHooks && pickUring(kernel) != ""}
	defer l.close()
	if err := l.attach(hooksOf(func(p *probe) bool { return p.tier == "" })); err != nil {
		return err
	}
	for _, part := range parts {
		if cfg.Tier != TierTracepoint {
			hooks := hooksOf(func(p *probe) bool { return p.tier == TierFentry && p.parts == part })
			err := l.attach(hooks)
			if err == nil {
				continue
			}
			if cfg.Tier == TierFentry {
				return fmt.Errorf("tier %s is not for this kernel: %w", cfg.Tier, err)
			}
			for _, p := range hooks {
				t.hooks = append(t.hooks, HookStatus{Hook: p.hook, Tier: p.tier, Reason: reason(p.hook, err)})
			}
		}
		t.byTracepoint |= part
		if err := CheckTrace(TierTracepoint); err != nil {
			return fmt.Errorf("without BPF trampolines, which the kernel refuses: %w", err)
		}
		if err := l.attach(l.needed(cfg, func(p *probe) bool { return p.parts == part })); err != nil {
			return err
		}
	}
	if err := t.partsVar.Set(uint32(t.byTracepoint)); err != nil {
		return fmt.Errorf("set %s: %w", bpfVarTracepointParts, err)
	}
	return l.attach(l.needed(cfg, func(p *probe) bool { return p.parts&(p.parts-1) != 0 && p.parts&t.byTracepoint != 0 }))
}

// attached is a program at its hook.
type attached struct {
	hook string
	prog *ebpf.Program
}

// hooksOf picks hooks.
func hooksOf(want func(*probe) bool) []*probe {
	var out []*probe
	for i := range probes {
		if want(&probes[i]) {
			out = append(out, &probes[i])
		}
	}
	return out
}

// loader puts programs into the kernel for a Tracer.
type loader struct {
	t      *Tracer
	spec   *ebpf.CollectionSpec
	opts   ebpf.CollectionOptions
	kernel *btf.Spec
	// uring: hookUring is wanted, and this kernel has what it needs.
	uring  bool
	cgroup *os.File // see openCgroup; nil: not opened yet
}

func (l *loader) close() {
	if l.cgroup != nil {
		l.cgroup.Close()
	}
}

// needed picks hooks of the tracepoint tier, and tells of those left out why.
func (l *loader) needed(cfg Config, want func(*probe) bool) []*probe {
	return hooksOf(func(p *probe) bool {
		if p.tier != TierTracepoint || !want(p) {
			return false
		}
		status := HookStatus{Hook: p.hook, Tier: p.tier, Lost: p.lost}
		switch {
		case p.syscall && cfg.NoSyscallHooks:
			status.Reason = "switched off"
		case p.hook == hookUring && !l.uring:
			status.Reason = "tells no request in this kernel (new in 5.18)"
		case p.new != "" && !hasTracepoint(l.kernel, p.hook):
			status.Reason = "not in this kernel (new in " + p.new + ")"
		case p.uring && l.uring:
			status.Reason, status.Lost = "not needed with "+hookUring, ""
		default:
			return true
		}
		l.t.hooks = append(l.t.hooks, status)
		return false
	})
}

// attach attaches all of these hooks, or none. Loading takes long and attaching
// does not, so everything is loaded first: the first hook must not wait for the
// last while events collect.
func (l *loader) attach(hooks []*probe) (err error) {
	var progs []*ebpf.Program
	var links []link.Link
	defer func() {
		for i, prog := range progs {
			if err != nil {
				prog.Close()
			} else { // kept for its counters
				l.t.progs = append(l.t.progs, attached{hooks[i].hook, prog})
			}
		}
		if err == nil {
			l.t.links = append(l.t.links, links...)
			return
		}
		for _, link := range links {
			link.Close()
		}
	}()
	for _, p := range hooks {
		prog, err := p.load(l.spec, l.opts)
		if err != nil {
			return &hookError{p.hook, errors.Is(err, ErrNotPermitted), err}
		}
		progs = append(progs, prog)
	}
	for i, p := range hooks {
		if progs[i].Type() != ebpf.Tracing && l.cgroup == nil {
			var whole bool
			if l.cgroup, whole, err = openCgroup(); err != nil {
				return err
			}
			l.t.cgroupPart = !whole
		}
		link, err := p.attach(progs[i], l.spec.Programs[p.progs[0]].AttachType, l.cgroup)
		if err != nil {
			return &hookError{p.hook, true, err}
		}
		links = append(links, link)
	}
	for _, p := range hooks {
		l.t.hooks = append(l.t.hooks, HookStatus{Hook: p.hook, Tier: p.tier, Attached: true, Lost: p.lost})
	}
	return nil
}

// checkLoad checks what every program needs, and makes room for them.
func checkLoad() error {
	if err := checkKernel(minMajor, minMinor); err != nil {
		return err
	}
	if _, err := os.Stat(KernelBTF); err != nil {
		return fmt.Errorf("%w: the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): %w", ErrNotSupported, err)
	}
	if err := checkFilter(); err != nil {
		return err
	}
	// Before 5.11 maps and programs count as locked memory.
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lift the limit of locked memory, which takes CAP_SYS_RESOURCE before Linux 5.11: %w: %w", ErrNotPermitted, err)
	}
	return nil
}

// hasCast tells whether the kernel has bpf_rdonly_cast(), new in 6.2: for those that
// have not there are objects of their own.
func hasCast(types *btf.Cache) (bool, error) {
	kernel, err := types.Kernel()
	if err != nil {
		return false, explain("read the kernel's BTF", err)
	}
	var fn *btf.Func
	return kernel.TypeByName("bpf_rdonly_cast", &fn) == nil, nil
}

// createMaps creates the maps of an object, and what its variables are kept in.
func createMaps(spec *ebpf.CollectionSpec) (*ebpf.Collection, error) {
	only := *spec
	only.Programs = nil
	maps, err := ebpf.NewCollection(&only)
	if err != nil {
		return nil, explain("create maps", err)
	}
	return maps, nil
}

// loadOptions are for the programs that share maps, for one goroutine: a decoder of types is
// never two goroutines'. They are relocated against the types of the kernel alone. Those of
// every loaded module would be looked through too, for nothing: all that porthole reads is built in.
func loadOptions(maps map[string]*ebpf.Map, types *btf.Cache) (ebpf.CollectionOptions, error) {
	kernel, err := types.Kernel()
	if err != nil {
		return ebpf.CollectionOptions{}, explain("read the kernel's BTF", err)
	}
	return ebpf.CollectionOptions{
		MapReplacements: maps, Cache: types, Programs: ebpf.ProgramOptions{KernelTypes: kernel},
	}, nil
}

// loadProgram loads one program of an object.
func loadProgram(spec *ebpf.CollectionSpec, name string, opts ebpf.CollectionOptions) (*ebpf.Program, error) {
	one := *spec // not Copy, which copies every program
	one.Programs, one.Variables = map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}, nil
	coll, err := ebpf.NewCollectionWithOptions(&one, opts)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}

// checkKernel tells whether the kernel is that new. The error wraps
// ErrNotSupported.
func checkKernel(major, minor int) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("read kernel version: %w", err)
	}
	return checkRelease(unix.ByteSliceToString(uts.Release[:]), major, minor)
}

func checkRelease(release string, major, minor int) error {
	var isMajor, isMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &isMajor, &isMinor); err != nil {
		return fmt.Errorf("kernel version %q: %w", release, err)
	}
	if isMajor < major || isMajor == major && isMinor < minor {
		return fmt.Errorf("%w: Linux %d.%d or newer is needed, this is %s", ErrNotSupported, major, minor, release)
	}
	return nil
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
