package tracer

import (
	"errors"
	"sync"
	"testing"
)

// What decodes the kernel's types for one goroutine must not be another's: where modules are
// loaded that bring types, Go ended the program.
func TestKernelStartsAtOnce(t *testing.T) {
	var all sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		all.Go(func() {
			s, err := newSnapshotter(ReadsSockets|ReadsPorts, i == 1) // one with the programs for old kernels
			if err == nil {
				_, err = s.Take(0)
				err = errors.Join(err, s.Close())
			}
			errs[i] = err
		})
	}
	tr, err := Open(Config{Tier: testTier})
	if err == nil {
		err = tr.Close()
	}
	all.Wait()
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Error(err)
	}
}
