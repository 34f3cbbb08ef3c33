package tracer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/porthole-dev/porthole/internal/testutil"
	"golang.org/x/sys/unix"
)

// The processes of TestKernelMotion bind their sockets to an address of their own, which
// tells who alone may ever be named as a holder: 127.H.M.L of the pid.

func addressOfPID(pid int) [4]byte {
	return [4]byte{127, byte(1 + pid>>16), byte(pid >> 8), byte(pid)}
}

func pidOfAddress(a netip.Addr) int {
	b := a.As4()
	return int(b[1]-1)<<16 | int(b[2])<<8 | int(b[3])
}

const (
	motionOperations = 10_000 // events of the namespace, at least
	motionSnapshots  = 30     // taken meanwhile, at least
	motionStable     = 40     // sockets of those that keep theirs
	motionPassed     = 0x7f   // second byte of the address of a socket that two processes pass
)

// socketOfPID makes a socket bound to the address of this process.
func socketOfPID(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrInet4{Addr: addressOfPID(os.Getpid())})
}

// helperMotionChurn closes sockets and opens others.
func helperMotionChurn() error {
	if err := pinned(); err != nil {
		return err
	}
	var fds []int
	for i := 0; ; i++ {
		if len(fds) == 64 {
			n := rand.IntN(len(fds))
			if err := unix.Close(fds[n]); err != nil {
				return err
			}
			fds = slices.Delete(fds, n, n+1)
			yield() // to who opens files and no sockets
		}
		fd, err := socketOfPID([]int{unix.SOCK_DGRAM, unix.SOCK_STREAM}[i%2])
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
}

// helperMotionFiles opens and closes files that are no sockets.
func helperMotionFiles() error {
	if err := pinned(); err != nil {
		return err
	}
	var fds [64]int
	for i := 0; ; i = (i + 1) % len(fds) {
		if fds[i] != 0 {
			if err := unix.Close(fds[i]); err != nil {
				return err
			}
		}
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fds[i] = fd
		yield()
	}
}

// pinned keeps all threads on one processor, so that what one process frees the other gets.
func pinned() error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return err
	}
	for cpu := range 1024 {
		if set.IsSet(cpu) {
			set.Zero()
			set.Set(cpu)
			break
		}
	}
	runtime.LockOSThread()
	return errors.Join(behind(), unix.SchedSetaffinity(0, &set))
}

// behind has this thread run when nobody else wants the processor: where there is one alone,
// six processes that never stop would leave the test little of it.
func behind() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, 19) }

// yield lets other processes have the processor.
func yield() { _, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// stable opens the sockets of a process that keeps them.
func stable() error {
	for i := range motionStable {
		if _, err := socketOfPID([]int{unix.SOCK_DGRAM, unix.SOCK_STREAM}[i%2]); err != nil {
			return err
		}
	}
	return nil
}

// helperMotionLeader keeps sockets, and ends its first thread.
func helperMotionLeader() error {
	if err := stable(); err != nil {
		return err
	}
	var ended sync.Mutex
	for {
		// Those that are not the first stay, each in a thread of its own.
		leader := make(chan bool)
		go func() {
			runtime.LockOSThread()
			if leader <- unix.Gettid() == os.Getpid(); unix.Gettid() == os.Getpid() {
				_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
			}
			ended.Lock()
			ended.Lock()
		}()
		if <-leader {
			select {}
		}
	}
}

// helperMotionTables keeps sockets in several tables: threads have their own, in which they
// close and open others.
func helperMotionTables() error {
	if err := stable(); err != nil {
		return err
	}
	failed := make(chan error)
	for range 4 {
		go func() {
			runtime.LockOSThread()
			err := errors.Join(behind(), unix.Unshare(unix.CLONE_FILES))
			for err == nil {
				var fd int
				if fd, err = socketOfPID(unix.SOCK_DGRAM); err == nil {
					err = unix.Close(fd)
				}
			}
			failed <- err
		}()
	}
	return <-failed
}

// helperMotionFork keeps sockets, and has children that inherit them, write their pids to
// descriptor 3 and end.
func helperMotionFork() error {
	runtime.LockOSThread()
	if err := errors.Join(behind(), stable()); err != nil {
		return err
	}
	moment := unix.NsecToTimespec(int64(500 * time.Microsecond))
	for children := 0; ; children++ {
		var self uintptr
		pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
		if errno != 0 {
			return fmt.Errorf("clone: %w", errno)
		}
		if pid == 0 { // Go does not work here: only this thread is left
			self, _, _ = unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
			_, _, _ = unix.RawSyscall(unix.SYS_WRITE, 3, uintptr(unsafe.Pointer(&self)), unsafe.Sizeof(self))
			_, _, _ = unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&moment)), 0, 0)
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		if children >= 4 { // as many at a time
			if _, err := unix.Wait4(-1, nil, 0, nil); err != nil {
				return err
			}
		}
	}
}

