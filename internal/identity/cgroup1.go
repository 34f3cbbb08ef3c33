package identity

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"time"

	"github.com/porthole-dev/porthole/tracer"
)

// ofProcess is what is known of one process by its cgroups of the v1 hierarchies. What the table tells of
// a process is its cgroup of the v2 hierarchy alone.
type ofProcess struct {
	start time.Duration // of the process
	known *known        // nil: it is in no container that they name
	again time.Duration // then: when to look again, since Cgroups.start
}

// Of is Resolve of the cgroup of a process. Where cgroup v2 names no container, but the machine has
// hierarchies of cgroup v1, as runtimes before 2021 used alone, a container is told by those, if the files of
// its runtime say so too.
func (r *Cgroups) Of(p *tracer.Process) Cgroup {
	c := r.Resolve(p.Cgroup)
	if r == nil || r.procs == nil || c.Container != nil || p.PID == 0 {
		return c
	}
	of, ok := r.byPID.Get(uint64(p.PID))
	if !ok || of.start != p.Start || of.known == nil && of.again != never && time.Since(r.start) >= of.again {
		of = r.lookAtProcess(p)
		r.byPID.Put(uint64(p.PID), of)
	}
	if of.known != nil {
		by := r.resolve(of.known)
		c.Container, c.Pod = by.Container, by.Pod
	}
	return c
}

// hasCgroup1 tells whether processes have cgroups of a v1 hierarchy that has controllers.
func hasCgroup1() bool {
	b, err := os.ReadFile("/proc/self/cgroup")
	return err == nil && len(paths1(b)) > 0
}

// paths1 are the paths of a process in the v1 hierarchies that have controllers, by proc_pid_cgroup: each
// once.
func paths1(cgroup []byte) []string {
	var out []string
	for line := range bytes.Lines(cgroup) {
		f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(f) < 3 || f[1] == "" || strings.HasPrefix(f[1], "name=") || len(out) > 0 && out[len(out)-1] == f[2] {
			continue
		}
		out = append(out, f[2])
	}
	return out
}

// lookAtProcess reads which cgroups a process has.
func (r *Cgroups) lookAtProcess(p *tracer.Process) *ofProcess {
	of := &ofProcess{start: p.Start, again: never}
	paths, err := r.pathsOf(p)
	if err != nil {
		if !errors.Is(err, ErrProcessGone) {
			of.again = time.Since(r.start) + lookAgain
		}
		return of
	}
	for _, path := range paths {
		if path == "/" {
			continue
		}
		w := &where{parts: strings.Split(strings.TrimPrefix(path, "/"), "/"), old: true}
		w.dirs = make([]dir, len(w.parts)+1)
		if r.claimed(w) {
			of.known = &known{where: w}
			return of
		}
	}
	of.again = time.Since(r.start) + lookLate // it may be moved
	return of
}

func (r *Cgroups) pathsOf(p *tracer.Process) ([]string, error) {
	dir, err := r.procs.open(p.PID)
	if err != nil {
		return nil, err
	}
	defer dir.close()
	st, err := dir.stat()
	if err != nil {
		return nil, err
	}
	if st.start != int64((p.Start+r.procs.shift)/tick) {
		return nil, ErrProcessGone
	}
	b, err := dir.read("cgroup", 64<<10)
	if err != nil {
		return nil, err
	}
	return paths1(b), nil
}
