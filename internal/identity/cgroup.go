package identity

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/cache"
	"github.com/porthole-dev/porthole/tracer"
)

// Cgroups turns cgroup ids into Cgroup and remembers what it found. It is safe for
// concurrent use.
type Cgroups struct {
	root  string
	fd    int  // of root, -1: not mounted
	whole bool // root is that of the hierarchy, so paths are the kernel's
	files runtimeFiles
	start time.Time
	// Kubelet is asked for the pods of containers, and their labels; nil: no kubelet is.
	Kubelet *Kubelet
	// InUse calls its argument for the cgroups that something refers to, which are then kept; nil: none.
	InUse func(func(id uint64))

	fast  cache.Cache[*known] // of what is in all
	mu    sync.Mutex
	all   map[uint64]*known // by cgroup id, which the kernel never gives again
	fresh chan *known       // made since, to be looked up

	procs *Processes // nil: there is no cgroup v1
	byPID cache.Cache[*ofProcess]
}

const (
	// maxCgroups is how many are kept: those that are asked for or referred to.
	maxCgroups = 1 << 14
	// maxFresh is how many that were just made wait to be looked up.
	maxFresh = 1 << 12
	// lookers is how many are looked up at once.
	lookers = 4
	// lookAgain is how long what could not be read is not looked for: every event may ask.
	lookAgain = time.Second
	// lookFresh is how long a name is believed before its files are looked at again.
	lookFresh = 100 * time.Millisecond
	// lookLate is the longest time after which files are looked for that were not there.
	lookLate = time.Minute
)

// known is what is known of one cgroup.
type known struct {
	id   uint64
	used atomic.Bool // since the last sweep
	now  atomic.Pointer[answer]
	made atomic.Pointer[tracer.Cgroup] // nil: not seen

	mu    sync.Mutex    // of whoever looks it up
	where *where        // nil: not known yet
	tries int           // in a row that found no files
	asks  int           // in a row for a pod that the kubelet did not list
	ask   time.Duration // when to ask again, since Cgroups.start
}

// answer is what came of looking a cgroup up.
type answer struct {
	Cgroup
	again atomic.Int64 // when to look again, nanoseconds since Cgroups.start
	owner owner        // of files
	files []file       // that the names are from
	pod   *listedPod   // that is part of the answer; nil: none is
}

const never = time.Duration(math.MaxInt64)

// lookAt sets when to look again.
func (a *answer) lookAt(t time.Duration) *answer {
	a.again.Store(int64(t))
	return a
}

// isOld tells whether it is time to look again.
func (r *Cgroups) isOld(a *answer) bool {
	again := time.Duration(a.again.Load())
	return again != never && time.Since(r.start) >= again
}

// where is a place in the hierarchy.
type where struct {
	parts []string
	dirs  []dir // from the root to the cgroup itself
	old   bool  // of cgroup v1: only what the files of a runtime confirm is true of it
}

// dir is who may make cgroups in one.
type dir struct {
	uid  uint32
	open bool // others may, too
}

// NewCgroups returns a resolver for the hierarchy mounted at root; with root ""
// it knows nothing.
func NewCgroups(root string) *Cgroups {
	r := &Cgroups{root: root, fd: -1, start: time.Now(), all: make(map[uint64]*known), fresh: make(chan *known, maxFresh)}
	if hasCgroup1() {
		r.procs = NewProcesses(false)
	}
	if root == "" {
		return r
	}
	if fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		r.fd = fd
		id, err := handleOf(fd)
		r.whole = err == nil && id == rootID
	}
	return r
}

// rootID is the id of the hierarchy's own root.
const rootID = 1

// handleOf is the id of the cgroup whose directory is open.
func handleOf(fd int) (uint64, error) {
	handle, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return 0, err
	}
	if len(handle.Bytes()) < 8 {
		return 0, unix.EINVAL
	}
	return binary.NativeEndian.Uint64(handle.Bytes()), nil
}

// Check tells whether cgroups can be named; if not, with the capability that this
// takes.
func (r *Cgroups) Check() error {
	if r.fd < 0 {
		return nil
	}
	id, err := handleOf(r.fd)
	if err != nil {
		return fmt.Errorf("handle of %s: %w", r.root, err)
	}
	fd, err := r.open(id)
	if err != nil {
		return fmt.Errorf("cgroups and containers are not named, that takes CAP_DAC_READ_SEARCH: %w", err)
	}
	return unix.Close(fd)
}

