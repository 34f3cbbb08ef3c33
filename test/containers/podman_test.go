package containers

import (
	"os"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
)

// podmansImage is what podman calls the image.
const podmansImage = "localhost/" + image

// configurePodman writes what podman goes by, of root and of users: runc, and no limits, because not every
// machine has what they take.
func configurePodman(t *testing.T) {
	t.Helper()
	const conf = "[containers]\npids_limit=0\ndefault_ulimits=[\"nofile=512:512\",\"nproc=512:512\"]\n" +
		"[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\nruntime=\"runc\"\n"
	if err := os.MkdirAll("/etc/containers", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/containers/containers.conf", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestPodman(t *testing.T) {
	v := watch(t)
	configurePodman(t)
	run(t, "podman", "load", "-i", archive(t))
	const name = podmansImage
	begin := func(container string, args ...string) place {
		t.Helper()
		id := run(t, "podman", append([]string{"run", "-d", "--name", container}, args...)...)
		t.Cleanup(func() { _, _ = try(t, "podman", "rm", "-f", "-t0", container) })
		return place{Container: &identity.Container{ID: id, Name: container, Image: name, Runtime: "podman"}}
	}
	group := "--cgroup-parent=/" + parent()
	web := begin("pod-web", group, "-p", "18081:80", name, "/bin/httpd", "-f", "-p", "80")
	v.listens("container=pod-web", 80, web)
	v.began(80, web)
	v.listens("container=pod-host", 8082, begin("pod-host", group, "--network=host", name, "/bin/httpd", "-f", "-p", "8082"))
	t.Run("pod", func(t *testing.T) {
		run(t, "podman", "pod", "create", "--name", "shop", "--share-parent=false", "-p", "18082:81", group)
		t.Cleanup(func() { _, _ = try(t, "podman", "pod", "rm", "-f", "-t0", "shop") })
		v.listens("container=shop-api", 81, begin("shop-api", group, "--pod", "shop", name, "/bin/httpd", "-f", "-p", "81"))
	})
	t.Run("renamed", func(t *testing.T) {
		run(t, "podman", "rename", "pod-web", "pod-shop")
		t.Cleanup(func() { _, _ = try(t, "podman", "rm", "-f", "-t0", "pod-shop") })
		web.Container.Name = "pod-shop"
		v.listens("container=pod-shop", 80, web)
		if old := get[render.Socket](v, "/v1/sockets", "container=pod-web"); len(old) > 0 {
			t.Errorf("%d sockets are still of its old name", len(old))
		}
	})
}
