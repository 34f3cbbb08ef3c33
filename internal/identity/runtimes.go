package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// runtimeFiles are the files that runtimes keep of their containers. root is "" but in
// tests: what their paths are below.
type runtimeFiles struct{ root string }

// dockerName reads the name Docker gave a container, "" when Docker has none of
// that id.
func (f runtimeFiles) dockerName(id string) (string, error) {
	b, err := os.ReadFile(filepath.Join(f.root, "/var/lib/docker/containers", id, "config.v2.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("read the name of a container: %w", err)
	}
	var config struct{ Name string }
	if err := json.Unmarshal(b, &config); err != nil {
		return "", fmt.Errorf("read the name of a container: %w", err) // Docker is writing it
	}
	return strings.TrimPrefix(config.Name, "/"), nil
}

// ofUser tells whether a runtime that a user runs has a container of that id, and none of
// the system has.
func (f runtimeFiles) ofUser(uid uint32, id string) (bool, error) {
	for _, dir := range []string{"/var/lib/docker/containers", "/var/lib/containers/storage/overlay-containers", "/run/containers/storage/overlay-containers"} {
		if _, found, err := owner(filepath.Join(f.root, dir, id)); found || err != nil {
			return false, err
		}
	}
	number := strconv.FormatUint(uint64(uid), 10)
	dirs := []string{filepath.Join("/run/user", number, "containers/overlay-containers")}
	if u, err := user.LookupId(number); err == nil {
		for _, dir := range []string{".local/share/containers/storage/overlay-containers", ".local/share/docker/containers"} {
			dirs = append(dirs, filepath.Join(u.HomeDir, dir))
		}
	}
	for _, dir := range dirs {
		if by, found, err := owner(filepath.Join(f.root, dir, id)); found || err != nil {
			return found && by == uid, err
		}
	}
	return false, nil
}

// owner tells who owns a directory, if there is one.
func owner(dir string) (uid uint32, found bool, err error) {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return 0, false, nil
	} else if err != nil {
		return 0, false, fmt.Errorf("look for a container: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st.Uid, ok && info.IsDir(), nil
}
