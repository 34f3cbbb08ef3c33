package identity

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
	"github.com/porthole-dev/porthole/tracer"
)

// hierarchy makes a cgroup, and a Cgroups that takes it for the root of all.
func hierarchy(t *testing.T) *Cgroups {
	t.Helper()
	testutil.RequireRoot(t)
	root, err := tracer.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	top, err := os.MkdirTemp(root, "porthole-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(top, 0o755); err != nil { // as the kernel makes them
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(t, top) })
	r := NewCgroups(top)
	r.files.root = t.TempDir()
	t.Cleanup(func() { r.Close() })
	return r
}

// removeCgroup removes a cgroup with those in it.
func removeCgroup(t *testing.T, dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(t, filepath.Join(dir, e.Name()))
		}
	}
	if err := unix.Rmdir(dir); err != nil {
		t.Errorf("remove %s: %v", dir, err)
	}
}

// make makes a cgroup, whose directories belong to the users in owners, from the first
// on; the others belong to root.
func (r *Cgroups) make(t *testing.T, path string, owners ...int) (id uint64) {
	t.Helper()
	dir := r.root
	for i, name := range strings.Split(strings.TrimPrefix(path, "/"), "/") {
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		if i < len(owners) {
			if err := os.Chown(dir, owners[i], owners[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(handle.Bytes())
}

// put makes a directory among the files of runtimes.
func (r *Cgroups) put(t *testing.T, dir string, owner int) {
	t.Helper()
	dir = filepath.Join(r.files.root, dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, owner, owner); err != nil {
		t.Fatal(err)
	}
}

const (
	someone  = 54321
	somebody = "/user.slice/user-54321.slice/user@54321.service/user.slice/libpod-" + testID + ".scope"
)

// A cgroup may be called like that of any container by who may make one there.
func TestContainerIsBelieved(t *testing.T) {
	podman := "/run/user/54321/containers/overlay-containers/" + testID
	for _, test := range []struct {
		name, path string
		owners     []int
		files      map[string]int // owner by path
		want       string
	}{
		{name: "made by root", path: "/system.slice/docker-" + testID + ".scope", want: testID},
		{name: "given to a user once made", path: "/machine.slice/libpod-" + testID + ".scope", owners: []int{0, someone}, want: testID},
		{name: "in a part that is a user's", path: "/theirs/docker-" + testID + ".scope", owners: []int{someone}},
		{name: "made by root in a part that is a user's", path: "/theirs/x/docker-" + testID + ".scope", owners: []int{someone, 0, 0}},
		{
			name: "within a container", path: "/docker/" + testOuterID + "/docker-" + testID + ".scope",
			owners: []int{0, someone, someone}, want: testOuterID,
		},
		{
			name: "a user's without a runtime", path: somebody, owners: []int{0, 0, someone, someone, someone},
			files: map[string]int{"/run/user/54321/containers/overlay-containers/" + testOuterID: someone},
		},
		{
			name: "a user's own", path: somebody, owners: []int{0, 0, someone, someone, someone},
			files: map[string]int{podman: someone}, want: testID,
		},
		{
			name: "a user's own, of which the runtime is another's", path: somebody, owners: []int{0, 0, someone, someone, someone},
			files: map[string]int{podman: someone + 1},
		},
		{
			name: "a user's, that is the system's", path: somebody, owners: []int{0, 0, someone, someone, someone},
			files: map[string]int{podman: someone, "/var/lib/docker/containers/" + testID: 0},
		},
		{
			name: "in the place of another user", path: somebody, owners: []int{0, 0, someone + 1, someone + 1, someone + 1},
			files: map[string]int{podman: someone, "/run/user/54322/containers/overlay-containers/" + testID: someone + 1},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := hierarchy(t)
			for path, owner := range test.files {
				r.put(t, path, owner)
			}
			info := r.Resolve(r.make(t, test.path, test.owners...))
			got := ""
			if info.Container != nil {
				got = info.Container.ID
			}
			if info.Path != test.path || got != test.want {
				t.Errorf("cgroup %q, container %q, want %q and %q", info.Path, got, test.path, test.want)
			}
		})
	}
}

// Everybody may make cgroups in one that everybody may write to.
func TestContainerInWritableDirectory(t *testing.T) {
	r := hierarchy(t)
	cgroup := r.make(t, "/open/docker-"+testID+".scope")
	if err := os.Chmod(filepath.Join(r.root, "open"), 0o777); err != nil {
		t.Fatal(err)
	}
	if info := r.Resolve(cgroup); info.Container != nil {
		t.Errorf("it is container %+v", info.Container)
	}
}

func TestContainerName(t *testing.T) {
	r := hierarchy(t)
	config := "/var/lib/docker/containers/" + testID
	r.put(t, config, 0)
	cgroup := r.make(t, "/system.slice/docker-"+testID+".scope")
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(r.files.root, config, "config.v2.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"Name": "/we`) // Docker has not written all of it yet
	if got := r.Resolve(cgroup).Container; got == nil || got.Name != "" || got.ID != testID {
		t.Errorf("container is %+v", got)
	}
	write(`{"Name": "/web"}`)
	waitFor(t, "the name", func() bool { return r.Resolve(cgroup).Container.Name == "web" })
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// What cannot be looked up for a moment is looked up again.
func TestResolveAgain(t *testing.T) {
	r := hierarchy(t)
	cgroup := r.make(t, "/system.slice/some.service")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	info := r.Resolve(cgroup)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if info != (Cgroup{}) {
		t.Fatalf("without a descriptor it is %+v", info)
	}
	waitFor(t, "the cgroup", func() bool { return r.Resolve(cgroup).Path == "/system.slice/some.service" })
}

// A cgroup that is gone keeps the name it had.
func TestResolveGone(t *testing.T) {
	r := hierarchy(t)
	known, unknown := r.make(t, "/a/docker-"+testID+".scope"), r.make(t, "/a/docker-"+testOuterID+".scope")
	if got := r.Resolve(known).Container; got == nil || got.ID != testID {
		t.Errorf("while it exists: %+v", got)
	}
	removeCgroup(t, filepath.Join(r.root, "a"))
	if got := r.Resolve(known).Container; got == nil || got.ID != testID {
		t.Errorf("once it is gone: %+v", got)
	}
	if got := r.Resolve(unknown); got != (Cgroup{}) {
		t.Errorf("one that was not asked for: %+v", got)
	}
}
