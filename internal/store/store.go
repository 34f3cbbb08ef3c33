// Package store keeps on disk who had which port: tenancies, and calls that got none. Segments are only
// ever appended to, and deleted whole. docs/history.md has the format.
package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/tracer"
)

const (
	// DefaultDir is where the service keeps its history.
	DefaultDir = "/var/lib/porthole"
	// DefaultMaxSize is beyond how many bytes segments are deleted.
	DefaultMaxSize = 256 << 20
	// DefaultMaxAge is after how long they are.
	DefaultMaxAge = 30 * 24 * time.Hour
	// LeastSize is the least that a history may take.
	LeastSize = 1 << 20

	// syncEach is how often what is new is written and synced.
	syncEach = time.Second
	// aliveEach is how often it is written that the agent lives, where nothing else is.
	aliveEach = time.Minute
	// maxSegment is how large a segment gets, of a history of the usual size.
	maxSegment = 2 << 20
	// blockBytes is how much is collected before it is written though its time has not come.
	blockBytes = 128 << 10
	// maxQueued is how much waits for a disk that is slow, or takes nothing.
	maxQueued = 1 << 20
)

// Config says what to keep.
type Config struct {
	Dir     string
	MaxSize int64         // bytes
	MaxAge  time.Duration //
	// Describe tells what is known of a process, its place aside; it may read /proc. nil: only what
	// events tell.
	Describe func(*tracer.Process) Process
	// Place tells where a process runs; it is called for each record. nil: it is not known.
	Place func(*tracer.Process) identity.Cgroup
	// Space names a network namespace; nil: none has a name.
	Space func(inode uint32, cookie uint64) string
	Log   *slog.Logger // one line where trouble begins, one where it ends

	every time.Duration // instead of syncEach
	clock func() stamp  // instead of now
}

// Entry is what happened to a socket.
type Entry struct {
	Proto       tracer.Proto
	Role        tracer.Role
	Local       netip.AddrPort
	Remote      netip.AddrPort // not valid: none
	NetNS       uint32
	NetNSCookie uint64
	Device      uint32
	Owner       tracer.Process // PID 0: not known
	Errno       syscall.Errno
	Event       tracer.EventType // of Refused
	Taken       time.Duration    // CLOCK_BOOTTIME when it took its port; 0: not known, or none was taken
	At          time.Duration    // CLOCK_BOOTTIME of what happened
	MPTCP       bool
	V6Only      bool
	Asked       bool
	Implicit    bool
	TimeWait    bool
	About       bool
	// HeldBy is, of a refused bind, who was in the way, and HeldByMore how many more sockets were.
	HeldBy     []tracer.Socket
	HeldByMore int
}

// Failed tells whether what ended a connection says that it could not be made, or broke. One that the other end reset
// had been made, and worked.
func Failed(errno syscall.Errno) bool {
	return errno != 0 && errno != syscall.ECONNRESET && errno != syscall.EPIPE
}

// Reason says why records are lost. It is a label of a metric.
type Reason uint8

// The reasons.
const (
	LostFull     Reason = iota // the disk
	LostReadOnly               // the file system
	LostGone                   // the directory
	LostSlow                   // the disk takes less than there is
	LostIO                     // any other error of the file system
	LostEvents                 // the store had too little time for the events there were
	reasons
)

var reasonNames = [reasons]string{"full", "read_only", "gone", "slow", "io", "events"}

func (r Reason) String() string { return reasonNames[r] }

// Reasons returns every reason there is.
func Reasons() []Reason {
	return []Reason{LostFull, LostReadOnly, LostGone, LostSlow, LostIO, LostEvents}
}

// reasonOf is why an error loses records.
func reasonOf(err error) Reason {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return LostFull
	case errors.Is(err, syscall.EROFS):
		return LostReadOnly
	case errors.Is(err, syscall.ENOENT), errors.Is(err, errGone):
		return LostGone
	}
	return LostIO
}

// Stats are counters since Open.
type Stats struct {
	Records uint64 // written and synced
	Folded  uint64 // what is counted and not kept one by one
	Lost    map[Reason]uint64
	Bytes   int64 // that the history takes on disk, as it was last looked at
	// Since is when this agent began, and Synced the last moment of which everything is on disk.
	Synced time.Time
}

