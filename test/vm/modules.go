package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// copyModules copies the modules of these names, and those they need, from an
// unpacked package. A name starts with the number of its turn to be loaded.
func copyModules(ctx context.Context, root, dir string, names []string) error {
	m := moduleSet{ctx: ctx, dir: dir, files: make(map[string]string), done: make(map[string]bool)}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		base := filepath.Base(path)
		if name, rest, ok := strings.Cut(base, ".ko"); ok && (rest == "" || strings.HasPrefix(rest, ".")) {
			m.files[moduleName(name)] = path
		} else if base == "modules.builtin" {
			return m.addBuiltin(path)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range names {
		if err := m.copy(name); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	return nil
}

type moduleSet struct {
	ctx    context.Context
	dir    string
	files  map[string]string // by name
	done   map[string]bool   // copied, or built in
	copied int
}

// moduleName is how the kernel writes a name: files have - or _ as they like.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

func (m *moduleSet) addBuiltin(path string) error {
	text, err := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		m.done[moduleName(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"))] = true
	}
	return err
}

func (m *moduleSet) copy(name string) error {
	if m.done[name] {
		return nil
	}
	file, ok := m.files[name]
	if !ok {
		return errors.New("neither a file nor built in")
	}
	m.done[name] = true
	code, err := readModule(m.ctx, file)
	if err != nil {
		return err
	}
	needs, err := moduleNeeds(code)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(file), err)
	}
	for _, need := range needs {
		if err := m.copy(need); err != nil {
			return fmt.Errorf("it needs %s: %w", need, err)
		}
	}
	m.copied++
	return os.WriteFile(filepath.Join(m.dir, fmt.Sprintf("%02d-%s.ko", m.copied, name)), code, 0o644)
}

func readModule(ctx context.Context, file string) ([]byte, error) {
	switch filepath.Ext(file) {
	case ".ko":
		return os.ReadFile(file)
	case ".xz":
		out, err := output(ctx, "", "xz", "-dc", file)
		return []byte(out), err
	}
	return nil, fmt.Errorf("%s: want .ko or .ko.xz", filepath.Base(file))
}

// moduleNeeds reads which modules one needs from itself: modules.dep is not in
// the package.
func moduleNeeds(code []byte) ([]string, error) {
	names, err := moduleInfo(code, "depends")
	if err != nil || names == "" {
		return nil, err
	}
	return strings.Split(moduleName(names), ","), nil
}

// moduleInfo reads what modinfo shows of a module, empty if it has no such field.
func moduleInfo(code []byte, field string) (string, error) {
	f, err := elf.NewFile(bytes.NewReader(code))
	if err != nil {
		return "", err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return "", errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return "", err
	}
	for line := range strings.SplitSeq(string(info), "\x00") {
		if value, ok := strings.CutPrefix(line, field+"="); ok {
			return value, nil
		}
	}
	return "", nil
}
