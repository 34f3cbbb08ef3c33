package tracer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRootID is the number of the root of a cgroup hierarchy (kernfs gives it first).
// What a cgroup namespace shows as the root, or a bind mount, has another.
const cgroupRootID = 1

// CgroupMount is a mount of the cgroup v2 hierarchy.
type CgroupMount struct {
	Path  string
	Whole bool // it begins at the root of the hierarchy, not below
}

// FindCgroup returns the mount of cgroup2 that shows most: one that begins at the root, if
// there is one. The error wraps ErrNotSupported when it is mounted nowhere.
func FindCgroup() (CgroupMount, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return CgroupMount{}, fmt.Errorf("find cgroup2: %w", err)
	}
	defer f.Close()
	var found CgroupMount
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[2] != "cgroup2" {
			continue
		}
		m := CgroupMount{Path: unescapeMount(fields[1])}
		id, err := cgroupID(m.Path)
		if err != nil {
			continue // something else is mounted over it
		}
		if m.Whole = id == cgroupRootID; m.Whole {
			return m, nil
		}
		if found.Path == "" {
			found = m
		}
	}
	if found.Path == "" {
		return found, fmt.Errorf("%w: cgroup2 is mounted nowhere", ErrNotSupported)
	}
	return found, nil
}

// CgroupRoot is the path of FindCgroup.
func CgroupRoot() (string, error) {
	m, err := FindCgroup()
	return m.Path, err
}

// unescapeMount undoes the escapes of proc_pid_mounts(5).
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cgroupID returns the number of the cgroup that a directory of cgroup2 is.
func cgroupID(path string) (uint64, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Statfs(path, &fs), unix.Stat(path, &st)); err != nil {
		return 0, err
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("%s: not cgroup2", path)
	}
	return st.Ino, nil
}

// openCgroup opens the root of the hierarchy, for hooks to be attached to: also where it
// is mounted nowhere, and, with CAP_DAC_READ_SEARCH, from within a cgroup namespace. Where
// only a part of the hierarchy can be reached it opens that, and whole is false.
func openCgroup() (root *os.File, whole bool, err error) {
	m, err := FindCgroup()
	if errors.Is(err, ErrNotSupported) {
		root, err = mountCgroup()
	} else if err == nil {
		root, err = os.Open(m.Path)
	}
	if err != nil {
		return nil, false, err
	}
	if id, err := cgroupID(fmt.Sprintf("/proc/self/fd/%d", root.Fd())); err == nil && id == cgroupRootID {
		return root, true, nil
	}
	const fileidKernfs = 0xfe // type of a handle that is the number alone
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, cgroupRootID))
	fd, err := unix.OpenByHandleAt(int(root.Fd()), handle, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return root, false, nil
	}
	root.Close()
	return os.NewFile(uintptr(fd), "cgroup2"), true, nil
}

// mountCgroup mounts cgroup2 where nobody sees it.
func mountCgroup() (*os.File, error) {
	const tried, how = "mount cgroup2, which is mounted nowhere", "; mount it with: mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2"
	config, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%w: the kernel has no cgroup2 (CONFIG_CGROUPS)", ErrNotSupported)
	} else if err != nil {
		return nil, explain(tried, fmt.Errorf("%w%s", err, how))
	}
	defer unix.Close(config)
	if err := unix.FsconfigCreate(config); err != nil {
		return nil, explain(tried, fmt.Errorf("%w%s", err, how))
	}
	fd, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, explain(tried, fmt.Errorf("%w%s", err, how))
	}
	return os.NewFile(uintptr(fd), "cgroup2"), nil
}