// Store is a history that is being written. It is safe for concurrent use.
type Store struct {
	cfg   Config
	head  header // of segments of this run
	kick  chan struct{}
	segAt int64 // size at which a segment is finished

	indexes indexes

	flushing sync.Mutex // of whoever writes to files; before mu

	mu      sync.Mutex
	lock    *os.File
	out     [classes]*writer
	seq     uint64 // of the last segment
	queue   []job  // that is not on disk
	queued  int    // bytes of it
	procs   map[tracer.Process]*described
	argsLen int // bytes of all of procs
	budget  budget
	folds   map[foldKey]*fold
	minute  uint64 // of folds
	stats   Stats
	lost    [reasons]uint64
	read    Mark // as of SetRead
	unread  uint64
	trouble error // since the last flush that succeeded; nil: none
	why     Reason

	recovered bool   // what was in the directory before is finished, and no name of it is given again
	flushed   uint64 // CLOCK_BOOTTIME when the flush began that goes on; 0: none does
	behind    bool   // it was said that the disk takes less than there is
	slow      uint64 // CLOCK_BOOTTIME when it last was so
	kept      bool   // it was said that old segments cannot be deleted
}

// Open takes a directory, makes it if need be, and finishes what an agent that ended uncleanly has left.
// The error wraps ErrInUse where another agent has it.
func Open(cfg Config) (*Store, error) {
	if cfg.every == 0 {
		cfg.every = syncEach
	}
	if cfg.clock == nil {
		cfg.clock = now
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, kick: make(chan struct{}, 1), segAt: min(maxSegment, cfg.MaxSize/16),
		procs: make(map[tracer.Process]*described), folds: make(map[foldKey]*fold), budget: newBudget(),
	}
	s.head = header{boot: boot, began: cfg.clock().boot}
	_, _ = rand.Read(s.head.run[:]) // never fails
	for c := range classes {
		s.begin(c)
	}
	err = s.takeDir()
	if err == nil {
		err = s.retain()
	}
	if err != nil && !passes(err) {
		return nil, errors.Join(err, s.unlock())
	}
	s.tell(err)
	return s, nil
}

// passes tells whether an error is one of the disk, which may be well again later: an agent begins without it.
func passes(err error) bool {
	for _, disk := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		if errors.Is(err, disk) {
			return true
		}
	}
	return false
}

// takeDir takes the directory, where it is not taken, and finishes what others have left there.
func (s *Store) takeDir() (err error) {
	if s.lock == nil {
		if s.lock, err = lockDir(s.cfg.Dir); err != nil {
			return err
		}
	}
	if s.recovered {
		return nil
	}
	last, err := s.recover()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renumber(last)
	s.recovered = true
	return nil
}

// unlock gives the directory back.
func (s *Store) unlock() error {
	if s.lock == nil {
		return nil
	}
	err := s.lock.Close()
	s.lock = nil
	return err
}

// bootID is that of the kernel since it was booted.
func bootID() (id [16]byte, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("read boot id: %w", err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("read boot id: %q", text)
	}
	copy(id[:], b)
	return id, nil
}

// Run writes what is added until ctx ends, then what is left.
func (s *Store) Run(ctx context.Context) {
	tick := time.NewTicker(s.cfg.every)
	defer tick.Stop()
	alive, kept, last := time.Now(), time.Now(), uint64(0)
	for {
		select {
		case <-tick.C:
		case <-s.kick:
		case <-ctx.Done():
			return
		}
		if time.Since(alive) >= aliveEach {
			alive = time.Now()
			s.mu.Lock()
			s.out[ofPorts].alive = true
			s.mu.Unlock()
		}
		s.Flush()
		s.mu.Lock()
		began := s.seq != last // a segment: under a flood several a minute
		last = s.seq
		s.mu.Unlock()
		if began || time.Since(kept) >= aliveEach {
			kept = time.Now()
			if err := s.retain(); err != nil {
				if !s.kept {
					s.cfg.Log.Warn("old history could not be deleted; it is tried again every minute", "error", err)
				}
				s.kept = true
			} else {
				s.kept = false
			}
		}
	}
}

// Close writes what is left, ends the segments and gives the directory back. left are the sockets that
// are still open: what becomes of them is not known.
func (s *Store) Close(left func(add func(*Entry))) error {
	if left != nil {
		left(func(e *Entry) { s.add(Held, e, flagUntilUnknown) })
	}
	s.mu.Lock()
	s.unfold()
	s.out[ofPorts].checked = true
	s.mu.Unlock()
	err := s.Flush()
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.out {
		for _, end := range []*finished{w.old, {w.file, w.x, w.size}} {
			if end == nil {
				continue
			}
			if err == nil && end.file.f != nil {
				err = end.file.finish(&end.x, end.size, s.cfg.clock())
			}
			err = errors.Join(err, end.file.close())
		}
	}
	return errors.Join(err, s.unlock())
}

// Lose counts events that did not become records.
func (s *Store) Lose(why Reason, n uint64) {
	s.mu.Lock()
	s.lost[why] += n
	s.mu.Unlock()
}

// Stats returns the counters as they are now.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Lost = make(map[Reason]uint64, reasons)
	for _, r := range Reasons() {
		st.Lost[r] = s.lost[r]
	}
	return st
}
