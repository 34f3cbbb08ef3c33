package identity

import (
	"errors"
	"fmt"
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

// NetNSNames knows what network namespaces are called: "host" that of process 1, others by the
// names of NetNSDir. Those change, and a name may be given to another namespace: what is
// remembered of a name belongs to a cookie. Safe for concurrent use.
type NetNSNames struct {
	dir    string
	host   uint32                   // inode number, which process 1 keeps from being given to another; 0: not known
	exact  bool                     // a file of a namespace tells its cookie
	living func() ([]NetNS, error)  // every namespace there is; nil: cannot be told
	mu     sync.Mutex               // to read NetNSDir
	now    atomic.Pointer[dirNames] // what NetNSDir has
	past   cache.Cache[string]      // the last name of a namespace, by cookie
	asked  cache.Cache[struct{}]    // the cookies that NetNSDir was read for
}

// dirNames is what NetNSDir had at a time. It does not change.
type dirNames struct {
	start, end time.Time // of reading it
	files      map[string]netNSFile
	byCookie   map[uint64]string
	byInode    map[uint32]string
	all        []NetNS // every namespace there is, where these names were told
}

// netNSFile refers to a network namespace by a name, or to something else: id is zero then.
type netNSFile struct {
	id NetNS
	// ino and since are of the file: it is the same namespace's as long as they are.
	ino   uint64
	since time.Time // the namespace has had the inode number at least since then
}

// maxAge is for how long names are not read again, if nothing asks for newer ones.
const maxAge = time.Second

// maxPause is how long who asks waits at most before they are read again.
const maxPause = 20 * time.Millisecond

// NewNetNSNames returns the names of this machine. living lists every namespace; it is asked
// whether there is one of a number, and may be nil.
func NewNetNSNames(living func() ([]NetNS, error)) *NetNSNames {
	n := newNetNSNames(NetNSDir, living)
	n.exact = filesTellCookies()
	if host, err := HostNetNS(); err == nil {
		n.host = host
	}
	return n
}

func newNetNSNames(dir string, living func() ([]NetNS, error)) *NetNSNames {
	n := &NetNSNames{dir: dir, living: living}
	n.now.Store(&dirNames{})
	return n
}

// FixedNetNSNames returns names that change by Tell alone, of the only namespaces there are, as Tell has
// them. host 0: not known.
func FixedNetNSNames(host uint32, byID map[NetNS]string) *NetNSNames {
	n := newNetNSNames("", nil)
	n.living = func() ([]NetNS, error) { return n.now.Load().all, nil }
	n.host = host
	n.Tell(byID)
	return n
}

// Tell replaces the names of FixedNetNSNames; "": that namespace has none.
func (n *NetNSNames) Tell(byID map[NetNS]string) {
	now := &dirNames{start: future, end: future, files: make(map[string]netNSFile), byCookie: make(map[uint64]string), byInode: make(map[uint32]string)}
	for id, name := range byID {
		if now.all = append(now.all, id); name != "" {
			now.add(name, netNSFile{id: id})
		}
	}
	now.all = append(now.all, NetNS{Inode: n.host})
	n.now.Store(now)
}

// future is later than whatever is asked about.
var future = time.Unix(1<<40, 0)

// Known tells whether a namespace is among those that Tell has told of.
func (n *NetNSNames) Known(id NetNS) bool {
	return slices.ContainsFunc(n.now.Load().all, func(told NetNS) bool { return told.Is(id) })
}

// IsHost tells whether a namespace is the machine's own.
func (n *NetNSNames) IsHost(id NetNS) bool { return id.Inode == n.host }

// Name is what a namespace was called at a time, "" if it had no name.
func (n *NetNSNames) Name(id NetNS, at time.Time) string {
	if n.host != 0 && n.IsHost(id) {
		return HostName
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
		if name, ok := n.past.Get(id.Cookie); ok && now.files[name].id == (NetNS{}) {
			return name
		}
	}
	return ""
}

// HostName is what the machine's own network namespace is called.
const HostName = "host"

// has tells whether a namespace is that of the file, or was at a time.
func (f netNSFile) has(id NetNS, at time.Time) bool {
	if f.id.Cookie != 0 && id.Cookie != 0 {
		return f.id.Cookie == id.Cookie
	}
	// The file keeps its namespace, and so the number. Its time is that of a coarse clock.
	const coarse = 10 * time.Millisecond
	return f.id.Inode == id.Inode && id.Inode != 0 && !at.Add(coarse).Before(f.since)
}

// called tells whether a namespace had a name at a time.
func (n *NetNSNames) called(name string, id NetNS, at time.Time) bool {
	if name == HostName {
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
	return ok && last == name && (f.id == (NetNS{}) || at.Before(f.since))
}

func (n *NetNSNames) remember(id NetNS, name string) {
	if id.Cookie == 0 {
		return
	}
	if last, ok := n.past.Get(id.Cookie); !ok || last != name {
		n.past.Put(id.Cookie, name)
	}
}

// at is what NetNSDir has, read after a time unless what was read before tells as much of a
// namespace. It may wait a little.
func (n *NetNSNames) at(id NetNS, at time.Time) *dirNames {
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

// read reads NetNSDir, unless somebody else has since it was last read.
func (n *NetNSNames) read(last *dirNames) *dirNames {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := n.now.Load(); now != last || now.end == future {
		return now
	}
	now := &dirNames{start: time.Now(), files: make(map[string]netNSFile), byCookie: make(map[uint64]string), byInode: make(map[uint32]string)}
	entries, err := os.ReadDir(n.dir) // sorted: of a namespace's names the first counts
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		now.files, now.byCookie, now.byInode = last.files, last.byCookie, last.byInode // asked again when it is old
		entries = nil
	}
	for _, e := range entries {
		name := e.Name()
		if name == HostName {
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

func (now *dirNames) add(name string, f netNSFile) {
	now.files[name] = f
	if f.id.Cookie != 0 && now.byCookie[f.id.Cookie] == "" {
		now.byCookie[f.id.Cookie] = name
	}
	if f.id.Inode != 0 && now.byInode[f.id.Inode] == "" {
		now.byInode[f.id.Inode] = name
	}
}

// look tells what a file refers to; last is what it was before.
func (n *NetNSNames) look(path string, last netNSFile) (netNSFile, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return netNSFile{}, err
	}
	if f := netNSFileOf(&st); f.ino == last.ino && f.since.Equal(last.since) {
		return last, nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return netNSFile{}, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return netNSFile{}, err
	}
	f := netNSFileOf(&st)
	if isNetNS(fd) {
		f.id.Inode = uint32(st.Ino)
		if n.exact {
			f.id.Cookie, err = cookieOf(fd)
		}
	}
	return f, err
}

func netNSFileOf(st *unix.Stat_t) netNSFile {
	return netNSFile{ino: st.Ino, since: time.Unix(st.Ctim.Unix())}
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

// WantedNetNS is a namespace that was asked for: by name whichever has it, else one.
type WantedNetNS struct {
	names *NetNSNames
	name  string // "": id
	id    NetNS
}

// Is tells whether a namespace is, or at a time was, one that is wanted.
func (w WantedNetNS) Is(id NetNS, at time.Time) bool {
	if w.name != "" {
		return w.names.called(w.name, id, at)
	}
	return id.Is(w.id)
}

// ID is the namespace that is wanted now. The error wraps ErrNoNetNS.
func (w WantedNetNS) ID() (NetNS, error) {
	switch {
	case w.name == "":
		return w.id, nil
	case w.name == HostName:
		return NetNS{Inode: w.names.host}, nil
	}
	id := w.names.read(w.names.now.Load()).files[w.name].id
	if id == (NetNS{}) {
		return id, fmt.Errorf("%w: %q", ErrNoNetNS, w.name)
	}
	return id, nil
}

// CheckNetNS tells whether a word can be that of a namespace: host, a name of NetNSDir, or an
// inode number.
func CheckNetNS(word string) error {
	if word == "" || word == "." || word == ".." || strings.Contains(word, "/") {
		return unknownNetNS(word)
	}
	return nil
}

func unknownNetNS(word string) error {
	return fmt.Errorf("network namespace %q: want host, a name of %s, or an inode number", word, NetNSDir)
}

// Want looks for a namespace by a word as CheckNetNS has it. A name wins over a number.
func (n *NetNSNames) Want(word string) (WantedNetNS, error) {
	if err := CheckNetNS(word); err != nil {
		return WantedNetNS{}, err
	}
	if word == HostName {
		if n.host == 0 {
			return WantedNetNS{}, fmt.Errorf("network namespace %q: %w: process 2 may not be asked", word, ErrNotPermitted)
		}
		return WantedNetNS{names: n, name: word}, nil
	}
	if n.read(n.now.Load()).files[word].id != (NetNS{}) {
		return WantedNetNS{names: n, name: word}, nil
	}
	number, err := strconv.ParseUint(word, 10, 32)
	if err != nil {
		return WantedNetNS{}, fmt.Errorf("%w: %w", unknownNetNS(word), ErrNoNetNS)
	}
	id, err := n.find(uint32(number))
	return WantedNetNS{names: n, id: id}, err
}

// find looks for a namespace by its inode number. The error wraps ErrNoNetNS, or
// ErrNotPermitted where not all could be asked.
func (n *NetNSNames) find(inode uint32) (NetNS, error) {
	if n.living == nil {
		_, err := findNetNS(inode)
		return NetNS{Inode: inode}, err
	}
	all, err := n.living()
	if err != nil {
		return NetNS{}, fmt.Errorf("list network namespaces: %w", err)
	}
	// The last is the newest: one that was going away while they were read may be before it.
	for _, id := range slices.Backward(all) {
		if id.Inode == inode {
			return id, nil
		}
	}
	return NetNS{}, fmt.Errorf("%w: inode number %d", ErrNoNetNS, inode)
}
