package tracer

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OwnerStatus says what has become of the owner of a socket.
type OwnerStatus uint8

// What can become of an owner. Zero: not known.
const (
	OwnerHolder OwnerStatus = iota + 1 // it holds the socket
	OwnerAlive                         // it is there, and does not hold the socket
	OwnerGone                          // it has ended, whoever has its pid now
)

var ownerStatusNames = [...]string{OwnerHolder: "holder", OwnerAlive: "alive", OwnerGone: "gone"}

// String returns the name the JSON contract gives the status.
func (s OwnerStatus) String() string { return nameOf(ownerStatusNames[:], int(s)) }

// OwnerLookup finds out what has become of the owners of sockets, and asks for each once. It
// is not safe for concurrent use.
type OwnerLookup struct {
	seesAll bool
	found   map[Process]OwnerStatus
}

// NewOwnerLookup returns an OwnerLookup. In another pid namespace than the initial one
// the status stays unknown of all that do not hold their socket: they, or other holders,
// may be outside.
func NewOwnerLookup() *OwnerLookup {
	return newOwnerLookup(seesProcesses())
}

func newOwnerLookup(seesAll bool) *OwnerLookup {
	return &OwnerLookup{seesAll: seesAll, found: make(map[Process]OwnerStatus)}
}

// Set sets the OwnerStatus of a socket of a snapshot, as of now, where its Owner is known.
func (l *OwnerLookup) Set(so *Socket) {
	switch {
	case so.Owner.PID == 0:
	case so.heldBy(&so.Owner):
		so.OwnerStatus = OwnerHolder
	case l.seesAll && so.HoldersMore == 0:
		status, ok := l.found[so.Owner]
		if !ok {
			status = so.Owner.status()
			l.found[so.Owner] = status
		}
		if status == OwnerGone || !so.late {
			so.OwnerStatus = status
		}
	}
}

func (s *Socket) heldBy(p *Process) bool {
	return slices.ContainsFunc(s.Holders, func(h Holder) bool { return h.PID == p.PID && h.Start == p.Start })
}

// status is OwnerAlive, OwnerGone, or 0 where that cannot be told. It takes the pid
// as one of this process's pid namespace.
func (p *Process) status() OwnerStatus {
	if unix.Kill(int(p.PID), 0) == unix.ESRCH {
		return OwnerGone
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return 0 // hidden (hidepid), or it has just ended
	}
	return p.statusIn(string(stat), time.Duration(bootShift()))
}

// tick is the unit of times in proc(5).
const tick = time.Second / 100

// statusIn reads proc_pid_stat(5) of whoever has the pid now, as seen by a clock that
// is ahead of the kernel's by shift.
func (p *Process) statusIn(stat string, shift time.Duration) OwnerStatus {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0
	}
	state, threads, start := fields[0], fields[17], fields[19]
	// A leader that has ended is a zombie as long as other threads go on.
	ended := (state == "Z" || state == "X") && (threads == "0" || threads == "1")
	if ended || start != fmt.Sprint(int64((p.Start+shift)/tick)) {
		return OwnerGone
	}
	return OwnerAlive
}
