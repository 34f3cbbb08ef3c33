package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/tracer"
)

// mountNS gives the test a mount namespace of its own. Whatever it mounts goes with it.
func mountNS(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
		t.Fatalf("mount namespace: %v", err)
	}
}

// tmpfs is a small file system.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	mountNS(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill takes what room a file system has.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, some := range []int{1 << 16, 1 << 12} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, some))
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// trouble is a store that can write no more, and what it does about it.
type trouble struct {
	c   *clock
	dir string
	s   *Store
	log bytes.Buffer
	// hidden is how many records cannot be read while it fails.
	hidden int
}

func newTrouble(t *testing.T, dir string) *trouble {
	t.Helper()
	tr := &trouble{c: &clock{begin}, dir: filepath.Join(dir, "history")}
	tr.s = openAt(t, tr.dir, tr.c, func(cfg *Config) { cfg.Log = slog.New(slog.NewTextHandler(&tr.log, nil)) })
	tr.add(1)
	if err := tr.s.Flush(); err != nil {
		t.Fatal(err)
	}
	return tr
}

// add adds so many listeners, each of another port.
func (tr *trouble) add(n int) {
	for range n {
		tr.c.pass(time.Millisecond)
		e := connection(int(tr.c.boot/1e6), tr.c)
		e.Local = netip.AddrPortFrom(e.Local.Addr(), uint16(tr.c.boot/1e6))
		tr.s.Add(Held, &e)
		if tr.s.budget.connections.tokens < 10 {
			tr.c.pass(time.Minute)
		}
	}
}

// fails has it fail for a reason, for long, and then go on: nothing is lost that there was room for, what
// is lost is counted, and all of it is said once.
func (tr *trouble) fails(t *testing.T, want error, why Reason, again func()) {
	t.Helper()
	tr.add(100)
	for range 5 {
		if err := tr.s.Flush(); !errors.Is(err, want) {
			t.Fatalf("flush: %v, want %v", err, want)
		}
		tr.add(10)
	}
	if n := tr.s.Stats().Lost[why]; n != 0 {
		t.Errorf("%d lost while there was room", n)
	}
	tr.add(60_000)
	lost := tr.s.Stats().Lost[why]
	if lost == 0 || tr.s.Stats().Folded != 0 {
		t.Fatalf("%+v: want some lost as %s", tr.s.Stats(), why)
	}
	var note Note
	if rows := collect(t, tr.s.Rows(&Query{}, nil, &note)); len(rows)+tr.hidden != 1+100+50+60_000-int(lost) {
		t.Errorf("%d rows while it fails, %d lost: %s", len(rows), lost, &note)
	}
	again()
	if err := tr.s.Flush(); err != nil {
		t.Fatalf("flush once it can: %v", err)
	}
	if got := strings.Count(tr.log.String(), "cannot be written"); got != 1 || strings.Count(tr.log.String(), "written again") != 1 {
		t.Errorf("log, once each wanted:\n%s", &tr.log)
	}
	tr.add(10)
	if err := tr.s.Close(nil); err != nil {
		t.Fatal(err)
	}
	if rows := readDir(t, tr.dir, Query{}); uint64(len(rows)) != 1+100+50+60_000+10-lost {
		t.Errorf("%d rows at the end, %d lost of 60161", len(rows), lost)
	}
}

func TestDiskFull(t *testing.T) {
	dir := tmpfs(t, "8M")
	tr := newTrouble(t, dir)
	fill(t, filepath.Join(dir, "ballast"))
	tr.fails(t, syscall.ENOSPC, LostFull, func() { os.Remove(filepath.Join(dir, "ballast")) })
}

// An agent that finds its disk full begins all the same.
func TestDiskFullAtStart(t *testing.T) {
	dir := tmpfs(t, "8M")
	tr := newTrouble(t, dir)
	crash(tr.s)
	fill(t, filepath.Join(dir, "ballast"))
	s := openAt(t, tr.dir, tr.c)
	e := listener(80, tr.c)
	s.Add(Held, &e)
	if err := s.Flush(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("flush: %v", err)
	}
	os.Remove(filepath.Join(dir, "ballast"))
	if err := s.Close(nil); err != nil {
		t.Error(err)
	}
	if rows := readDir(t, tr.dir, Query{}); len(rows) != 2 {
		t.Errorf("%d rows, want that before and that after", len(rows))
	}
}