// Close frees the resolver.
func (r *Cgroups) Close() error {
	if r.fd < 0 {
		return nil
	}
	return unix.Close(r.fd)
}

// Made remembers a cgroup that was just made, and has Run look it up. It does not block.
func (r *Cgroups) Made(c tracer.Cgroup) {
	if r.fd < 0 {
		return
	}
	k := r.of(c.ID, true)
	if k == nil {
		return
	}
	k.made.Store(&c)
	if a := k.now.Load(); a != nil && a.Path == "" {
		k.now.CompareAndSwap(a, nil)
	}
	select {
	case r.fresh <- k:
	default: // it will be looked up when it is asked for
	}
}

// Run looks up all cgroups there are, and others as they are made, so that they are known when they
// are gone, until ctx ends.
func (r *Cgroups) Run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { r.lookAround(ctx) })
	for range lookers {
		all.Go(func() {
			for {
				select {
				case k := <-r.fresh:
					r.resolve(k)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	all.Wait()
}

// lookAround looks up all cgroups there are, as far as they are kept.
func (r *Cgroups) lookAround(ctx context.Context) { r.each(ctx, func(Cgroup) {}) }

// Running is what runs here: every cgroup there is, as far as they are kept. It reads files: hold no
// lock.
func (r *Cgroups) Running() []Cgroup {
	var all []Cgroup
	r.each(context.Background(), func(c Cgroup) { all = append(all, c) })
	return all
}

// Known is what is known already, also of cgroups that are gone.
func (r *Cgroups) Known() []Cgroup {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Cgroup, 0, len(r.all))
	for _, k := range r.all {
		if a := k.now.Load(); a != nil && a.Path != "" {
			all = append(all, a.Cgroup)
		}
	}
	return all
}

// each calls f for every cgroup there is, as far as they are kept.
func (r *Cgroups) each(ctx context.Context, f func(Cgroup)) {
	if r == nil || r.fd < 0 {
		return
	}
	count := 0
	_ = filepath.WalkDir(r.root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it is gone
		}
		if count++; count > maxCgroups/2 || ctx.Err() != nil {
			return filepath.SkipAll
		}
		if handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0); err == nil && len(handle.Bytes()) >= 8 {
			f(r.Resolve(binary.NativeEndian.Uint64(handle.Bytes())))
		}
		return nil
	})
}

// Resolve tells what a cgroup id stands for. A cgroup that is gone, and was not
// asked for while it existed, nor seen being made, is not known. It may read files: hold no lock. nil
// knows none.
func (r *Cgroups) Resolve(id uint64) Cgroup {
	if r == nil || id == 0 || r.fd < 0 {
		return Cgroup{}
	}
	k, ok := r.fast.Get(id)
	if !ok {
		k = r.of(id, false)
		r.fast.Put(id, k)
	}
	return r.resolve(k)
}

func (r *Cgroups) resolve(k *known) Cgroup {
	if !k.used.Load() { // not at each read: other processors read it too
		k.used.Store(true)
	}
	a := k.now.Load()
	if a != nil && !r.isOld(a) {
		return a.Cgroup
	}
	r.makeRoom()
	if a == nil {
		k.mu.Lock()
	} else if !k.mu.TryLock() { // another looks already
		return a.Cgroup
	}
	defer k.mu.Unlock()
	if a = k.now.Load(); a == nil || r.isOld(a) {
		a = r.look(k, a)
		k.now.Store(a)
	}
	return a.Cgroup
}

// of returns what is kept of a cgroup; with hurry nil where there are too many.
func (r *Cgroups) of(id uint64, hurry bool) *known {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.all[id]
	if k != nil {
		return k
	}
	if hurry && len(r.all) >= maxCgroups+maxFresh {
		return nil
	}
	k = &known{id: id}
	r.all[id] = k
	return k
}

// makeRoom forgets cgroups once there are too many.
func (r *Cgroups) makeRoom() {
	r.mu.Lock()
	full := len(r.all) >= maxCgroups
	r.mu.Unlock()
	if !full {
		return
	}
	keep := make(map[uint64]bool)
	if r.InUse != nil {
		r.InUse(func(id uint64) { keep[id] = true })
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) >= maxCgroups { // nobody else has
		r.sweep(keep)
	}
}

