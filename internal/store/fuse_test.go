package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// badDisk is a file system that fails when it is told to: what it says comes from the kernel's own calls.
type badDisk struct {
	dir string // where it is mounted

	mu                        sync.Mutex
	read, write, sync, create syscall.Errno
	hang                      chan struct{}    // a sync returns once it is closed; nil: at once
	waiting                   chan struct{}    // has something to receive once a sync hangs
	synced                    map[string]int64 // size of each file at its last sync that succeeded
}

// newBadDisk mounts one. It is the test's own, in its own mount namespace.
func newBadDisk(t *testing.T) *badDisk {
	t.Helper()
	mountNS(t)
	if _, err := os.Stat("/dev/fuse"); errors.Is(err, os.ErrNotExist) {
		if err := unix.Mknod("/dev/fuse", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 229))); err != nil {
			t.Fatal(err)
		}
	}
	below := t.TempDir()
	d := &badDisk{dir: t.TempDir(), waiting: make(chan struct{}, 1), synced: make(map[string]int64)}
	var st syscall.Stat_t
	if err := syscall.Stat(below, &st); err != nil {
		t.Fatal(err)
	}
	root := &fs.LoopbackRoot{Path: below, Dev: st.Dev}
	root.RootNode = &badNode{&fs.LoopbackNode{RootData: root}, d}
	server, err := fs.Mount(d.dir, root.RootNode, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "porthole-test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.set(func() {
			if d.hang != nil {
				close(d.hang)
				d.hang = nil
			}
		})
		if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); server.Wait() }()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("the file system does not end within a minute")
		}
	})
	return d
}

func (d *badDisk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *badDisk) errno(of *syscall.Errno) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	return *of
}

type badNode struct {
	*fs.LoopbackNode
	disk *badDisk
}

var _ fs.NodeWrapChilder = (*badNode)(nil)

// WrapChild has what is below be of the bad disk too.
func (n *badNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	return &badNode{child.(*fs.LoopbackNode), n.disk}
}

func (n *badNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if errno := n.disk.errno(&n.disk.create); errno != 0 {
		return nil, nil, 0, errno
	}
	inode, file, fuseFlags, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.wrap(file, name), fuseFlags, errno
}

func (n *badNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	file, fuseFlags, errno := n.LoopbackNode.Open(ctx, flags)
	return n.wrap(file, filepath.Base(n.Path(nil))), fuseFlags, errno
}

func (n *badNode) wrap(file fs.FileHandle, name string) fs.FileHandle {
	if file == nil {
		return nil
	}
	return &badFile{file.(*fs.LoopbackFile), n.disk, name}
}

// badFile is an open file. What its embedded one can do with the backing file behind our back it cannot.
type badFile struct {
	*fs.LoopbackFile
	disk *badDisk
	name string
}

// PassthroughFd says that the kernel asks us for each call.
func (f *badFile) PassthroughFd() (int, bool) { return 0, false }

func (f *badFile) Read(ctx context.Context, buf []byte, at int64) (fuse.ReadResult, syscall.Errno) {
	if errno := f.disk.errno(&f.disk.read); errno != 0 {
		return nil, errno
	}
	return f.LoopbackFile.Read(ctx, buf, at)
}

func (f *badFile) Write(ctx context.Context, data []byte, at int64) (uint32, syscall.Errno) {
	if errno := f.disk.errno(&f.disk.write); errno != 0 {
		return 0, errno
	}
	return f.LoopbackFile.Write(ctx, data, at)
}

// Fsync loses, where it fails, what was written since it last did not: so does a kernel that could not write its
// cache, and it says so once.
func (f *badFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	d := f.disk
	d.mu.Lock()
	hang, errno, size := d.hang, d.sync, d.synced[f.name]
	d.mu.Unlock()
	if hang != nil {
		select {
		case d.waiting <- struct{}{}:
		default:
		}
		<-hang
	}
	if errno != 0 {
		f.LoopbackFile.Setattr(ctx, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE, Size: uint64(size)}}, new(fuse.AttrOut))
		return errno
	}
	errno = f.LoopbackFile.Fsync(ctx, flags)
	var attr fuse.AttrOut
	if errno == 0 && f.Getattr(ctx, &attr) == 0 {
		d.set(func() { d.synced[f.name] = int64(attr.Size) })
	}
	return errno
}

// Whatever error a disk has, when writing or when syncing, is counted by its reason, said once and tried again, and what
// was written before a sync that failed is written again.
func TestBadDisk(t *testing.T) {
	for _, c := range []struct {
		what  string
		errno syscall.Errno
		why   Reason
		of    func(*badDisk) *syscall.Errno
	}{
		{"sync, EIO", syscall.EIO, LostIO, func(d *badDisk) *syscall.Errno { return &d.sync }},
		{"sync, ENOSPC", syscall.ENOSPC, LostFull, func(d *badDisk) *syscall.Errno { return &d.sync }}, // of a network's file systems
		{"write, EIO", syscall.EIO, LostIO, func(d *badDisk) *syscall.Errno { return &d.write }},
		{"write, ENOSPC", syscall.ENOSPC, LostFull, func(d *badDisk) *syscall.Errno { return &d.write }},
		{"write, EDQUOT", syscall.EDQUOT, LostFull, func(d *badDisk) *syscall.Errno { return &d.write }},
		{"write, EROFS", syscall.EROFS, LostReadOnly, func(d *badDisk) *syscall.Errno { return &d.write }},
	} {
		t.Run(c.what, func(t *testing.T) {
			d := newBadDisk(t)
			tr := newTrouble(t, d.dir)
			d.set(func() { *c.of(d) = c.errno })
			tr.fails(t, c.errno, c.why, func() { d.set(func() { *c.of(d) = 0 }) })
		})
	}
}