func TestReadOnly(t *testing.T) {
	dir := tmpfs(t, "8M")
	tr := newTrouble(t, dir)
	remount := func(flags uintptr) {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	// A file system that has a file open for writing cannot be made read-only by hand: close it, as the
	// kernel does not need to.
	if err := errors.Join(tr.s.out[ofConnections].file.close(), tr.s.unlock()); err != nil {
		t.Fatal(err)
	}
	remount(unix.MS_RDONLY)
	tr.fails(t, syscall.EROFS, LostReadOnly, func() { remount(0) })
}

// An agent that begins on a file system that is read-only for now overwrites nothing of what is there once it
// may write.
func TestReadOnlyAtStart(t *testing.T) {
	dir := tmpfs(t, "8M")
	tr := newTrouble(t, dir)
	l := listener(22, tr.c)
	tr.s.Add(Held, &l)
	if err := tr.s.Flush(); err != nil {
		t.Fatal(err)
	}
	crash(tr.s)
	remount := func(flags uintptr) {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	s := openAt(t, tr.dir, tr.c)
	e := listener(80, tr.c)
	s.Add(Held, &e)
	if err := s.Flush(); !errors.Is(err, syscall.EROFS) {
		t.Errorf("flush: %v", err)
	}
	remount(0)
	if err := s.Flush(); err != nil {
		t.Error(err)
	}
	if rows := rowsOf(t, s, Query{}); len(rows) != 3 {
		t.Errorf("%d rows once it may be written, want 3", len(rows))
	}
	if err := s.Close(nil); err != nil {
		t.Error(err)
	}
	if rows := readDir(t, tr.dir, Query{}); len(rows) != 3 {
		t.Errorf("%d rows at the end, want those before and that after", len(rows))
	}
}

// Where another directory of the same name comes, as when its file system is mounted late, nothing of what is there
// is overwritten.
func TestDirectoryMountedLate(t *testing.T) {
	late := newTrouble(t, t.TempDir())
	for range 3 { // its segments have greater numbers
		crash(late.s)
		late.s = openAt(t, late.dir, late.c)
		late.add(1)
		if err := late.s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := late.s.Close(nil); err != nil {
		t.Fatal(err)
	}
	tr := newTrouble(t, t.TempDir())
	mountNS(t)
	if err := unix.Mount(late.dir, tr.dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(tr.dir, unix.MNT_DETACH)
	tr.add(2)
	if err := tr.s.Flush(); !errors.Is(err, errGone) {
		t.Fatalf("flush: %v", err)
	}
	tr.add(3)
	if err := errors.Join(tr.s.Flush(), tr.s.Close(nil)); err != nil {
		t.Fatal(err)
	}
	if rows := readDir(t, tr.dir, Query{}); len(rows) != 4+3 {
		t.Errorf("%d rows, want the 4 that were there and 3", len(rows))
	}
}

// A directory that is removed, or moved away, is made again; what was in it is lost, and counted as far
// as it was not written.
func TestDirectoryVanishes(t *testing.T) {
	for _, how := range []string{"removed", "moved"} {
		t.Run(how, func(t *testing.T) {
			tr := newTrouble(t, t.TempDir())
			tr.s.Opened()
			tr.add(10)
			err := os.RemoveAll(tr.dir)
			if how == "moved" {
				tr = newTrouble(t, t.TempDir())
				tr.s.Opened()
				tr.add(10)
				err = os.Rename(tr.dir, tr.dir+".old")
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := tr.s.Flush(); !errors.Is(err, errGone) {
				t.Fatalf("flush: %v", err)
			}
			if n := tr.s.Stats().Lost[LostGone]; n != 10 {
				t.Errorf("%d lost, want 10", n)
			}
			if !tr.s.Wanting() {
				t.Error("what is open is not asked for again")
			}
			tr.add(5)
			if err := tr.s.Flush(); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(Config{Dir: tr.dir, MaxSize: DefaultMaxSize, Log: quiet()}); !errors.Is(err, ErrInUse) {
				t.Errorf("a second agent: %v", err)
			}
			if err := tr.s.Close(nil); err != nil {
				t.Fatal(err)
			}
			if rows := readDir(t, tr.dir, Query{}); len(rows) != 5 {
				t.Errorf("%d rows, want 5", len(rows))
			}
			if got := strings.Count(tr.log.String(), "cannot be written"); got != 1 {
				t.Errorf("log:\n%s", &tr.log)
			}
		})
	}
}

// A directory that may not be written is refused, not tried for ever.
func TestOpenRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: path, MaxSize: DefaultMaxSize, Log: quiet()}); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
}

// writeForever is a process that writes and tells how much is synced, until it is killed.
func writeForever(dir string) {
	c := &clock{begin}
	s, err := Open(Config{Dir: dir, MaxSize: LeastSize * 64, Log: quiet(), clock: c.now})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var i int
	if _, err := fmt.Sscan(os.Getenv("PORTHOLE_TEST_FROM"), &i); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	c.boot += uint64(i) * 1e6 // later than the one before
	for {
		for range rand.IntN(300) {
			i++
			e := counted(i, c)
			s.Add(Held, &e)
		}
		c.pass(time.Second)
		if s.Wanting() {
			s.Opened()
		}
		if err := s.Flush(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.Stats().Records)
	}
}

// counted is an entry that tells its number in every part.
func counted(i int, c *clock) Entry {
	addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	e := Entry{
		Proto: tracer.TCP, Role: tracer.RoleServer, Local: netip.AddrPortFrom(addr, uint16(i)), Remote: netip.AddrPortFrom(addr, uint16(i+1)), NetNS: 1,
		Owner: tracer.Process{PID: uint32(i), UID: uint32(i + 1), Comm: fmt.Sprint("p", i)}, Errno: syscall.Errno(i % 100), At: time.Duration(c.boot), Taken: time.Duration(c.boot - uint64(i)),
	}
	if i%3 == 0 {
		e.Role, e.Remote, e.Owner.Cgroup = tracer.RoleListener, netip.AddrPort{}, uint64(i%50)
	}
	return e
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("PORTHOLE_TEST_WRITE"); dir != "" {
		writeForever(dir)
	}
	os.Exit(m.Run())
}

// A segment whose header is not written yet has nothing that could be damaged.
func TestReadBegun(t *testing.T) {
	dir := t.TempDir()
	for seq, size := range []int{0, 1, headerSize - 1} {
		if err := os.WriteFile(pathOf(dir, ofPorts, uint64(seq+1)), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var note Note
	for r, err := range Read(dir, &Query{}, &note) {
		t.Errorf("%+v, %v", r, err)
	}
	if note.Any() {
		t.Error(&note)
	}
}

// Whenever an agent is killed, every record that was synced is there, and nothing that was never
// written; the next agent finds the same.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	before := 0
	for kill := range 200 {
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), "PORTHOLE_TEST_WRITE="+dir, fmt.Sprint("PORTHOLE_TEST_FROM=", kill*1_000_000))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := make(chan string, 1000)
		go func() {
			defer close(lines)
			for in := bufio.NewScanner(out); in.Scan(); {
				lines <- in.Text()
			}
		}()
		last, ok := <-lines // it writes
		timer := time.AfterFunc(time.Duration(rand.IntN(20_000))*time.Microsecond, func() { cmd.Process.Kill() })
		for line := range lines {
			last = line
		}
		timer.Stop()
		cmd.Process.Kill()
		cmd.Wait()
		var n uint64
		if _, err := fmt.Sscan(last, &n); err != nil || !ok {
			t.Fatalf("kill %d: %q: %v", kill, last, err)
		}
		seen := make(map[uint32]bool)
		var note Note
		for r, err := range Read(dir, &Query{}, &note) {
			if err != nil {
				t.Fatal(err)
			}
			i := int(r.Owner.PID)
			c := clock{stamp{uint64(r.Took), 0}}
			want := counted(i, &c)
			if r.Kind != Held || r.Local != want.Local || r.Remote != want.Remote || r.Owner.UID != uint32(i+1) || r.Owner.Comm != want.Owner.Comm ||
				r.Errno != want.Errno || r.Took != time.Duration(i) || seen[r.Owner.PID] {
				t.Fatalf("kill %d: invented: %+v of %+v", kill, r, r.Owner)
			}
			seen[r.Owner.PID] = true
		}
		if note.Any() || uint64(len(seen)) < n+uint64(before) {
			t.Fatalf("kill %d: %d records, of which %d were synced: %s", kill, len(seen), n+uint64(before), &note)
		}
		if kill%4 == 0 { // the others go on where the one before was killed
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			before = 0
			continue
		}
		s, err := Open(Config{Dir: dir, MaxSize: LeastSize * 64, Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(nil); err != nil {
			t.Fatal(err)
		}
		before = len(seen)
	}
}
