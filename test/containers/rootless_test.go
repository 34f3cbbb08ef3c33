package containers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/identity"
)

// rootless is a user without privileges, who has some uids of his own and the part of the cgroup tree that
// systemd would give him.
type rootless struct {
	*testing.T
	uid    uint32
	home   string
	cgroup *os.File
}

func newRootless(t *testing.T) *rootless {
	t.Helper()
	u := &rootless{T: t, uid: 61184, home: "/run/porthole-home"}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	grow := func(name, line string) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		do(err)
		_, err = f.WriteString(line)
		do(err)
		do(f.Close())
	}
	grow("/etc/passwd", fmt.Sprintf("shopkeeper:x:%d:%[1]d::%s:/bin/sh\n", u.uid, u.home))
	grow("/etc/group", fmt.Sprintf("shopkeeper:x:%d:\n", u.uid))
	grow("/etc/subuid", "shopkeeper:200000:65536\n")
	grow("/etc/subgid", "shopkeeper:200000:65536\n")
	for _, dir := range []string{u.home, u.runDir()} {
		do(os.MkdirAll(dir, 0o755))
		do(os.Chown(dir, int(u.uid), int(u.uid)))
	}
	if _, err := os.Stat("/dev/net/tun"); err == nil { // for slirp4netns, which everybody may use elsewhere
		do(unix.Mknod("/run/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))))
		do(os.Chmod("/run/tun", 0o666))
		do(unix.Mount("/run/tun", "/dev/net/tun", "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount("/dev/net/tun", 0) })
	}
	const unified = "/sys/fs/cgroup/unified" // only with cgroup v2 do users have cgroups
	if _, err := os.Stat(unified); err == nil {
		do(unix.Mount(unified, "/sys/fs/cgroup", "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount("/sys/fs/cgroup", 0) })
	}
	u.makeCgroups()
	return u
}

func (u *rootless) runDir() string { return fmt.Sprintf("/run/user/%d", u.uid) }

// makeCgroups makes what systemd makes for a user.
func (u *rootless) makeCgroups() {
	u.Helper()
	slice := fmt.Sprintf("/sys/fs/cgroup/user.slice/user-%d.slice", u.uid)
	service := filepath.Join(slice, fmt.Sprintf("user@%d.service", u.uid))
	unit := filepath.Join(service, "app.slice", "shop.service")
	made := slice
	if _, err := os.Stat(filepath.Dir(slice)); err != nil { // not by systemd
		made = filepath.Dir(slice)
	}
	u.Cleanup(func() { // whatever still runs is of the test
		_ = os.WriteFile(filepath.Join(slice, "cgroup.kill"), []byte("1"), 0)
		removeCgroups(strings.TrimPrefix(made, "/sys/fs/cgroup/"))
	})
	if err := os.MkdirAll(unit, 0o755); err != nil {
		u.Fatal(err)
	}
	for dir := unit; dir != slice; dir = filepath.Dir(dir) {
		for _, file := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
			if err := os.Chown(filepath.Join(dir, file), int(u.uid), int(u.uid)); err != nil {
				u.Fatal(err)
			}
		}
	}
	dir, err := os.Open(unit)
	if err != nil {
		u.Fatal(err)
	}
	u.cgroup = dir
	u.Cleanup(func() { dir.Close() })
}

// podman runs podman as the user.
func (u *rootless) podman(args ...string) string {
	u.Helper()
	cmd := exec.CommandContext(u.Context(), "podman", args...)
	cmd.Env = []string{"HOME=" + u.home, "XDG_RUNTIME_DIR=" + u.runDir(), "PATH=" + os.Getenv("PATH")}
	cmd.Dir = u.home
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: u.uid, Gid: u.uid}, UseCgroupFD: true, CgroupFD: int(u.cgroup.Fd()),
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if len(args) > 0 && args[0] == "load" {
		image, err := os.Open(archive(u.T))
		if err != nil {
			u.Fatal(err)
		}
		defer image.Close()
		cmd.Stdin = image
	}
	out, err := cmd.Output()
	if err != nil {
		u.Fatalf("podman %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// The containers of a user without privileges are named as those of root, by the files in his home; who
// holds a published port says which container it is for.
func TestPodmanRootless(t *testing.T) {
	u := newRootless(t)
	v := watch(t)
	configurePodman(t)
	u.podman("load")
	begin := func(container string, args ...string) place {
		t.Helper()
		id := u.podman(append([]string{"run", "-d", "--name", container}, args...)...)
		return place{Container: &identity.Container{ID: id, Name: container, Image: podmansImage, Runtime: "podman", User: &u.uid}}
	}
	web := begin("my-web", "-p", "18085:80", podmansImage, "/bin/httpd", "-f", "-p", "80")
	v.listens("container=my-web", 80, web)
	v.began(80, web)
	v.listens("container=my-host", 18086, begin("my-host", "--network=host", podmansImage, "/bin/httpd", "-f", "-p", "18086"))
	t.Run("pod", func(t *testing.T) {
		u.podman("pod", "create", "--name", "my-pod", "-p", "18087:81")
		v.listens("container=my-api", 81, begin("my-api", "--pod", "my-pod", podmansImage, "/bin/httpd", "-f", "-p", "81"))
	})
	for port, container := range map[string]string{"18085": "my-web", "18087": "my-api"} {
		text := run(t, v.porthole, "who", port)
		for _, want := range []string{
			"rootlessport leads to container " + container + " (podman)\n", "stop it: podman stop " + container + " (as user shopkeeper)\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("who %s: no %q in\n%s", port, want, text)
			}
		}
	}
	t.Run("renamed", func(t *testing.T) {
		u.podman("rename", "my-web", "my-shop")
		web.Container.Name = "my-shop"
		v.listens("container=my-shop", 80, web)
	})
}
