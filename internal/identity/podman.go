package identity

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// containersStorage reads what podman, Buildah and CRI-O keep of their containers, in one format: an
// index of all of them, which has their names, and the configuration of each.
func containersStorage(o owner, c claim) (*record, error) {
	if c.named {
		return nil, nil
	}
	roots, err := o.storageRoots()
	if err != nil {
		return nil, err
	}
	for _, root := range roots {
		for _, driver := range []string{"overlay", "vfs", "btrfs"} {
			if r, err := o.stored(filepath.Join(root, driver+"-containers"), c); r != nil || err != nil {
				return r, err
			}
		}
	}
	// What is only needed while it runs is elsewhere, and can be read where the home of a user cannot.
	dir := "/run/containers/storage"
	if o.user != nil {
		dir = filepath.Join(o.runDir(), "containers")
	}
	if runs, err := o.exists(filepath.Join(dir, "overlay-containers"), c.id); !runs || err != nil {
		return nil, err
	}
	return &record{container: Container{ID: c.id, Runtime: runtimePodman}}, nil
}

// stored is a container of one directory; nil: there is none of that id.
func (o owner) stored(dir string, c claim) (*record, error) {
	var entry *stored
	var files []file
	for _, name := range []string{"containers.json", "volatile-containers.json"} {
		found, f, err := o.files.storage(filepath.Join(dir, name)).find(o, dir, name, c.id)
		if err != nil {
			return nil, err
		}
		if found != nil {
			entry = found
			files = append(files, f)
		}
	}
	if entry == nil {
		if made, err := o.exists(dir, c.id); made || err != nil {
			return nil, errors.Join(errUnfinished, err)
		}
		return nil, nil
	}
	r := &record{container: Container{ID: c.id, Name: entry.name, Image: entry.image, Runtime: c.runtime}, files: files}
	var spec ociSpec
	switch _, err := o.parse(filepath.Join(dir, c.id), "userdata/config.json", &spec); {
	case errors.Is(err, errNone): // its runtime writes that when it starts it
		return r, nil
	case err != nil:
		return nil, err
	}
	r.place = spec.Linux.CgroupsPath
	switch manager := spec.Annotations["io.container.manager"]; manager {
	case "libpod":
		r.container.Runtime = runtimePodman
	case runtimeCRIO:
		ofCRIO(r, &spec)
	}
	return r, nil
}

// storageRoots are the directories that the storage may be in.
func (o owner) storageRoots() ([]string, error) {
	config, standard := "/etc/containers", "/var/lib/containers/storage"
	if o.user != nil && o.home == "" {
		return nil, nil
	} else if o.user != nil {
		config, standard = filepath.Join(o.home, ".config/containers"), filepath.Join(o.home, ".local/share/containers/storage")
	}
	b, _, err := o.read(config, "storage.conf", maxConfig)
	if errors.Is(err, errNone) {
		return []string{standard}, nil
	} else if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(line, "=")
		if root := strings.Trim(strings.TrimSpace(value), `"'`); ok && strings.TrimSpace(key) == "graphroot" && filepath.IsAbs(root) && root != standard {
			return []string{root, standard}, nil
		}
	}
	return []string{standard}, nil
}

// runDir is the directory of a user in /run.
func (o owner) runDir() string {
	return filepath.Join("/run/user", strconv.FormatUint(uint64(*o.user), 10))
}

// storage is one index of containers, as it was last read.
type storage struct {
	mu         sync.Mutex
	file       file
	containers map[string]stored
}

type stored struct{ name, image string }

// storage returns the index that is kept of a file.
func (f *runtimeFiles) storage(path string) *storage {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.storages[path]
	if s == nil {
		if f.storages == nil || len(f.storages) >= maxStorages {
			f.storages = make(map[string]*storage)
		}
		s = new(storage)
		f.storages[path] = s
	}
	return s
}

const (
	// maxStorages is how many indexes are kept: of the system and of its users.
	maxStorages = 64
	// maxStored is how many containers of an index are.
	maxStored = 1 << 14
)

// find looks a container up, nil: there is none of that id. The index is read again if it has
// changed.
func (s *storage) find(o owner, dir, name, id string) (*stored, file, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file.name != "" {
		if changed, err := o.changed(&s.file); err != nil {
			return nil, file{}, err
		} else if !changed {
			return s.get(id)
		}
	}
	b, f, err := o.read(dir, name, maxIndex)
	if errors.Is(err, errNone) {
		return nil, file{}, nil
	} else if err != nil {
		return nil, file{}, err
	}
	var all []struct {
		ID       string   `json:"id"`
		Names    []string `json:"names"`
		Metadata string   `json:"metadata"`
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, file{}, err // it is being written
	}
	s.file, s.containers = f, make(map[string]stored, len(all))
	for i := range all[:min(len(all), maxStored)] {
		var meta struct {
			Image string `json:"image-name"`
		}
		_ = json.Unmarshal([]byte(all[i].Metadata), &meta) // of Buildah, say, which has none
		found := stored{image: bounded(meta.Image, maxImage)}
		if len(all[i].Names) > 0 {
			found.name = bounded(all[i].Names[0], maxName)
		}
		s.containers[strings.Clone(all[i].ID)] = found
	}
	return s.get(id)
}

func (s *storage) get(id string) (*stored, file, error) {
	if found, ok := s.containers[id]; ok {
		return &found, s.file, nil
	}
	return nil, file{}, nil
}
