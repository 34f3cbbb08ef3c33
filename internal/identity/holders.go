package identity

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/tracer"
)

// OwnHolders returns the descriptors of sockets of the processes whose descriptors this process may
// look at, by the inode numbers of the sockets: without privileges those of its own user. They are of
// no one moment: a descriptor that is passed on meanwhile may be missing. Process.Cgroup is not known.
func (ps *Processes) OwnHolders() (map[uint64][]tracer.Holder, error) {
	entries, err := os.ReadDir(ps.root)
	if err != nil {
		return nil, err
	}
	out := make(map[uint64][]tracer.Holder)
	for _, e := range entries {
		pid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		dir, err := ps.open(uint32(pid))
		if err != nil {
			continue // it has ended
		}
		ps.addHolders(out, dir, uint32(pid))
		dir.close()
	}
	return out, nil
}

// addHolders adds the descriptors of one process.
func (ps *Processes) addHolders(out map[uint64][]tracer.Holder, dir processDir, pid uint32) {
	fd, err := unix.Openat(dir.fd, "fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "fd")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return
	}
	var process *tracer.Process
	link := make([]byte, 64)
	for _, name := range names {
		n, err := unix.Readlinkat(fd, name, link)
		if err != nil {
			continue
		}
		text, ok := strings.CutPrefix(string(link[:n]), "socket:[")
		if !ok {
			continue
		}
		inode, errInode := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
		number, errNumber := strconv.ParseUint(name, 10, 32)
		if errInode != nil || errNumber != nil {
			continue
		}
		if process == nil {
			if process = ps.own(dir, pid); process == nil {
				return
			}
		}
		out[inode] = append(out[inode], tracer.Holder{Process: *process, FD: uint32(number)})
	}
}

// own is what is known of a process; nil: it has ended.
func (ps *Processes) own(dir processDir, pid uint32) *tracer.Process {
	st, err := dir.stat()
	if err != nil {
		return nil
	}
	p := &tracer.Process{PID: pid, Comm: st.comm, Start: time.Duration(st.start)*tick - ps.shift}
	status, err := dir.read("status", 4096)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Uid:" {
			uid, err := strconv.ParseUint(f[1], 10, 32)
			if err != nil {
				return nil
			}
			p.UID = uint32(uid)
		}
	}
	return p
}
