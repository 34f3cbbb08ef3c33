package netns

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/cache"
)

// ID is which network namespace. No other ever has its cookie; its inode number is given
// to the next once it is gone. Before Linux 5.12 Cookie is 0, and the number is all there is.
type ID struct {
	Inode  uint32
	Cookie uint64
}

// Is tells whether both are the same namespace: by cookie, where both have one.
func (id ID) Is(other ID) bool {
	if id.Cookie != 0 && other.Cookie != 0 {
		return id.Cookie == other.Cookie
	}
	return id.Inode == other.Inode
}

// Names knows what network namespaces are called: "host" that of process 1, others by the
// names of Dir. Those change, and a name may be given to another namespace: what is
// remembered of a name belongs to a cookie. Safe for concurrent use.
type Names struct {
	dir    string
	host   uint32                // inode number, which process 1 keeps from being given to another; 0: not known
	exact  bool                  // a file of a namespace tells its cookie
	living func() ([]ID, error)  // every namespace there is; nil: cannot be told
	mu     sync.Mutex            // to read Dir
	now    atomic.Pointer[names] // what Dir has
	past   cache.Cache[string]   // the last name of a namespace, by cookie
	asked  cache.Cache[struct{}] // the cookies that Dir was read for
}

// names is what Dir had at a time. It does not change.
type names struct {
	start, end time.Time // of reading it
	files      map[string]file
	byCookie   map[uint64]string
	byInode    map[uint32]string
}

// file refers to a network namespace by a name, or to something else: id is zero then.
type file struct {
	id ID
	// ino and since are of the file: it is the same namespace's as long as they are.
	ino   uint64
	since time.Time // the namespace has had the inode number at least since then
}

// maxAge is for how long names are not read again, if nothing asks for newer ones.
const maxAge = time.Second

// maxPause is how long who asks waits at most before they are read again.
const maxPause = 20 * time.Millisecond

// NewNames returns the names of this machine. living lists every namespace; it is asked
// whether there is one of a number, and may be nil.
func NewNames(living func() ([]ID, error)) *Names {
	n := newNames(Dir, living)
	n.exact = filesTellCookies()
	if host, err := Host(); err == nil {
		n.host = host
	}
	return n
}

func newNames(dir string, living func() ([]ID, error)) *Names {
	n := &Names{dir: dir, living: living}
	n.now.Store(&names{})
	return n
}

// Fixed returns names that do not change, of the only namespaces there are. host 0: not
// known.
func Fixed(host uint32, byID map[ID]string) *Names {
	n := newNames("", func() ([]ID, error) { return append(slices.Collect(maps.Keys(byID)), ID{Inode: host}), nil })
	n.host = host
	now := &names{start: future, end: future, files: make(map[string]file), byCookie: make(map[uint64]string), byInode: make(map[uint32]string)}
	for id, name := range byID {
		now.add(name, file{id: id})
	}
	n.now.Store(now)
	return n
}

// future is later than whatever is asked about.
var future = time.Unix(1<<40, 0)

// IsHost tells whether a namespace is the machine's own.
func (n *Names) IsHost(id ID) bool { return id.Inode == n.host }

// Name is what a namespace was called at a time, "" if it had no name.
func (n *Names) Name(id ID, at time.Time) string {
	if n.host != 0 && n.IsHost(id) {
		return hostName
	}
	now := n.at(id, at)
	if name := now.byCookie[id.Cookie]; name != "" && id.Cookie != 0 {
		return name
	}
	if name := now.byInode[id.Inode]; name != "" && now.files[name].has(id, at) {
		n.remember(id, name)
		return name
	}
	if id.Cookie != 0 {
		// It had that name last. Now that another has it, it would be taken for that.
		if name, ok := n.past.Get(id.Cookie); ok && now.files[name].id == (ID{}) {
			return name
		}
	}
	return ""
}

const hostName = "host"

// has tells whether a namespace is that of the file, or was at a time.
func (f file) has(id ID, at time.Time) bool {
	if f.id.Cookie != 0 && id.Cookie != 0 {
		return f.id.Cookie == id.Cookie
	}
	// The file keeps its namespace, and so the number. Its time is that of a coarse clock.
	const coarse = 10 * time.Millisecond
	return f.id.Inode == id.Inode && id.Inode != 0 && !at.Add(coarse).Before(f.since)
}

// called tells whether a namespace had a name at a time.
func (n *Names) called(name string, id ID, at time.Time) bool {
	if name == hostName {
		return n.IsHost(id)
	}
	now := n.at(id, at)
	f := now.files[name]
	if f.has(id, at) {
		n.remember(id, name)
		return true
	}
	if id.Cookie == 0 {
		return false
	}
	last, ok := n.past.Get(id.Cookie)
	return ok && last == name && (f.id == (ID{}) || at.Before(f.since))
}

func (n *Names) remember(id ID, name string) {
	if id.Cookie == 0 {
		return
	}
	if last, ok := n.past.Get(id.Cookie); !ok || last != name {
		n.past.Put(id.Cookie, name)
	}
}

