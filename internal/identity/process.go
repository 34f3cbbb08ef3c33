package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/tracer"
)

// Process is what /proc tells of a process. What could not be read is zero.
type Process struct {
	Exe     string    // path of its program, as its own mount namespace has it; " (deleted)" follows where it was replaced
	Args    []string  // command line, any bytes, 4096 of them at most; nil: not read
	ArgsCut bool      // there is more of it
	ArgsErr error     // why it could not be read
	Started time.Time // to a millisecond
	PPID    uint32    // 0: none
	Parents []Parent  // the process that it is a child of now, that one's parent, and so on up to process 1
}

// Parent is an ancestor of a process.
type Parent struct {
	PID  uint32 `json:"pid"`
	Comm string `json:"comm"`
}

// ErrProcessGone tells that a process has ended, whoever has its pid now. Any other error means that
// another look may find more.
var ErrProcessGone = errors.New("the process has ended")

const (
	maxArgs    = 4096 // bytes
	maxParents = 32
	// argsWithin is for how long one waits for a command line: it is in the memory of the process,
	// and a process that waits for a file system which does not answer keeps others out of that.
	argsWithin = 200 * time.Millisecond
	// maxStuck is how many lookups may hang like that; more are not tried then.
	maxStuck = 4
)

// Processes looks processes up. It is safe for concurrent use; nobody waits for what another
// looks up.
type Processes struct {
	root  string
	args  bool
	shift time.Duration // how far clocks of this process are ahead of the kernel's
	slots chan struct{} // one for each command line that is being read
}

// NewProcesses returns a Processes that reads command lines if told to: they can hold secrets.
func NewProcesses(args bool) *Processes {
	return &Processes{root: "/proc", args: args, shift: bootShift(), slots: make(chan struct{}, maxStuck)}
}

// bootShift is the offset of CLOCK_BOOTTIME in this process's time namespace.
func bootShift() time.Duration {
	b, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return 0 // a kernel without time namespaces
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && (f[0] == "boottime" || f[0] == "7") {
			s, errS := strconv.ParseInt(f[1], 10, 64)
			ns, errNS := strconv.ParseInt(f[2], 10, 64)
			if errS == nil && errNS == nil {
				return time.Duration(s)*time.Second + time.Duration(ns)
			}
		}
	}
	return 0
}

// Look reads what /proc tells of a process, which is known by its pid and start time. Other data
// than that process's is never returned: where the pid is another's by now the error is
// ErrProcessGone. It blocks for some 50 µs, for 200 ms at most.
func (ps *Processes) Look(p tracer.Process) (Process, error) {
	out := Process{Started: ps.started(p.Start)}
	// The directory stays that of one process: it is empty once that has ended.
	dir, err := ps.open(p.PID)
	if err != nil {
		return out, err
	}
	defer dir.close()
	st, err := dir.stat()
	if err != nil {
		return out, err
	}
	if st.ended || st.start != int64((p.Start+ps.shift)/tick) {
		return out, ErrProcessGone
	}
	out.Exe, _ = dir.link("exe") // a thread of the kernel has none, and of others that may not be known
	if ps.args {
		out.Args, out.ArgsCut, out.ArgsErr = ps.argsOf(dir)
	}
	out.PPID, out.Parents = st.ppid, ps.parents(dir, st)
	return out, nil
}

// tick is the unit of times in proc(5).
const tick = time.Second / 100

// started makes a point in time of a start time.
func (ps *Processes) started(start time.Duration) time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Time{}
	}
	age := time.Duration(ts.Nano()) - ps.shift - start
	return time.Now().Add(-age).Round(time.Millisecond).UTC()
}

// processDir is the directory of a process in /proc.
type processDir struct{ fd int }

func (ps *Processes) open(pid uint32) (processDir, error) {
	fd, err := unix.Open(ps.root+"/"+strconv.FormatUint(uint64(pid), 10), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return processDir{fd}, gone(err)
}

func (d processDir) close() { _ = unix.Close(d.fd) } // nothing was written

// gone makes an error of a file of /proc ErrProcessGone, where it says that.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return ErrProcessGone
	}
	return err
}