// sweep makes room: it forgets what is not to be kept and nobody asked for since the last sweep, and
// then some of the others.
func (r *Cgroups) sweep(keep map[uint64]bool) {
	for id, k := range r.all {
		if !k.used.Swap(false) && !keep[id] {
			delete(r.all, id)
		}
	}
	for _, spare := range []bool{true, false} {
		for id := range r.all {
			if len(r.all) <= maxCgroups*7/8 {
				return
			}
			if !spare || !keep[id] {
				delete(r.all, id)
			}
		}
	}
}

// look looks a cgroup up. before is what came of it last, nil the first time.
func (r *Cgroups) look(k *known, before *answer) *answer {
	now := time.Since(r.start)
	if before != nil && len(before.files) > 0 {
		if changed, err := before.changed(); err == nil && !changed {
			return r.withPod(k, before, before).lookAt(now + lookFresh)
		}
	}
	if k.where == nil {
		w, err := r.find(k)
		switch {
		case err != nil:
			return new(answer).lookAt(now + lookAgain)
		case w == nil:
			return new(answer).lookAt(never)
		}
		k.where = w
	}
	if len(k.where.parts) == 0 {
		a := &answer{Cgroup: Cgroup{Path: "/"}}
		return a.lookAt(never)
	}
	a, err := r.describe(k.where)
	if err != nil && before != nil && before.Path != "" {
		a.Cgroup = before.Cgroup // it had more
	}
	a = r.withPod(k, a, before)
	switch {
	case err != nil:
		a.lookAt(now + lookAgain)
	case a.Container == nil && !r.claimed(k.where):
		a.lookAt(never)
	case len(a.files) == 0:
		a.lookAt(now + min(lookFresh<<min(k.tries, 16), lookLate))
		k.tries++
	default:
		a.lookAt(now + lookFresh)
		k.tries = 0
	}
	return a
}

// changed tells whether files are others than when they were read.
func (a *answer) changed() (bool, error) {
	look := func() (changed bool, err error) {
		for i := range a.files {
			if changed, err = a.owner.changed(&a.files[i]); changed || err != nil {
				break
			}
		}
		return changed, err
	}
	if a.owner.user == nil {
		return look()
	}
	other, err := a.owner.files.within(*a.owner.user, func() (*record, error) {
		if changed, err := look(); !changed {
			return nil, err
		}
		return &record{}, nil
	})
	return other != nil, err
}

// find tells where a cgroup is: that is read from the cgroup itself, and once it is gone from what was
// seen of its making. nil: it is gone, and nobody saw that.
func (r *Cgroups) find(k *known) (*where, error) {
	w, err := r.read(k.id)
	if !errors.Is(err, unix.ESTALE) {
		return w, err
	}
	made := k.made.Load()
	if made == nil {
		return nil, nil
	}
	parent := r.of(made.Parent, false)
	parent.mu.Lock() // always from the inside out
	defer parent.mu.Unlock()
	if parent.where == nil {
		if parent.where, err = r.find(parent); parent.where == nil {
			return nil, err
		}
	}
	up := parent.where
	return &where{
		parts: append(up.parts[:len(up.parts):len(up.parts)], made.Name),
		dirs:  append(up.dirs[:len(up.dirs):len(up.dirs)], dir{uid: made.UID}),
	}, nil
}

// open opens a cgroup by its id, which is its file handle (kernfs). This needs
// CAP_DAC_READ_SEARCH.
func (r *Cgroups) open(id uint64) (int, error) {
	const fileidKernfs = 0xfe
	handle := unix.NewFileHandle(fileidKernfs, binary.NativeEndian.AppendUint64(nil, id))
	return unix.OpenByHandleAt(r.fd, handle, unix.O_PATH|unix.O_CLOEXEC)
}

// read opens a cgroup and reads where it is.
func (r *Cgroups) read(id uint64) (*where, error) {
	fd, err := r.open(id)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %d: %w", id, err)
	}
	defer unix.Close(fd)
	path, err := r.path(fd)
	if err != nil {
		return nil, err
	}
	w := &where{}
	if path != "/" {
		w.parts = strings.Split(path[1:], "/")
	}
	w.dirs = make([]dir, len(w.parts)+1)
	for i := range w.dirs {
		var st unix.Stat_t
		up := strings.Repeat("../", len(w.parts)-i)
		if err := unix.Fstatat(fd, up, &st, unix.AT_EMPTY_PATH); err != nil {
			return nil, fmt.Errorf("look who owns a cgroup: %w", err)
		}
		w.dirs[i] = dir{st.Uid, st.Mode&0o022 != 0}
	}
	return w, nil
}

