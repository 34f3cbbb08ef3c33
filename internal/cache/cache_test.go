package cache

import (
	"sync"
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

func TestCacheKeepsWhatIsRead(t *testing.T) {
	var c Cache[string]
	if _, ok := c.Get(7); ok {
		t.Error("an empty cache has a value")
	}
	c.Put(7, "seven")
	for key := range uint64(20 * Max) {
		c.Put(1000+key, "other")
		if got, ok := c.Get(7); !ok || got != "seven" {
			t.Fatalf("after %d other keys: %q, %v", key+1, got, ok)
		}
	}
	c.Put(7, "again")
	if got, _ := c.Get(7); got != "again" {
		t.Errorf("a value set anew is %q", got)
	}
}

func TestCacheBound(t *testing.T) {
	var c Cache[uint64]
	const keys = 3 * Max
	for key := range uint64(keys) {
		c.Put(key, key)
	}
	kept := 0
	for key := range uint64(keys) {
		if got, ok := c.Get(key); ok {
			kept++
			if got != key {
				t.Fatalf("key %d has the value of %d", key, got)
			}
		}
	}
	if kept > Max || kept < Max/2 {
		t.Errorf("keeps %d of %d, want at most %d and not many fewer", kept, keys, Max)
	}
}

func TestCacheAtOnce(t *testing.T) {
	var c Cache[uint64]
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for key := range uint64(4 * ways << bits) {
				c.Put(key, 3*key)
				for _, k := range []uint64{key, key / 2} {
					if got, ok := c.Get(k); ok && got != 3*k {
						t.Errorf("key %d has value %d", k, got)
					}
				}
			}
		})
	}
	all.Wait()
}

func TestCacheGetAllocatesNothing(t *testing.T) {
	var c Cache[string]
	c.Put(1<<40, "value")
	if n := testutil.Allocs(100, func() { c.Get(1 << 40); c.Get(1 << 41) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