// A segment that cannot be made is made later.
func TestBadDiskNewSegment(t *testing.T) {
	d := newBadDisk(t)
	tr := newTrouble(t, d.dir)
	d.set(func() { d.create = syscall.EIO })
	l := listener(80, tr.c) // the first of its kind
	tr.s.Add(Held, &l)
	if err := tr.s.Flush(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("flush: %v", err)
	}
	d.set(func() { d.create = 0 })
	if err := tr.s.Close(nil); err != nil {
		t.Fatal(err)
	}
	if rows := readDir(t, tr.dir, Query{}); len(rows) != 2 {
		t.Errorf("%d rows, want 2", len(rows))
	}
}

// An agent begins on a disk that fails, reads or writes nothing of it for a while, and takes no name of what
// is there.
func TestBadDiskAtStart(t *testing.T) {
	for _, broken := range []func(*badDisk){
		func(d *badDisk) { d.sync = syscall.EIO },
		func(d *badDisk) { d.write = syscall.EIO },
		func(d *badDisk) { d.read, d.write, d.create = syscall.EIO, syscall.EIO, syscall.EIO },
	} {
		d := newBadDisk(t)
		tr := newTrouble(t, d.dir)
		crash(tr.s)
		d.set(func() { broken(d) })
		s := openAt(t, tr.dir, tr.c)
		e := listener(80, tr.c)
		s.Add(Held, &e)
		if err := s.Flush(); !errors.Is(err, syscall.EIO) {
			t.Errorf("flush: %v", err)
		}
		d.set(func() { d.read, d.write, d.sync, d.create = 0, 0, 0, 0 })
		if err := s.Close(nil); err != nil {
			t.Error(err)
		}
		if rows := readDir(t, tr.dir, Query{}); len(rows) != 2 {
			t.Errorf("%d rows, want that before and that after", len(rows))
		}
	}
}

// What cannot be read is told, and the rest is answered.
func TestBadDiskRead(t *testing.T) {
	d := newBadDisk(t)
	tr := newTrouble(t, d.dir)
	if err := tr.s.Close(nil); err != nil {
		t.Fatal(err)
	}
	s := openAt(t, tr.dir, tr.c)
	defer s.Close(nil)
	l := listener(80, tr.c)
	s.Add(Held, &l)
	d.set(func() { d.read = syscall.EIO })
	var note Note
	rows := collect(t, s.Rows(&Query{}, nil, &note))
	if len(rows) != 1 || len(note.Errors) == 0 || !errors.Is(note.Errors[0], syscall.EIO) {
		t.Errorf("%d rows, %+v", len(rows), note)
	}
	d.set(func() { d.read = 0 })
	if rows := rowsOf(t, s, Query{}); len(rows) != 2 {
		t.Errorf("%d rows once it can be read, want 2", len(rows))
	}
}

// A disk that does not answer holds up nobody but who writes to it: not who adds, asks or counts. It is said
// once, before anything is lost; what does not fit into memory is lost as slow.
func TestDiskHangs(t *testing.T) {
	d := newBadDisk(t)
	tr := newTrouble(t, d.dir)
	var log bytes.Buffer
	tr.s.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	hang := make(chan struct{})
	d.set(func() { d.hang = hang })
	tr.add(100)
	mounts, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mounts)
	flushed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(mounts, unix.CLONE_NEWNS)); err != nil {
			flushed <- err
			return
		}
		flushed <- tr.s.Flush()
	}()
	select {
	case <-d.waiting:
	case <-time.After(time.Minute):
		t.Fatal("no sync within a minute")
	}
	tr.s.look()
	if log.Len() > 0 {
		t.Errorf("said at once:\n%s", &log)
	}
	tr.c.pass(stalledFor + time.Second)
	tr.s.look()
	tr.s.look()
	if strings.Count(log.String(), "cannot be written in time") != 1 || tr.s.Stats().Lost[LostSlow] != 0 {
		t.Errorf("lost %d, log, one line wanted:\n%s", tr.s.Stats().Lost[LostSlow], &log)
	}
	tr.add(60_000) // would never return
	lost := tr.s.Stats().Lost[LostSlow]
	if rows := rowsOf(t, tr.s, Query{}); lost == 0 || len(rows) != 1+100+60_000-int(lost) {
		t.Errorf("%d rows while it hangs, %d lost", len(rows), lost)
	}
	d.set(func() { d.hang = nil })
	close(hang)
	select {
	case err := <-flushed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the flush does not end within a minute")
	}
	tr.c.pass(inTimeFor + time.Second)
	if err := tr.s.Flush(); err != nil {
		t.Fatal(err)
	}
	if strings.Count(log.String(), "cannot be written in time") != 1 || strings.Count(log.String(), "in time again") != 1 {
		t.Errorf("log, once each wanted:\n%s", &log)
	}
	if err := tr.s.Close(nil); err != nil {
		t.Fatal(err)
	}
	if rows := readDir(t, tr.dir, Query{}); len(rows) != 1+100+60_000-int(lost) {
		t.Errorf("%d rows at the end, %d lost", len(rows), lost)
	}
}