// helperMotionPass passes the sockets it gets by descriptor 3 back.
func helperMotionPass() error {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(3, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return err
		}
		fds, err := rights(oob[:oobn])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			if err := errors.Join(unix.Sendmsg(3, buf, unix.UnixRights(fd), nil, 0), unix.Close(fd)); err != nil {
				return err
			}
		}
	}
}

// motion is what may and must be seen while processes churn.
type motion struct {
	*recorder
	stable []int    // pids of those that keep their sockets
	forks  int      // pid of the one of those whose children have them too
	heirs  sync.Map // pid of a process besides it that is said to have its sockets: where
	files  int      // pid of who has none
	pair   []int    // pids of those that pass a socket
	unheld NoHolder // why it has no holder meanwhile
}

// Whatever is opened, closed, passed and unshared while a snapshot is taken, it names no
// process that never had a socket, lacks none that was there all the time, and has nothing
// twice; and so does the table that snapshots are merged into.
func TestKernelMotion(t *testing.T) {
	m := &motion{recorder: idle(t)}
	m.churn()
	// Of its own, for events may be lost here: they come as fast as they can.
	running, err := newRunning(tested(Config{Reconcile: 50 * time.Millisecond}))
	if err != nil {
		t.Fatal(err)
	}
	m.tracer = running.tracer
	m.unheld = NoHolderInFlight
	if hides, err := m.tracer.HidesProcesses(); err != nil {
		t.Error(err)
	} else if hides { // one of which may have it
		m.unheld = NoHolderOutOfSight
	}
	var seen atomic.Int64
	sub := m.tracer.Subscribe(1 << 16)
	var counting sync.WaitGroup
	counting.Go(func() { m.count(sub, &seen) })
	defer func() {
		if err := running.stop(); err != nil {
			t.Error(err)
		}
		counting.Wait()
	}()
	for taken := 0; (seen.Load() < motionOperations || taken < motionSnapshots) && !t.Failed(); taken++ {
		m.check("a snapshot", snapshot(t, 0).Sockets, true)
		m.check("the table", m.tracer.Table().All(), false)
	}
}

// count counts the events of the namespace until the tracer ends.
func (m *motion) count(sub *Subscription, seen *atomic.Int64) {
	for {
		events, err := sub.Next(context.Background(), nil)
		if err != nil {
			return
		}
		for i := range events {
			if events[i].NetNS == m.netns {
				seen.Add(1)
			}
		}
	}
}

// churn starts the processes.
func (m *motion) churn() {
	m.Helper()
	start := func(name string, fds ...int) int {
		cmd := m.child(name, fds...)
		m.Cleanup(func() { endChild(cmd) })
		return cmd.Process.Pid
	}
	m.forks = m.startForks()
	m.stable = []int{start("motion-leader"), start("motion-tables"), m.forks}
	for range 2 {
		start("motion-churn")
	}
	m.files = start("motion-files")
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		m.Fatal(err)
	}
	m.pair = []int{os.Getpid(), start("motion-pass", ends[1])}
	m.close(ends[1])
	passed, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(passed, &unix.SockaddrInet4{Addr: [4]byte{127, motionPassed, 0, 1}})
	}
	if err != nil {
		m.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- pass(ends[0], passed, stop) }()
	m.Cleanup(func() {
		close(stop)
		if err := <-done; err != nil {
			m.Error(err)
		}
		m.close(ends[0])
	})
	for _, pid := range m.stable {
		testutil.Await(m, fmt.Sprintf("the sockets of process %d", pid), func() bool {
			n := 0
			for _, s := range snapshot(m.T, 0).Sockets {
				if m.own(&s) && pidOfAddress(s.Local.Addr()) == pid {
					n++
				}
			}
			return n >= motionStable
		})
	}
	awaitZombieLeader(m.T, m.stable[0])
}

// startForks starts the process whose children come and go. Whoever was said to have its
// sockets must in the end have been a child of it.
func (m *motion) startForks() int {
	m.Helper()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		m.Fatal(err)
	}
	pids := os.NewFile(uintptr(ends[0]), "pids of children")
	children, done := make(map[uint32]bool), make(chan struct{})
	go func() {
		defer close(done)
		var pid [unsafe.Sizeof(uintptr(0))]byte
		for {
			if _, err := io.ReadFull(pids, pid[:]); err != nil {
				return // the end of the process, and of its children
			}
			children[uint32(binary.NativeEndian.Uint64(pid[:]))] = true
		}
	}()
	cmd := m.child("motion-fork", ends[1])
	m.close(ends[1])
	m.Cleanup(func() {
		endChild(cmd)
		<-done
		pids.Close()
		named := 0
		for pid, where := range m.heirs.Range {
			if named++; !children[pid.(uint32)] {
				m.Errorf("%s: sockets of process %d are held by process %d, which is no child of it", where, m.forks, pid)
			}
		}
		m.Logf("of %d children %d were seen to have the sockets they inherited", len(children), named)
	})
	return cmd.Process.Pid
}

