package containers

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
)

// docker is that of Debian's package, whatever else is in PATH.
const docker = "/usr/bin/docker"

func TestDocker(t *testing.T) {
	v := watch(t)
	start(t, func() bool { _, err := try(t, docker, "version"); return err == nil }, "dockerd",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "vfs", "--cgroup-parent", "/"+parent())
	root := filepath.Join(t.TempDir(), "root.tar")
	if err := os.WriteFile(root, rootFS(t), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, docker, "import", root, image)
	begin := func(name string, args ...string) place {
		t.Helper()
		id := run(t, docker, append([]string{"run", "-d", "--name", name}, args...)...)
		t.Cleanup(func() { _, _ = try(t, docker, "rm", "-f", name) })
		return place{Container: &identity.Container{ID: id, Name: name, Image: image, Runtime: "docker"}}
	}
	web := begin("web", "-p", "18080:80", image, "/bin/httpd", "-f", "-p", "80")
	v.listens("container=web", 80, web)
	v.began(80, web)
	v.listens("container=w?b", 80, web)
	v.listens("container="+web.Container.ID[:12], 80, web)
	v.listens("container=hostnet", 8081, begin("hostnet", "--network", "host", image, "/bin/httpd", "-f", "-p", "8081"))

	t.Run("held by", func(t *testing.T) {
		refused := func(ev *render.Event) bool { // a busy machine cannot always tell who holds the port
			return ev.Error == "EADDRINUSE" && ev.LocalPort == 80 && ev.Container != nil && len(ev.HeldBy) > 0 && len(ev.HeldBy[0].Holders) > 0
		}
		eventually(t, "a bind is refused", func() bool {
			_, _ = try(t, docker, "exec", "web", "/bin/httpd", "-f", "-p", "80")
			return len(v.seen(refused)) > 0
		})
		ev := v.seen(refused)[0]
		if d := cmp.Diff(web, of(ev.HeldBy[0].Place)); d != "" || !cmp.Equal(web, of(ev.Place)) {
			t.Errorf("by %+v, held by -want +got:\n%s", of(ev.Place), d)
		}
	})
	t.Run("headroom", func(t *testing.T) {
		client := begin("client", image, "/bin/sh", "-c", "sleep 1000 | nc "+run(t, docker, "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")+" 80")
		uses := func() []render.Headroom {
			return get[render.Headroom](v, "/v1/headroom", "container=client", "op=connect", "rport=80")
		}
		eventually(t, "it is connected", func() bool { return len(uses()) > 0 })
		if d := cmp.Diff(client, of(uses()[0].Holders[0].Place)); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		run(t, docker, "rename", "web", "shop")
		web.Container.Name = "shop"
		v.listens("container=shop", 80, web)
		if old := get[render.Socket](v, "/v1/sockets", "container=web"); len(old) > 0 {
			t.Errorf("%d sockets are still of its old name", len(old))
		}
	})
	t.Run("removed", func(t *testing.T) {
		run(t, docker, "rm", "-f", "shop")
		was := func() []render.Tenancy {
			return slices.DeleteFunc(get[render.Tenancy](v, "/v1/history", "port=80"), func(ten render.Tenancy) bool {
				return ten.Container == nil || ten.Container.ID != web.Container.ID
			})
		}
		eventually(t, "it is in the history", func() bool { return len(was()) > 0 })
		if d := cmp.Diff(web, of(was()[0].Place)); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	})
	v.shortLived(20, 19099, func(name string) {
		_, _ = try(t, docker, "run", "--rm", "--name", name, "--network", "host", image, "/bin/nc", "127.0.0.1", "19099") // refused
	})
}
