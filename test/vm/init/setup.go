package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// mounts are the file systems the tests and porthole look at. Not every kernel
// has the optional ones.
var mounts = []struct {
	kind, dir string
	optional  bool
}{
	{kind: "proc", dir: "/proc"},
	{kind: "sysfs", dir: "/sys"},
	{kind: "devtmpfs", dir: "/dev"},
	{kind: "tmpfs", dir: "/tmp"},
	{kind: "tmpfs", dir: "/run"},
	{kind: "cgroup2", dir: "/sys/fs/cgroup"},
	{kind: "bpf", dir: "/sys/fs/bpf", optional: true},
	{kind: "tracefs", dir: "/sys/kernel/tracing", optional: true},
	{kind: "securityfs", dir: "/sys/kernel/security", optional: true},
}

// maxFiles is as many descriptors as a login as root may have.
const maxFiles = 1 << 20

func setUp(modules []string) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil && !m.optional {
			return err
		}
		err := unix.Mount(m.kind, m.dir, m.kind, 0, "")
		if err != nil && !m.optional && !errors.Is(err, unix.EBUSY) { // the kernel mounts devtmpfs itself
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.dir, err)
		}
	}
	for _, file := range modules {
		if err := load(file); err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxFiles, Max: maxFiles}); err != nil {
		return fmt.Errorf("raise limit of open files: %w", err)
	}
	// Set here, not by the kernel: it hands its own HOME and TERM on, no PATH.
	if err := os.Setenv("PATH", "/bin"); err != nil {
		return err
	}
	return testutil.UpLoopback()
}

// startSystemd makes systemd process 1, which mounts what it needs. No mount namespace can be
// made where the root is that of the kernel itself, so there is another above it.
func startSystemd(modules []string) error {
	for _, file := range modules {
		if err := load(file); err != nil {
			return fmt.Errorf("load %s: %w", file, err)
		}
	}
	const root = "/root-of-systemd"
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(root, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := errors.Join(unix.Chroot("."), unix.Chdir("/")); err != nil {
		return err
	}
	const systemd = "/usr/lib/systemd/systemd"
	return fmt.Errorf("start %s: %w", systemd, unix.Exec(systemd, []string{systemd}, []string{"TERM=linux", "SYSTEMD_LOG_TARGET=console"}))
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
