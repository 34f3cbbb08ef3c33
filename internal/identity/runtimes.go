package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// providers know the containers of one runtime each, by the files it keeps. They are asked in this
// order.
var providers = []provider{docker, containersStorage, containerd, machined}

// provider tells what the files of a runtime say of a container: a record, nil where
// the runtime has none of that id. An error: ask again.
type provider func(o owner, c claim) (*record, error)

// record is what a runtime's files say of a container.
type record struct {
	container Container
	pod       *Pod
	place     string // cgroupsPath, see agrees; "": they do not say
	virtual   bool   // it is a virtual machine
	files     []file // that were read
}

// runtimeFiles reads the files that runtimes keep of their containers. root is "" but in
// tests: what their paths are below.
type runtimeFiles struct {
	root string

	mu       sync.Mutex
	storages map[string]*storage // by directory
	reading  map[uint32]reading  // by user
}

// owner is whose files are read: those of the system, or with user set those of a user's
// runtimes, below his home and his directory in /run.
type owner struct {
	files *runtimeFiles
	user  *uint32
	home  string
}

// find asks all providers for a container of the system.
func (f *runtimeFiles) find(c claim) (*record, error) { return owner{files: f}.find(c) }

// findOf asks all providers for a container of a user. The system's come first: he cannot
// have one of the same id. His files can be where reading takes forever.
func (f *runtimeFiles) findOf(uid uint32, c claim) (*record, error) {
	if r, err := f.find(c); r != nil || err != nil {
		return nil, err
	}
	return f.within(uid, func() (*record, error) {
		o := owner{files: f, user: &uid}
		u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
		if err == nil {
			o.home = u.HomeDir
		} else if unknown := user.UnknownUserIdError(0); !errors.As(err, &unknown) {
			return nil, fmt.Errorf("look up the home of a user: %w", err)
		}
		return o.find(c)
	})
}

func (o owner) find(c claim) (*record, error) {
	for _, p := range providers {
		if r, err := p(o, c); r != nil || err != nil {
			return r, err
		}
	}
	return nil, nil
}

// file is a file as it was when it was read.
type file struct {
	dir, name string
	ino       uint64
	size      int64
	changed   unix.Timespec
}

const (
	maxConfig = 4 << 20  // of a container
	maxIndex  = 64 << 20 // of all containers
)

var (
	// errNone: there is no such file.
	errNone = errors.New("no such file")
	// errUnfinished: the runtime has made the directory of a container, and not yet written down its
	// name.
	errUnfinished = errors.New("the container's runtime has not written down its name yet")
)

// open opens a file below a directory, whose own path may lead through symbolic links; that of the
// file may not, for who is in a container may have made them. errNone where there is none.
func (o owner) open(dir, name string, st *unix.Stat_t) (fd int, err error) {
	base, below, resolve := filepath.Join(o.files.root, dir), name, uint64(unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if o.user != nil { // the directory is the user's, too
		base = filepath.Join(o.files.root, o.home)
		if below, err = filepath.Rel(o.home, filepath.Join(dir, name)); err != nil || !filepath.IsLocal(below) {
			base, below = filepath.Join(o.files.root, dir), name
		}
		resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
	}
	top, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: resolve}
		fd, err = unix.Openat2(top, below, &how)
		unix.Close(top)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.EXDEV), errors.Is(err, syscall.ENAMETOOLONG):
		return -1, errNone
	case err != nil:
		return -1, fmt.Errorf("open %s: %w", filepath.Join(dir, name), err)
	}
	if err := unix.Fstat(fd, st); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("stat %s: %w", filepath.Join(dir, name), err)
	}
	if o.user != nil && st.Uid != *o.user {
		unix.Close(fd)
		return -1, errNone
	}
	return fd, nil
}

// read reads a file; errNone where there is none, or what is there is none.
func (o owner) read(dir, name string, most int64) ([]byte, file, error) {
	var st unix.Stat_t
	fd, err := o.open(dir, name, &st)
	if err != nil {
		return nil, file{}, err
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > most {
		return nil, file{}, errNone
	}
	b, err := io.ReadAll(io.LimitReader(reader(fd), most))
	if err != nil {
		return nil, file{}, fmt.Errorf("read %s: %w", filepath.Join(dir, name), err)
	}
	return b, file{dir, name, st.Ino, st.Size, st.Mtim}, nil
}

type reader int

func (fd reader) Read(p []byte) (int, error) {
	n, err := unix.Read(int(fd), p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}

// parse reads a file as JSON. A runtime may be writing it: what is no JSON is an error.
func (o owner) parse(dir, name string, v any) (file, error) {
	b, f, err := o.read(dir, name, maxConfig)
	if err == nil {
		if err = json.Unmarshal(b, v); err != nil {
			err = fmt.Errorf("read %s: %w", filepath.Join(dir, name), err)
		}
	}
	return f, err
}

// changed tells whether a file is another now, or an error where that cannot be told. One that is gone
// has not changed: the last name stays.
func (o owner) changed(f *file) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(unix.AT_FDCWD, filepath.Join(o.files.root, f.dir, f.name), &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("stat %s: %w", filepath.Join(f.dir, f.name), err)
	}
	return st.Ino != f.ino || st.Size != f.size || st.Mtim != f.changed, nil
}

// exists tells whether there is such a directory in another.
func (o owner) exists(dir, name string) (bool, error) {
	var st unix.Stat_t
	fd, err := o.open(dir, name, &st)
	if errors.Is(err, errNone) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, unix.Close(fd)
}

// list names the directories in a directory; none where there is no such one.
func (o owner) list(dir string) ([]string, error) {
	var st unix.Stat_t
	fd, err := o.open(dir, ".", &st)
	if errors.Is(err, errNone) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", dir, err)
		}
		if n == 0 || len(names) > maxNamespaces {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// maxNamespaces is how many namespaces of containerd are looked at.
const maxNamespaces = 64
