package containers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
)

func TestContainerd(t *testing.T) {
	v := watch(t)
	config := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(config, []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, func() bool { _, err := try(t, "ctr", "version"); return err == nil }, "containerd", "-c", config)
	const name = "docker.io/" + image
	tar := archive(t)
	begin := func(namespace, id string, args ...string) {
		t.Helper()
		run(t, "ctr", "-n", namespace, "images", "import", "--snapshotter", "native", tar)
		args = append(append([]string{"-n", namespace, "run", "-d", "--snapshotter", "native"}, args...), name, id)
		run(t, "ctr", append(args, "/bin/httpd", "-f", "-p", "80")...)
		t.Cleanup(func() {
			_, _ = try(t, "ctr", "-n", namespace, "task", "rm", "-f", id)
			_, _ = try(t, "ctr", "-n", namespace, "container", "rm", id)
		})
	}
	t.Run("plain", func(t *testing.T) {
		id := strings.Repeat("5a", 32)
		begin("default", id, "--cgroup", "/"+parent()+"/"+id)
		v.listens("container="+id[:12], 80, place{Container: &identity.Container{ID: id, Runtime: "containerd"}})
	})
	// As containerd's CRI plugin describes what the kubelet asks it for.
	t.Run("pod", func(t *testing.T) {
		id, uid := strings.Repeat("9c", 32), "0d1b3c4e-5f60-4a7b-8c9d-0e1f2a3b4c5d"
		begin("k8s.io", id, "--cgroup", "/"+parent()+"/kubepods/besteffort/pod"+uid+"/"+id,
			"--annotation", "io.kubernetes.cri.container-name=api", "--annotation", "io.kubernetes.cri.container-type=container",
			"--annotation", "io.kubernetes.cri.image-name="+name, "--annotation", "io.kubernetes.cri.sandbox-name=api-6d5f",
			"--annotation", "io.kubernetes.cri.sandbox-namespace=shop", "--annotation", "io.kubernetes.cri.sandbox-uid="+uid)
		want := place{
			Container: &identity.Container{ID: id, Name: "api", Image: name, Runtime: "containerd"},
			Pod:       &identity.Pod{Namespace: "shop", Name: "api-6d5f", UID: uid, Container: "api"},
		}
		v.listens("pod=shop/api-*", 80, want)
		v.began(80, want)
		v.listens("container=api", 80, want)
	})
}
