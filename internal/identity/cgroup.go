package identity

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/cache"
)

// Cgroups turns cgroup ids into Cgroup and remembers what it found. It is safe for
// concurrent use; nobody waits for what another looks up.
type Cgroups struct {
	root  string
	fd    int // of root, -1: not mounted
	files runtimeFiles
	known cache.Cache[lookup] // by cgroup id, which the kernel never gives again
}

// lookup is what came of looking a cgroup up.
type lookup struct {
	info  Cgroup
	again time.Time // when to look again for what could not be read; zero: never
}

// lookAgain is how long what could not be read is not looked for: every event may ask.
const lookAgain = time.Second

// NewCgroups returns a resolver for the hierarchy mounted at root; with root ""
// it knows nothing.
func NewCgroups(root string) *Cgroups {
	r := &Cgroups{root: root, fd: -1}
	if root == "" {
		return r
	}
	if fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		r.fd = fd
	}
	return r
}

// Check tells whether cgroups can be named; if not, with the capability that this
// takes.
func (r *Cgroups) Check() error {
	if r.fd < 0 {
		return nil
	}
	handle, _, err := unix.NameToHandleAt(r.fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("handle of %s: %w", r.root, err)
	}
	fd, err := unix.OpenByHandleAt(r.fd, handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cgroups and containers are not named, that takes CAP_DAC_READ_SEARCH: %w", err)
	}
	return unix.Close(fd)
}

// Close frees the resolver.
func (r *Cgroups) Close() error {
	if r.fd < 0 {
		return nil
	}
	return unix.Close(r.fd)
}

// Resolve tells what a cgroup id stands for. A cgroup that is gone, and was not
// asked for while it existed, is not known. It may read files: hold no lock.
func (r *Cgroups) Resolve(id uint64) Cgroup {
	if id == 0 || r.fd < 0 {
		return Cgroup{}
	}
	l, ok := r.known.Get(id)
	if ok && (l.again.IsZero() || time.Now().Before(l.again)) {
		return l.info
	}
	info, err := r.lookUp(id)
	if info.Path == "" {
		info = l.info // of an earlier look that had something
	}
	l = lookup{info: info}
	if err != nil && !errors.Is(err, unix.ESTALE) { // ESTALE: the cgroup is gone, for good
		l.again = time.Now().Add(lookAgain)
	}
	r.known.Put(id, l)
	return info
}

// lookUp opens the cgroup by its id, which is its file handle (kernfs), and reads
// where it is. This needs CAP_DAC_READ_SEARCH. With an error Cgroup is what could be read.
func (r *Cgroups) lookUp(id uint64) (Cgroup, error) {
	const fileidKernfs = 0xfe
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(r.fd, handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return Cgroup{}, fmt.Errorf("open cgroup %d: %w", id, err)
	}
	defer unix.Close(fd)
	path, err := r.path(fd)
	if err != nil {
		return Cgroup{}, err
	}
	info := Cgroup{Path: path}
	info.Container, err = r.container(fd, path)
	return info, err
}

// path is where a cgroup is, below root.
func (r *Cgroups) path(fd int) (string, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", fmt.Errorf("read path of a cgroup: %w", err)
	}
	const gone = " (deleted)" // since it was opened
	if strings.HasSuffix(path, gone) && unix.Access(path, unix.F_OK) != nil {
		path = strings.TrimSuffix(path, gone)
	}
	rel, err := filepath.Rel(r.root, path)
	if err != nil {
		return "", fmt.Errorf("path of a cgroup: %w", err)
	}
	return filepath.Join("/", rel), nil // of what was unmounted since path is below the hierarchy's root already
}

// container is the innermost container that a cgroup belongs to, of those whose cgroup
// was made by whom they belong to: anybody may call a cgroup like one where he may make
// cgroups, as everybody may in the part of the tree that systemd gives him.
func (r *Cgroups) container(fd int, path string) (*Container, error) {
	if containerOfPath(path) == "" {
		return nil, nil
	}
	parts := strings.Split(path[1:], "/")
	dirs, err := parentsOf(fd, len(parts))
	if err != nil {
		return nil, err
	}
	for i := len(parts) - 1; i >= 0; i-- {
		id := containerIDOf(parts[i])
		if id == "" {
			continue
		}
		// Who may write in every directory above it could have made it.
		if ownedBy(dirs[:i+1], 0) {
			name, err := r.files.dockerName(id)
			return &Container{ID: id, Name: name}, err
		}
		if uid, ok := userOf(parts[:i], dirs[:i+1]); ok {
			if found, err := r.files.ofUser(uid, id); found || err != nil {
				return &Container{ID: id}, err
			}
		}
	}
	return nil, nil
}

// parentsOf are the directories that a cgroup n below the root is in, the root first.
func parentsOf(fd, n int) ([]unix.Stat_t, error) {
	dirs := make([]unix.Stat_t, n)
	for i := range dirs {
		if err := unix.Fstatat(fd, strings.Repeat("../", n-i), &dirs[i], 0); err != nil {
			return nil, fmt.Errorf("look who owns a cgroup: %w", err)
		}
	}
	return dirs, nil
}

// ownedBy tells whether nobody but uid, and root, may make anything in directories.
func ownedBy(dirs []unix.Stat_t, uid uint32) bool {
	for i := range dirs {
		if by := dirs[i].Uid; by != uid && by != 0 || dirs[i].Mode&0o022 != 0 {
			return false
		}
	}
	return true
}

// userOf tells whose a part of the tree is that systemd's service of a user has, and
// whether that user alone may write there.
func userOf(parts []string, dirs []unix.Stat_t) (uid uint32, ok bool) {
	const slices = 2 // user.slice/user-UID.slice, which are root's
	if len(parts) <= slices {
		return 0, false
	}
	uid = dirs[slices+1].Uid
	return uid, parts[0] == "user.slice" && parts[1] == fmt.Sprintf("user-%d.slice", uid) &&
		parts[2] == fmt.Sprintf("user@%d.service", uid) && ownedBy(dirs[:slices+1], 0) && ownedBy(dirs, uid)
}
