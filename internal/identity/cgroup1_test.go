package identity

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPaths1(t *testing.T) {
	for _, test := range []struct {
		text string
		want []string
	}{
		{"", nil},
		{"0::/system.slice/x.service\n", nil},
		{"1:name=systemd:/x\n0::/\n", nil},
		{"12:pids:/docker/a\n11:cpu,cpuacct:/docker/a\n3:memory:/b:c\n1:name=systemd:/z\n0::/\n", []string{"/docker/a", "/b:c"}},
		{"broken\n5:pids", nil},
	} {
		if got := paths1([]byte(test.text)); !slices.Equal(got, test.want) {
			t.Errorf("%q: %q, want %q", test.text, got, test.want)
		}
	}
}

// A container that only cgroup v1 knows is told where its runtime has put it there, and nowhere else.
func TestContainerOfCgroup1(t *testing.T) {
	if !hasCgroup1() {
		t.Skip("cgroup v1 has no controllers here")
	}
	r := hierarchy(t)
	base := "/sys/fs/cgroup/pids"
	top := fmt.Sprintf("/porthole-test-old-%d", os.Getpid())
	for _, test := range []struct{ name, id, asked, want string }{
		{"its own", testID, top + "/" + testID, testID},
		{"another's", testOuterID, "/docker/" + testOuterID, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			bundle := filepath.Join(r.files.root, "/run/containerd", taskDir, "default", test.id)
			if err := os.MkdirAll(bundle, 0o700); err != nil {
				t.Fatal(err)
			}
			spec := fmt.Sprintf(`{"linux": {"cgroupsPath": %q}}`, test.asked)
			if err := os.WriteFile(bundle+"/config.json", []byte(spec), 0o600); err != nil {
				t.Fatal(err)
			}
			group := base + top + "/" + test.id
			if err := os.MkdirAll(group, 0o755); err != nil {
				t.Fatal(err)
			}
			p := child(t)
			move := func(to string) {
				t.Helper()
				if err := os.WriteFile(to+"/cgroup.procs", []byte(strconv.Itoa(int(p.PID))), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			move(group)
			t.Cleanup(func() {
				for _, dir := range []string{group, base + top} {
					for end := time.Now().Add(10 * time.Second); unix.Rmdir(dir) == unix.EBUSY && time.Now().Before(end); time.Sleep(time.Millisecond) {
					}
				}
			})
			got := func() string {
				if c := r.Of(&p).Container; c != nil {
					return c.ID
				}
				return ""
			}
			if id := got(); id != test.want {
				t.Errorf("container %q, want %q", id, test.want)
			}
			move(base)
			if id := got(); id != test.want {
				t.Errorf("container %q once it is elsewhere, want %q as before", id, test.want)
			}
			p.Start += time.Second // another process that has the pid by now
			if id := got(); id != "" {
				t.Errorf("of another process: container %q", id)
			}
		})
	}
}
