package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// copyPrograms copies programs of an unpacked system to bin/, and every library
// they need to where it is in that system.
func copyPrograms(root, dir string, names []string) error {
	p := programSet{root: root, dir: dir, files: make(map[string]string)}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			// Of a name twice the one that is no link, if any.
			if old, ok := p.files[d.Name()]; !ok || isLink(old) {
				p.files[d.Name()] = path
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := p.copy(name, "bin/"+name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func isLink(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode()&fs.ModeSymlink != 0
}

type programSet struct {
	root, dir string
	files     map[string]string // by name without directory
}

// copy copies a program or library to a path below the directory, and what it
// needs.
func (p *programSet) copy(name, to string) error {
	file, ok := p.files[name]
	if !ok {
		return errors.New("not in the packages")
	}
	to = filepath.Join(p.dir, to)
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	if err := copyFile(file, to); err != nil {
		return err
	}
	f, err := elf.Open(to)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer f.Close()
	if err := p.copyInterpreter(f); err != nil {
		return err
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, lib := range libraries {
		rel, err := filepath.Rel(p.root, p.files[lib])
		if err != nil {
			return fmt.Errorf("it needs %s, which is not in the packages", lib)
		}
		if err := p.copy(lib, rel); err != nil {
			return fmt.Errorf("it needs %s: %w", lib, err)
		}
	}
	return nil
}

// copyInterpreter copies what loads a program, to the very path it names.
func (p *programSet) copyInterpreter(f *elf.File) error {
	i := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if i < 0 {
		return nil
	}
	path, err := io.ReadAll(f.Progs[i].Open())
	if err != nil {
		return err
	}
	loader := strings.TrimRight(string(path), "\x00")
	if err := p.copy(filepath.Base(loader), loader); err != nil {
		return fmt.Errorf("it is loaded by %s: %w", loader, err)
	}
	return nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}
