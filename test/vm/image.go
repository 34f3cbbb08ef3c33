package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/porthole-dev/porthole/test/vm/guest"
)

// suite is a package with kernel tests.
type suite struct {
	pkg   string // import path
	tests []string
}

// name is that of its test binary without the suffix.
func (s suite) name() string { return s.pkg[strings.LastIndexByte(s.pkg, '/')+1:] }

// findSuites asks the test binaries of this repository, built for this machine,
// which tests a -test.run expression names: only the tests of the kernel, for no
// other need one.
func findSuites(ctx context.Context, run string) ([]suite, error) {
	top, _, _ := strings.Cut(run, "/") // -list takes no subtest
	out, err := output(ctx, "", "go", "test", "-list", top, "./...")
	if err != nil {
		return nil, err
	}
	var suites []suite
	var tests []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) == 1 && strings.HasPrefix(f[0], "TestKernel"):
			tests = append(tests, f[0])
		case len(f) > 1 && f[0] == "ok":
			if len(tests) > 0 {
				suites = append(suites, suite{f[1], tests})
			}
			tests = nil
		}
	}
	if len(suites) == 0 {
		return nil, fmt.Errorf("no kernel test matches %q", run)
	}
	return suites, nil
}

// programs are those that a machine has of this repository, by where they are in the image.
var programs = map[string]string{"init": "./test/vm/init", "bin/porthole": "./cmd/porthole", "bin/bench": "./test/bench"}

// build builds programs and the test binaries for an architecture, each where it is in the image.
func build(ctx context.Context, dir, arch string, programs map[string]string, suites []suite) error {
	for to, pkg := range programs {
		if err := goBuild(ctx, arch, "build", "-ldflags=-s -w", "-trimpath", "-o", filepath.Join(dir, to), pkg); err != nil {
			return err
		}
	}
	if len(suites) == 0 {
		return nil
	}
	args := []string{"test", "-c", "-ldflags=-s -w", "-trimpath", "-o", filepath.Join(dir, "tests") + "/"}
	for _, s := range suites {
		args = append(args, s.pkg)
	}
	return goBuild(ctx, arch, args...)
}

func goBuild(ctx context.Context, arch string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	_, err := capture(cmd)
	return err
}

// writeImage writes an initramfs of the plan and of directories that are laid
// out as in the VM's root.
func writeImage(path string, plan guest.Plan, roots []string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	image := &image{w: cpio.NewWriter(f), have: make(map[string]bool)}
	for _, root := range roots {
		if err := image.addTree(root); err != nil {
			return err
		}
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	if err := image.add(strings.TrimPrefix(guest.PlanFile, "/"), cpio.TypeReg|0o644, text); err != nil {
		return err
	}
	if err := image.add("etc", cpio.TypeDir|0o755, nil); err != nil {
		return err
	}
	if err := image.add("etc/passwd", cpio.TypeReg|0o644, []byte("root:x:0:0::/:/bin/false\n")); err != nil {
		return err
	}
	if err := image.w.Close(); err != nil {
		return err
	}
	return f.Close()
}

type image struct {
	w    *cpio.Writer
	have map[string]bool // names
}

func (m *image) addTree(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() {
			return m.add(name, cpio.TypeDir|0o755, nil)
		}
		if isLink(path) {
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return m.add(name, cpio.TypeSymlink|0o777, []byte(to)) // the way cpio has it
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return m.add(name, cpio.TypeReg|cpio.FileMode(info.Mode().Perm()), data)
	})
}

// add adds a file, a directory or a link, unless it is there.
func (m *image) add(name string, mode cpio.FileMode, data []byte) error {
	if m.have[name] {
		return nil
	}
	m.have[name] = true
	if err := m.w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Links: 1, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := m.w.Write(data)
	return err
}
