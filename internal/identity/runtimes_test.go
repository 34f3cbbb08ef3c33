package identity

import (
	"encoding/json"
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// golden is what the files that a version of a runtime wrote say of the cgroup at a path.
type golden struct {
	Path      string
	Container *Container
	Pod       *Pod
}

// What runtimes write down, as versions of them did: a directory each, with their files, and in
// golden.json what those say, with what a kubelet answered in pods.json, where there is that.
func TestRuntimes(t *testing.T) {
	dirs, err := filepath.Glob("testdata/*/golden.json")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, name := range dirs {
		dir := filepath.Dir(name)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var all []golden
			if err := json.Unmarshal(b, &all); err != nil {
				t.Fatal(err)
			}
			r := Cgroups{files: runtimeFiles{root: dir}, whole: true, Kubelet: kubeletThatSaid(t, filepath.Join(dir, "pods.json"))}
			for _, want := range all {
				k := &known{where: rootsOwn(want.Path)}
				a, err := r.describe(k.where)
				if err != nil {
					t.Errorf("%s: %v", want.Path, err)
				}
				a = r.withPod(k, a, nil)
				got := golden{want.Path, a.Container, a.Pod}
				if !reflect.DeepEqual(got, want) {
					g, _ := json.Marshal(got)
					w, _ := json.Marshal(want)
					t.Errorf("got  %s\nwant %s", g, w)
				}
			}
		})
	}
}

// kubeletThatSaid is a kubelet that has listed the pods in a file; nil: there is no such file.
func kubeletThatSaid(t *testing.T, name string) *Kubelet {
	t.Helper()
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := readPods(f)
	if err != nil {
		t.Fatal(err)
	}
	k := &Kubelet{soon: make(chan struct{}, 1)}
	k.list.Store(list)
	return k
}

// rootsOwn is a place all of whose directories are root's.
func rootsOwn(path string) *where {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	return &where{parts: parts, dirs: make([]dir, len(parts)+1)}
}

// A container that its runtime has put elsewhere is not at this place.
func TestPlaceAgrees(t *testing.T) {
	const id = "1b57424c9146c644d4bad4e4bf4a6cf026699977f75b54a54d123744d69079e4"
	pod := "/kubepods/besteffort/pod0d1b3c4e-5f60-4a7b-8c9d-0e1f2a3b4c5d/" + id
	r := Cgroups{files: runtimeFiles{root: "testdata/containerd-1.6.20"}, whole: true}
	for _, test := range []struct {
		name, path string
		inside     bool // a cgroup namespace
		want       bool
	}{
		{name: "its own", path: pod, want: true},
		{name: "below it", path: pod + "/init.scope", want: true},
		{name: "of a service", path: "/system.slice/some.service" + pod},
		{name: "elsewhere", path: "/docker/" + id},
		{name: "of a service, its path not known from the root", path: "/system.slice/some.service" + pod, inside: true, want: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			r.whole = !test.inside
			a, err := r.describe(rootsOwn(test.path))
			if err != nil {
				t.Fatal(err)
			}
			if got := a.Container != nil; got != test.want {
				t.Errorf("container %+v, want one: %v", a.Container, test.want)
			}
		})
	}
	for _, test := range []struct {
		asked, place string
		want         bool
	}{
		{"system.slice:docker:x", "/system.slice/docker-x.scope", true},
		{":docker:x", "/system.slice/docker-x.scope", true},
		{"a-b-c.slice:crio:x", "/a.slice/a-b.slice/a-b-c.slice/crio-x.scope", true},
		{"-.slice:crio:x", "/crio-x.scope", true},
		{"system.slice::x", "/system.slice/x.scope", true},
		{"system.slice:docker:x", "/docker/x", false},
		{"/docker/x", "/docker/x", true},
		{"", "/anywhere", true},
		{"x/y", "/where/it/runs/x/y", true},
	} {
		if got := agrees(test.place, test.asked, true); got != test.want {
			t.Errorf("asked for %q, at %q: %v, want %v", test.asked, test.place, got, test.want)
		}
	}
}

