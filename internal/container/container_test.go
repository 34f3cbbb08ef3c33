package container

import (
	"strings"
	"testing"
)

const (
	id      = "3f29a1b5c6d7e8f90123456789abcdef0123456789abcdef0123456789abcdef"
	outerID = "00000000000000000000000000000000ffffffffffffffffffffffffffffffff"
)

func TestFromPath(t *testing.T) {
	for _, test := range []struct{ name, path, want string }{
		{"docker, systemd", "/system.slice/docker-" + id + ".scope", id},
		{"docker, cgroupfs", "/docker/" + id, id},
		{"docker, a cgroup of its own inside", "/system.slice/docker-" + id + ".scope/init.scope", id},
		{"docker in docker", "/docker/" + outerID + "/docker/" + id, id},
		{"podman", "/machine.slice/libpod-" + id + ".scope", id},
		{"podman, split", "/machine.slice/libpod-" + id + ".scope/container", id},
		{"podman, no root", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container", id},
		{"containerd", "/system.slice/cri-containerd-" + id + ".scope", id},
		{"CRI-O", "/machine.slice/crio-" + id + ".scope", id},
		{"kubernetes, systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0d1b3c4e_5f60_4a7b_8c9d_0e1f2a3b4c5d.slice/cri-containerd-" + id + ".scope", id},
		{"kubernetes, CRI-O", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0d1b3c4e_5f60_4a7b_8c9d_0e1f2a3b4c5d.slice/crio-" + id + ".scope", id},
		{"kubernetes, cgroupfs", "/kubepods/burstable/pod0d1b3c4e-5f60-4a7b-8c9d-0e1f2a3b4c5d/" + id, id},
		{"kubernetes in docker", "/docker/" + outerID + "/kubelet.slice/kubelet-kubepods.slice/cri-containerd-" + id + ".scope", id},
		{"systemd service", "/system.slice/nginx.service", ""},
		{"root", "/", ""},
		{"nothing", "", ""},
		{"pod without a container", "/kubepods/burstable/pod0d1b3c4e-5f60-4a7b-8c9d-0e1f2a3b4c5d", ""},
		{"a digit too few", "/docker/" + id[1:], ""},
		{"a digit too many", "/docker/" + id + "0", ""},
		{"short id", "/docker/" + id[:12], ""},
		{"capital digits", "/docker/" + strings.ToUpper(id), ""},
		{"no hexadecimal", "/docker/" + strings.Repeat("g", 64), ""},
		{"other unit", "/system.slice/docker-" + id + ".service", ""},
		{"no dash before it", "/system.slice/docker" + id + ".scope", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := FromPath(test.path); got != test.want {
				t.Errorf("%s: container %q, want %q", test.path, got, test.want)
			}
		})
	}
}

func TestLabel(t *testing.T) {
	for _, test := range []struct {
		c    Container
		want string
	}{
		{Container{ID: id, Name: "web"}, "web"},
		{Container{ID: id}, id[:12]},
		{Container{ID: "short"}, "short"},
	} {
		if got := test.c.Label(); got != test.want {
			t.Errorf("%+v is labelled %q, want %q", test.c, got, test.want)
		}
	}
}

// A machine without cgroup v2 has no containers that porthole knows, and no error.
func TestResolveWithoutHierarchy(t *testing.T) {
	for _, root := range []string{"", t.TempDir() + "/none", t.TempDir()} {
		r := NewResolver(root)
		for _, cgroup := range []uint64{0, 1, 1 << 40} {
			if info := r.Resolve(cgroup); info != (Info{}) {
				t.Errorf("root %q: cgroup %d is %+v, want nothing", root, cgroup, info)
			}
		}
		if err := r.Close(); err != nil {
			t.Errorf("root %q: close: %v", root, err)
		}
	}
}