// path is where a cgroup is, below root.
func (r *Cgroups) path(fd int) (string, error) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", fmt.Errorf("read path of a cgroup: %w", err)
	}
	const gone = " (deleted)" // since it was opened
	if strings.HasSuffix(path, gone) && unix.Access(path, unix.F_OK) != nil {
		path = strings.TrimSuffix(path, gone)
	}
	rel, err := filepath.Rel(r.root, path)
	if err != nil {
		return "", fmt.Errorf("path of a cgroup: %w", err)
	}
	return filepath.Join("/", rel), nil // of what was unmounted since path is below the hierarchy's root already
}

// claimed tells whether a place is named like a container's, so that there may be files of it later.
func (r *Cgroups) claimed(w *where) bool {
	for _, c := range claims(w.parts) {
		if c.namespace == "" {
			return true
		}
	}
	return false
}

// describe tells what is at a place. With an error the answer is what could be read.
func (r *Cgroups) describe(w *where) (*answer, error) {
	a := &answer{Cgroup: Cgroup{Path: "/" + strings.Join(w.parts, "/")}}
	err := r.container(w, a)
	inside := len(w.parts) // what is below the container is its own affair
	for _, c := range claims(w.parts) {
		if a.Container != nil && c.id == a.Container.ID {
			inside = c.part + 1
		}
	}
	unit, part, user := unitOf(w.parts[:inside])
	if unit != "" && w.unitIsTrue(part, user) {
		a.Unit, a.UnitUser = bounded(unit, maxName), user
	}
	return a, err
}

// unitIsTrue tells whether only systemd could have made the cgroup of a unit, or that user's own.
func (w *where) unitIsTrue(part int, user *uint32) bool {
	if user == nil {
		return ownedBy(w.dirs[:part+1], 0)
	}
	_, ok := w.user(part)
	return ok
}

// container finds the innermost container that a place belongs to, of those whose cgroup
// was made by whom they belong to: anybody may call a cgroup like one where he may make
// cgroups, as everybody may in the part of the tree that systemd gives him.
func (r *Cgroups) container(w *where, a *answer) error {
	for _, c := range claims(w.parts) {
		var rec *record
		var err error
		o := owner{files: &r.files}
		// Who may write in every directory above it could have made it.
		if ownedBy(w.dirs[:c.part+1], 0) {
			rec, err = r.files.find(c)
			if w.old && (rec == nil || rec.place == "") {
				rec = nil
			} else if rec == nil && c.namespace == "" { // its runtime's files are elsewhere
				rec = &record{container: Container{ID: c.id, Runtime: c.runtime}}
				if c.named {
					rec.container.Name = c.id
				}
			}
		} else if uid, ok := w.user(c.part); ok {
			o.user = &uid
			rec, err = r.files.findOf(uid, c)
		}
		if rec != nil && !rec.virtual && (o.user != nil || agrees("/"+strings.Join(w.parts[:c.part+1], "/"), rec.place, r.whole)) {
			rec.bound()
			rec.container.User = o.user
			a.Container, a.Pod, a.owner, a.files = &rec.container, rec.pod, o, rec.files
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bound cuts what is too long.
func (rec *record) bound() {
	c, p := &rec.container, rec.pod
	c.ID, c.Name, c.Image = bounded(c.ID, maxName), bounded(c.Name, maxName), bounded(c.Image, maxImage)
	if p != nil {
		p.Namespace, p.Name, p.UID, p.Container = bounded(p.Namespace, maxName), bounded(p.Name, maxName), bounded(p.UID, maxName), bounded(p.Container, maxName)
	}
}

// ownedBy tells whether nobody but uid, and root, may make anything in directories.
func ownedBy(dirs []dir, uid uint32) bool {
	for _, d := range dirs {
		if d.uid != uid && d.uid != 0 || d.open {
			return false
		}
	}
	return true
}

// user tells whose a part of the tree is that systemd's service of a user has, and
// whether that user alone may write there.
func (w *where) user(part int) (uid uint32, ok bool) {
	const slices = 2 // user.slice/user-UID.slice, which are root's
	if part <= slices {
		return 0, false
	}
	uid = w.dirs[slices+1].uid
	return uid, w.parts[0] == "user.slice" && w.parts[1] == fmt.Sprintf("user-%d.slice", uid) &&
		w.parts[2] == fmt.Sprintf("user@%d.service", uid) && ownedBy(w.dirs[:slices+1], 0) && ownedBy(w.dirs[:part+1], uid)
}