// pass sends a socket away and takes it back, until stop.
func pass(by, fd int, stop chan struct{}) error {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	for {
		select {
		case <-stop:
			return unix.Close(fd)
		default:
		}
		if err := errors.Join(unix.Sendmsg(by, buf, unix.UnixRights(fd), nil, 0), unix.Close(fd)); err != nil {
			return fmt.Errorf("pass a socket: %w", err)
		}
		_, oobn, _, _, err := unix.Recvmsg(by, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil {
			return fmt.Errorf("take a socket back: %w", err)
		}
		fds, err := rights(oob[:oobn])
		if err != nil || len(fds) != 1 {
			return fmt.Errorf("take a socket back: %v, %w", fds, err)
		}
		fd = fds[0]
	}
}

func endChild(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// awaitZombieLeader waits until the first thread of a process has ended.
func awaitZombieLeader(t *testing.T, pid int) {
	t.Helper()
	testutil.Await(t, fmt.Sprintf("the first thread of %d ends", pid), func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, pid))
		if err != nil {
			t.Fatal(err)
		}
		return string(stat[slices.Index(stat, ')')+2]) == "Z"
	})
}

// own tells whether a socket is one of a process of the test.
func (m *motion) own(s *Socket) bool {
	return s.NetNS == m.netns && s.Local.Addr().Is4() && s.Local.Addr().IsLoopback() && s.Local.Addr().As4()[1] != motionPassed
}

// inherited returns the pids of those that have a socket which children inherit: for now,
// anybody's.
func (m *motion) inherited(where string, s *Socket, fresh bool) (may []int) {
	m.Helper()
	for _, h := range s.Holders {
		if may = append(may, int(h.PID)); int(h.PID) != m.forks {
			m.heirs.LoadOrStore(h.PID, where)
		}
	}
	if fresh && !slices.Contains(may, m.forks) {
		m.Errorf("%s: %v is held by %v, want process %d, which keeps it, among them: %v", where, s.Local, may, m.forks, s.NoHolder)
	}
	return may
}

// check looks at all that is listed of the namespace. fresh: it has its holders now, not
// as of the last comparison.
func (m *motion) check(where string, sockets []Socket, fresh bool) {
	m.Helper()
	inodes, kept, passed := make(map[uint64]bool), make(map[int]int), 0
	for i := range sockets {
		s := &sockets[i]
		if s.NetNS != m.netns || s.Local.Addr().As16() == (netip.Addr{}).As16() {
			continue
		}
		if s.Inode != 0 && inodes[s.Inode] {
			m.Errorf("%s: socket %d is there twice", where, s.Inode)
		}
		inodes[s.Inode] = true
		may := m.pair
		switch {
		case m.own(s):
			pid := pidOfAddress(s.Local.Addr())
			may = []int{pid}
			kept[pid]++
			if fresh && pid == m.stable[0] && len(s.Holders) == 0 {
				m.Errorf("%s: nobody holds %v of process %d: %v", where, s.Local, pid, s.NoHolder)
			}
			if pid == m.forks {
				may = m.inherited(where, s, fresh)
			}
		case s.Local.Addr().Is4() && s.Local.Addr().As4()[1] == motionPassed:
			passed++
			if fresh && len(s.Holders) == 0 && s.NoHolder != m.unheld {
				m.Errorf("%s: the socket on its way has no holder: %q", where, s.NoHolder)
			}
		default:
			continue
		}
		told := make(map[Holder]bool)
		for _, h := range s.Holders {
			if !slices.Contains(may, int(h.PID)) {
				m.Errorf("%s: %v is held by %s (pid %d), want none but %v (who has no sockets is %d)", where, s.Local, h.Comm, h.PID, may, m.files)
			}
			if told[h] {
				m.Errorf("%s: %v: descriptor %d of process %d is told twice", where, s.Local, h.FD, h.PID)
			}
			told[h] = true
		}
	}
	for _, pid := range m.stable {
		if kept[pid] < motionStable {
			m.Errorf("%s: %d sockets of process %d, which keeps %d", where, kept[pid], pid, motionStable)
		}
	}
	if passed != 1 {
		m.Errorf("%s: the socket that is passed is there %d times", where, passed)
	}
}
