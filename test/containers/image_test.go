package containers

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/porthole-dev/porthole/internal/identity"
	"github.com/porthole-dev/porthole/internal/render"
)

// portholeImage is porthole's own image, of the version that docs/install.md speaks of.
const portholeImage = "porthole:0.1.0"

var imageBuild struct {
	once sync.Once
	out  []byte
	err  error
}

// portholesImage builds porthole's own image and returns its archive.
func portholesImage(t *testing.T) string {
	t.Helper()
	const dist = "/run/porthole-image"
	imageBuild.once.Do(func() {
		build := exec.Command("make", "-s", "-C", "../..", "image", "VERSION=0.1.0", "ARCHES="+goarch, "DIST="+dist)
		imageBuild.out, imageBuild.err = build.CombinedOutput()
	})
	if imageBuild.err != nil {
		t.Fatalf("make image: %v: %s", imageBuild.err, imageBuild.out)
	}
	return filepath.Join(dist, "porthole-0.1.0-image-"+goarch+".tar")
}

// documented is how docs/install.md says that the image is run with a runtime: what follows "run".
func documented(t *testing.T, engine string) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`(?m)^` + engine + ` run -d (?:.*\\\n)*.*$`).FindString(string(text))
	words := strings.Fields(strings.ReplaceAll(command, "\\\n", " "))
	if len(words) < 3 {
		t.Fatalf("docs/install.md has no %s run", engine)
	}
	return words[2:]
}

// engine is one that runs the image.
type engine struct {
	*testing.T
	command string
	group   []string // flags that have a container in the cgroup of the test
	words   []string // documented
}

// doctor is what porthole doctor says in a container with the documented flags but some, and others besides.
func (r *engine) doctor(without []string, with ...string) string {
	r.Helper()
	flags := r.words[1:slices.Index(r.words, portholeImage)] // without -d
	var kept []string
	for i := 0; i < len(flags); i++ {
		flag := flags[i]
		if flag == "-v" {
			i++
			flag = "-v " + flags[i]
		}
		named := strings.HasPrefix(flag, "--name") || strings.HasPrefix(flag, "--restart")
		if flag == "--name" {
			i++
		}
		if !named && !slices.ContainsFunc(without, func(w string) bool { return strings.HasPrefix(flag, w) }) {
			kept = append(kept, strings.Fields(flag)...)
		}
	}
	args := slices.Concat([]string{"run", "--rm"}, r.group, kept, with, []string{portholeImage, "doctor", "--local"})
	out, err := try(r.T, r.command, args...)
	return fmt.Sprint(out, "\n", err)
}

// asDocumented runs the image as docs/install.md says, and looks whether the agent in the container sees
// this machine: a listener of this very process, and one of another container by its name.
func (r *engine) asDocumented(web place) {
	r.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		r.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	run(r.T, r.command, slices.Concat([]string{"run"}, r.group, r.words)...)
	r.Cleanup(func() {
		if r.Failed() {
			out, err := exec.Command(r.command, "logs", "porthole").CombinedOutput()
			r.Logf("logs: %s%v", out, err)
		}
		_, _ = try(r.T, r.command, "rm", "-f", "porthole")
	})
	ls := func(flags ...string) []render.Socket {
		out, err := try(r.T, r.command, append([]string{"exec", "porthole", "/usr/bin/porthole", "ls", "--agent", "--json", "--role", "listener"}, flags...)...)
		if err != nil {
			return nil
		}
		return rows[render.Socket](r.T, out)
	}
	var own []render.Socket
	eventually(r.T, "the agent in the container sees port "+fmt.Sprint(port), func() bool {
		own = ls("--lport", fmt.Sprint(port))
		return len(own) == 1
	})
	if h := own[0].Holders; len(h) != 1 || int(h[0].PID) != os.Getpid() {
		r.Errorf("the agent says that port %d is of %+v, want pid %d", port, h, os.Getpid())
	}
	named := ls("--container", web.Container.Name)
	if len(named) != 1 || !same(of(named[0].Place), web) {
		r.Errorf("the agent sees %+v of container %s", named, web.Container.Name)
	}
	resp, err := http.Get("http://127.0.0.1:9655/metrics")
	if err != nil {
		r.Errorf("metrics on this network: %v", err)
	} else {
		resp.Body.Close()
	}
	var version struct{ Version string }
	if err := json.Unmarshal([]byte(run(r.T, r.command, "exec", "porthole", "/usr/bin/porthole", "version", "--json")), &version); err != nil || version.Version != "0.1.0" {
		r.Errorf("it is version %q, %v", version.Version, err)
	}
}

