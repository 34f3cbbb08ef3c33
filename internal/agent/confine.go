package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// kept are the capabilities that an agent has use for once everything is attached:
// before Linux 5.19 bpf(2) takes CAP_BPF whatever is asked of it, and to open a
// cgroup by its id takes CAP_DAC_READ_SEARCH. Not among them is CAP_SYS_ADMIN, which
// entering another namespace would take: it is as good as all of them.
var kept = []cap.Value{cap.BPF, cap.DAC_READ_SEARCH}

// confine gives up, for every thread of the process and for good, all privileges but
// those kept; what the process has not got it does not get.
func confine() error {
	has := cap.GetProc()
	if yes, err := has.GetFlag(cap.Effective, cap.SETPCAP); err == nil && yes {
		var all []cap.Value
		for v := range cap.MaxBits() {
			all = append(all, v)
		}
		if err := cap.DropBound(all...); err != nil {
			return fmt.Errorf("give up privileges: bounding set: %w", err)
		}
	}
	if err := cap.ResetAmbient(); err != nil {
		return fmt.Errorf("give up privileges: ambient set: %w", err)
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("give up privileges: no_new_privs: %w", err)
	}
	want := cap.NewSet()
	for _, v := range keep(has) {
		if err := errors.Join(want.SetFlag(cap.Permitted, true, v), want.SetFlag(cap.Effective, true, v)); err != nil {
			return fmt.Errorf("give up privileges: %w", err)
		}
	}
	if err := want.SetProc(); err != nil {
		return fmt.Errorf("give up privileges: %w", err)
	}
	return nil
}

// keep picks those of kept that there are. CAP_SYS_ADMIN stands for CAP_BPF where
// that is all there is.
func keep(has *cap.Set) []cap.Value {
	var out []cap.Value
	for _, v := range kept {
		yes, err := has.GetFlag(cap.Permitted, v)
		if v == cap.BPF && (err != nil || !yes) {
			v = cap.SYS_ADMIN
			yes, err = has.GetFlag(cap.Permitted, v)
		}
		if err == nil && yes {
			out = append(out, v)
		}
	}
	return out
}

const (
	// notGo is what an agent needs besides what Go allocates: BPF maps, the ring buffer
	// above all, and its own code.
	notGo = 32 << 20
	// leastMemory is what an agent needs on a machine with few sockets. The kernel kills
	// it below, and says so in its own log alone.
	leastMemory = 64 << 20
	// gcPercent is by how much the heap may grow before it is collected. Events allocate
	// nothing, and of what there is much of, sockets and history, the collector marks
	// nothing: to collect takes a few milliseconds of a processor whatever there is, so it may be
	// done often.
	gcPercent = 10
	// leastFiles are those of an agent with as many connections as it takes.
	leastFiles = 512
)

// limitMemory lets Go collect garbage before the limit of the cgroup is reached,
// unless GOMEMLIMIT says when. Where no limit is found none is set. In any case the heap
// is kept small, unless GOGC says otherwise.
func limitMemory(log *slog.Logger) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	limit, err := memlimit.FromCgroup()
	if err != nil || limit > 1<<62 {
		return
	}
	if limit < leastMemory {
		log.Warn("the cgroup has too little memory for an agent: the kernel may kill it", "bytes", limit, "want", leastMemory)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(max(int64(limit)-notGo, int64(limit/2)))
	}
}

// heap gives memory back to the kernel which Go would keep for itself: an agent that compared its table or
// answered somebody, and then rests, allocates so little that for minutes nothing is collected.
type heap struct{ allocated uint64 }

// worthReleasing is how many bytes are allocated between two releases, at least. Each collects garbage, which takes
// milliseconds of a processor; an agent that nobody asks never comes to that.
const worthReleasing = 4 << 20

// release gives back what is free, where enough was allocated since it last did.
func (h *heap) release() {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	if now := sample[0].Value.Uint64(); now-h.allocated > worthReleasing {
		h.allocated = now
		debug.FreeOSMemory()
	}
}

// releaseProgram gives back the pages of the program's own file, of which only its start used the most. The kernel maps
// them again when they are used. A mapping of which a page was ever written, as the linker does before it forbids it,
// is left alone: the file does not have what is there.
func releaseProgram() error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program's file: %w", err)
	}
	mapped, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("read what is mapped: %w", err)
	}
	var start, end uintptr
	for line := range strings.Lines(string(mapped)) {
		var from, to uintptr
		var access, offset, device, inode, path string
		if n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %s %s", &from, &to, &access, &offset, &device, &inode, &path); n >= 6 {
			start, end = from, to
			if path != program || strings.Contains(access, "w") {
				end = start
			}
			continue
		}
		var anonymous int
		if n, _ := fmt.Sscanf(line, "Anonymous: %d kB", &anonymous); n == 0 || anonymous > 0 || start == end {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give back the pages of %s: %w", program, errno)
		}
	}
	return nil
}

// checkFiles tells whether the process may open files enough.
func checkFiles() error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if files.Cur < leastFiles {
		return fmt.Errorf("%d files may be open: %w: an agent needs %d", files.Cur, unix.EMFILE, leastFiles)
	}
	return nil
}