// Files that cannot be read, or are not finished, say nothing: neither that there is no container, nor
// its name.
func TestRuntimeFilesThatAreNoAnswer(t *testing.T) {
	c := claim{id: testID, runtime: runtimeDocker}
	dir := "/var/lib/docker/containers/" + testID
	for name, make := range map[string]func(path string) error{
		"half of it":        func(path string) error { return os.WriteFile(path, []byte(`{"Name": "/we`), 0o600) },
		"empty":             func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"not there yet":     func(string) error { return nil },
		"a pipe":            func(path string) error { return unix.Mkfifo(path, 0o600) },
		"a link out of it":  func(path string) error { return os.Symlink("/etc/hostname", path) },
		"a link to another": func(path string) error { return os.Symlink("../other/config.v2.json", path) },
		"too long": func(path string) error {
			return os.WriteFile(path, []byte(`{"Name": "/`+strings.Repeat("x", maxConfig)+`"}`), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &runtimeFiles{root: t.TempDir()}
			for _, d := range []string{dir, filepath.Dir(dir) + "/other"} {
				if err := os.MkdirAll(f.root+d, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(f.root+filepath.Dir(dir)+"/other/config.v2.json", []byte(`{"Name": "/other"}`), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := make(f.root + dir + "/config.v2.json"); err != nil {
				t.Fatal(err)
			}
			if r, err := f.find(c); r != nil || err == nil {
				t.Errorf("record %+v, error %v, want to be asked again", r, err)
			}
		})
	}
}

// Without a descriptor to read with there is an error, not no container.
func TestRuntimeFilesWithoutDescriptors(t *testing.T) {
	f := &runtimeFiles{root: "testdata/docker-20.10.24"}
	c := claim{id: "0c7a4db45cdabbbcb15aeb4fcd3b265e8da7473d1812d64d16c79748fdc5d9f2"}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	r, err := f.find(c)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("record %+v, error %v, want EMFILE", r, err)
	}
}

// Names come from users.
func TestNamesAreBounded(t *testing.T) {
	f := runtimeFiles{root: t.TempDir()}
	dir := f.root + "/var/lib/docker/containers/" + testID
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("ü", 32<<10)
	b, err := json.Marshal(map[string]any{"Name": "/" + long, "Config": map[string]any{
		"Image": long, "Labels": map[string]string{"io.kubernetes.pod.name": long, "io.kubernetes.pod.namespace": long, "io.kubernetes.pod.uid": long, "io.kubernetes.container.name": long},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/config.v2.json", b, 0o600); err != nil {
		t.Fatal(err)
	}
	r := Cgroups{files: runtimeFiles{root: f.root}, whole: true}
	a, err := r.describe(rootsOwn("/docker/" + testID))
	if err != nil || a.Container == nil || a.Pod == nil {
		t.Fatalf("%+v, %v", a, err)
	}
	for _, s := range []string{a.Container.Name, a.Container.Image, a.Pod.Name, a.Pod.Namespace, a.Pod.UID, a.Pod.Container} {
		if len(s) > maxImage || !strings.HasSuffix(s, "ü…") {
			t.Errorf("%d bytes, ends with %q", len(s), s[max(0, len(s)-8):])
		}
	}
}

func TestUnitOf(t *testing.T) {
	const user = 1000
	for _, test := range []struct {
		path, want string
		ofUser     bool
	}{
		{path: "/system.slice/shop.service", want: "shop.service"},
		{path: "/system.slice/system-getty.slice/getty@tty1.service", want: "getty@tty1.service"},
		{path: "/system.slice/shop.service/worker/7", want: "shop.service"},
		{path: "/system.slice/_cgroup.service", want: "cgroup.service"},
		{path: "/init.scope", want: "init.scope"},
		{path: "/user.slice/user-1000.slice/session-3.scope", want: "session-3.scope"},
		{path: "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", want: "foo.service", ofUser: true},
		{path: "/user.slice/user-1000.slice/user@1000.service/init.scope", want: "init.scope", ofUser: true},
		{path: "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.slice/app-x.scope/sub", want: "app-x.scope", ofUser: true},
		{path: "/user.slice/user-1000.slice/user@1000.service", want: "user@1000.service"},
		{path: "/system.slice/docker-" + testID + ".scope/system.slice/x.service", want: "docker-" + testID + ".scope"},
		{path: "/docker/" + testID + "/system.slice/x.service"},
		{path: "/lxc.payload.web1/system.slice/nginx.service"},
		{path: "/docker/" + testID},
		{path: "/system.slice"},
		{path: "/"},
	} {
		t.Run(test.path, func(t *testing.T) {
			r := Cgroups{files: runtimeFiles{root: t.TempDir()}, whole: true}
			w := rootsOwn(test.path)
			for i := 3; i < len(w.dirs) && test.ofUser; i++ {
				w.dirs[i].uid = user
			}
			a, err := r.describe(w)
			if err != nil {
				t.Fatal(err)
			}
			if got := a.UnitUser != nil && *a.UnitUser == user; a.Unit != test.want || got != test.ofUser {
				t.Errorf("unit %q, of the user: %v; want %q, %v", a.Unit, got, test.want, test.ofUser)
			}
		})
	}
}

// Only systemd makes units: a user may call a cgroup of his like one.
func TestUnitIsTrue(t *testing.T) {
	for _, test := range []struct {
		path   string
		owners []uint32
		want   string
	}{
		{"/theirs/x/evil.service", []uint32{0, 7, 7, 7}, ""},
		{"/system.slice/shop.service/evil.service", []uint32{0, 0, 7, 7}, "shop.service"},
		{"/user.slice/user-7.slice/user@7.service/foo.service", []uint32{0, 0, 0, 7, 7}, "foo.service"},
		{"/user.slice/user-7.slice/user@7.service/foo.service", []uint32{0, 0, 0, 8, 8}, ""},
		{"/theirs/user@7.service/foo.service", []uint32{0, 7, 7, 7}, ""},
	} {
		r := Cgroups{files: runtimeFiles{root: t.TempDir()}, whole: true}
		w := rootsOwn(test.path)
		for i, uid := range test.owners {
			w.dirs[i].uid = uid
		}
		if a, err := r.describe(w); err != nil || a.Unit != test.want {
			t.Errorf("%s: unit %q, error %v, want %q", test.path, a.Unit, err, test.want)
		}
	}
}

// The containers of a user are known by the files in his home, if those are his.
func TestRuntimesOfUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	const uid = 1 // daemon, whose home everybody's /etc/passwd knows
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		t.Fatal(err)
	}
	index := []byte(`[{"id": "` + testID + `", "names": ["web"], "metadata": "{\"image-name\": \"shop/web:1\"}"}]`)
	const storage = ".local/share/containers/storage/overlay-containers"
	for _, test := range []struct {
		name, dir, link string
		owner           int
		want            string
	}{
		{name: "his", dir: storage, owner: uid, want: "web"},
		{name: "another's", dir: storage, owner: uid + 1},
		{name: "behind a link within his home", dir: "data", link: "../../../../data", owner: uid, want: "web"},
		{name: "behind a link out of his home", dir: "../elsewhere", link: "../../../../../elsewhere", owner: uid},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &runtimeFiles{root: t.TempDir()}
			home := filepath.Join(f.root, u.HomeDir)
			dir := filepath.Join(home, test.dir)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if test.link != "" {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(home, storage)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(test.link, filepath.Join(home, storage)); err != nil {
					t.Fatal(err)
				}
			}
			name := filepath.Join(dir, "containers.json")
			if err := errors.Join(os.WriteFile(name, index, 0o600), os.Chown(name, test.owner, test.owner)); err != nil {
				t.Fatal(err)
			}
			r, err := f.findOf(uid, claim{id: testID, runtime: runtimePodman})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if r != nil {
				got = r.container.Name
			}
			if got != test.want {
				t.Errorf("name %q, want %q", got, test.want)
			}
		})
	}
}
