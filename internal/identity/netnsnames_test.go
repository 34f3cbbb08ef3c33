package identity

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// namedDir is a directory of names, as ip-netns(8) keeps one.
type namedDir struct {
	t    *testing.T
	path string
}

// make gives a name to a new namespace.
func (d namedDir) make(name string) NetNS {
	d.t.Helper()
	var id NetNS
	d.inNew(unix.CLONE_NEWNET, func() error {
		var err error
		if id.Inode, err = NetNSOfThread(); err != nil {
			return err
		}
		if id.Cookie, err = ownCookie(); err != nil && !errors.Is(err, unix.ENOPROTOOPT) { // before Linux 5.12
			return err
		}
		return d.mount(name, "net")
	})
	return id
}

// inNew runs do in a namespace of its own, in a thread that ends then.
func (d namedDir) inNew(kind int, do func() error) {
	d.t.Helper()
	if err := <-startInNew(kind, do); err != nil {
		d.t.Fatal(err)
	}
}

// startInNew calls do in a thread with a new namespace of a kind, and tells what came of it.
func startInNew(kind int, do func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(kind)
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return done
}

// mount gives a name to the thread's namespace of a kind.
func (d namedDir) mount(name, kind string) error {
	path := filepath.Join(d.path, name)
	f, err := os.OpenFile(path, os.O_CREATE, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	return unix.Mount("/proc/thread-self/ns/"+kind, path, "", unix.MS_BIND, "")
}

func (d namedDir) remove(name string) {
	d.t.Helper()
	path := filepath.Join(d.path, name)
	if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
		d.t.Error(err)
	}
}

// withNames runs a test of names, both where files tell cookies, as since Linux 6.18, and
// where they do not.
func withNames(t *testing.T, test func(t *testing.T, d namedDir, n *NetNSNames)) {
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: run it with sudo make test")
	}
	for _, exact := range []bool{true, false} {
		if exact && !filesTellCookies() {
			continue
		}
		t.Run(fmt.Sprintf("exact=%v", exact), func(t *testing.T) {
			d := namedDir{t, t.TempDir()}
			t.Cleanup(func() {
				for _, e := range must(os.ReadDir(d.path))(t) {
					_ = unix.Unmount(filepath.Join(d.path, e.Name()), unix.MNT_DETACH) // some are none
				}
			})
			n := newNetNSNames(d.path, nil)
			n.exact, n.host = exact, must(HostNetNS())(t)
			test(t, d, n)
		})
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantName(t *testing.T, n *NetNSNames, id NetNS, want string) {
	t.Helper()
	if got := n.Name(id, time.Now()); got != want {
		t.Errorf("namespace %v is called %q, want %q", id, got, want)
	}
}

// A namespace that is new is looked for at once, one that is gone leaves its name.
func TestNamesFollow(t *testing.T) {
	withNames(t, func(t *testing.T, d namedDir, n *NetNSNames) {
		a := d.make("a")
		wantName(t, n, a, "a")
		late := d.make("late")
		wantName(t, n, late, "late")
		wantName(t, n, NetNS{Inode: n.host, Cookie: 1}, "host")
		if a.Cookie == 0 {
			t.Skip("without cookies a number is not known to be another namespace's") // Linux before 5.12
		}
		d.remove("a")
		wantName(t, n, a, "a") // its last events
		wantName(t, n, NetNS{a.Inode, a.Cookie + 1<<40}, "")
		b := d.make("b")
		wantName(t, n, b, "b")
		again := d.make("a")
		wantName(t, n, again, "a")
		wantName(t, n, a, "") // which is another's now
	})
}

// Of a namespace that has one number after another had it only the cookie tells.
func TestNamesNumberUsedAgain(t *testing.T) {
	withNames(t, func(t *testing.T, d namedDir, n *NetNSNames) {
		before := time.Now().Add(-time.Minute)
		a := d.make("a")
		if got := n.Name(NetNS{Inode: a.Inode}, before); got != "" {
			t.Errorf("before it was made a namespace of that number is called %q", got)
		}
		if got := n.Name(NetNS{Inode: a.Inode}, time.Now()); got != "a" {
			t.Errorf("without its cookie it is called %q, want a", got)
		}
		if n.exact {
			wantName(t, n, NetNS{a.Inode, a.Cookie - 1}, "")
		}
	})
}

// A name may be given to a namespace that has been there for long.
func TestNamesGivenLater(t *testing.T) {
	withNames(t, func(t *testing.T, d namedDir, n *NetNSNames) {
		asked, named := make(chan NetNS), make(chan struct{})
		done := startInNew(unix.CLONE_NEWNET, func() error {
			cookie, _ := ownCookie()
			inode, err := NetNSOfThread()
			asked <- NetNS{inode, cookie}
			<-named
			return errors.Join(err, d.mount("given", "net"))
		})
		id := <-asked
		wantName(t, n, id, "")
		close(named)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		waitFor(t, "its name", func() bool { return n.Name(id, time.Now()) == "given" })
	})
}

// What stands beside the names of network namespaces is none.
func TestNamesOfOthers(t *testing.T) {
	withNames(t, func(t *testing.T, d namedDir, n *NetNSNames) {
		if err := os.WriteFile(filepath.Join(d.path, "elsewhere"), nil, 0o444); err != nil { // as it looks from another mount namespace
			t.Fatal(err)
		}
		d.inNew(unix.CLONE_NEWUTS, func() error { return d.mount("uts", "uts") })
		d.make("host")
		now := n.read(n.now.Load())
		if len(now.byCookie)+len(now.byInode) != 0 {
			t.Errorf("names %v %v, want none", now.byCookie, now.byInode)
		}
		for _, word := range []string{"elsewhere", "uts"} {
			if _, err := n.Want(word); !errors.Is(err, ErrNoNetNS) {
				t.Errorf("%s: %v, want %v", word, err, ErrNoNetNS)
			}
		}
	})
}

// What is wanted by name is whichever has the name.
func TestWantFollowsName(t *testing.T) {
	withNames(t, func(t *testing.T, d namedDir, n *NetNSNames) {
		a := d.make("a")
		w, err := n.Want("a")
		if err != nil {
			t.Fatal(err)
		}
		if a.Cookie == 0 {
			t.Skip("without cookies a number is not known to be another namespace's")
		}
		is := func(id NetNS, want bool) {
			t.Helper()
			if got := w.Is(id, time.Now()); got != want {
				t.Errorf("wanted %v: %v, want %v", id, got, want)
			}
		}
		is(a, true)
		d.remove("a")
		is(d.make("b"), false)
		is(a, true) // what ends in it
		again := d.make("a")
		is(again, true)
		is(a, false)
		if got, err := w.ID(); err != nil || !got.Is(again) {
			t.Errorf("it is %v (%v), want %v", got, err, again)
		}
		d.remove("a")
		if _, err := w.ID(); !errors.Is(err, ErrNoNetNS) {
			t.Errorf("when it is gone: %v, want %v", err, ErrNoNetNS)
		}
	})
}

func TestWant(t *testing.T) {
	withNames(t, func(t *testing.T, d namedDir, n *NetNSNames) {
		a := d.make("a")
		n.living = func() ([]NetNS, error) { return []NetNS{{Inode: n.host, Cookie: 1}, {a.Inode, 5}, a, {100, 100}}, nil }
		number := fmt.Sprint(a.Inode)
		w := must(n.Want(number))(t)
		if id, err := w.ID(); err != nil || id != a {
			t.Errorf("%s: %v (%v), want the newer, %v", number, id, err, a)
		}
		if !w.Is(a, time.Now()) || w.Is(NetNS{a.Inode, a.Cookie + 1}, time.Now()) && a.Cookie != 0 {
			t.Error("the namespace of a number is not that and no other")
		}
		hundred := d.make("100")
		if w := must(n.Want("100"))(t); !w.Is(hundred, time.Now()) || w.Is(NetNS{100, 100}, time.Now()) {
			t.Error("a name that looks like a number is none")
		}
		for word, want := range map[string]string{
			"7": "no such network namespace: inode number 7", "no": `"no": want host, a name`, "": `"": want host`, "..": `"..": want`,
			"a/../a": `"a/../a": want`, "-1": `"-1": want`, "4294967296": `"4294967296": want`,
		} {
			if _, err := n.Want(word); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %q in it", word, err, want)
			}
		}
		n.living = nil
		if w := must(n.Want(fmt.Sprint(n.host)))(t); !w.Is(NetNS{Inode: n.host}, time.Now()) {
			t.Error("the number of a process's namespace is not that namespace")
		}
	})
}

