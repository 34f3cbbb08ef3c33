package tracer

import (
	"testing"

	"github.com/porthole-dev/porthole/internal/testutil"
)

// Each namespace has a range of its own; the program for it is loaded when it is asked for.
func TestKernelRanges(t *testing.T) {
	r := idle(t)
	testutil.WriteSysctl(t, "ipv4/ip_local_port_range", "40000 40063")
	testutil.WriteSysctl(t, "ipv4/ip_local_reserved_ports", "40003,40064")
	for _, reads := range []Reads{ReadsSockets, ReadsSockets | ReadsPorts} {
		s, err := NewSnapshotter(reads)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for range 2 {
			ranges, err := s.Ranges()
			if err != nil {
				t.Fatal(err)
			}
			var got *Range
			for ns, found := range ranges {
				if ns.Inode == r.netns {
					got = found
				}
			}
			if got == nil || got.Low != 40000 || got.High != 40063 || !got.Has(40000) || !got.Has(40063) || got.Has(39999) || got.Has(40064) {
				t.Fatalf("range %+v, want 40000-40063", got)
			}
			if !got.Reserved(40003) || !got.Reserved(40064) || got.Reserved(40004) {
				t.Error("reserved ports are not those of the sysctl")
			}
		}
	}
}
