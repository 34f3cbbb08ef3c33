// Package container tells the cgroup of a process by its id, and which container
// that cgroup belongs to.
package container

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Container is what is known of one; Name only where its runtime keeps it in a
// file of the host.
type Container struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// Label names the container for people: its name, or the start of its id. The
// name is what its runtime wrote and may hold any characters.
func (c *Container) Label() string {
	if c.Name != "" {
		return c.Name
	}
	return c.ID[:min(12, len(c.ID))]
}

// Info is what a cgroup id stands for. The zero value: not known.
type Info struct {
	Path      string     // below the root of the cgroup v2 hierarchy
	Container *Container // nil: none
}

// Resolver turns cgroup ids into Info and remembers what it found.
type Resolver struct {
	root string
	fd   int // of root, -1: not mounted

	mu    sync.Mutex                      // held to replace known
	known atomic.Pointer[map[uint64]Info] // never changed once here, so that reading needs no lock
}

// maxKnown bounds what a Resolver remembers.
const maxKnown = 4096

// NewResolver returns a resolver for the hierarchy mounted at root; with root ""
// it knows nothing.
func NewResolver(root string) *Resolver {
	r := &Resolver{root: root, fd: -1}
	r.known.Store(&map[uint64]Info{})
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
func (r *Resolver) Check() error {
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
func (r *Resolver) Close() error {
	if r.fd < 0 {
		return nil
	}
	return unix.Close(r.fd)
}

// Resolve tells what a cgroup id stands for. A cgroup that is gone, and was not
// asked for while it existed, is not known.
func (r *Resolver) Resolve(id uint64) Info {
	if id == 0 || r.fd < 0 {
		return Info{}
	}
	if info, ok := (*r.known.Load())[id]; ok {
		return info
	}
	var info Info
	if path, err := r.path(id); err == nil {
		info.Path = path
		if cid := FromPath(path); cid != "" {
			info.Container = &Container{ID: cid, Name: dockerName(cid)}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[uint64]Info)
	if old := *r.known.Load(); len(old) < maxKnown {
		maps.Copy(next, old)
	}
	next[id] = info
	r.known.Store(&next)
	return info
}

// path opens the cgroup by its id, which is its file handle (kernfs), and reads
// where it is. This needs CAP_DAC_READ_SEARCH.
func (r *Resolver) path(id uint64) (string, error) {
	const fileidKernfs = 0xfe
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(r.fd, handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open cgroup %d: %w", id, err)
	}
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", fmt.Errorf("read path of cgroup %d: %w", id, err)
	}
	rel, err := filepath.Rel(r.root, path)
	if err != nil {
		return "", fmt.Errorf("path of cgroup %d: %w", id, err)
	}
	return filepath.Join("/", rel), nil
}

// Docker, podman, containerd and CRI-O name the cgroup after the container: 64
// hexadecimal digits, alone or as PREFIX-ID.scope.
var idPattern = regexp.MustCompile(`^(?:[a-z-]+-)?([0-9a-f]{64})(?:\.scope)?$`)

// FromPath returns the container id in a cgroup path, "" when it has none. Of
// nested containers it is the innermost.
func FromPath(path string) string {
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if m := idPattern.FindStringSubmatch(parts[i]); m != nil {
			return m[1]
		}
	}
	return ""
}

// dockerName reads the name Docker gave a container, "" when Docker has none of
// that id.
func dockerName(id string) string {
	b, err := os.ReadFile(filepath.Join("/var/lib/docker/containers", id, "config.v2.json"))
	if err != nil {
		return ""
	}
	var config struct{ Name string }
	if json.Unmarshal(b, &config) != nil {
		return ""
	}
	return strings.TrimPrefix(config.Name, "/")
}
