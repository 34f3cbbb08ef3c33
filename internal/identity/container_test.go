package identity

import (
	"strings"
	"testing"
)

const (
	testID      = "3f29a1b5c6d7e8f90123456789abcdef0123456789abcdef0123456789abcdef"
	testOuterID = "00000000000000000000000000000000ffffffffffffffffffffffffffffffff"
)

func TestFromPath(t *testing.T) {
	for _, test := range []struct{ name, path, want string }{
		{"docker, systemd", "/system.slice/docker-" + testID + ".scope", testID},
		{"docker, cgroupfs", "/docker/" + testID, testID},
		{"docker, a cgroup of its own inside", "/system.slice/docker-" + testID + ".scope/init.scope", testID},
		{"docker in docker", "/docker/" + testOuterID + "/docker/" + testID, testID},
		{"podman", "/machine.slice/libpod-" + testID + ".scope", testID},
		{"podman, split", "/machine.slice/libpod-" + testID + ".scope/container", testID},
		{"podman, no root", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + testID + ".scope/container", testID},
		{"containerd", "/system.slice/cri-containerd-" + testID + ".scope", testID},
		{"CRI-O", "/machine.slice/crio-" + testID + ".scope", testID},
		{"kubernetes, systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0d1b3c4e_5f60_4a7b_8c9d_0e1f2a3b4c5d.slice/cri-containerd-" + testID + ".scope", testID},
		{"kubernetes, CRI-O", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0d1b3c4e_5f60_4a7b_8c9d_0e1f2a3b4c5d.slice/crio-" + testID + ".scope", testID},
		{"kubernetes, cgroupfs", "/kubepods/burstable/pod0d1b3c4e-5f60-4a7b-8c9d-0e1f2a3b4c5d/" + testID, testID},
		{"kubernetes in docker", "/docker/" + testOuterID + "/kubelet.slice/kubelet-kubepods.slice/cri-containerd-" + testID + ".scope", testID},
		{"conmon of podman", "/machine.slice/libpod-conmon-" + testID + ".scope", ""},
		{"conmon of CRI-O", "/kubepods.slice/kubepods-podx.slice/crio-conmon-" + testID + ".scope", ""},
		{"a pod of podman", "/libpod_parent/" + testOuterID + "/libpod-" + testID, testID},
		{"conmon of a pod of podman", "/libpod_parent/" + testOuterID + "/conmon", ""},
		{"podman, in the unit that runs it", "/system.slice/web.service/libpod-payload-" + testID, testID},
		{"nerdctl", "/system.slice/nerdctl-" + testID + ".scope", testID},
		{"LXC", "/lxc.payload.web1/system.slice/nginx.service", "web1"},
		{"LXC 3", "/lxc.payload/web2/init.scope", "web2"},
		{"LXC 2", "/lxc/web2", "web2"},
		{"LXC's own process", "/lxc.monitor.web1", ""},
		{"nspawn", `/machine.slice/systemd-nspawn@deb\x2d12.service/payload/system.slice`, "deb-12"},
		{"nspawn's own process", "/machine.slice/systemd-nspawn@deb12.service/supervisor", ""},
		{"machined", "/machine.slice/machine-deb12.scope", "deb12"},
		{"a virtual machine", `/machine.slice/machine-qemu\x2d1\x2ddeb12.scope`, ""},
		{"BuildKit", "/docker/buildkit/t4967jvf8rbufklrhkicskyes", "t4967jvf8rbufklrhkicskyes"},
		{"ECS", "/ecs/" + testID[:32] + "/" + testID[:32] + "-1234567890", testID[:32] + "-1234567890"},
		{"ECS, Docker's", "/ecs/" + testID[:32] + "/" + testID, testID},
		{"systemd service", "/system.slice/nginx.service", ""},
		{"root", "/", ""},
		{"nothing", "", ""},
		{"pod without a container", "/kubepods/burstable/pod0d1b3c4e-5f60-4a7b-8c9d-0e1f2a3b4c5d", ""},
		{"a digit too few", "/docker/" + testID[1:], ""},
		{"a digit too many", "/docker/" + testID + "0", ""},
		{"short testID", "/docker/" + testID[:12], ""},
		{"capital digits", "/docker/" + strings.ToUpper(testID), ""},
		{"no hexadecimal", "/docker/" + strings.Repeat("g", 64), ""},
		{"other unit", "/system.slice/docker-" + testID + ".service", ""},
		{"no dash before it", "/system.slice/docker" + testID + ".scope", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			for _, c := range claims(strings.Split(strings.TrimPrefix(test.path, "/"), "/")) {
				if got == "" && c.namespace == "" {
					got = c.id
				}
			}
			if got != test.want {
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
		{Container{ID: testID, Name: "web"}, "web"},
		{Container{ID: testID}, testID[:12]},
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
		r := NewCgroups(root)
		for _, cgroup := range []uint64{0, 1, 1 << 40} {
			if info := r.Resolve(cgroup); info != (Cgroup{}) {
				t.Errorf("root %q: cgroup %d is %+v, want nothing", root, cgroup, info)
			}
		}
		if err := r.Close(); err != nil {
			t.Errorf("root %q: close: %v", root, err)
		}
	}
}