// same is whether two places are the same container, as far as files of its runtime tell.
func same(a, b place) bool {
	return a.Container != nil && b.Container != nil && a.Container.ID == b.Container.ID && a.Container.Name == b.Container.Name
}

// needs looks whether each documented flag is needed, and whether doctor says so: what it must say, by the flag
// that is left out.
func (r *engine) needs(missing map[string]string) {
	r.Helper()
	if all := r.doctor(nil); !strings.Contains(all, "porthole works here") || strings.Contains(all, "not seen from here") {
		r.Errorf("doctor, with what docs/install.md says:\n%s", all)
	}
	for flag, want := range missing {
		if got := r.doctor([]string{flag}); !strings.Contains(got, want) || strings.Contains(got, "works here, and sees everything") {
			r.Errorf("without %s doctor does not speak of %s:\n%s", flag, want, got)
		}
	}
	filter := filepath.Join(r.TempDir(), "seccomp.json")
	const noBPF = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["bpf"],"action":"SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(filter, []byte(noBPF), 0o644); err != nil {
		r.Fatal(err)
	}
	if got := r.doctor([]string{"--security-opt=seccomp"}, "--security-opt=seccomp="+filter); !strings.Contains(got, "a seccomp filter forbids bpf()") {
		r.Errorf("where bpf() is filtered doctor says\n%s", got)
	}
}

func TestImagePodman(t *testing.T) {
	porthole(t)
	configurePodman(t)
	run(t, "podman", "load", "-i", archive(t))
	run(t, "podman", "load", "-i", portholesImage(t))
	group := []string{"--cgroup-parent=/" + parent()}
	id := run(t, "podman", append(append([]string{"run", "-d", "--name", "web"}, group...), podmansImage, "/bin/httpd", "-f", "-p", "80")...)
	t.Cleanup(func() { _, _ = try(t, "podman", "rm", "-f", "-t0", "web") })
	r := &engine{t, "podman", group, documented(t, "podman")}
	r.asDocumented(place{Container: &identity.Container{ID: id, Name: "web"}})
	r.needs(map[string]string{
		"--pid":                     "--pid=host",
		"-v /sys/fs/cgroup":         "-v /sys/fs/cgroup:/sys/fs/cgroup:ro",
		"--cap-add=BPF":             "CAP_BPF",
		"--cap-add=PERFMON":         "CAP_PERFMON",
		"--cap-add=NET_ADMIN":       "CAP_NET_ADMIN",
		"--cap-add=DAC_READ_SEARCH": "CAP_DAC_READ_SEARCH",
	})
}

func TestImageDocker(t *testing.T) {
	porthole(t)
	start(t, func() bool { _, err := try(t, docker, "version"); return err == nil }, "dockerd",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "vfs", "--cgroup-parent", "/"+parent())
	run(t, docker, "load", "-i", archive(t))
	run(t, docker, "load", "-i", portholesImage(t))
	id := run(t, docker, "run", "-d", "--name", "web", image, "/bin/httpd", "-f", "-p", "80")
	t.Cleanup(func() { _, _ = try(t, docker, "rm", "-f", "web") })
	r := &engine{t, docker, nil, documented(t, "docker")}
	r.asDocumented(place{Container: &identity.Container{ID: id, Name: "web"}})
	r.needs(map[string]string{
		"--pid":                     "--pid=host",
		"--cap-add=SYS_ADMIN":       "CAP_BPF",
		"--cap-add=NET_ADMIN":       "CAP_NET_ADMIN",
		"--cap-add=DAC_READ_SEARCH": "CAP_DAC_READ_SEARCH",
	})
}
