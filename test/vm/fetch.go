package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// modules are what the tests and init need of what a kernel does not have built
// in: the port of the messages, what ss asks, and pairs of network devices.
var modules = []string{"virtio_pci", "virtio_console", "inet_diag", "tcp_diag", "udp_diag", "veth"}

// tools are what the tests run, and the release of Debian they are of, the same
// for every kernel.
var tools = []string{"ip", "ss"}

var toolsReleases = trixie

// cache is a directory of what was fetched. What is there is whole, for it gets
// its name last.
type cache struct {
	dir    string
	update bool // fetch what is there already too
	log    func(format string, args ...any)
}

// kernel returns the directory of a kernel: vmlinuz, and the modules in
// root/modules, named so that those that others need sort first.
func (c *cache) kernel(ctx context.Context, k kernel) (string, error) {
	return c.get(ctx, "linux-"+k.name, k.releases, k.arch, modules, func(a *archive, tmp, dir string) error {
		names, err := a.kernelPackages(ctx, k)
		if err != nil {
			return err
		}
		c.log("fetching %s", strings.Join(names, ", "))
		if err := a.unpack(ctx, tmp, names); err != nil {
			return err
		}
		vmlinuz, err := one(filepath.Join(tmp, "boot/vmlinuz-*"), filepath.Join(tmp, "usr/lib/modules/*/vmlinuz"))
		if err != nil {
			return err
		}
		if err := os.Rename(vmlinuz, filepath.Join(dir, "vmlinuz")); err != nil {
			return err
		}
		return copyModules(ctx, tmp, filepath.Join(dir, "root", "modules"), modules)
	})
}

// deviceModules are what a machine needs besides, by what it has that those of the tests have not.
var deviceModules = map[string][]string{
	"disk": {"virtio_pci", "virtio_blk", "crc32c_generic", "ext4"},
	"net":  {"virtio_pci", "virtio_net"},
}

// device returns a directory with those modules of a kernel, in root/modules-DEVICE, named as its own are.
func (c *cache) device(ctx context.Context, k kernel, device string) (string, error) {
	wanted := deviceModules[device]
	return c.get(ctx, device+"-"+k.name, k.releases, k.arch, wanted, func(a *archive, tmp, dir string) error {
		names, err := a.kernelPackages(ctx, k)
		if err != nil {
			return err
		}
		c.log("fetching the modules of a %s device", device)
		if err := a.unpack(ctx, tmp, names); err != nil {
			return err
		}
		return copyModules(ctx, tmp, filepath.Join(dir, "root", "modules-"+device), wanted)
	})
}

// kernelPackage matches the packages with parts of a kernel. Newer releases of
// Debian have the image, the modules and the list of those built in each in one
// of its own.
var kernelPackage = regexp.MustCompile(`^linux-(image|binary|modules|base)-\d`)

// tools returns the directory of the programs that tests run, with the libraries
// they need in root, which is laid out like the VM.
func (c *cache) tools(ctx context.Context, arch string) (string, error) {
	return c.get(ctx, "tools", toolsReleases, arch, tools, func(a *archive, tmp, dir string) error {
		names, err := a.closure(ctx, "iproute2")
		if err != nil {
			return err
		}
		c.log("fetching iproute2 and what it needs for %s", arch)
		if err := a.unpack(ctx, tmp, names); err != nil {
			return err
		}
		return copyPrograms(tmp, filepath.Join(dir, "root"), tools)
	})
}

// bcc returns the directory of the tools of bcc and, for they compile what they
// load when they start, of the headers of the very kernel; all of it in root.
func (c *cache) bcc(ctx context.Context, k kernel, kernelDir string) (string, error) {
	version, err := kernelVersion(kernelDir)
	if err != nil {
		return "", err
	}
	return c.get(ctx, "bcc-"+k.name, k.releases, k.arch, []string{version}, func(a *archive, _, dir string) error {
		names, err := a.closure(ctx, "bpfcc-tools")
		if err != nil {
			return err
		}
		headers, err := a.closure(ctx, "linux-headers-"+version)
		if err != nil {
			return fmt.Errorf("%w\n-update fetches the kernel that the release has now", err)
		}
		for _, name := range headers { // and not the compiler that they name
			if strings.HasPrefix(name, "linux-headers-") {
				names = append(names, name)
			}
		}
		c.log("fetching the tools of bcc, and headers of %s", version)
		return a.unpack(ctx, filepath.Join(dir, "root"), names)
	})
}

// systemd returns the directory of a system, in root, whose process 1 is systemd: of the
// release that the kernel is of.
func (c *cache) systemd(ctx context.Context, k kernel) (string, error) {
	wanted := []string{"systemd", "libpam-systemd", "dbus", "iproute2", "util-linux", "coreutils", "passwd", "base-files", "dash",
		"dpkg", "tar", "libc-bin", "perl-base", "init-system-helpers", "diffutils", "sed", "grep"}
	return c.get(ctx, "systemd-"+k.name, k.releases, k.arch, wanted, func(a *archive, _, dir string) error {
		names, err := a.closure(ctx, wanted...)
		if err != nil {
			return err
		}
		c.log("fetching systemd and what it needs")
		root := filepath.Join(dir, "root")
		if err := a.unpack(ctx, root, names); err != nil {
			return err
		}
		return a.writeStatus(ctx, filepath.Join(root, "var/lib/dpkg"), names)
	})
}

// kernelVersion is what uname -r says, from the modules of a kernel in the cache.
func kernelVersion(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "root/modules/*.ko"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("find the version of the kernel in %s: %w", dir, cmp.Or(err, fs.ErrNotExist))
	}
	code, err := os.ReadFile(files[0])
	if err != nil {
		return "", err
	}
	magic, err := moduleInfo(code, "vermagic")
	if err != nil {
		return "", fmt.Errorf("%s: %w", files[0], err)
	}
	version, _, _ := strings.Cut(magic, " ")
	return version, nil
}

// get returns the directory of something in the cache, which fill makes in dir;
// tmp is for what it needs meanwhile. A change of what is wanted makes another.
func (c *cache) get(ctx context.Context, what string, releases []string, arch string, wanted []string, fill func(a *archive, tmp, dir string) error) (string, error) {
	name, from := what+"-"+arch, strings.Join(releases, "+")
	dir, list := filepath.Join(c.dir, name), strings.Join(append(slices.Clone(wanted), releases...), "\n")
	if have, err := os.ReadFile(filepath.Join(dir, "wanted")); err == nil && string(have) == list && !c.update {
		return dir, nil
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(c.dir, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	whole := filepath.Join(tmp, "whole")
	if err := os.Mkdir(whole, 0o755); err != nil {
		return "", err
	}
	a, err := openArchive(ctx, filepath.Join(c.dir, "apt", from+"-"+arch), releases, arch)
	if err == nil {
		err = fill(a, filepath.Join(tmp, "unpacked"), whole)
	}
	if err != nil {
		return "", fmt.Errorf("fetch %s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(whole, "wanted"), []byte(list), 0o644); err != nil {
		return "", err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.Rename(whole, dir)
}

// one is the only file that matches any of the patterns.
func one(patterns ...string) (string, error) {
	var files []string
	for _, pattern := range patterns {
		more, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		files = append(files, more...)
	}
	if len(files) != 1 {
		return "", fmt.Errorf("%d files match %s, want 1", len(files), strings.Join(patterns, " or "))
	}
	return files[0], nil
}
