package tracer

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NoHolder says why no process has a descriptor of a socket that processes could have.
type NoHolder uint8

// The reasons. Zero: a process has one; or the socket is such that none can (TIME_WAIT,
// orphans); or it is not known why.
const (
	// NoHolderKernel: the kernel made the socket for itself (VXLAN, WireGuard, NFS ...).
	NoHolderKernel NoHolder = iota + 1
	// NoHolderInFlight: it has a file that is in no table of descriptors: it has been sent
	// over a UNIX socket and not been received, or a part of the kernel keeps it.
	NoHolderInFlight
	// NoHolderIOUring: it is only among the files registered with an io_uring; Holders are
	// the processes that have the ring.
	NoHolderIOUring
	// NoHolderOutOfSight: it has a file, and not all processes are seen: porthole runs in a
	// pid namespace, or the kernel hides some from BPF programs.
	NoHolderOutOfSight
)

var noHolderNames = [...]string{
	NoHolderKernel: "kernel", NoHolderInFlight: "in_flight", NoHolderIOUring: "io_uring", NoHolderOutOfSight: "out_of_sight",
}

// String returns the name the JSON contract gives the reason, "" for zero.
func (n NoHolder) String() string {
	if n == 0 {
		return ""
	}
	return nameOf(noHolderNames[:], int(n))
}

// sight is what a Snapshotter sees of what can hold a socket.
type sight struct {
	processes bool // all processes: it runs in the initial pid namespace, and the kernel hides none
	rings     bool // the files registered with an io_uring
}

// initialPIDNS is the pid namespace that the pids of events are of (PROC_PID_INIT_INO
// of the kernel).
const initialPIDNS = "pid:[4026531836]"

// seesProcesses tells whether this process sees all others.
func seesProcesses() bool {
	space, err := os.Readlink("/proc/self/ns/pid")
	return err == nil && space == initialPIDNS
}

// sees is what was seen when descriptors were read last.
func (s *Snapshotter) sees() sight {
	seen := s.sight
	seen.processes = seen.processes && !s.hidden.Load()
	return seen
}

// HidesProcesses tells whether the kernel shows BPF programs no process 1, as some hardened
// ones do, or this pid namespace has no part in it: what such a process alone holds has no
// holder. It reads the descriptors of all processes.
func (t *Tracer) HidesProcesses() (bool, error) {
	err := t.snap.eachFds(func([]bpfFds) {})
	return t.snap.hidden.Load(), err
}

// noHolder is why a socket has no holder but these.
func (s sight) noHolder(row *bpfRow, holders []Holder) NoHolder {
	for i := range holders {
		if !holders[i].Ring {
			return 0
		}
	}
	switch {
	case len(holders) > 0:
		return NoHolderIOUring
	case row.Socket == 0:
		return 0
	case has(row, bpfRowFlagROW_NO_FILE):
		return NoHolderKernel
	case !s.processes:
		return NoHolderOutOfSight
	case !s.rings:
		return 0
	}
	return NoHolderInFlight
}

// openRing opens an io_uring, to show the BPF programs what one looks like. Where that is not
// possible there may be rings all the same, of which nothing is known.
func (s *Snapshotter) openRing() {
	var params [120]byte // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno == 0 {
		s.ring = int(fd)
		unix.CloseOnExec(s.ring)
	}
	s.sight = sight{processes: seesProcesses(), rings: errno == 0 || errno == unix.ENOSYS}
}