// Who makes namespaces without end does not make every event wait for their names.
func TestNamesReadRarely(t *testing.T) {
	withNames(t, func(t *testing.T, d namedDir, n *NetNSNames) {
		id := d.make("a")
		at := time.Now()
		wantName(t, n, id, "a")
		first := n.now.Load()
		for i := range uint64(1000) { // that all were made before the names were read
			n.Name(NetNS{Inode: 7, Cookie: 1 << 50 * (i + 1)}, at)
		}
		if now := n.now.Load(); now != first && time.Since(at) < maxAge {
			t.Error("the names were read again")
		}
		if allocs := testutil.Allocs(100, func() { n.Name(id, at) }); allocs > 1 {
			t.Errorf("%v allocations for a name that is known", allocs)
		}
	})
}

func TestNamesFixed(t *testing.T) {
	n := FixedNetNSNames(1, map[NetNS]string{{2, 20}: "blue", {3, 0}: "red"})
	for id, want := range map[NetNS]string{{1, 10}: "host", {2, 20}: "blue", {2, 21}: "", {3, 0}: "red", {4, 0}: ""} {
		wantName(t, n, id, want)
	}
	if w := must(n.Want("blue"))(t); !w.Is(NetNS{2, 20}, time.Now()) || w.Is(NetNS{1, 10}, time.Now()) {
		t.Error("blue is not what is called so")
	}
}

// What is told replaces what was told before; namespaces without a name are there, and are asked for by number.
func TestNamesTold(t *testing.T) {
	n := FixedNetNSNames(1, map[NetNS]string{{2, 20}: "blue", {3, 30}: ""})
	if id := must(must(n.Want("3"))(t).ID())(t); id != (NetNS{3, 30}) || !n.Known(id) || !n.Known(NetNS{1, 10}) || n.Known(NetNS{3, 31}) {
		t.Errorf("3 is %+v", id)
	}
	wantName(t, n, NetNS{3, 30}, "")
	n.Tell(map[NetNS]string{{3, 30}: "red"})
	wantName(t, n, NetNS{3, 30}, "red")
	wantName(t, n, NetNS{2, 20}, "")
	wantName(t, n, NetNS{1, 10}, "host")
	if _, err := n.Want("blue"); !errors.Is(err, ErrNoNetNS) {
		t.Errorf("what is not there any more: %v", err)
	}
}