// read reads the first bytes of a file.
func (d processDir) read(name string, most int) ([]byte, error) {
	fd, err := unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, gone(fmt.Errorf("open %s of a process: %w", name, err))
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(most)))
	return b, gone(err)
}

func (d processDir) link(name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// processStat is what is needed of proc_pid_stat(5).
type processStat struct {
	comm  string
	ppid  uint32
	start int64 // ticks
	ended bool  // it is a zombie without threads
}

func (d processDir) stat() (processStat, error) {
	b, err := d.read("stat", 4096)
	if err != nil {
		return processStat{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (processStat, error) {
	bad := fmt.Errorf("stat of a process: %q", b)
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')') // the name may hold both
	if open < 0 || end < open {
		return processStat{}, bad
	}
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) < 20 {
		return processStat{}, bad
	}
	ppid, errPPID := strconv.ParseUint(fields[1], 10, 32)
	start, errStart := strconv.ParseInt(fields[19], 10, 64)
	if errPPID != nil || errStart != nil {
		return processStat{}, bad
	}
	// A leader that has ended is a zombie as long as other threads go on.
	ended := (fields[0] == "Z" || fields[0] == "X") && (fields[17] == "0" || fields[17] == "1")
	return processStat{comm: string(b[open+1 : end]), ppid: uint32(ppid), start: start, ended: ended}, nil
}

// parents are the ancestors of a process as they are now. One counts only if its child still has
// it for a parent after it was read: its pid is not another's then.
func (ps *Processes) parents(dir processDir, st processStat) []Parent {
	var out []Parent
	opened := []processDir{}
	defer func() {
		for _, d := range opened {
			d.close()
		}
	}()
	for st.ppid != 0 && len(out) < maxParents {
		up, err := ps.open(st.ppid)
		if err != nil {
			return out
		}
		opened = append(opened, up)
		upStat, err := up.stat()
		if err != nil {
			return out
		}
		if again, err := dir.stat(); err != nil || again.ppid != st.ppid {
			return out
		}
		out = append(out, Parent{PID: st.ppid, Comm: upStat.comm})
		dir, st = up, upStat
	}
	return out
}

// errArgsStuck is a command line that cannot be read in time.
var errArgsStuck = errors.New("the process, or a file system that it waits for, does not answer")

// argsOf reads the command line of a process, in a goroutine that may be left behind.
func (ps *Processes) argsOf(dir processDir) (args []string, cut bool, err error) {
	select {
	case ps.slots <- struct{}{}:
	default:
		return nil, false, errArgsStuck
	}
	own, err := unix.FcntlInt(uintptr(dir.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		<-ps.slots
		return nil, false, err
	}
	type answer struct {
		b   []byte
		err error
	}
	done := make(chan answer, 1)
	go func() {
		dir := processDir{own}
		defer func() { dir.close(); <-ps.slots }()
		b, err := dir.read("cmdline", maxArgs+1)
		done <- answer{b, err}
	}()
	wait := time.NewTimer(argsWithin)
	defer wait.Stop()
	select {
	case a := <-done:
		args, cut = splitArgs(a.b)
		return args, cut, a.err
	case <-wait.C:
		return nil, false, errArgsStuck
	}
}

// splitArgs takes a command line apart. A process that wrote its own over it (setproctitle) has
// one argument, followed by empty ones.
func splitArgs(b []byte) (args []string, cut bool) {
	if cut = len(b) > maxArgs; cut {
		b = b[:maxArgs]
	}
	if b = bytes.TrimRight(b, "\x00"); len(b) == 0 {
		return nil, cut
	}
	return strings.Split(string(b), "\x00"), cut
}

// Children returns the children of each process that this process sees, at about one moment. What ends
// meanwhile may be in it or not.
func Children() (map[uint32][]uint32, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	out := make(map[uint32][]uint32)
	for _, e := range entries {
		pid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		if st, err := parseStat(text); err == nil {
			out[st.ppid] = append(out[st.ppid], uint32(pid))
		}
	}
	return out, nil
}
