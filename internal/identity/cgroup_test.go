package identity

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
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
	testutil.AwaitWithin(t, 30*time.Second, what, ok)
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

// Of a cgroup that was gone before anybody could look, what was seen of its making tells the name, and
// who made it, whether to believe it.
func TestResolveMade(t *testing.T) {
	r := hierarchy(t)
	r.put(t, "/var/lib/docker/containers/"+testID, 0)
	if err := os.WriteFile(filepath.Join(r.files.root, "/var/lib/docker/containers", testID, "config.v2.json"), []byte(`{"Name": "/web"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	parent := r.make(t, "/a", 0)
	theirs := r.make(t, "/theirs", someone)
	for i, test := range []struct {
		name      string
		made      []tracer.Cgroup // one in the other; ID and Parent are added
		in        uint64
		path      string
		container string
	}{
		{name: "a container", in: parent, made: []tracer.Cgroup{{Name: "docker-" + testID + ".scope"}}, path: "/a/docker-" + testID + ".scope", container: "web"},
		{
			name: "its own cgroups", in: parent, made: []tracer.Cgroup{{Name: "docker-" + testID + ".scope"}, {Name: "init.scope", UID: someone}},
			path: "/a/docker-" + testID + ".scope/init.scope", container: "web",
		},
		{
			name: "in one that a user made", in: parent, made: []tracer.Cgroup{{Name: "x", UID: someone}, {Name: "docker-" + testID + ".scope"}},
			path: "/a/x/docker-" + testID + ".scope",
		},
		{name: "in one that is a user's", in: theirs, made: []tracer.Cgroup{{Name: "docker-" + testID + ".scope"}}, path: "/theirs/docker-" + testID + ".scope"},
	} {
		t.Run(test.name, func(t *testing.T) {
			in := test.in
			for j, c := range test.made {
				c.ID, c.Parent = uint64(1<<40+100*i+j), in // no cgroup has these ids
				r.Made(c)
				in = c.ID
			}
			got := r.Resolve(in)
			name := ""
			if got.Container != nil {
				name = got.Container.Name
			}
			if got.Path != test.path || name != test.container {
				t.Errorf("%+v, container %q, want %q", got, name, test.container)
			}
		})
	}
	if got := r.Resolve(1 << 41); got != (Cgroup{}) {
		t.Errorf("one that nobody saw: %+v", got)
	}
	r.Made(tracer.Cgroup{ID: 1 << 41, Parent: parent, Name: "late"})
	if got := r.Resolve(1 << 41); got.Path != "/a/late" {
		t.Errorf("once it was seen: %+v", got)
	}
}

// The old name of a container is not told once it has another; once the files are gone the last one
// stays.
func TestContainerRenamed(t *testing.T) {
	r := hierarchy(t)
	dir := "/var/lib/docker/containers/" + testID
	r.put(t, dir, 0)
	cgroup := r.make(t, "/docker/"+testID)
	rename := func(name string) { // as Docker does: the file is another one
		file := filepath.Join(r.files.root, dir, "config.v2.json")
		if err := os.WriteFile(file+".tmp", []byte(`{"Name": "/`+name+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".tmp", file); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"web", "api", "web"} {
		rename(name)
		waitFor(t, "the name "+name, func() bool { return r.Resolve(cgroup).Container.Name == name })
	}
	if err := os.RemoveAll(filepath.Join(r.files.root, dir)); err != nil {
		t.Fatal(err)
	}
	removeCgroup(t, filepath.Join(r.root, "docker"))
	k, _ := r.fast.Get(cgroup)
	seen := k.now.Load().again.Load()
	waitFor(t, "another look", func() bool { r.Resolve(cgroup); return k.now.Load().again.Load() != seen })
	if got := r.Resolve(cgroup).Container; got == nil || got.Name != "web" {
		t.Errorf("container %+v once it is removed, want web", got)
	}
}

// What is referred to is kept, whatever else is made.
func TestCgroupsAreBounded(t *testing.T) {
	r := hierarchy(t)
	parent := r.make(t, "/a")
	r.InUse = func(f func(uint64)) { f(1 << 40) }
	for i := range uint64(3 * maxCgroups) {
		c := tracer.Cgroup{ID: 1<<40 + i, Parent: parent, Name: strconv.FormatUint(i, 10)}
		r.Made(c)
		if got := r.Resolve(c.ID).Path; got != "/a/"+c.Name {
			t.Fatalf("cgroup %d is %q", i, got)
		}
	}
	if n := len(r.all); n > maxCgroups {
		t.Errorf("%d are kept, want at most %d", n, maxCgroups)
	}
	if r.all[1<<40] == nil {
		t.Error("one that is referred to is not kept")
	}
	for i := range uint64(2 * (maxCgroups + maxFresh)) { // that nobody asks for
		r.Made(tracer.Cgroup{ID: 1<<50 + i, Parent: parent, Name: "x"})
	}
	if n := len(r.all); n > maxCgroups+maxFresh {
		t.Errorf("%d are kept, want at most %d", n, maxCgroups+maxFresh)
	}
}

// A home that does not answer holds nobody up for long, and others not at all.
func TestSlowHome(t *testing.T) {
	var f runtimeFiles
	hang := make(chan struct{})
	slow := func() (*record, error) { <-hang; return nil, nil }
	if _, err := f.within(someone, slow); !errors.Is(err, errSlow) {
		t.Errorf("error %v, want %v", err, errSlow)
	}
	start := time.Now()
	if _, err := f.within(someone, slow); !errors.Is(err, errSlow) || time.Since(start) >= readWithin {
		t.Errorf("again: %v after %s", err, time.Since(start))
	}
	want := &record{place: "/x"}
	if r, err := f.within(someone+1, func() (*record, error) { return want, nil }); r != want || err != nil {
		t.Errorf("another user: %v, %v", r, err)
	}
	close(hang)
	waitFor(t, "the end of reading", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return len(f.reading) == 0 })
}
