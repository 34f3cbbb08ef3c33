package tracer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// Cgroups are told as they are made, with who made them, also those that are gone at once; and before
// what a process in them does.
func TestKernelCgroupMade(t *testing.T) {
	testutil.NewNetNS(t)
	root, err := CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	tr, err := Open(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	top := filepath.Join(root, "porthole-test-made")
	var mu sync.Mutex
	var got []Cgroup
	made := make(map[uint64]bool) // here
	tr.OnCgroup(func(c Cgroup) {
		mu.Lock()
		defer mu.Unlock()
		if c.Name == filepath.Base(top) || made[c.Parent] {
			got, made[c.ID] = append(got, c), true
		}
	})
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- tr.Run(t.Context(), func(*Snapshot) { close(ready) }) }()
	<-ready
	longest := strings.Repeat("n", 255)
	var want []Cgroup
	parent, err := cgroupID(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{top, top + "/a", top + "/a/b\x1b\xff", top + "/" + longest} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
		id, err := cgroupID(path)
		if err != nil {
			t.Fatal(err)
		}
		in := parent
		if i := slices.IndexFunc(want, func(c Cgroup) bool { return c.Name == filepath.Base(filepath.Dir(path)) }); i >= 0 {
			in = want[i].ID
		}
		want = append(want, Cgroup{ID: id, Parent: in, Name: filepath.Base(path)})
	}
	for _, path := range []string{top + "/" + longest, top + "/a/b\x1b\xff", top + "/a", top} {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
	testutil.AwaitWithin(t, 10*time.Second, "the cgroups that were made", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) >= len(want)
	})
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
