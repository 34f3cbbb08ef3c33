package containers

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// inside is set where the test runs in namespaces of its own.
const inside = "PORTHOLE_TEST_CONTAINERS"

// TestMain runs the tests once more, in a mount and a network namespace of their own: what runtimes
// write to /run, /etc and /var/lib, and to the firewall, is gone with them.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		os.Exit(m.Run()) // which tells
	}
	if os.Getenv(inside) == "" {
		self := exec.Command("/proc/self/exe", os.Args[1:]...)
		self.Env = append(os.Environ(), inside+"=1")
		self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
		self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
		err := self.Run()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		} else if err != nil {
			fmt.Fprintln(os.Stderr, "namespaces of its own:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := ownFiles(); err != nil {
		fmt.Fprintln(os.Stderr, "file systems of its own:", err)
		os.Exit(1)
	}
	ours := []string{parent()}
	if len(cgroupsOf(podmans)) == 0 {
		ours = append(ours, podmans)
	}
	code := m.Run()
	removeCgroups(ours...)
	os.Exit(code)
}

// ownFiles hides what runtimes write from the machine.
func ownFiles() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"/etc", "/var/lib"} {
		over := "/run/over" + strings.ReplaceAll(dir, "/", "-")
		for _, part := range []string{"/up", "/work"} {
			if err := os.MkdirAll(over+part, 0o755); err != nil {
				return err
			}
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s/up,workdir=%[2]s/work", dir, over)
		if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/run/netns", "/run/lock"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if strings.HasPrefix(dir, "/var") { // where images are unpacked an overlay does not do
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
				return err
			}
		}
	}
	return testutil.UpLoopback()
}

// parent is the cgroup that all containers are below.
func parent() string { return fmt.Sprintf("porthole-test-%d", os.Getpid()) }

// podmans is a cgroup that podman makes besides.
const podmans = "libpod_parent"

// cgroupsOf are the directories of a cgroup, of every hierarchy, with those in them, the innermost first.
func cgroupsOf(name string) []string {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*")
	var dirs []string
	for _, root := range append(roots, "/sys/fs/cgroup") {
		_ = filepath.WalkDir(filepath.Join(root, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	slices.Reverse(dirs)
	return dirs
}

// removeCgroups removes cgroups once the last process in them has ended.
func removeCgroups(names ...string) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left := 0
		for _, name := range names {
			for _, dir := range cgroupsOf(name) {
				if unix.Rmdir(dir) != nil {
					left++
				}
			}
		}
		if left == 0 {
			return
		}
	}
}

// run runs a command and returns what it writes.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return out
}

func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // not that of t, which ends before its cleanup
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), err
}

// start starts a server, which is ended with the test; its log is told where the test fails.
func start(t *testing.T, ready func() bool, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("%s:\n%s", name, b[max(0, len(b)-4000):])
		}
	})
	eventually(t, name+" is ready", func() bool {
		select {
		case <-ended:
			t.Fatalf("%s has ended", name)
		default:
		}
		return ready()
	})
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testutil.AwaitWithin(t, 30*time.Second, what, ok)
}

// The image that all containers are of: busybox, linked statically.
const image = "shop/web:1.2"

// rootFS is its files, as a tar archive.
func rootFS(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v (Debian's package busybox-static)", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "proc/", "sys/", "dev/", "etc/", "tmp/"} {
		add(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}, nil)
	}
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, name := range []string{"sh", "nc", "httpd", "sleep"} {
		add(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// archive is the image as docker save writes it; path of the file.
func archive(t *testing.T) string { return archiveOf(t, image, "/bin/httpd", "-f", "-p", "80") }

// archiveOf is an image of another name that runs another command.
func archiveOf(t *testing.T, image string, command ...string) string {
	t.Helper()
	layer := rootFS(t)
	sum := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
	marshal := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	config := marshal(map[string]any{
		"architecture": goarch, "os": "linux", "config": map[string]any{"Cmd": command},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + sum(layer)}},
	})
	manifest := marshal([]map[string]any{{"Config": sum(config) + ".json", "RepoTags": []string{image}, "Layers": []string{"layer.tar"}}})
	name := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buffered := bufio.NewWriter(f)
	w := tar.NewWriter(buffered)
	for _, part := range []struct {
		name    string
		content []byte
	}{{sum(config) + ".json", config}, {"layer.tar", layer}, {"manifest.json", manifest}} {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: part.name, Mode: 0o644, Size: int64(len(part.content))})
		if err == nil {
			_, err = w.Write(part.content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), buffered.Flush()); err != nil {
		t.Fatal(err)
	}
	return name
}