// at is what Dir has, read after a time unless what was read before tells as much of a
// namespace. It may wait a little.
func (n *Names) at(id ID, at time.Time) *names {
	now := n.now.Load()
	if now.end == future {
		return now
	}
	if clock := time.Now(); at.After(clock) {
		at = clock // it was set back since
	}
	asked := false
	if id.Cookie != 0 {
		_, asked = n.asked.Get(id.Cookie)
	}
	age, took := time.Since(now.end), now.end.Sub(now.start)
	switch unknown := !asked && !at.Before(now.start); {
	case unknown && age < took:
		time.Sleep(min(took-age, maxPause)) // reading takes half of the time, whoever makes namespaces
		fallthrough
	case unknown, age >= max(maxAge, took):
		now = n.read(now)
	}
	if id.Cookie != 0 && !asked && at.Before(now.start) {
		n.asked.Put(id.Cookie, struct{}{})
	}
	return now
}

// read reads Dir, unless somebody else has since it was last read.
func (n *Names) read(last *names) *names {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := n.now.Load(); now != last || now.end == future {
		return now
	}
	now := &names{start: time.Now(), files: make(map[string]file), byCookie: make(map[uint64]string), byInode: make(map[uint32]string)}
	entries, err := os.ReadDir(n.dir) // sorted: of a namespace's names the first counts
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		now.files, now.byCookie, now.byInode = last.files, last.byCookie, last.byInode // asked again when it is old
		entries = nil
	}
	for _, e := range entries {
		name := e.Name()
		if name == hostName {
			continue // which is another's
		}
		f, err := n.look(filepath.Join(n.dir, name), last.files[name])
		if err != nil {
			continue // it went away, or is asked again when it is old
		}
		now.add(name, f)
		if f.id.Cookie != 0 {
			n.remember(f.id, name)
		}
	}
	now.end = time.Now()
	n.now.Store(now)
	return now
}

func (now *names) add(name string, f file) {
	now.files[name] = f
	if f.id.Cookie != 0 && now.byCookie[f.id.Cookie] == "" {
		now.byCookie[f.id.Cookie] = name
	}
	if f.id.Inode != 0 && now.byInode[f.id.Inode] == "" {
		now.byInode[f.id.Inode] = name
	}
}

// look tells what a file refers to; last is what it was before.
func (n *Names) look(path string, last file) (file, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return file{}, err
	}
	if f := fileOf(&st); f.ino == last.ino && f.since.Equal(last.since) {
		return last, nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return file{}, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return file{}, err
	}
	f := fileOf(&st)
	if isNetNS(fd) {
		f.id.Inode = uint32(st.Ino)
		if n.exact {
			f.id.Cookie, err = cookieOf(fd)
		}
	}
	return f, err
}

func fileOf(st *unix.Stat_t) file {
	return file{ino: st.Ino, since: time.Unix(st.Ctim.Unix())}
}

// isNetNS tells whether a file refers to a network namespace. A name that another mount
// namespace made is an empty file here.
func isNetNS(fd int) bool {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return false
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	return err == nil && kind == unix.CLONE_NEWNET
}

// Wanted is a namespace that was asked for: by name whichever has it, else one.
type Wanted struct {
	names *Names
	name  string // "": id
	id    ID
}

// Is tells whether a namespace is, or at a time was, one that is wanted.
func (w Wanted) Is(id ID, at time.Time) bool {
	if w.name != "" {
		return w.names.called(w.name, id, at)
	}
	return id.Is(w.id)
}

// ID is the namespace that is wanted now. The error wraps ErrNone.
func (w Wanted) ID() (ID, error) {
	switch {
	case w.name == "":
		return w.id, nil
	case w.name == hostName:
		return ID{Inode: w.names.host}, nil
	}
	id := w.names.read(w.names.now.Load()).files[w.name].id
	if id == (ID{}) {
		return id, fmt.Errorf("%w: %q", ErrNone, w.name)
	}
	return id, nil
}

// CheckWord tells whether a word can be that of a namespace: host, a name of Dir, or an
// inode number.
func CheckWord(word string) error {
	if word == "" || word == "." || word == ".." || strings.Contains(word, "/") {
		return unknown(word)
	}
	return nil
}

func unknown(word string) error {
	return fmt.Errorf("network namespace %q: want host, a name of %s, or an inode number", word, Dir)
}

// Want looks for a namespace by a word as CheckWord has it. A name wins over a number.
func (n *Names) Want(word string) (Wanted, error) {
	if err := CheckWord(word); err != nil {
		return Wanted{}, err
	}
	if word == hostName {
		if n.host == 0 {
			return Wanted{}, fmt.Errorf("network namespace %q: %w: process 1 may not be asked", word, ErrNotPermitted)
		}
		return Wanted{names: n, name: word}, nil
	}
	if n.read(n.now.Load()).files[word].id != (ID{}) {
		return Wanted{names: n, name: word}, nil
	}
	number, err := strconv.ParseUint(word, 10, 32)
	if err != nil {
		return Wanted{}, fmt.Errorf("%w: %w", unknown(word), ErrNone)
	}
	id, err := n.find(uint32(number))
	return Wanted{names: n, id: id}, err
}

// find looks for a namespace by its inode number. The error wraps ErrNone, or
// ErrNotPermitted where not all could be asked.
func (n *Names) find(inode uint32) (ID, error) {
	if n.living == nil {
		_, err := find(inode)
		return ID{Inode: inode}, err
	}
	all, err := n.living()
	if err != nil {
		return ID{}, fmt.Errorf("list network namespaces: %w", err)
	}
	// The last is the newest: one that was going away while they were read may be before it.
	for _, id := range slices.Backward(all) {
		if id.Inode == inode {
			return id, nil
		}
	}
	return ID{}, fmt.Errorf("%w: inode number %d", ErrNone, inode)
}
